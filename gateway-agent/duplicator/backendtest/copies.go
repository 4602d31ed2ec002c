package backendtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// The worked example, steps 6 and 8: one datagram, exactly three copies; then the thumbnail service leaves, and the very next copies are
// two.
func workedExample(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	upload, thumbnail, phone := h.Receiver(netlab.Upload), h.Receiver(netlab.Thumbnail), h.Receiver(netlab.Phone)
	cam := h.Sender(Camera, StreamID)
	h.send(cam, Groupcast1, "one frame of video")
	for _, r := range []*net.UDPConn{upload, thumbnail, phone} {
		if from := h.expect(r, "one frame of video"); from.Addr() != Uplink {
			t.Errorf("from %s", from)
		}
	}
	h.until("captured", func() bool { return len(h.onUplink()) == 3 })
	h.exchange([][]byte{raw{payload: []byte("the next"), id: 7}.bytes()})

	left := WorkedExample()
	g := left.Groups[Groupcast1]
	g.Destinations = []table.Destination{g.Destinations[0], g.Destinations[2]}
	h.Apply(left)
	h.exchange([][]byte{raw{payload: []byte("without the thumbnail"), id: 8}.bytes()})
	h.send(cam, Groupcast1, "the last")
	for _, r := range []*net.UDPConn{upload, phone} {
		h.expect(r, "the next")
		h.expect(r, "the end")
		h.expect(r, "without the thumbnail")
		h.expect(r, "the end")
		h.expect(r, "the last")
	}
}

// Step 6, the other half: no option, copied bit 0, an option behind the end, and nothing of them is on the uplink.
func withoutTheOption(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{
		raw{payload: []byte("none"), noOptions: true}.bytes(),
		raw{payload: []byte("copied bit 0"), options: []byte{0x08, 6, 172, 168, 0, 5}}.bytes(),
		raw{payload: []byte("behind the end"), options: []byte{0, 0, 0x88, 6, 172, 168, 0, 5}}.bytes(),
	})
	// The camera's kernel drops what it believes to be for nobody, so only the raw ones count.
	if n := h.drops(packet.Unflagged.String()); n != 3 {
		t.Errorf("unflagged: %d", n)
	}
}

func twoGroups(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	var packets [][]byte
	for i := range 20 {
		packets = append(packets,
			raw{payload: text(i, 20), id: uint16(i)}.bytes(), raw{payload: text(100+i, 20), to: Groupcast2, sport: 4001}.bytes())
	}
	for _, d := range h.exchange(packets) {
		second := strings.HasPrefix(d.payload, "0001")
		if d.payload != "the end" && second != (d.to.Addr().String() == netlab.Live) {
			t.Errorf("%s got %q", d.to, d.payload)
		}
	}
}

func manyDestinations(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil) // so that the next hop is known
	for _, n := range []int{0, 1, 2, 3, 8, 32, 64} {
		var d []table.Destination
		for i := range n {
			d = append(d, To(fmt.Sprint("d", i), fmt.Sprintf("198.51.100.%d", i+1)))
		}
		h.Apply(Snapshot(d))
		received := h.Duplicator.Counters().Groups[Groupcast1].Received
		h.exchange([][]byte{raw{payload: text(n, 1000), id: 1}.bytes(), raw{payload: text(n+100, 1200), id: 2}.bytes()})
		h.until("counted", func() bool { return h.Duplicator.Counters().Groups[Groupcast1].Received == received+3 })
	}
	h.until("counted for the 64th", func() bool { // a copy may arrive before it is counted
		c := h.Duplicator.Counters().Destinations["d63"]
		return c.Packets == 3 && c.Bytes == 1000+1200+7 && len(c.Drops) == 0
	})
	if n := len(h.onUplink()); n != 3+1+3*(1+2+3+8+32+64) {
		t.Errorf("%d packets on the uplink", n)
	}
}

func fragmented(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	h.exchange(nil)
	var packets [][]byte
	for i, size := range []int{4000, 1481, 9000, 2953, 1457} {
		packets = append(packets, fragments(raw{payload: text(i, size), id: uint16(100 + i)}, 1464)...)
	}
	h.exchange(packets)
}

// Step 7: 4,000 bytes at MTU 1500 are three fragments with the option in each. Receivers put their copies together.
func kernelFragments(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.NOP, nil)
	receivers := []*net.UDPConn{h.Receiver(netlab.Upload), h.Receiver(netlab.Thumbnail), h.Receiver(netlab.Phone)}
	cam := h.Sender(Camera, StreamID)
	// Asks for the address first: the kernel queues only the last fragments of a datagram for a neighbour it doesn't know.
	for _, payload := range []string{"hello", string(text(1, 4000))} {
		h.send(cam, Groupcast1, payload)
		for _, r := range receivers {
			h.expect(r, payload)
		}
	}
	sent := func(frames []netlab.Frame) (all [][]byte) {
		for _, f := range frames {
			if p := f.IPv4(); p != nil && f.Outgoing && binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
				all = append(all, p)
			}
		}
		return all
	}
	for i, p := range sent(h.Inside.Wait(wait, func(frames []netlab.Frame) bool { return len(sent(frames)) == 3 })) {
		if !bytes.Equal(p[20:26], StreamID) {
			t.Errorf("fragment %d: header %x", i, p[:28])
		}
	}
}

