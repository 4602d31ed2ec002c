package backendtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/admission"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// On an uplink that takes two of three copies, one destination is left out at a time and each in turn; those datagrams are counted for it. When the
// camera pauses everybody is served again.
func uplinkRate(t *testing.T, b Backend) {
	const (
		payload = 1000
		every   = 10 * time.Millisecond
		one     = (payload + 28) * 8 * 100 // bits per second of one copy
	)
	var gate *admission.Gate
	gated := b
	gated.Open = func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
		gate = admission.New(b.Open(t, c), admission.Config{Rate: 2*one + one/2, Look: 200 * time.Millisecond, Turn: 400 * time.Millisecond})
		return gate
	}
	h := NewHome(t, gated, packet.Strip, Snapshot([]table.Destination{To("phone", netlab.Phone), To("thumbnail", netlab.Thumbnail), To("upload", netlab.Upload)}))
	for _, a := range []string{netlab.Phone, netlab.Thumbnail, netlab.Upload} {
		h.Receiver(a)
	}
	cam := h.Sender(Camera, StreamID)
	sent := uint64(0)
	seen := map[string]bool{} // who missed something
	for end := time.Now().Add(wait); len(seen) < 3; time.Sleep(every) {
		if time.Now().After(end) {
			t.Fatalf("left out: %v; %+v", seen, h.Duplicator.Counters())
		}
		h.send(cam, Groupcast1, string(text(int(sent), payload)))
		sent++
		load := gate.Load()
		if len(load.Shed) > 1 {
			t.Fatalf("%v are left out, of which one is enough; wanted %d of %d bit/s", load.Shed, load.Wanted, load.Rate)
		}
		for id, d := range h.Duplicator.Counters().Destinations {
			if d.Drops[admission.DropUplink] > 0 {
				seen[id] = true
			}
		}
	}
	h.until("everybody is served again", func() bool { return len(gate.Load().Shed) == 0 })
	h.until("measured", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(id string) bool {
			d := h.Duplicator.Counters().Destinations[id]
			// What came while it was changing who is left out may be missing.
			return d.Packets+total(d.Drops) < sent-sent/10
		})
	})
	before := map[string]uint64{}
	for id, d := range h.Duplicator.Counters().Destinations {
		before[id] = d.Packets
		if d.Drops[admission.DropUplink] == 0 || d.Packets < sent/3 {
			t.Errorf("%s: %+v of %d", id, d, sent)
		}
	}
	h.send(cam, Groupcast1, "for everybody")
	h.until("three copies", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Keys(before)), func(id string) bool { return h.Duplicator.Counters().Destinations[id].Packets != before[id]+1 })
	})
}

// A wall clock that is an hour off when a snapshot comes doesn't prolong it: MaxStale counts, and by a clock that nobody can set.
func wrongClock(t *testing.T, b Backend) {
	const maxStale = time.Second
	h := newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, MaxStale: maxStale})
	h.Wide = h.WAN.Capture("ext0")
	s := WorkedExample()
	s.ValidUntil = time.Now().Add(time.Hour).Round(0) // by the wall clock only
	for copied := false; !copied; {                   // on a busy machine a second may be over before
		h.Apply(s)
		stale := h.drops(packet.Stale.String())
		h.inject(raw{payload: []byte("in time")}.bytes())
		h.until("judged", func() bool {
			copied = len(h.onUplink()) >= 3
			return copied || h.drops(packet.Stale.String()) > stale
		})
	}
	time.Sleep(maxStale)
	before, stale := len(h.onUplink()), h.drops(packet.Stale.String())
	h.inject(raw{payload: []byte("too late")}.bytes())
	h.until("counted", func() bool { return h.drops(packet.Stale.String()) == stale+1 })
	if n := len(h.onUplink()) - before; n != 0 {
		t.Errorf("%d copies", n)
	}
}

// What is sent to a group IP that nobody has is seen by a backend that sees packets, and leaves no trace elsewhere.
func nobodysGroup(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	before := len(h.onUplink())
	for range 3 {
		h.inject(raw{to: netip.MustParseAddr("172.168.0.250"), payload: []byte("for nobody")}.bytes())
	}
	h.inject(raw{payload: []byte("for somebody"), id: 3}.bytes())
	h.until("copied", func() bool { return len(h.onUplink()) == before+3 })
	want := uint64(0)
	if b.PacketByPacket {
		want = 3
	}
	if c := h.Duplicator.Counters(); c.UnknownGroup != want || len(c.Groups) != 2 {
		t.Errorf("%d counted, want %d; %+v", c.UnknownGroup, want, c)
	}
}

