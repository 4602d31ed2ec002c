package ledger_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
)

const (
	second = int64(time.Second)
	start  = 1_700_000_000 * second
	apart  = second / 100 // between two datagrams
)

// datagrams makes count datagrams, the first with the given extended number; each payload differs from the others.
func datagrams(first uint64, at int64, count int) []ledger.Datagram {
	made := make([]ledger.Datagram, count)
	for i := range made {
		made[i] = ledger.Datagram{At: at + int64(i)*apart, Sequence: first + uint64(i), IsRTP: true, Size: 1328, Hash: uint64(i) * 0x9e3779b97f4a7c15}
	}
	return made
}

// arrived is what a receiver logs of them: a little later, with numbers that begin in another cycle.
func arrived(sent []ledger.Datagram, cycles int64) []ledger.Datagram {
	got := make([]ledger.Datagram, len(sent))
	for i, d := range sent {
		d.At += second / 1000
		d.Sequence = uint64(int64(d.Sequence) + cycles<<16)
		got[i] = d
	}
	return got
}

func receiver(joined int64, got []ledger.Datagram, events ...ledger.Event) ledger.Receiver {
	log := ledger.Log{Datagrams: got, Events: append([]ledger.Event{{At: joined, Name: "joined"}}, events...)}
	return ledger.Receiver{Name: "upload", Log: log, Frames: 15}
}

func remove(from []ledger.Datagram, i int) []ledger.Datagram {
	return append(append([]ledger.Datagram{}, from[:i]...), from[i+1:]...)
}

// later is a log whose datagrams came that much later.
func later(log []ledger.Datagram, by int64) []ledger.Datagram {
	log = slices.Clone(log)
	for i := range log {
		log[i].At += by
	}
	return log
}

func TestSettle(t *testing.T) {
	sent := datagrams(65_536+65_500, start, 1000) // the number in RTP wraps after 36
	at := func(i int) int64 { return sent[i].At }
	leaving := func(i int) ledger.Event { return ledger.Event{At: at(i) - 1, Name: "leaving"} }
	left := func(i int) ledger.Event { return ledger.Event{At: at(i) + 1, Name: "left"} }
	good := arrived(sent[10:], 0)

	tests := []struct {
		name     string
		receiver ledger.Receiver
		want     ledger.Destination
		after    int
		why      string // part of the first reason; "" is ok
	}{
		{"all, over the wrap", receiver(at(10), good), ledger.Destination{Expected: 990, Received: 990}, 0, ""},
		{"joined after the wrap, so its own numbers are a cycle lower", receiver(at(500), arrived(sent[500:], -1)), ledger.Destination{Expected: 500, Received: 500}, 0, ""},
		{"the first datagram came before the POST's answer", receiver(at(10)+second/100, good), ledger.Destination{Expected: 990, Received: 990}, 0, ""},
		{"one lost", receiver(at(10), remove(good, 400)), ledger.Destination{Expected: 990, Received: 989}, 0, "misses 1 of 990"},
		{"the last one lost", receiver(at(10), good[:989]), ledger.Destination{Expected: 990, Received: 989}, 0, "misses 1 of 990"},
		{"reordered", receiver(at(10), append(append(append([]ledger.Datagram{}, good[:5]...), good[6], good[5]), good[7:]...)), ledger.Destination{Expected: 990, Received: 990}, 0, ""},
		{"one twice", receiver(at(10), append(append([]ledger.Datagram{}, good...), good[7])), ledger.Destination{Expected: 990, Received: 990}, 0, "more than once"},
		{"one twice does not make up for one lost", receiver(at(10), append(remove(good, 400), good[7])), ledger.Destination{Expected: 990, Received: 989}, 0, "misses 1 of 990"},
		{"registered long before the camera began", receiver(at(0)-2*second, arrived(sent, 0)), ledger.Destination{Expected: 1000, Received: 1000}, 0, ""},
		{"first datagram too late", receiver(at(10), later(good, 2*second)), ledger.Destination{Expected: 990, Received: 990}, 0, "1s is the limit"},
		{"nothing came", receiver(at(10), nil), ledger.Destination{Expected: 990}, 0, "got nothing"},
		{"left in order", receiver(at(10), good[:500], leaving(510), left(511)), ledger.Destination{Expected: 500, Received: 500}, 0, ""},
		{"what is sent while it leaves may come or not", receiver(at(10), good[:505], leaving(510), left(511)), ledger.Destination{Expected: 500, Received: 500}, 0, ""},
		{"lost before it left", receiver(at(10), good[:499], leaving(510), left(511)), ledger.Destination{Expected: 500, Received: 499}, 0, "misses 1 of 500"},
		// Left at 511 and a bit: 200 ms later is after the datagram 531.
		{"the last that may come after the leave", receiver(at(10), good[:522], leaving(510), left(511)), ledger.Destination{Expected: 500, Received: 500}, 0, ""},
		{"one came that was sent too long after the leave", receiver(at(10), good[:523], leaving(510), left(511)), ledger.Destination{Expected: 500, Received: 500}, 1, "had left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := ledger.Settle(ledger.Log{Datagrams: sent}, []ledger.Receiver{tt.receiver}, "upload")
			tt.want.Name, tt.want.Frames = "upload", 15
			assert.Equal(t, []ledger.Destination{tt.want}, v.Destinations)
			assert.Equal(t, &ledger.Left{Name: "upload", AfterLeave: tt.after}, v.Left)
			assert.Equal(t, 1000, v.Sent)
			if tt.why == "" {
				assert.Equal(t, "ok", v.Result)
				assert.Empty(t, v.Why)
				return
			}
			assert.Equal(t, "failed", v.Result)
			require.NotEmpty(t, v.Why)
			assert.Contains(t, v.Why[0], tt.why)
		})
	}
}

