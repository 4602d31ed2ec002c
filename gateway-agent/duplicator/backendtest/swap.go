package backendtest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Full load of a closed loop: so many datagrams may be on their way at a time, which no receive buffer is too small for.
const (
	swaps      = 400
	swapWindow = 128
	setSize    = 4
)

// While the table is swapped, every datagram goes to exactly the old set of destinations or exactly the new one, and to the new one if it was sent after
// Apply returned.
func swapsUnderLoad(t *testing.T, b Backend) {
	sets := make([]*table.Snapshot, 2)
	var receivers []*tallyReceiver
	h := NewHome(t, b, packet.Strip, nil)
	for set := range sets {
		var d []table.Destination
		for i := range setSize {
			addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(10*set + i + 1)})
			h.WAN.Address("lo", addr.String()+"/32")
			d = append(d, To(fmt.Sprintf("set %d, %d", set, i), addr.String()))
			receivers = append(receivers, newTallyReceiver(h, addr.String()))
		}
		sets[set] = Snapshot(d)
		sets[set].ValidUntil = time.Now().Add(10 * time.Minute)
	}
	h.Apply(sets[0])
	cam := h.Sender(Camera, StreamID)
	h.send(cam, Groupcast1, "warm")
	h.until("warm", func() bool { return sum64(receivers) == setSize })

	var done atomic.Bool
	var sent atomic.Int64
	var began, ended [swaps]int64 // numbers of datagrams
	var swapping sync.WaitGroup
	swapping.Go(func() {
		defer done.Store(true)
		for i := range swaps {
			gap := int64(swapWindow / 4)
			if i%8 == 0 { // long enough that some were sent and received in between
				gap = 3 * swapWindow
			}
			for n := sent.Load(); sent.Load() < n+gap; time.Sleep(10 * time.Microsecond) {
				if t.Failed() {
					return
				}
			}
			// The datagram with the number of sent may be on its way already.
			began[i] = sent.Load()
			if err := h.Duplicator.Apply(sets[(i+1)%2]); err != nil {
				t.Error(err)
				return
			}
			ended[i] = sent.Load() + 1
		}
	})
	for end := time.Now().Add(2 * time.Minute); !done.Load() && time.Now().Before(end); {
		for range swapWindow / 2 {
			h.send(cam, Groupcast1, fmt.Sprintf("%08d", sent.Load()))
			sent.Add(1)
		}
		h.until("received", func() bool { return sum64(receivers) >= uint64(setSize*(1+sent.Load()-swapWindow/2)) })
	}
	swapping.Wait()
	h.until("all received", func() bool { return sum64(receivers) >= uint64(setSize*(1+sent.Load())) })

	got := make([]int, sent.Load())
	for i, r := range receivers {
		for _, n := range r.close() {
			got[n] |= 1 << i
		}
	}
	const first, second = 1<<setSize - 1, (1<<setSize - 1) << setSize
	counts := map[int]int{}
	for n, set := range got {
		counts[set]++
		if set != first && set != second {
			t.Errorf("datagram %d went to %08b", n, set)
		}
	}
	sure := 0
	for i, n := range ended {
		end := sent.Load()
		if i+1 < swaps {
			end = began[i+1] - swapWindow // those are at their receivers, whatever the backend holds back
		}
		for ; n < end; n++ {
			sure++
			if want := []int{first, second}[(i+1)%2]; got[n] != want {
				t.Errorf("datagram %d, sent after swap %d and before the next, went to %08b", n, i, got[n])
			}
		}
	}
	t.Logf("%d datagrams, %d to the first set, %d to the second; %d surely between two swaps", sent.Load(), counts[first], counts[second], sure)
	if counts[first] == 0 || counts[second] == 0 || sure == 0 {
		t.Error("one of the sets got nothing, or nothing came between two swaps: the test shows nothing")
	}
	for _, r := range receivers {
		if r.twice {
			t.Error("a datagram arrived twice")
		}
	}
}

// tallyReceiver notes which datagrams arrive.
type tallyReceiver struct {
	conn  *net.UDPConn
	done  sync.WaitGroup
	total atomic.Uint64
	seen  []int
	twice bool
}

func newTallyReceiver(h *Home, addr string) *tallyReceiver {
	r := &tallyReceiver{conn: h.Receiver(addr)}
	r.done.Go(func() {
		buf := make([]byte, 100)
		for {
			n, _, err := r.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			var i int
			if _, err := fmt.Sscanf(string(buf[:n]), "%08d", &i); err == nil {
				r.seen = append(r.seen, i)
			}
			r.total.Add(1)
		}
	})
	return r
}

func (r *tallyReceiver) close() []int {
	r.conn.Close()
	r.done.Wait()
	slices.Sort(r.seen)
	r.twice = len(slices.Compact(slices.Clone(r.seen))) != len(r.seen)
	return r.seen
}

func sum64(receivers []*tallyReceiver) (n uint64) {
	for _, r := range receivers {
		n += r.total.Load()
	}
	return n
}
