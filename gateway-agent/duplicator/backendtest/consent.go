package backendtest

import (
	"log/slog"
	"net/netip"
	"path/filepath"
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
			case <-time.After(5 * time.Second):
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
	g.Destinations[0].ValidUntil = time.Now().Add(time.Second)
	h.Apply(s)
	until := g.Destinations[0].ValidUntil
	one := h.Receiver(ending.Addr.String())
	h.inject(raw{payload: []byte("in time"), id: 1}.bytes())
	h.expect(one, "in time")
	h.expect(others, "in time")
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
