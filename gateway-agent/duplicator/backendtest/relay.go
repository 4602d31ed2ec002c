package backendtest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// Relay is what copies in the network: one implementation under test.
type Relay interface {
	Apply(byTunnelAddress map[netip.Addr]*table.Snapshot) error
	Counters() duplicator.RelayCounters
	Close() error
}

// Both ends' addresses in the tunnel.
var (
	homeInside  = netip.MustParseAddr("fd12:3456:789a::1")
	relayInside = netip.MustParseAddr("fd12:3456:789a:1::1")
)

const tunnelPort = 51820

// relayed is a gateway that forwards into a tunnel, and a relay at its other end that copies, as package agent arranges them: while datagrams are forwarded the
// gateway's own backend has the groups without destinations. Each datagram is judged at home; those to be copied are judged again by the relay.
type relayed struct {
	t         *testing.T
	config    duplicator.Config
	home      *netlab.Namespace
	near, far *tunnel.Tunnel
	quiet     *duplicator.Socket
	forward   *duplicator.Forward
	relay     Relay
	reserved  map[string]uint16 // by source; nil: sources have none
}

func openRelayed(t *testing.T, n netlab.Home, b Backend, c duplicator.Config) *relayed {
	t.Helper()
	r := &relayed{t: t, config: c, home: n.Gateway}
	if b.Reserved {
		r.reserved = map[string]uint16{}
	}
	key := func(name string) tunnel.PrivateKey {
		k, err := tunnel.LoadKey(filepath.Join(t.TempDir(), name))
		r.must(err)
		return k
	}
	nearKey, farKey := key("near"), key("far")
	var err error
	r.far, err = tunnel.Open(tunnel.Config{Name: "gcrelay", Key: farKey, Port: tunnelPort, Address: relayInside})
	r.must(err)
	t.Cleanup(func() { r.far.Close() })
	r.relay = b.OpenRelay(t, c, r.far)
	r.must(r.far.Apply([]tunnel.Peer{{Key: nearKey.Public(), Address: homeInside}}))
	atHome := c
	atHome.Heard, atHome.Answered, atHome.DestinationRate, atHome.MaxStreams = nil, nil, 0, 0
	r.home.Do(func() {
		r.near, err = tunnel.Open(tunnel.Config{Name: "gchome", Key: nearKey, Address: homeInside})
		r.must(err)
		t.Cleanup(func() { r.near.Close() })
		r.quiet, err = duplicator.OpenSocket(atHome)
		r.must(err)
		r.forward, err = duplicator.OpenForward(atHome, LAN, r.near)
		r.must(err)
	})
	r.must(r.near.Apply([]tunnel.Peer{{
		Key: farKey.Public(), Address: relayInside, Endpoint: netip.AddrPortFrom(netip.MustParseAddr(netlab.RelayUplink), tunnelPort),
	}}))
	// WireGuard keeps a number of datagrams until then, and that is fewer than some cases send.
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		peers, err := r.near.Status()
		r.must(err)
		if !peers[farKey.Public()].Handshake.IsZero() {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("no handshake: %+v", peers)
		}
	}
}

func (r *relayed) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// Apply implements duplicator.Duplicator.
func (r *relayed) Apply(s *table.Snapshot) error {
	homes := map[netip.Addr]*table.Snapshot{}
	var quiet *table.Snapshot
	if s != nil {
		homes[homeInside] = r.withPorts(s)
		quiet = &table.Snapshot{Version: s.Version, ValidUntil: s.ValidUntil, Groups: map[netip.Addr]*table.Group{}}
		for ip, g := range s.Groups {
			without := *g
			without.Destinations = nil
			quiet.Groups[ip] = &without
		}
	}
	var errs []error
	r.home.Do(func() { errs = append(errs, r.quiet.Apply(quiet), r.forward.Apply(s, relayInside)) })
	return errors.Join(append(errs, r.relay.Apply(homes))...)
}

// firstReserved is below the ports that the kernel gives to anyone.
const firstReserved = 21000

// withPorts reserves a port for each source that has none.
func (r *relayed) withPorts(s *table.Snapshot) *table.Snapshot {
	if r.reserved == nil {
		return s
	}
	all := &table.Snapshot{Version: s.Version, ValidUntil: s.ValidUntil, Groups: map[netip.Addr]*table.Group{}}
	for ip, g := range s.Groups {
		with := *g
		with.Sources = slices.Clone(g.Sources)
		for i := range with.Sources {
			of := &with.Sources[i]
			if of.Port != 0 {
				continue
			}
			name := g.ID + " " + of.ID
			if r.reserved[name] == 0 {
				r.reserved[name] = uint16(firstReserved + len(r.reserved))
			}
			of.Port = r.reserved[name]
		}
		all.Groups[ip] = &with
	}
	return all
}

