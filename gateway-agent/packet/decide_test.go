package packet_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

func TestDecide(t *testing.T) {
	stranger := netip.MustParseAddr("172.168.0.6")
	good := packet.Datagram{
		Source: fig7().source, Destination: fig7().destination, TTL: 64, StreamID: camera,
	}
	for name, test := range map[string]struct {
		change func(*packet.Datagram, *table.Snapshot)
		want   packet.Reason
	}{
		"the worked example": {func(*packet.Datagram, *table.Snapshot) {}, packet.Copy},
		"no option":          {func(d *packet.Datagram, _ *table.Snapshot) { d.StreamID = netip.Addr{} }, packet.Unflagged},
		"no option, and none needed": {func(d *packet.Datagram, s *table.Snapshot) {
			d.StreamID = netip.Addr{}
			s.Groups[group1].Sources = []table.Source{{Addr: camera, Trigger: table.TriggerSource}}
		}, packet.Copy},
		"option though none is needed": {func(_ *packet.Datagram, s *table.Snapshot) {
			s.Groups[group1].Sources = []table.Source{{Addr: camera, Trigger: table.TriggerSource}}
		}, packet.Copy},
		"option of another source, and none needed": {func(d *packet.Datagram, s *table.Snapshot) {
			d.StreamID = stranger
			s.Groups[group1].Sources = []table.Source{{Addr: camera, Trigger: table.TriggerSource}}
		}, packet.Spoof},
		"trigger unknown, no option": {func(d *packet.Datagram, s *table.Snapshot) {
			d.StreamID = netip.Addr{}
			s.Groups[group1].Sources = []table.Source{{Addr: camera}}
		}, packet.Unflagged},
		"option of another source":            {func(d *packet.Datagram, _ *table.Snapshot) { d.StreamID = stranger }, packet.Spoof},
		"registered source's option borrowed": {func(d *packet.Datagram, _ *table.Snapshot) { d.Source = netip.AddrPortFrom(stranger, 1) }, packet.Spoof},
		"stranger with its own option": {func(d *packet.Datagram, _ *table.Snapshot) {
			d.Source, d.StreamID = netip.AddrPortFrom(stranger, 1), stranger
		}, packet.Unregistered},
		"stranger without option": {func(d *packet.Datagram, _ *table.Snapshot) {
			d.Source, d.StreamID = netip.AddrPortFrom(stranger, 1), netip.Addr{}
		}, packet.Unregistered},
		"no such group": {func(d *packet.Datagram, _ *table.Snapshot) {
			d.Destination = netip.MustParseAddrPort("172.168.0.240:5004")
		}, packet.UnknownGroup},
		"TTL 2": {func(d *packet.Datagram, _ *table.Snapshot) { d.TTL = 2 }, packet.Copy},
		"TTL 1": {func(d *packet.Datagram, _ *table.Snapshot) { d.TTL = 1 }, packet.TTL},
		"TTL 0": {func(d *packet.Datagram, _ *table.Snapshot) { d.TTL = 0 }, packet.TTL},
		"a later fragment": {func(d *packet.Datagram, _ *table.Snapshot) {
			d.Source, d.Destination = netip.AddrPortFrom(camera, 0), netip.AddrPortFrom(group1, 0)
		}, packet.Copy},
		"valid for one more nanosecond": {func(_ *packet.Datagram, s *table.Snapshot) { s.ValidUntil = now.Add(1) }, packet.Copy},
		"valid until now":               {func(_ *packet.Datagram, s *table.Snapshot) { s.ValidUntil = now }, packet.Stale},
		"never valid":                   {func(_ *packet.Datagram, s *table.Snapshot) { s.ValidUntil = time.Time{} }, packet.Stale},
	} {
		t.Run(name, func(t *testing.T) {
			d, s := good, groupTable()
			test.change(&d, s)
			verdict := packet.Decide(s, now, d)
			if verdict.Reason != test.want {
				t.Errorf("%s, want %s", verdict.Reason, test.want)
			}
			if (verdict.Group != nil) != (test.want == packet.Copy) {
				t.Errorf("verdict %s with group %v", verdict.Reason, verdict.Group)
			}
		})
	}
	if got := packet.Decide(nil, now, good).Reason; got != packet.Stale {
		t.Errorf("without a snapshot: %s, want stale", got)
	}
}

func TestEveryReasonHasItsOwnName(t *testing.T) {
	seen := map[string]bool{"": true}
	for r := packet.Copy; int(r) < packet.ReasonCount; r++ {
		if seen[r.String()] {
			t.Errorf("reason %d is called %q", r, r.String())
		}
		seen[r.String()] = true
	}
}

func TestTarget(t *testing.T) {
	d := packet.Datagram{Destination: fig7().destination}
	if got := packet.Target(table.Destination{Addr: live}, d); got != netip.AddrPortFrom(live, 5004) {
		t.Errorf("without a registered port: %s", got)
	}
	if got := packet.Target(table.Destination{Addr: live, Port: 6000}, d); got != netip.AddrPortFrom(live, 6000) {
		t.Errorf("with a registered port: %s", got)
	}
}