// A stream more than there may be is counted and costs those that are there nothing.
func manyStreams(t *testing.T, b Backend) {
	const limit = 3
	h := newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, MaxStreams: limit})
	h.Wide = h.WAN.Capture("ext0")
	h.Apply(Snapshot([]table.Destination{To("upload", netlab.Upload)}))
	upload := h.Receiver(netlab.Upload)
	for round := range 3 {
		for i := range limit {
			h.inject(raw{payload: text(i, 100), sport: 4001 + uint16(i)}.bytes())
			h.expect(upload, string(text(i, 100)))
		}
		for i := range 2 {
			h.inject(raw{payload: []byte("one too many"), sport: 5001 + uint16(i)}.bytes())
		}
		h.until("counted", func() bool { return h.drops(duplicator.DropStreams) == uint64(2*(round+1)) })
	}
	if c := h.Duplicator.Counters().Destinations["upload"]; c.Packets != 3*limit {
		t.Errorf("%+v", c)
	}
}

// A router on the way that takes smaller packets says so once; that is counted, and from then on copies get there in pieces.
func pathMTU(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, Snapshot([]table.Destination{To("upload", netlab.Upload)}))
	upload := h.Receiver(netlab.Upload)
	big := func(i int) []byte { return raw{payload: text(i, 1400), flags: 0x4000, id: uint16(i)}.bytes() }
	h.inject(big(1))
	h.expect(upload, string(text(1, 1400)))
	h.until("captured", func() bool { return len(h.onUplink()) == 1 })
	sent := h.onUplink()[0]

	// RFC 1191 §4: the header and the first eight bytes of what was too big.
	icmp := slices.Concat([]byte{3, 4, 0, 0, 0, 0, 1000 >> 8, 1000 & 0xff}, sent[:28])
	binary.BigEndian.PutUint16(icmp[2:], ^sum16(icmp))
	answer := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 1, 0, 0, 64, 1, 0, 0, 203, 0, 113, 254}, Uplink.AsSlice(), icmp)
	binary.BigEndian.PutUint16(answer[10:], ^sum16(answer[:20]))
	h.WAN.InjectIPv4(answer)

	// It takes a moment until a backend has heard.
	pieces := func() bool {
		return slices.ContainsFunc(h.onUplink(), func(p []byte) bool { return p[6]&0x20 != 0 })
	}
	end := time.Now().Add(wait)
	for i := 2; !pieces(); i++ {
		if time.Now().After(end) {
			t.Fatalf("never in pieces: %+v", h.Duplicator.Counters())
		}
		h.inject(big(i))
		time.Sleep(10 * time.Millisecond)
	}
	for _, p := range h.onUplink() {
		if p[6]&0x20 != 0 && len(p) > 1000 {
			t.Errorf("a piece of %d bytes", len(p))
		}
	}
	h.until("the answer is counted", func() bool { return h.Duplicator.Counters().Destinations["upload"].Drops[duplicator.DropTooBig] > 0 })
	h.inject(raw{payload: []byte("the end"), id: 9999}.bytes())
	buf := make([]byte, 2000)
	for got := ""; got != "the end"; {
		_ = upload.SetReadDeadline(time.Now().Add(wait))
		n, err := upload.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got = string(buf[:n]); got != "the end" && n != 1400 {
			t.Errorf("received %d bytes", n)
		}
	}
}

