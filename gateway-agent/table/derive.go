package table

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Inputs is everything beside the server's own words that decides what may be copied.
type Inputs struct {
	// ValidUntil is when the snapshot ends unless the server is heard from before.
	ValidUntil time.Time
}

// Derive makes the effective table from what the server said. It is a pure function: the same view and inputs give the same
// snapshot, which shares nothing with either. Nothing gets into the packet path in another way.
func Derive(v View, in Inputs) (*Snapshot, error) {
	version, err := v.version()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Version: version, ValidUntil: in.ValidUntil, Groups: map[netip.Addr]*Group{}}
	for row, err := range rows[*models.Group](v, tableGroups, byIP) {
		if err != nil {
			return nil, err
		}
		g := &Group{ID: string(row.ID), Name: row.Name, IP: row.IP.Unmap(), Generation: row.Generation}
		for member, err := range rows[*source](v, tableSources, byGroup, string(row.ID)) {
			if err != nil {
				return nil, err
			}
			g.Sources = append(g.Sources, deriveSource(member.GatewaySource))
		}
		for member, err := range rows[*destination](v, tableDestinations, byGroup, string(row.ID)) {
			if err != nil {
				return nil, err
			}
			g.Destinations = append(g.Destinations, deriveDestination(member.GatewayDestination))
		}
		g.Sources = onePerAddress(g.Sources)
		slices.SortFunc(g.Destinations, func(a, b Destination) int { return cmp.Compare(a.ID, b.ID) })
		s.Groups[g.IP] = g
	}
	return s, nil
}

func deriveSource(s models.GatewaySource) Source {
	return Source{ID: string(s.RegistrationID), Name: s.Name, Addr: s.IPv4.Unmap(), Trigger: Trigger(s.Trigger)}
}

func deriveDestination(d models.GatewayDestination) Destination {
	addr := d.IPv4
	if !addr.IsValid() {
		addr = d.IPv6
	}
	return Destination{ID: string(d.RegistrationID), Name: d.Name, Addr: addr.Unmap(), Port: d.Port}
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
