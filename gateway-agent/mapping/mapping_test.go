package mapping

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

var (
	camera = consent.Sender{Group: "g", Source: "camera"}
	second = consent.Sender{Group: "g", Source: "second"}
	server = netip.MustParseAddrPort("96.114.14.9:3478")
	home   = netip.MustParseAddrPort("71.230.36.1:40512")
)

// world is a machine, a NAT that makes home of the camera's port, and a clock that goes when it is told to.
type world struct {
	*testing.T
	Machine

	now   time.Time
	away  bool // the server doesn't answer
	nat   netip.AddrPort
	asked int
	moved int
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, now: time.Unix(1e9, 0), nat: home}
	w.Ask(w.now, server)
	w.Keep(w.now, []consent.Sender{camera})
	return w
}

// answer is what a STUN server says to a question that it sees come from there. One that must not be made to send more than it gets answers what is as
// large as that.
func answer(t testing.TB, question []byte, from netip.AddrPort) []byte {
	t.Helper()
	asked := &stun.Message{Raw: question}
	require.NoError(t, asked.Decode())
	m, err := stun.Build(stun.NewTransactionIDSetter(asked.TransactionID), stun.BindingSuccess, &stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())})
	require.NoError(t, err)
	require.LessOrEqual(t, len(m.Raw), len(question))
	return m.Raw
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.Helper()
	for end := w.now.Add(d); ; {
		questions, next := w.Tick(w.now)
		require.True(w, next.After(w.now), "a tick that is due again at once never ends")
		for _, q := range questions {
			w.asked++
			require.Equal(w, server, q.To)
			if w.away {
				continue
			}
			ours, moved := w.Receive(w.now, q.Sender, server, answer(w, q.Data, w.nat))
			assert.True(w, ours)
			if moved {
				w.moved++
			}
		}
		if next.After(end) {
			w.now = end
			return
		}
		w.now = next
	}
}

func (w *world) is(want netip.AddrPort, settled bool) {
	w.Helper()
	at, is := w.Of(w.now, camera)
	assert.Equal(w, want, at)
	assert.Equal(w, settled, is)
}

func TestConsentTheMappingIsLearnedKeptAndFollowed(t *testing.T) {
	w := newWorld(t)
	w.is(netip.AddrPort{}, false)
	w.pass(0)
	w.is(home, true)
	w.asked = 0
	w.pass(5 * time.Minute)
	assert.InDelta(t, 60, w.asked, 15, "every 5 s, a fifth more or less")
	assert.Equal(t, 1, w.moved)
	w.nat = netip.MustParseAddrPort("71.230.36.2:1024")
	w.pass(6 * time.Second)
	w.is(w.nat, true)
	assert.Equal(t, 2, w.moved, "one check later")

	// What is known holds while the server is away: receivers still find their way by it.
	w.away = true
	w.pass(time.Hour)
	w.is(w.nat, true)
	w.away = false
	w.pass(6 * time.Second)
	w.Keep(w.now, []consent.Sender{camera, second})
	w.is(w.nat, true)
	w.Keep(w.now, nil)
	w.pass(0)
	w.is(netip.AddrPort{}, true)
}

func TestConsentAServerThatIsSilentHoldsNobodyUp(t *testing.T) {
	w := newWorld(t)
	w.away = true
	w.pass(Patience - time.Millisecond)
	w.is(netip.AddrPort{}, false)
	assert.InDelta(t, 4, w.asked, 1, "soon again, in case one was lost")
	w.pass(time.Millisecond)
	w.is(netip.AddrPort{}, true)

	w.Ask(w.now, netip.AddrPort{}) // it has none any more
	w.asked = 0
	w.pass(time.Hour)
	assert.Zero(t, w.asked)
	w.is(netip.AddrPort{}, true)
}

// Only the answer to the newest question, from the server, at that port, and only once.
func TestConsentWhatIsNoAnswerChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.Keep(w.now, []consent.Sender{camera, second})
	questions, _ := w.Tick(w.now)
	require.Len(t, questions, 2)
	q := questions[0]
	other := camera
	if q.Sender == camera {
		other = second
	}
	lie := netip.MustParseAddrPort("8.8.8.8:53")
	lied := answer(t, q.Data, lie)
	ours, moved := w.Receive(w.now, q.Sender, netip.MustParseAddrPort("96.114.14.9:3479"), lied)
	assert.False(t, ours || moved, "from elsewhere: perhaps a receiver's")
	forged, _ := consentcheck.NewQuestion() // an answer to another question
	for name, datagram := range map[string][]byte{
		"nothing": nil, "media": []byte("\x80 media"), "the question": q.Data, "another's": answer(t, forged, lie),
		"of nobody": answer(t, q.Data, netip.MustParseAddrPort("0.0.0.0:7")), "multicast": answer(t, q.Data, netip.MustParseAddrPort("224.0.0.1:7")),
		"loopback": answer(t, q.Data, netip.MustParseAddrPort("127.0.0.1:7")), "no port": answer(t, q.Data, netip.MustParseAddrPort("8.8.8.8:0")),
		"IPv6": answer(t, q.Data, netip.MustParseAddrPort("[2600::1]:7")),
	} {
		ours, moved := w.Receive(w.now, q.Sender, server, datagram)
		assert.True(t, ours, name)
		assert.False(t, moved, name)
	}
	_, moved = w.Receive(w.now, other, server, lied)
	assert.False(t, moved, "at the other port")
	_, moved = w.Receive(w.now, q.Sender, server, answer(t, q.Data, home))
	assert.True(t, moved)
	_, moved = w.Receive(w.now, q.Sender, server, lied)
	assert.False(t, moved, "twice")
	at, _ := w.Of(w.now, q.Sender)
	assert.Equal(t, home, at)
	assert.Equal(t, models.ConsentEvery, Every)
}