// sum16 is the sum of RFC 1071, without the complement.
func sum16(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// A copy that comes back to a group IP, by whatever way, is not copied again.
func copyComesBack(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	h.exchange([][]byte{raw{payload: []byte("video"), id: 3}.bytes()})
	var back [][]byte
	for _, c := range h.onUplink() {
		for _, from := range []netip.Addr{Uplink, Camera} {
			again := bytes.Clone(c)
			header := int(again[0]&15) * 4
			copy(again[12:], from.AsSlice())
			copy(again[16:], Groupcast1.AsSlice())
			again[10], again[11], again[header+6], again[header+7] = 0, 0, 0, 0 // a UDP checksum of zero is none
			binary.BigEndian.PutUint16(again[10:], ^sum16(again[:header]))
			back = append(back, again)
		}
	}
	h.exchange(back) // package packet copies none of them
	// A kernel may drop what comes from its own address before anybody judges it.
	if n := h.drops(packet.Unflagged.String()); n != uint64(len(back)/2) {
		t.Errorf("%d of %d were judged", n, len(back)/2)
	}
}

// Counters only rise, whatever is swapped: while a destination is there, while it is gone, and when it comes again at another address.
func countersOnlyRise(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	upload := h.Receiver(netlab.Upload)
	moved := WorkedExample()
	g := moved.Groups[Groupcast1]
	g.Destinations = slices.Clone(g.Destinations)
	g.Destinations[0].Addr = netip.MustParseAddr(netlab.Live) // the phone's registration
	left := WorkedExample()
	left.Groups[Groupcast1].Destinations = left.Groups[Groupcast1].Destinations[1:]
	gone := &table.Snapshot{ValidUntil: time.Now().Add(time.Minute), Groups: map[netip.Addr]*table.Group{}}
	cam := h.Sender(Camera, StreamID)
	before := h.Duplicator.Counters()
	phone := uint64(0)
	for i, s := range []*table.Snapshot{WorkedExample(), left, moved, gone, WorkedExample()} {
		h.Apply(s)
		if s == gone {
			continue
		}
		h.send(cam, Groupcast1, fmt.Sprint(i))
		h.expect(upload, fmt.Sprint(i))
		if s != left {
			phone++
		}
		h.until("counted", func() bool { return h.Duplicator.Counters().Destinations["phone"].Packets == phone })
		now := h.Duplicator.Counters()
		for id, d := range before.Destinations {
			if n := now.Destinations[id]; n.Packets < d.Packets || n.Bytes < d.Bytes {
				t.Errorf("%s: %+v after %+v", id, n, d)
			}
		}
		if n := now.Groups[Groupcast1].Received; n != before.Groups[Groupcast1].Received+1 {
			t.Errorf("received %d after %d", n, before.Groups[Groupcast1].Received)
		}
		before = now
	}
}

// What is more than a destination may get is dropped for it and counted; the burst that it may get at once comes whole.
func destinationRate(t *testing.T, b Backend) {
	const (
		datagrams = 500
		payload   = 1172
		size      = payload + 28
		rate      = 80_000 // bits per second: a datagram every 120 ms
	)
	began := time.Now()
	h := newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, DestinationRate: rate})
	h.Apply(Snapshot([]table.Destination{To("phone", netlab.Phone), To("upload", netlab.Upload)}, []table.Destination{To("live", netlab.Live)}))
	h.Receiver(netlab.Phone)
	h.Receiver(netlab.Live)
	upload := h.Receiver(netlab.Upload)
	cam := h.Sender(Camera, StreamID)
	for i := range datagrams {
		h.send(cam, Groupcast1, string(text(i, payload)))
		if i%50 == 49 { // keeps within the receive buffer
			h.until("judged", func() bool { return h.Duplicator.Counters().Groups[Groupcast1].Received == uint64(i+1) })
		}
	}
	const burst = duplicator.Burst/size + 1
	for i := range burst {
		h.expect(upload, string(text(i, payload)))
	}
	for _, id := range []string{"phone", "upload"} {
		h.until("counted for "+id, func() bool {
			d := h.Duplicator.Counters().Destinations[id]
			return d.Packets+d.Drops[duplicator.DropRate] == datagrams
		})
	}
	most := uint64(burst + rate/8*int(time.Since(began).Seconds()+1)/size + 1)
	for _, id := range []string{"phone", "upload"} {
		if d := h.Duplicator.Counters().Destinations[id]; d.Packets < burst || d.Packets > most || d.Packets == datagrams {
			t.Errorf("%s: %+v; want %d to %d packets", id, d, burst, most)
		}
	}
	// Another destination has a rate of its own.
	h.send(cam, Groupcast2, "live")
	h.until("copied", func() bool { return h.Duplicator.Counters().Destinations["live"].Packets == 1 })
}