func TestSettleCorrupt(t *testing.T) {
	sent := datagrams(70_000, start, 100)
	for name, spoil := range map[string]func([]ledger.Datagram) []ledger.Datagram{
		"another payload": func(d []ledger.Datagram) []ledger.Datagram { d[50].Hash++; return d },
		"shorter":         func(d []ledger.Datagram) []ledger.Datagram { d[50].Size--; return d },
		"the payload of its neighbour": func(d []ledger.Datagram) []ledger.Datagram {
			d[50].Hash = d[49].Hash
			return d
		},
		"a foreign stream's": func(d []ledger.Datagram) []ledger.Datagram {
			return append(d, ledger.Datagram{At: start, Sequence: 12, IsRTP: true, Size: 1328, Hash: 1})
		},
		"not RTP": func(d []ledger.Datagram) []ledger.Datagram {
			return append(d, ledger.Datagram{At: start, Size: 1328, Hash: d[0].Hash})
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := ledger.Settle(ledger.Log{Datagrams: sent}, []ledger.Receiver{receiver(start, spoil(arrived(sent, 0)))}, "")
			assert.Equal(t, "failed", v.Result)
			assert.Equal(t, []ledger.Destination{{Name: "upload", Expected: 100, Received: 100, Corrupt: 1, Frames: 15}}, v.Destinations)
			assert.Nil(t, v.Left)
		})
	}
}

func TestSettleManyWraps(t *testing.T) {
	sent := datagrams(65_536, start, 200_000)
	for _, from := range []int{5, 65_600, 131_072, 199_000} {
		got := arrived(sent[from:], -int64(from>>16))
		v := ledger.Settle(ledger.Log{Datagrams: sent}, []ledger.Receiver{receiver(sent[from].At, got)}, "")
		assert.Equal(t, "ok", v.Result, "%v", v.Why)
		assert.Len(t, got, v.Destinations[0].Received)
		assert.Len(t, got, v.Destinations[0].Expected)
	}
}

func TestSettleWithoutVideoOrStream(t *testing.T) {
	sent := datagrams(70_000, start, 100)
	blind := receiver(start, arrived(sent, 0))
	blind.Frames = 0
	v := ledger.Settle(ledger.Log{Datagrams: sent}, []ledger.Receiver{blind}, "")
	assert.Equal(t, []string{"No video frame could be decoded from what upload got."}, v.Why)

	v = ledger.Settle(ledger.Log{}, nil, "")
	assert.Equal(t, []string{"The camera sent nothing."}, v.Why)
}

// The shape is what the issue documents and other programs read.
func TestVerdictJSON(t *testing.T) {
	sent := datagrams(70_000, start, 100)
	got := receiver(start, arrived(sent[:50], 0), ledger.Event{At: sent[50].At, Name: "leaving"}, ledger.Event{At: sent[52].At, Name: "left"})
	v := ledger.Settle(ledger.Log{Datagrams: sent}, []ledger.Receiver{got}, "upload")
	v.GroupIP = "127.1.2.230"
	b, err := json.Marshal(v)
	require.NoError(t, err)
	assert.JSONEq(t, `{"result":"ok","groupIP":"127.1.2.230","sent":100,"destinations":[`+
		`{"name":"upload","expected":50,"received":50,"corrupt":0,"frames":15}],"left":{"name":"upload","afterLeave":0}}`, string(b))
}

func TestRead(t *testing.T) {
	log, err := ledger.Read(strings.NewReader(fmt.Sprintf(`# %d joining
# %d joined groupIP=127.1.2.230 generation=1 state=1
1700000000000000003 131071 1328 00ff00ff00ff00ff
1700000000000000004 - 4 ffffffffffffffff
17000000000000000`, start, start+1)))
	require.NoError(t, err)
	assert.Equal(t, []ledger.Event{{At: start, Name: "joining"}, {At: start + 1, Name: "joined", Rest: "groupIP=127.1.2.230 generation=1 state=1"}}, log.Events)
	assert.Equal(t, []ledger.Datagram{
		{At: start + 3, Sequence: 131_071, IsRTP: true, Size: 1328, Hash: 0x00ff00ff00ff00ff},
		{At: start + 4, Size: 4, Hash: 0xffffffffffffffff},
	}, log.Datagrams)
	for _, bad := range []string{"1 2 3\n", "1 2 3 4 5\n", "x 2 3 4\n", "1 -2 3 4\n", "1 2 x 4\n", "1 2 3 zz\n", "# joined\n", "\n"} {
		_, err := ledger.Read(strings.NewReader(bad))
		assert.Error(t, err, "%q", bad)
	}
}
