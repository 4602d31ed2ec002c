package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// TunnelStatus is how the tunnel is used.
type TunnelStatus struct {
	Interface string `json:"interface"`
	Kernel    bool   `json:"kernel"` // it is the kernel's WireGuard
	Peers     int    `json:"peers"`
	Connected int    `json:"connected"` // peers with a session of the last three minutes
	// Forwarded is what a gateway sent to its relay.
	Forwarded *duplicator.ForwardCounters `json:"forwarded,omitempty"`
	// Strangers, Malformed and Lost are datagrams that came to a relay and were for no group of their premises, or unreadable, or too many.
	Strangers uint64 `json:"strangers,omitempty"`
	Malformed uint64 `json:"malformed,omitempty"`
	Lost      uint64 `json:"lost,omitempty"`
}

// counts are the counters of a place, by a group's id.
type counts struct {
	duplicator.Counters
	relay map[string]duplicator.GroupCounters // at a relay
}

func (c counts) of(g *table.Group) duplicator.GroupCounters {
	if c.relay != nil {
		return c.relay[g.ID]
	}
	return c.Groups[g.IP]
}

// groups are all of them, by group IP; at a relay those of one home after the other's.
func (e effective) groups() []*table.Group {
	var all []*table.Group
	for _, s := range e {
		for _, g := range s.Groups {
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b *table.Group) int { return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.ID, b.ID)) })
	return all
}

func (h *home) counts() counts { return counts{Counters: h.duplicator.Counters()} }

func (h *home) status() *TunnelStatus {
	e := h.way.ends.Load()
	if e == nil {
		return nil
	}
	forwarded := e.forward.Counters()
	s := tunnelStatus(e.tunnel)
	s.Forwarded = &forwarded
	return s
}

func (n *network) counts() counts {
	e := n.ends.Load()
	if e == nil {
		return counts{relay: map[string]duplicator.GroupCounters{}}
	}
	c := e.relay.Counters()
	return counts{duplicator.Counters{Destinations: c.Destinations, Refused: c.Refused}, c.Groups}
}

func (n *network) status() *TunnelStatus {
	e := n.ends.Load()
	if e == nil {
		return nil
	}
	c := e.relay.Counters()
	s := tunnelStatus(e.tunnel)
	s.Strangers, s.Malformed, s.Lost = c.Strangers, c.Malformed, c.Lost
	return s
}

// sessionLife is how long a session of WireGuard's is used (its REJECT_AFTER_TIME).
const sessionLife = 3 * time.Minute

func tunnelStatus(t *tunnel.Tunnel) *TunnelStatus {
	s := &TunnelStatus{Interface: t.Interface(), Kernel: t.Kernel()}
	peers, err := t.Status()
	if err != nil {
		return s // it closes
	}
	for _, p := range peers {
		s.Peers++
		if time.Since(p.Handshake) < sessionLife {
			s.Connected++
		}
	}
	return s
}