func zeroChecksum(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{raw{payload: text(1, 100), noChecksum: true}.bytes()})
	for _, p := range h.onUplink() {
		zero := p[26] == 0 && p[27] == 0
		// A kernel's own datagrams always carry one: zero stays zero where packets are copied.
		if b.PacketByPacket && zero != strings.HasPrefix(string(p[28:]), "000001") {
			t.Errorf("UDP checksum %x of %q", p[26:28], p[28:])
		}
	}
}

// A camera process on a virtual interface leaves the UDP checksum to a device that doesn't exist.
func checksumOffload(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	h.Home.Camera.Offload("cam0")
	upload, phone := h.Receiver(netlab.Upload), h.Receiver(netlab.Phone)
	cam := h.Sender(Camera, StreamID)
	for i, size := range []int{20, 1200, 1, 1400} {
		h.send(cam, Groupcast1, string(text(i, size)))
		h.expect(upload, string(text(i, size)))
		h.expect(phone, string(text(i, size)))
	}
	for _, p := range h.onUplink() {
		if err := netlab.VerifyIPv4(p); err != nil {
			t.Error(err)
		}
	}
	// Otherwise the test would show nothing.
	h.Inside.Wait(wait, func(frames []netlab.Frame) bool {
		return slices.ContainsFunc(frames, func(f netlab.Frame) bool {
			p := f.IPv4()
			return p != nil && f.Outgoing && p[9] == 17 && netlab.VerifyIPv4(p) != nil
		})
	})
}

// A camera process on a virtual interface may send up to 64 datagrams as one packet.
func superPackets(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	h.Home.Camera.Offload("cam0")
	upload, phone := h.Receiver(netlab.Upload), h.Receiver(netlab.Phone)
	cam := h.Sender(Camera, StreamID)
	h.send(cam, Groupcast1, "hello")
	h.expect(upload, "hello")
	h.expect(phone, "hello")
	h.control(cam, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) })
	var all strings.Builder
	for i := range 10 {
		all.Write(text(i, 1000))
	}
	h.send(cam, Groupcast1, all.String()+"the rest")
	for _, r := range []*net.UDPConn{upload, phone} {
		for i := range 10 {
			h.expect(r, string(text(i, 1000)))
		}
		h.expect(r, "the rest")
	}
	for _, p := range h.onUplink() {
		if err := netlab.VerifyIPv4(p); err != nil {
			t.Error(err)
		}
	}
	// Otherwise the test would show nothing.
	h.Inside.Wait(wait, func(frames []netlab.Frame) bool {
		return slices.ContainsFunc(frames, func(f netlab.Frame) bool { return f.Outgoing && len(f.Data) > 5000 })
	})
	want := uint64(len("hello") + 10*1000 + len("the rest"))
	h.until("12 packets are counted", func() bool { // a copy may arrive before it is counted
		c := h.Duplicator.Counters().Destinations["upload"]
		return c.Packets == 12 && c.Bytes == want
	})
}

func optionsAround(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	var packets [][]byte
	for i, options := range [][]byte{
		{1, 1, 0x88, 6, 172, 168, 0, 5},
		{1, 0x88, 6, 172, 168, 0, 5, 1},
		{0x94, 4, 0, 0, 0x88, 6, 172, 168, 0, 5}, // router alert before
		{0x88, 6, 172, 168, 0, 5, 0x94, 4, 0, 0},
		{0x88, 6, 172, 168, 0, 5, 0, 0x88, 6, 1, 2, 3}, // what follows the end isn't read
		{0x9e, 34, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0x88, 6, 172, 168, 0, 5}, // 40 bytes
	} {
		packets = append(packets, raw{payload: text(i, 50), options: options}.bytes())
	}
	h.exchange(packets)
}

// Two cameras, and two streams of one, with the same source port get ports of their own.
func natCollision(t *testing.T, b Backend) {
	s := WorkedExample()
	s.Groups[Groupcast1].Sources = append(s.Groups[Groupcast1].Sources, table.Source{ID: "other", Addr: Neighbour, Trigger: table.TriggerOption})
	h := NewHome(t, b, packet.Strip, s)
	other := []byte{0x88, 6, 172, 168, 0, 6}
	upload, live := h.Receiver(netlab.Upload), h.Receiver(netlab.Live)
	ports := map[uint16]string{}
	for range 3 {
		for name, p := range map[string]raw{
			"camera":                       {payload: []byte("camera")},
			"other camera":                 {payload: []byte("other camera"), from: Neighbour, options: other},
			"other port":                   {payload: []byte("other port"), sport: 4002},
			"camera to the other group IP": {payload: []byte("camera to the other group IP"), to: Groupcast2},
		} {
			h.inject(p.bytes())
			at := upload
			if p.to == Groupcast2 {
				at = live
			}
			from := h.expect(at, name)
			if before, ok := ports[from.Port()]; ok && before != name {
				t.Errorf("%s and %s leave from port %d", before, name, from.Port())
			}
			ports[from.Port()] = name
		}
	}
	if len(ports) != 4 {
		t.Errorf("four streams leave from %d ports", len(ports))
	}
}

