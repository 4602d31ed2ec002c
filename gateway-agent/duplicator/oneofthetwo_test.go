package duplicator

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// What waits for one of the two that may see a datagram is held here, so that each order is one that the test chose (ADR 68).

// A datagram that came before forwarding began was copied at home, however late it is read: it isn't forwarded, and the next one is.
func TestForwardLeavesWhatCameBefore(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, forwardLeavesWhatCameBefore)
}

type onWAN struct{}

func (onWAN) Interface() string   { return "wan0" }
func (onWAN) Address() netip.Addr { return netip.MustParseAddr("fd12::1") }

func forwardLeavesWhatCameBefore(t *testing.T) {
	h := netlab.NewHome(t, netlab.Current(t, "gateway"))
	h.Gateway.Address("wan0", "fd12::1/64")
	h.WAN.Address("ext0", "fd12::2/64")
	camera, group := netip.MustParseAddr("172.168.0.5"), netip.MustParseAddr("172.168.0.233")
	f, err := openForward(Config{
		GroupRange: models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")}, Uplink: netip.MustParseAddr("203.0.113.1"),
	}, "lan0", onWAN{})
	if err != nil {
		t.Fatal(err)
	}
	send := func() {
		udp := []byte{0x0f, 0xa0, 5004 >> 8, 5004 & 0xff, 0, 9, 0, 0, 'v'}
		p := append([]byte{0x47, 0, 0, 37, 0, 1, 0, 0, 64, 17, 0, 0}, slices.Concat(camera.AsSlice(), group.AsSlice(), []byte{0x88, 6}, camera.AsSlice(), []byte{0, 0}, udp)...)
		var sum uint32
		for i := 0; i < 28; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		binary.BigEndian.PutUint16(p[10:], ^uint16(sum>>16+sum&0xffff))
		h.Camera.InjectFrame("cam0", slices.Concat(h.Gateway.HardwareAddr("lan0"), h.Camera.HardwareAddr("cam0"), []byte{8, 0}, p))
	}
	// waiting reads what is there as run does, at a moment that the test gives.
	waiting := func(most int, now time.Time) {
		t.Helper()
		for left := most; left > 0; {
			n := 0
			if err := f.raw.Read(func(fd uintptr) bool {
				var err error
				n, err = f.in.receive(int(fd))
				return err == nil
			}); err != nil {
				t.Fatal(err)
			}
			f.forward(n, now)
			left -= n
		}
	}
	s := &table.Snapshot{ValidUntil: time.Now().Add(time.Hour), Groups: map[netip.Addr]*table.Group{group: {
		ID: "g", IP: group, Generation: 1, Sources: []table.Source{{ID: "camera", Addr: camera, Trigger: table.TriggerOption}},
		Destinations: []table.Destination{{ID: "upload", Addr: netip.MustParseAddr(netlab.Upload)}},
	}}}
	send()
	if err := f.Apply(s, netip.MustParseAddr("fd12::2")); err != nil {
		t.Fatal(err)
	}
	send()
	waiting(2, f.way.Load().since.Add(time.Millisecond))
	if n := f.Counters().Packets; n != 1 {
		t.Errorf("%d of two datagrams were forwarded, of which one came before", n)
	}
	// A newer snapshot doesn't begin anew.
	send()
	if err := f.Apply(s, netip.MustParseAddr("fd12::2")); err != nil {
		t.Fatal(err)
	}
	waiting(1, f.way.Load().since.Add(2*time.Millisecond))
	if n := f.Counters().Packets; n != 2 {
		t.Errorf("%d datagrams were forwarded, want 2", n)
	}
	// It ends at once, also for what waits.
	send()
	if err := f.Apply(nil, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	waiting(1, time.Now())
	if n := f.Counters().Packets; n != 2 {
		t.Errorf("%d datagrams were forwarded, want 2", n)
	}
	// Nor is what is being sent on still on its way when Apply has returned.
	f.batch.Lock() // as while a batch is forwarded
	applied := make(chan error, 1)
	go func() { applied <- f.Apply(nil, netip.Addr{}) }()
	select {
	case <-applied:
		t.Fatal("Apply returned while a batch was being forwarded")
	case <-time.After(50 * time.Millisecond):
	}
	f.batch.Unlock()
	if err := <-applied; err != nil {
		t.Error(err)
	}
	go f.run()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// Drain returns when what waited was judged, and not before.
func TestDrainWaitsForWhatWaits(t *testing.T) {
	at := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 99, 7, last}) }
	s, err := OpenSocket(Config{
		GroupRange: models.AddrRange{First: at(230), Last: at(254)}, Uplink: at(1), AllowLoopback: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	receiver := listenAt(t, at(9), 5004)
	camera := listenAt(t, at(5), 0)
	apply := func(to ...table.Destination) {
		t.Helper()
		err := s.Apply(&table.Snapshot{ValidUntil: time.Now().Add(time.Hour), Groups: map[netip.Addr]*table.Group{at(233): {
			ID: "g", IP: at(233), Generation: 1, Destinations: to, Sources: []table.Source{{ID: "camera", Addr: at(5), Trigger: table.TriggerSource}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	send := func(payload string) {
		t.Helper()
		if _, err := camera.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(at(233), 5004)); err != nil {
			t.Fatal(err)
		}
	}
	apply() // another copies
	if !s.Drain(time.Minute) {
		t.Fatal("nothing waited")
	}
	// Without an arena a listener reads nothing.
	var held []*arena
	for range cap(s.arenas) {
		held = append(held, <-s.arenas)
	}
	send("copied by another")
	if s.Drain(20 * time.Millisecond) {
		t.Error("it said that all was judged while a datagram waited")
	}
	drained := make(chan bool)
	go func() { drained <- s.Drain(time.Minute) }()
	select {
	case <-drained:
		t.Error("it returned while a datagram waited")
	case <-time.After(50 * time.Millisecond):
	}
	for _, a := range held {
		s.arenas <- a
	}
	if !<-drained {
		t.Fatal("it gave up")
	}
	apply(table.Destination{ID: "upload", Addr: at(9)})
	send("copied here")
	b := make([]byte, 100)
	_ = receiver.SetReadDeadline(time.Now().Add(time.Minute))
	if n, _, err := receiver.ReadFrom(b); err != nil || string(b[:n]) != "copied here" {
		t.Errorf("received %q, %v", b[:n], err)
	}
	for end := time.Now().Add(time.Minute); s.Counters().Destinations["upload"].Packets == 0 && time.Now().Before(end); { // it arrives before it is counted
		time.Sleep(time.Millisecond)
	}
	if c := s.Counters(); c.Groups[at(233)].Received != 2 || c.Destinations["upload"].Packets != 1 {
		t.Errorf("%+v", c)
	}
}

func listenAt(t *testing.T, a netip.Addr, port uint16) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
