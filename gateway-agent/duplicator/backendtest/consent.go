package backendtest

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// withOther is the worked example with a second camera, and ports for both.
func withOther(camera, other uint16) *table.Snapshot {
	s := WorkedExample()
	g := s.Groups[Groupcast1]
	g.Sources[0].Port = camera
	g.Sources = append(g.Sources, table.Source{ID: "other", Addr: Neighbour, Trigger: table.TriggerOption, Port: other})
	return s
}

var otherID = []byte{0x88, 6, 172, 168, 0, 6}

// All that a camera sends to a group leaves from the port that is reserved for it, and receivers' checks come through to who reserved it, whether
// copies go there or not yet.
func reservedPorts(t *testing.T, b Backend) {
	type heard struct {
		port uint16
		from netip.AddrPort
	}
	checks := make(chan heard, 10)
	hear := func(port uint16, from netip.AddrPort, _ []byte) { checks <- heard{port, from} }
	h := newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, Heard: hear})
	ports := sender.Open(Uplink, filepath.Join(t.TempDir(), "ports"), hear, slog.Default())
	camera, other := consent.Sender{Group: "g1", Source: "camera"}, consent.Sender{Group: "g1", Source: "other"}
	if err := ports.Keep([]consent.Sender{camera, other}); err != nil {
		t.Fatal(err)
	}
	defer ports.Close()
	of := ports.Of()
	h.Apply(withOther(of["camera"], of["other"]))
	upload := h.Receiver(netlab.Upload)
	check, _ := consentcheck.NewRequest(consentcheck.Credential{Ufrag: "u", Password: "p"}, consentcheck.ToAgent)
	ask := func() {
		t.Helper()
		for _, port := range of {
			if _, err := upload.WriteToUDPAddrPort(check, netip.AddrPortFrom(Uplink, port)); err != nil {
				t.Fatal(err)
			}
			if _, err := upload.WriteToUDPAddrPort([]byte("\x80 this is no check"), netip.AddrPortFrom(Uplink, port)); err != nil {
				t.Fatal(err)
			}
			select {
			case c := <-checks:
				if c.port != port || c.from != netip.MustParseAddrPort(netlab.Upload+":5004") {
					t.Errorf("heard %v", c)
				}
			case <-time.After(wait):
				t.Fatal("a check was lost")
			}
		}
	}
	ask()
	for _, p := range []struct {
		raw
		port uint16
	}{
		{raw{payload: []byte("camera")}, of["camera"]},
		{raw{payload: []byte("camera, other port"), sport: 4002}, of["camera"]},
		{raw{payload: []byte("other camera"), from: Neighbour, options: otherID}, of["other"]},
	} {
		h.inject(p.bytes())
		if from := h.expect(upload, string(p.payload)); from != netip.AddrPortFrom(Uplink, p.port) {
			t.Errorf("%q left from %s, not from port %d", p.payload, from, p.port)
		}
	}
	ask()
	if len(checks) > 0 {
		t.Error("something that is no check was heard")
	}
}

// checksEach is how many checks each destination sends while the copies leave from the port that they come to.
const checksEach = 200

