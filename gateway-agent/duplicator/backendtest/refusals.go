package backendtest

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

func malformed(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	change := func(at int, v ...byte) []byte {
		p := raw{payload: []byte("malformed")}.bytes()
		copy(p[at:], v)
		header := min(int(p[0]&15)*4, len(p))
		if at != 10 && header >= 20 {
			copy(p[10:12], []byte{0, 0})
			binary.BigEndian.PutUint16(p[10:], ^sum(p[:header]))
		}
		return p
	}
	h.exchange([][]byte{
		change(10, 0xde, 0xad), // header checksum
		change(0, 0x44),        // header of 16 bytes
		change(0, 0x4f),        // header beyond the packet
		change(2, 0xff, 0xff),  // total length beyond the frame
		change(2, 0, 21),       // total length shorter than the header
		change(21, 0),          // option of length 0
		change(21, 1),          // option of length 1
		change(21, 200),        // option beyond the header
		change(21, 5),          // 0x88 of length 5
		change(21, 8),          // 0x88 of length 8
		change(28+4, 0, 7),     // UDP length 7
		change(28+4, 0xff, 0),  // UDP length beyond the packet
		change(6, 0x20, 0),     // first fragment, not of whole words
		change(6, 0x3f, 0xff),  // fragment beyond 65,535 bytes
		raw{payload: []byte("twice"), options: append(bytes.Clone(StreamID), StreamID...)}.bytes(),
		raw{payload: []byte("ICMP"), protocol: 1}.bytes(),
		raw{payload: []byte("TCP"), protocol: 6}.bytes(),
	})
	// Where the kernel's own stack comes first, it is the one that drops them.
	if n, other := h.drops(packet.Malformed.String()), h.drops(duplicator.DropNotUDP); b.PacketByPacket && (n != 15 || other != 2) {
		t.Errorf("counted as malformed: %d, as not UDP: %d", n, other)
	}
}

func wrongSource(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{
		raw{from: Neighbour, payload: []byte("somebody else"), options: []byte{0x88, 6, 172, 168, 0, 6}}.bytes(),
		raw{from: Neighbour, payload: []byte("no option either"), noOptions: true}.bytes(),
		raw{from: netip.IPv4Unspecified(), payload: []byte("nobody"), options: []byte{0x88, 6, 0, 0, 0, 0}}.bytes(), // which a kernel drops itself
	})
	h.until("counted", func() bool { return h.drops(packet.Unregistered.String()) >= 2 })
}

// Rows 24 and 25 of the threat model: a host on the LAN can't have anything copied under its own address, and nothing of the group range
// leaves (onUplink).
func wrongStreamID(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{
		raw{payload: []byte("the neighbour's id"), options: []byte{0x88, 6, 172, 168, 0, 6}}.bytes(),
		raw{from: Neighbour, payload: []byte("the camera's id")}.bytes(),
	})
	h.until("counted", func() bool { return h.drops(packet.Spoof.String()) == 2 })
}

// What looks like the camera's but comes in by the uplink is never copied, also where the kernel doesn't check the way that a source is at.
func wrongInterface(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	before := h.Duplicator.Counters().Groups[Groupcast1]
	for _, check := range []string{"1", "0"} {
		h.Copier.Sysctl("net.ipv4.conf.all.rp_filter", check)
		h.Copier.Sysctl("net.ipv4.conf.wan0.rp_filter", check)
		for _, trigger := range []table.Trigger{table.TriggerOption, table.TriggerSource} {
			h.Apply(withTrigger(WorkedExample(), trigger))
			p := raw{payload: []byte("from the uplink")}.bytes()
			h.WAN.InjectFrame("ext0", slices.Concat(h.Copier.HardwareAddr("wan0"), h.WAN.HardwareAddr("ext0"), []byte{8, 0}, p))
			h.exchange([][]byte{raw{payload: []byte("from the camera"), id: 7}.bytes()})
		}
	}
	after := h.Duplicator.Counters().Groups[Groupcast1]
	if n := after.Received - before.Received; n != 4*2 || total(after.Drops) != 0 {
		t.Errorf("%d datagrams were judged, want 8; %+v", n, after)
	}
}

// A stream that was copied is judged anew by every snapshot: whether its camera is a source, and whether it needs the option.
func sourceComesAndGoes(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	sources := func(trigger table.Trigger, cameras ...netip.Addr) {
		s := WorkedExample()
		g := s.Groups[Groupcast1]
		g.Sources = nil
		for _, a := range cameras {
			g.Sources = append(g.Sources, table.Source{ID: a.String(), Addr: a, Trigger: trigger})
		}
		h.Apply(s)
	}
	flagged, plain := raw{payload: []byte("flagged"), id: 1}.bytes(), raw{payload: []byte("plain"), id: 2, noOptions: true}.bytes()
	copies := func(when string, want int) {
		t.Helper()
		before, received := len(h.onUplink()), h.Duplicator.Counters().Groups[Groupcast1].Received
		h.inject(flagged, plain)
		h.until("judged", func() bool { return h.Duplicator.Counters().Groups[Groupcast1].Received == received+2 })
		h.until(when, func() bool { return len(h.onUplink()) >= before+3*want })
		time.Sleep(20 * time.Millisecond)
		if n := len(h.onUplink()) - before; n != 3*want {
			t.Errorf("%s: %d copies, want %d", when, n, 3*want)
		}
	}
	copies("it needs the option", 1)
	sources(table.TriggerOption, Neighbour)
	copies("another is the source", 0)
	sources(table.TriggerOption, Neighbour, Camera)
	copies("it is a source again", 1)
	sources(table.TriggerSource, Camera)
	copies("it needs no option", 2)
	sources(table.TriggerOption, Camera)
	copies("it needs the option again", 1)
	// More than a backend may keep beside its group.
	others := []netip.Addr{Neighbour, netip.MustParseAddr("172.168.0.7"), netip.MustParseAddr("172.168.0.8")}
	sources(table.TriggerOption, append(others, Camera)...)
	copies("it is one of many", 1)
	sources(table.TriggerSource, append(others, Camera)...)
	copies("it is one of many and needs no option", 2)
	sources(table.TriggerSource, others...)
	copies("many others are the sources", 0)
}

