package table

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
)

// Inputs is everything beside the server's own words that decides what may be copied.
type Inputs struct {
	// ValidUntil is when the snapshot ends unless the server is heard from before.
	ValidUntil time.Time
	// Heard is Snapshot.Heard.
	Heard time.Time
	// Ports are the senders' reserved ones, by the source's registration id.
	Ports map[string]uint16
	// Leases are where and until when those who consented may get copies.
	Leases map[consent.Key]consent.Lease
	// Avoided are places that get nothing, asked for or not: those of the service itself.
	Avoided []netip.AddrPort
	// Unasked lets everybody have copies without consent, where it is registered. Only an operator may say so.
	Unasked bool
}

// Derive makes the effective table from what the server said. It is a pure function: the same view and inputs give the same
// snapshot, which shares nothing with either. Nothing gets into the packet path in another way.
func Derive(v View, in Inputs) (*Snapshot, error) {
	version, err := v.version()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Version: version, ValidUntil: in.ValidUntil, Heard: in.Heard, Groups: map[netip.Addr]*Group{}}
	for row, err := range rows[*models.Group](v, tableGroups, byIP) {
		if err != nil {
			return nil, err
		}
		g, err := deriveGroup(v, row, in)
		if err != nil {
			return nil, err
		}
		s.Groups[g.IP] = g
	}
	return s, nil
}

// DeriveRelay makes a relay's table: a snapshot of each gateway, by its address in the tunnel. It is Derive, but for the key of the table that
// begins with the gateway: every home has the same few group IPs.
func DeriveRelay(v View, in Inputs, homes []models.RelayPremises) (map[netip.Addr]*Snapshot, error) {
	version, err := v.version()
	if err != nil {
		return nil, err
	}
	type home struct {
		premises models.PremisesID
		gateway  models.ID
	}
	of := map[home]*Snapshot{}
	all := map[netip.Addr]*Snapshot{}
	for _, h := range homes {
		at := home{h.PremisesID, h.GatewayID}
		if of[at] == nil {
			of[at] = &Snapshot{Version: version, ValidUntil: in.ValidUntil, Heard: in.Heard, Groups: map[netip.Addr]*Group{}}
		}
		all[h.TunnelAddress] = of[at]
	}
	for row, err := range rows[*models.Group](v, tableGroups, byIP) {
		if err != nil {
			return nil, err
		}
		s := of[home{row.PremisesID, row.GatewayID}]
		if s == nil {
			continue // no tunnel comes from there
		}
		g, err := deriveGroup(v, row, in)
		if err != nil {
			return nil, err
		}
		s.Groups[g.IP] = g
	}
	return all, nil
}

// DeriveGroup makes one group of Derive's or DeriveRelay's, if the table has it. Of the inputs it needs those about this group.
func DeriveGroup(v View, in Inputs, id string) (g *Group, ok bool, err error) {
	for row, err := range rows[*models.Group](v, tableGroups, byID, id) {
		if err != nil {
			return nil, false, err
		}
		g, err = deriveGroup(v, row, in)
		return g, err == nil, err
	}
	return nil, false, nil
}

func deriveGroup(v View, row *models.Group, in Inputs) (*Group, error) {
	g := &Group{ID: string(row.ID), Name: row.Name, IP: row.IP.Unmap(), Generation: row.Generation}
	for member, err := range rows[*source](v, tableSources, byGroup, string(row.ID)) {
		if err != nil {
			return nil, err
		}
		s := deriveSource(member.GatewaySource)
		s.Port = in.Ports[s.ID]
		g.Sources = append(g.Sources, s)
	}
	g.Sources = onePerAddress(g.Sources)
	for member, err := range rows[*destination](v, tableDestinations, byGroup, string(row.ID)) {
		if err != nil {
			return nil, err
		}
		g.Destinations = append(g.Destinations, deriveDestinations(g, member.GatewayDestination, in)...)
	}
	slices.SortFunc(g.Destinations, func(a, b Destination) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Source, b.Source))
	})
	return g, nil
}

func deriveSource(s models.GatewaySource) Source {
	return Source{ID: string(s.RegistrationID), Name: s.Name, Addr: s.IPv4.Unmap(), Trigger: Trigger(s.Trigger)}
}

// deriveDestinations gives a destination as often as there are senders that it gets copies from: none without consent.
func deriveDestinations(g *Group, d models.GatewayDestination, in Inputs) []Destination {
	to := Destination{ID: string(d.RegistrationID), Name: d.Name, Addr: d.Addr(), Port: d.Port}
	if in.Unasked || d.Policy == models.PolicyExempt {
		if slices.Contains(in.Avoided, netip.AddrPortFrom(to.Addr, to.Port)) {
			return nil
		}
		return []Destination{to}
	}
	var all []Destination
	for _, s := range g.Sources {
		lease, ok := in.Leases[consent.Key{Sender: consent.Sender{Group: g.ID, Source: s.ID}, Destination: to.ID}]
		if !ok {
			continue
		}
		to.Addr, to.Port, to.Source, to.ValidUntil = lease.At.Addr(), lease.At.Port(), s.ID, lease.Until
		all = append(all, to)
	}
	return all
}

// onePerAddress sorts by address. If two members claim the same address the stricter trigger holds: a member that needs no
// option can't lift it for the other.
func onePerAddress(sources []Source) []Source {
	slices.SortFunc(sources, func(a, b Source) int {
		strict := func(s Source) int {
			if s.Trigger == TriggerSource {
				return 1
			}
			return 0
		}
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(strict(a), strict(b)), cmp.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(sources, func(a, b Source) bool { return a.Addr == b.Addr })
}