// Media and checks share a port at full load and nobody takes one for the other (RFC 7983): each check of each destination is heard, once, and nothing else that
// comes to the port; each datagram of the camera is copied and heard by nobody, even if it looks like a check.
func checksAtFullLoad(t *testing.T, b Backend) {
	type heard struct {
		from netip.AddrPort
		id   consentcheck.ID
	}
	var mu sync.Mutex
	checks, strange := map[heard]int{}, 0
	hear := func(_ uint16, from netip.AddrPort, b []byte) {
		m, ok := consentcheck.Parse(b)
		mu.Lock()
		defer mu.Unlock()
		if !ok {
			strange++
			return
		}
		checks[heard{from, m.ID}]++
	}
	h := newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, Heard: hear})
	ports := sender.Open(Uplink, filepath.Join(t.TempDir(), "ports"), hear, slog.Default())
	camera := consent.Sender{Group: "g1", Source: "camera"}
	if err := ports.Keep([]consent.Sender{camera}); err != nil {
		t.Fatal(err)
	}
	defer ports.Close()
	port := ports.Of()["camera"]
	s := WorkedExample()
	s.ValidUntil = time.Now().Add(10 * time.Minute)
	g := s.Groups[Groupcast1]
	g.Sources[0].Port = port
	for i := range g.Destinations {
		g.Destinations[i].Source, g.Destinations[i].ValidUntil = "camera", s.ValidUntil
	}
	h.Apply(s)

	// A third of what the camera sends has the form of a check.
	check, _ := consentcheck.NewRequest(consentcheck.Credential{Ufrag: "u", Password: "p"}, consentcheck.ToAgent)
	media := [][]byte{append([]byte("\x80 media "), make([]byte, 1000)...), append([]byte("\x81 media "), make([]byte, 300)...), check}
	cam := h.Sender(Camera, StreamID)
	var sent, stop atomic.Int64
	received := make([]atomic.Int64, len(g.Destinations))
	var receiving, sending, checking sync.WaitGroup
	defer receiving.Wait() // after its sockets are closed
	for i, d := range g.Destinations {
		conn := h.Receiver(d.Addr.String())
		receiving.Go(func() {
			b := make([]byte, 1<<16)
			for {
				if _, err := conn.Read(b); err != nil {
					return
				}
				received[i].Add(1)
			}
		})
		defer conn.Close()
		checking.Go(func() {
			to := netip.AddrPortFrom(Uplink, port)
			from := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			for range checksEach {
				data, id := consentcheck.NewRequest(consentcheck.Credential{Ufrag: "u", Password: "p"}, consentcheck.ToAgent)
				for _, b := range [][]byte{[]byte("\x80 no check"), []byte("\x81\xc9 no check"), data} {
					if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
						t.Error(err)
						return
					}
				}
				for end := time.Now().Add(wait); ; time.Sleep(100 * time.Microsecond) {
					mu.Lock()
					n := checks[heard{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), id}]
					mu.Unlock()
					if n > 0 {
						break
					}
					if time.Now().After(end) {
						t.Errorf("a check of %s was lost", d.ID)
						return
					}
				}
			}
		})
	}
	arrived := func() (least int64) {
		least = received[0].Load()
		for i := range received {
			least = min(least, received[i].Load())
		}
		return least
	}
	sending.Go(func() {
		for n := int64(0); stop.Load() == 0; n++ {
			if _, err := cam.WriteToUDPAddrPort(media[n%int64(len(media))], netip.AddrPortFrom(Groupcast1, mediaPort)); err != nil {
				t.Error(err)
				return
			}
			sent.Store(n + 1)
			for end := time.Now().Add(wait); n-arrived() >= swapWindow && stop.Load() == 0; time.Sleep(10 * time.Microsecond) {
				if time.Now().After(end) {
					t.Errorf("%d of %d arrived", arrived(), n)
					return
				}
			}
		}
	})
	checking.Wait()
	stop.Store(1)
	sending.Wait()
	h.until("all copies arrive", func() bool { return arrived() >= sent.Load() })
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d datagrams to each of %d destinations, %d checks", sent.Load(), len(received), len(checks))
	for i := range received {
		if n := received[i].Load(); n != sent.Load() {
			t.Errorf("%d datagrams led to %d copies", sent.Load(), n)
		}
	}
	if len(checks) != checksEach*len(received) || strange > 0 {
		t.Errorf("%d checks were heard and %d datagrams that are none", len(checks), strange)
	}
	for c, n := range checks {
		if n != 1 {
			t.Errorf("a check from %s was heard %d times", c.from, n)
		}
	}
	if sent.Load() < checksEach {
		t.Error("there was hardly any load")
	}
}

// A destination that consented to one camera's copies gets those, and where it consented.
func copiesForOneSource(t *testing.T, b Backend) {
	s := withOther(0, 0)
	g := s.Groups[Groupcast1]
	camera := g.Sources[0].ID
	d := g.Destinations[0]
	d.Source, d.Port, d.ValidUntil = camera, 6000, time.Now().Add(time.Minute)
	e := d
	e.Source, e.Port = "other", 7000
	h := NewHome(t, b, packet.Strip, nil)
	g.Destinations = []table.Destination{d, e, g.Destinations[1]}
	h.Apply(s)
	one, two := h.WAN.ListenUDP(d.Addr.String()+":6000"), h.WAN.ListenUDP(d.Addr.String()+":7000")
	both := h.Receiver(g.Destinations[2].Addr.String())
	h.exchange([][]byte{raw{payload: []byte("camera"), id: 1}.bytes(), raw{payload: []byte("other"), id: 2, sport: 4500, from: Neighbour, options: otherID}.bytes()})
	h.expect(one, "camera")
	h.expect(two, "other")
	h.expect(both, "camera")
	h.expect(both, "other")
	h.inject(raw{payload: []byte("the last"), id: 3}.bytes())
	h.expect(one, "the end")
	h.expect(one, "the last")
	h.expect(both, "the end")
	h.expect(both, "the last")
}

// A consent that isn't renewed ends by itself, whatever the snapshot says; the others go on.
func consentEnds(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	s := WorkedExample()
	g := s.Groups[Groupcast1]
	ending, others := g.Destinations[0], h.Receiver(g.Destinations[1].Addr.String())
	g.Destinations[0].ValidUntil = time.Now().Add(time.Minute)
	h.Apply(s)
	one := h.Receiver(ending.Addr.String())
	h.inject(raw{payload: []byte("in time"), id: 1}.bytes())
	h.expect(one, "in time")
	h.expect(others, "in time")
	s = WorkedExample()
	until := time.Now().Add(300 * time.Millisecond)
	s.Groups[Groupcast1].Destinations[0].ValidUntil = until
	h.Apply(s)
	time.Sleep(time.Until(until) + 100*time.Millisecond)
	h.inject(raw{payload: []byte("too late"), id: 2}.bytes())
	h.expect(others, "too late")
	h.until("counted", func() bool { return h.Duplicator.Counters().Destinations[ending.ID].Drops[duplicator.DropStale] == 1 })

	renewed := WorkedExample()
	renewed.Groups[Groupcast1].Destinations[0].ValidUntil = time.Now().Add(time.Minute)
	h.Apply(renewed)
	h.inject(raw{payload: []byte("renewed"), id: 3}.bytes())
	h.expect(one, "renewed")
}
