package table

import (
	"net/netip"
	"time"
)

// Trigger says what makes a datagram of a source eligible for copying (SPEC §9).
type Trigger string

const (
	// TriggerOption copies only datagrams that carry the IPv4 option 0x88 with the source's own address.
	TriggerOption Trigger = "option"
	// TriggerSource copies every datagram of the registered source; it serves cameras that can't set IP options.
	TriggerSource Trigger = "source"
)

// Source is one registered camera of a group, as the packet path sees it.
type Source struct {
	ID      string // registration id
	Name    string
	Addr    netip.Addr // private IPv4; must equal the IP source of the datagram
	Trigger Trigger
	Port    uint16 // that its copies leave from, reserved by who asks for consent; 0: one for each of its streams
}

// Destination is one receiver that gets a copy of every datagram of the group.
type Destination struct {
	ID   string // registration id; stable across moves, so counters survive them
	Name string
	Addr netip.Addr // IPv4 or IPv6, unmapped
	Port uint16     // 0: the destination port of the camera's datagram
	// Source is the registration id of the source whose datagrams these copies are of, because consent is given to one sender; "": of all.
	Source string
	// ValidUntil ends the consent; zero: the snapshot's own end.
	ValidUntil time.Time
}

// Serves tells whether a datagram of the source is copied to the destination at this instant, whether it may be is the snapshot's.
func (d Destination) Serves(source Source, now time.Time) bool {
	return (d.Source == "" || d.Source == source.ID) && (d.ValidUntil.IsZero() || now.Before(d.ValidUntil))
}

// Group is one group IP with everything the packet path needs to decide and copy.
type Group struct {
	ID           string
	Name         string
	IP           netip.Addr
	Generation   int64
	Sources      []Source      // sorted by Addr
	Destinations []Destination // sorted by ID, then by Source
}

// Source returns the registered source with that address.
func (g *Group) Source(addr netip.Addr) (Source, bool) {
	for _, s := range g.Sources {
		if s.Addr == addr {
			return s, true
		}
	}
	return Source{}, false
}

// Snapshot is the effective forwarding table. It is immutable after Derive returned it, so a datagram that reads one
// snapshot sees the old set of destinations or the new one, never a mix.
type Snapshot struct {
	Version    string    // "<epoch>.<revision>" it was derived from
	ValidUntil time.Time // the packet path copies nothing after this instant (fail closed, SPEC §9)
	// Heard is when the service was asked for what it answered, or stood by; zero: it wasn't.
	Heard  time.Time
	Groups map[netip.Addr]*Group
}

// HeardBefore tells whether the service was asked before that time.
func (s *Snapshot) HeardBefore(t time.Time) bool { return !s.Heard.IsZero() && s.Heard.Before(t) }

// Group returns the group that owns the group IP.
func (s *Snapshot) Group(ip netip.Addr) (*Group, bool) {
	if s == nil {
		return nil, false
	}
	g, ok := s.Groups[ip]
	return g, ok
}