// What is sent to a group IP of nobody leaves by no interface, whatever it carries.
func foreignGroup(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	foreign := netip.MustParseAddr("172.168.0.240")
	h.exchange([][]byte{
		raw{to: foreign, payload: []byte("foreign")}.bytes(),
		raw{to: foreign, payload: []byte("foreign"), noOptions: true}.bytes(),
		raw{to: foreign, payload: []byte("foreign"), protocol: 6}.bytes(),
	})
	h.inject(raw{payload: []byte("not a media port"), dport: 6000}.bytes())
	h.exchange(nil)
	if n := len(h.onUplink()); n != 2*(3+1) {
		t.Errorf("%d packets on the uplink", n)
	}
}

func noHop(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{
		raw{payload: []byte("one"), ttl: 1}.bytes(), raw{payload: []byte("two"), ttl: 2}.bytes(), raw{payload: []byte("all"), ttl: 255}.bytes(),
	})
	h.until("counted", func() bool { return h.drops(packet.TTL.String()) == 1 })
}

func dontFragment(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange([][]byte{raw{payload: text(1, 1464), flags: 0x4000, id: 5}.bytes()})
}

// A copy that doesn't fit the uplink in one piece gets there all the same.
func tooBig(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	h.Copier.MTU("wan0", 1000)
	h.Apply(WorkedExample())
	time.Sleep(300 * time.Millisecond) // a backend may learn of it by itself
	h.exchangeDatagrams([][]byte{
		raw{payload: text(1, 1400), flags: 0x4000, id: 5}.bytes(), raw{payload: text(2, 1400), id: 6}.bytes(), raw{payload: text(3, 900), id: 7}.bytes(),
	})
}

// A camera that can't set options needs none; if it sends one, it has to be its own.
func triggerSource(t *testing.T, b Backend, mode packet.CopyOptions) {
	h := NewHome(t, b, mode, withTrigger(WorkedExample(), table.TriggerSource))
	h.exchange([][]byte{
		raw{payload: text(1, 1000), noOptions: true}.bytes(),
		raw{payload: text(2, 1000)}.bytes(),
		raw{payload: text(3, 1000), options: []byte{0x94, 4, 0, 0}}.bytes(),
		raw{payload: text(4, 1000), options: []byte{0x88, 6, 172, 168, 0, 6}}.bytes(),
		raw{payload: text(5, 1000), from: Neighbour, noOptions: true}.bytes(),
	})
}

// Addresses that no host may be sent to get nothing; the gateway's own and the broadcast addresses of its networks are known from its interfaces.
func gatewayItself(t *testing.T, b Backend) {
	s := WorkedExample()
	h := NewHome(t, b, packet.Strip, s)
	withRefused := WorkedExample()
	g := withRefused.Groups[Groupcast1]
	for _, a := range []string{
		"172.168.0.1", "203.0.113.1", "172.168.0.255", "203.0.113.255", "172.168.0.235", "127.0.0.1",
		"0.1.2.3", "224.0.0.251", "239.1.2.3", "240.0.0.1", "255.255.255.255", "169.254.1.1", "::1", "ff02::1", "fe80::1",
	} {
		g.Destinations = append(g.Destinations, To(a, a))
	}
	own, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("172.168.0.1:5004")))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	h.Apply(withRefused)
	h.snapshot = s // what is refused gets nothing
	h.exchange([][]byte{raw{payload: []byte("video")}.bytes()})
	// Groupcast2 got its own last datagram and nothing else.
	if c := h.Duplicator.Counters(); c.Refused != 15 || c.Groups[Groupcast2].Received != 1 {
		t.Errorf("%+v", c)
	}
	_ = own.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := own.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the gateway itself got %d bytes", n)
	}
}

// Nothing is copied by a snapshot that ran out.
func stale(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	s := WorkedExample()
	s.ValidUntil = time.Now().Add(300 * time.Millisecond)
	h.Apply(s)
	time.Sleep(time.Until(s.ValidUntil) + 50*time.Millisecond)
	before := len(h.onUplink())
	h.inject(raw{payload: []byte("too late")}.bytes())
	h.until("counted", func() bool { return h.drops(packet.Stale.String()) == 1 })
	if n := len(h.onUplink()) - before; n != 0 {
		t.Errorf("%d copies", n)
	}
}

// Without a snapshot nothing is copied.
func noGroups(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	if err := h.Duplicator.Apply(nil); err != nil {
		t.Fatal(err)
	}
	before := len(h.onUplink())
	h.inject(raw{payload: []byte("for nobody")}.bytes())
	time.Sleep(100 * time.Millisecond)
	if n := len(h.onUplink()) - before; n != 0 {
		t.Errorf("%d copies", n)
	}
}
