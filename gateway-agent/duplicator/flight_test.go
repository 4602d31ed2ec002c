package duplicator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// Whatever the sizes, the messages of a flight say what the kernel may make of them (udp(7)), and together they are the datagrams in
// their order, from any datagram on and whatever may be segmented.
func TestAFlightIsItsDatagramsInOrder(t *testing.T) {
	f := &flight{}
	f.build()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.SampledFrom([]int{0, 1, 1200, 1201, 1464}), rapid.IntRange(0, 65507))
		sizes := rapid.SliceOfN(size, 1, batchSize).Draw(t, "sizes")
		if rapid.Bool().Draw(t, "alike") {
			for i := range sizes {
				sizes[i] = sizes[0]
			}
		}
		segmentable := rapid.SampledFrom([]int{0, 1200, math.MaxInt}).Draw(t, "segmentable")
		payloads := make([][]byte, len(sizes))
		f.reset()
		for i, size := range sizes {
			payloads[i] = bytes.Repeat([]byte{byte(i)}, size+1)
			f.add(&payloads[i][0], size)
		}
		for from := range sizes {
			var got []string
			for i := from; i < len(sizes); {
				messages := f.from(i, segmentable)
				for j := range messages {
					if err := checkMessage(&messages[j], segmentable); err != nil {
						t.Fatalf("from datagram %d: %v", from, err)
					}
					for _, b := range buffersOf(&messages[j]) {
						got = append(got, describe(b))
						i++
					}
				}
			}
			var want []string
			for _, p := range payloads[from:] {
				want = append(want, describe(p[:len(p)-1]))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("from datagram %d: %v, want %v", from, got, want)
			}
		}
	})
}

// checkMessage says what is wrong with a message by the rules for UDP_SEGMENT.
func checkMessage(m *message, segmentable int) error {
	buffers := buffersOf(m)
	if len(buffers) == 1 {
		if m.Controllen != 0 {
			return fmt.Errorf("one datagram has a control message")
		}
		return nil
	}
	control := unsafe.Slice(m.Control, m.Controllen)
	size := int(binary.NativeEndian.Uint16(control[unix.CmsgLen(0):]))
	total := 0
	for i, b := range buffers {
		total += len(b)
		if len(b) > size || len(b) == 0 || i < len(buffers)-1 && len(b) < size {
			return fmt.Errorf("segment %d of %d has %d bytes, the segments %d", i, len(buffers), len(b), size)
		}
	}
	if len(buffers) > 64 || total > 65000 || size > segmentable {
		return fmt.Errorf("%d segments of %d bytes, %d in all", len(buffers), size, total)
	}
	return nil
}

func buffersOf(m *message) [][]byte {
	var all [][]byte
	for _, b := range unsafe.Slice(m.Iov, m.parts()) {
		all = append(all, unsafe.Slice(b.Base, int(b.Len)))
	}
	return all
}

func describe(b []byte) string {
	if len(b) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d×%d", len(b), b[0])
}

// What is alike is one message: else the rest would be right and nothing gained.
func TestEqualDatagramsAreOneMessage(t *testing.T) {
	f := &flight{}
	f.build()
	for _, c := range []struct {
		sizes, want string
		add         []int
	}{
		{"a key frame", "[4 1]", []int{1200, 1200, 1200, 700, 1200}},
		{"a shorter one ends the run", "[2 2]", []int{1200, 700, 700, 100}},
		{"a longer one begins a run", "[1 1 1]", []int{1198, 1199, 1200}},
		{"one without bytes stands alone", "[2 1 1]", []int{10, 10, 0, 10}},
		{"only such", "[1 1]", []int{0, 0}},
		{"65,000 bytes", "[46 1]", []int{46: 0}},
	} {
		f.reset()
		payload := make([]byte, 1<<16)
		for _, size := range c.add {
			if c.sizes == "65,000 bytes" {
				size = 1400
			}
			f.add(&payload[0], size)
		}
		var got []int
		for i := range f.runs {
			got = append(got, f.whole[i].parts())
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: runs of %v, want %s", c.sizes, got, c.want)
		}
	}
}

// Flights hold what is alike, each stream stays in order, and nothing is left out or sent twice.
func TestStreamsStayInOrder(t *testing.T) {
	a, err := newArena()
	if err != nil {
		t.Fatal(err)
	}
	defer a.free()
	rapid.Check(t, func(t *rapid.T) {
		left := a.judged[:0]
		sent := map[netip.AddrPort][]string{}
		for i := range rapid.IntRange(1, batchSize).Draw(t, "datagrams") {
			from := netip.AddrPortFrom(netip.MustParseAddr("172.168.0.5"), rapid.Uint16Range(1, 3).Draw(t, "port"))
			d := packet.Datagram{Source: from, TTL: rapid.Uint8Range(60, 61).Draw(t, "ttl")}
			a.slots[i*slotSize], a.in[i].length = byte(i), 1
			left = append(left, judged{slot: i, camera: d})
			sent[from] = append(sent[from], fmt.Sprintf("%d with TTL %d", i, d.TTL))
		}
		got := map[netip.AddrPort][]string{}
		for len(left) > 0 {
			first := left[0].camera
			left = a.gather(left)
			for i := range a.flight.datagrams {
				got[first.Source] = append(got[first.Source], fmt.Sprintf("%d with TTL %d", *a.flight.buffers[i].Base, first.TTL))
			}
		}
		if !reflect.DeepEqual(got, sent) {
			t.Fatalf("%v, want %v", got, sent)
		}
	})
}