func headerFields(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	var packets [][]byte
	for i := range 64 {
		packets = append(packets, raw{payload: text(i, 7+i), id: uint16(i * 1031), tos: byte(i * 4), flags: uint16(i%2) << 14, ttl: byte(64 + i)}.bytes())
	}
	h.exchange(packets)
}

// Ethernet fills up short frames; the padding isn't part of the copy.
func shortFrames(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{append(raw{payload: []byte("a")}.bytes(), make([]byte, 30)...), raw{payload: []byte{}, id: 9}.bytes()})
	for _, f := range h.Wide.Frames() {
		if p := f.IPv4(); p != nil && !f.Outgoing && len(f.Data) > 60 && len(f.Data) != 14+len(p) {
			t.Errorf("a frame of %d bytes carries a packet of %d", len(f.Data), len(p))
		}
	}
}

// What arrives at once may be sent at once, but each stream stays in order, and every datagram keeps its size and its TTL.
func bursts(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, nil)
	h.exchange(nil)
	var packets [][]byte
	for i := range 300 {
		r := raw{payload: text(i, 1200), id: uint16(i + 1), sport: 4001 + uint16(i/3%2), ttl: byte(60 + i/5%2)}
		switch {
		case i%20 == 13 && r.sport == 4001: // of one stream only: they are all alike
			r.payload = []byte{}
		case i%17 == 16:
			r.payload = text(i, 700)
		}
		packets = append(packets, r.bytes())
	}
	last := map[[2]netip.AddrPort]string{}
	for _, d := range h.exchange(packets) {
		stream := [2]netip.AddrPort{d.from, d.to}
		if len(d.payload) < 700 {
			continue
		}
		if d.payload < last[stream] {
			t.Errorf("%s got %.7q after %.7q", d.to, d.payload, last[stream])
		}
		last[stream] = d.payload
	}
	if len(last) != 6 {
		t.Errorf("%d streams of copies, want two to each of three destinations", len(last))
	}
}

// Where the device takes super-packets a burst leaves in few of them, whatever sizes it is made of; receivers get the datagrams as they were, in order.
func togetherAway(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.Copier.Offload("wan0")
	receivers := []*net.UDPConn{h.Receiver(netlab.Upload), h.Receiver(netlab.Thumbnail), h.Receiver(netlab.Phone)}
	cam := h.Sender(Camera, StreamID)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h.send(cam, Groupcast1, "hello") // asks for the address
	for _, r := range receivers {
		h.expect(r, "hello")
	}
	for round := range 30 {
		var burst []ipv4.Message
		size := 0
		for i := range 64 {
			if random.IntN(8) == 0 || i == 0 {
				size = []int{0, 7, 700, 1199, 1200, 1464}[random.IntN(6)]
			}
			burst = append(burst, ipv4.Message{
				Buffers: [][]byte{text(100*round+i, size)[:size]}, Addr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(Groupcast1, mediaPort)),
			})
		}
		if n, err := ipv4.NewPacketConn(cam).WriteBatch(burst, 0); n != len(burst) || err != nil {
			t.Fatal(n, err)
		}
		for _, r := range receivers {
			for _, m := range burst {
				h.expect(r, string(m.Buffers[0]))
			}
		}
	}
	// Otherwise the test would show nothing. Where packets are copied as they come there is nothing to put together.
	h.Wide.Wait(wait, func(frames []netlab.Frame) bool {
		return b.PacketByPacket || slices.ContainsFunc(frames, func(f netlab.Frame) bool { return !f.Outgoing && len(f.Data) > 5000 })
	})
}

// What doesn't fit the way to the destinations in one piece arrives nevertheless, in order, and nobody is told that it was dropped.
func narrowWay(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.Copier.MTU("wan0", 1000)
	h.Apply(WorkedExample())
	receivers := []*net.UDPConn{h.Receiver(netlab.Upload), h.Receiver(netlab.Thumbnail), h.Receiver(netlab.Phone)}
	cam := h.Sender(Camera, StreamID)
	for round := range 20 { // the later ones know what the first met
		var burst []ipv4.Message
		for i := range 64 {
			size := 1200
			if i%10 > 4 {
				size = 900
			}
			burst = append(burst, ipv4.Message{
				Buffers: [][]byte{text(100*round+i, size)}, Addr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(Groupcast1, mediaPort)),
			})
		}
		if n, err := ipv4.NewPacketConn(cam).WriteBatch(burst, 0); n != len(burst) || err != nil {
			t.Fatal(n, err)
		}
		for _, r := range receivers {
			for _, m := range burst {
				h.expect(r, string(m.Buffers[0]))
			}
		}
	}
	for _, id := range []string{"upload", "thumbnail", "phone"} {
		h.until("all are counted for "+id, func() bool {
			c := h.Duplicator.Counters().Destinations[id]
			return c.Packets == 20*64 && len(c.Drops) == 0
		})
	}
}