// Counters implements duplicator.Duplicator: a datagram was refused at home, or stayed there because its group has no destinations, or was judged by the
// relay.
func (r *relayed) Counters() duplicator.Counters {
	home, relay := r.quiet.Counters(), r.relay.Counters()
	all := duplicator.Counters{Destinations: relay.Destinations, Groups: map[netip.Addr]duplicator.GroupCounters{}, Refused: relay.Refused, UnknownGroup: home.UnknownGroup + relay.Strangers}
	idle := r.forward.Counters().Drops[duplicator.DropIdle] // of all groups; no case has more than the one without destinations
	for ip, g := range home.Groups {
		there := relay.Groups[ip.String()] // which Snapshot has as the group's id
		sum := duplicator.GroupCounters{Received: total(g.Drops) + there.Received, Drops: maps.Clone(g.Drops)}
		if sum.Drops == nil {
			sum.Drops = map[string]uint64{}
		}
		for reason, n := range there.Drops {
			sum.Drops[reason] += n
		}
		if ip == Groupcast1 {
			sum.Received += idle
		}
		all.Groups[ip] = sum
	}
	return all
}

// Close implements duplicator.Duplicator.
func (r *relayed) Close() error {
	var err error
	r.home.Do(func() { err = errors.Join(r.forward.Close(), r.quiet.Close(), r.near.Close()) })
	return errors.Join(err, r.relay.Close(), r.far.Close())
}

func (r *relayed) String() string {
	near, _ := r.near.Status()
	far, _ := r.far.Status()
	return fmt.Sprintf("home: %+v\nforwarded: %+v\nrelay: %+v\ntunnel: %+v, %+v", r.quiet.Counters(), r.forward.Counters(), r.relay.Counters(), near, far)
}

// crossed is how many packets went into the tunnel.
func (r *relayed) crossed() uint64 { return r.forward.Counters().Packets }

// wantedOnTheWay is how many of the packets have to go into the tunnel: each once, if anybody is to get a copy.
func (h *Home) wantedOnTheWay(packets [][]byte) (n uint64) {
	for _, b := range packets {
		p, err := packet.Parse(b)
		if err != nil {
			continue
		}
		v := packet.Decide(h.snapshot, time.Now(), p.Datagram)
		if v.Reason == packet.Copy && len(v.Group.Destinations) > 0 {
			n++
		}
	}
	return n
}

// A relay sends nothing to itself, to a network's broadcast address or into a tunnel, whatever destinations it is given.
func relayItself(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	own := []*net.UDPConn{h.Copier.ListenUDP("[::]:5004"), h.Gateway.ListenUDP("[" + homeInside.String() + "]:5004")}
	s := WorkedExample()
	g := s.Groups[Groupcast1]
	refused := []string{
		Uplink.String(), "203.0.113.255", netlab.RelayUplink, "198.18.0.3", relayInside.String(), "127.0.0.1", "0.1.2.3", "224.0.0.251", "240.0.0.1",
		"255.255.255.255", "169.254.1.1", "::1", "ff02::1", "fe80::1",
	}
	for _, a := range append(refused, homeInside.String()) { // what a peer doesn't take out of the tunnel needn't be refused
		g.Destinations = append(g.Destinations, To(a, a))
	}
	h.Apply(s)
	h.snapshot = WorkedExample()
	h.exchange([][]byte{raw{payload: []byte("video")}.bytes()})
	if c := h.Duplicator.Counters(); c.Refused != len(refused) {
		t.Errorf("%+v", c)
	}
	for _, c := range own {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, _, err := c.ReadFrom(make([]byte, 100)); err == nil {
			t.Errorf("%s got %d bytes", c.LocalAddr(), n)
		}
	}
}

// A relay judges by its own snapshot: when that has run out it copies nothing, though the gateway goes on forwarding, and neither does it for a home that it
// no longer has.
func relayStale(t *testing.T, b Backend) {
	h := NewHome(t, b, packet.Strip, nil)
	h.exchange(nil)
	s := WorkedExample()
	s.ValidUntil = time.Now().Add(300 * time.Millisecond)
	apply := func(homes map[netip.Addr]*table.Snapshot) {
		t.Helper()
		h.relayed.must(h.relayed.relay.Apply(homes))
	}
	apply(map[netip.Addr]*table.Snapshot{homeInside: s})
	time.Sleep(time.Until(s.ValidUntil) + 50*time.Millisecond)
	before := len(h.onUplink())
	h.inject(raw{payload: []byte("too late")}.bytes())
	h.until("counted", func() bool { return h.drops(packet.Stale.String()) == 1 })
	apply(nil)
	h.inject(raw{payload: []byte("of a stranger")}.bytes())
	h.until("counted as a stranger's", func() bool { return h.relayed.relay.Counters().Strangers == 1 })
	apply(map[netip.Addr]*table.Snapshot{homeInside: {ValidUntil: time.Now().Add(time.Minute), Groups: map[netip.Addr]*table.Group{Groupcast2: h.snapshot.Groups[Groupcast2]}}})
	h.inject(raw{payload: []byte("of no group")}.bytes())
	h.until("counted as a stranger's", func() bool { return h.relayed.relay.Counters().Strangers == 2 })
	if n := len(h.onUplink()) - before; n != 0 {
		t.Errorf("%d copies", n)
	}
}
