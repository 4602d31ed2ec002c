package admission

import (
	"net/netip"
	"slices"
	"sort"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// claim is one destination and what its copies take of the uplink, in bits per second.
type claim struct {
	id   string
	rate float64
}

// ring puts every destination of a snapshot into the order in which they are admitted: that of their registration ids, which has nothing to do
// with who they are.
func ring(s *table.Snapshot, rate func(*table.Group) float64) []claim {
	var all []claim
	for _, g := range s.Groups {
		for _, d := range g.Destinations {
			all = append(all, claim{d.ID, rate(g)})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id }) // not by package slices: for each type of that size it has 10 kB more
	return all
}

// choose gives those who are shed: from the turn-th of the ring on, once around, each is admitted that still fits into the limit. So with
// each turn another one is first, and over all turns those with equal rates are admitted equally often.
func choose(ring []claim, limit float64, turn int) map[string]bool {
	shed := map[string]bool{}
	sum := 0.0
	for i := range ring {
		c := ring[(i+turn)%len(ring)]
		if sum+c.rate > limit {
			shed[c.id] = true
			continue
		}
		sum += c.rate
	}
	return shed
}

// without gives the snapshot without those who are shed. It shares with the old one what stays the same.
func without(s *table.Snapshot, shed map[string]bool) *table.Snapshot {
	if len(shed) == 0 {
		return s
	}
	kept := *s
	kept.Groups = make(map[netip.Addr]*table.Group, len(s.Groups))
	for ip, g := range s.Groups {
		fewer := *g
		fewer.Destinations = slices.DeleteFunc(slices.Clone(g.Destinations), func(d table.Destination) bool { return shed[d.ID] })
		kept.Groups[ip] = &fewer
	}
	return &kept
}
