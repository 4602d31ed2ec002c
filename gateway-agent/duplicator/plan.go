package duplicator

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// plan is a snapshot as this host may act on it: without refused destinations, and with a deadline by the monotonic clock.
type plan struct {
	*table.Snapshot
	refused map[refusal]string
	of      *table.Snapshot // that it is the plan of, in a relay
}

type refusal struct{ group, destination string }

// newPlan never changes the snapshot it is given. An error names the groups that are not in the plan.
func newPlan(s *table.Snapshot, now time.Time, c Config, r refusals) (*plan, error) {
	if s == nil {
		s = &table.Snapshot{}
	}
	p := &plan{
		Snapshot: &table.Snapshot{
			Version: s.Version,
			// Counted from now, so a wall clock that jumps later neither ends the snapshot nor prolongs it.
			ValidUntil: now.Add(min(s.ValidUntil.Sub(now), c.MaxStale)),
			Heard:      s.Heard,
			Groups:     map[netip.Addr]*table.Group{},
		},
		refused: map[refusal]string{},
	}
	var errs []error
	for ip, g := range s.Groups {
		if !c.relay && !c.GroupRange.Contains(ip) || g.IP != ip {
			errs = append(errs, fmt.Errorf("group %s is refused: its group IP %s is outside this gateway's range %s",
				g.ID, ip, c.GroupRange))
			continue
		}
		p.Groups[ip] = p.withoutRefused(g, r)
	}
	return p, errors.Join(errs...)
}

// Effective is what a backend beside the socket backend acts by: the snapshot without what this host refuses, and with a ValidUntil by the
// monotonic clock. An error that wraps ErrNotApplied comes without a snapshot; any other names the groups that are missing.
func (c Config) Effective(s *table.Snapshot) (*table.Snapshot, error) {
	r, err := newRefusals(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	p, err := newPlan(s, time.Now(), c, r)
	return p.Snapshot, err
}

func (p *plan) withoutRefused(g *table.Group, r refusals) *table.Group {
	kept := *g
	kept.Destinations = make([]table.Destination, 0, len(g.Destinations))
	for _, d := range g.Destinations {
		d.Addr = d.Addr.Unmap()
		if why := r.why(d.Addr); why != "" {
			p.refused[refusal{g.ID, d.ID}] = why
			continue
		}
		kept.Destinations = append(kept.Destinations, d)
	}
	return &kept
}

// destinations adds the registration ids of those that may get copies.
func (p *plan) destinations(ids map[string]bool) {
	for _, g := range p.Groups {
		for _, d := range g.Destinations {
			ids[d.ID] = true
		}
	}
}
