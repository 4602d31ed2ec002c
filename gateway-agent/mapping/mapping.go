// Package mapping learns what a NAT in front of the gateway makes of the reserved ports, and keeps those mappings open (SPEC §10): from each port the STUN port
// of groupcastd is asked where the question came from (RFC 8489 Binding), again and again.
//
// A Machine is that and nothing else: like the one of package consent it opens no socket, reads no clock and starts no goroutine.
//
// What it learns holds for everybody only if the NAT's mapping doesn't depend on where a datagram goes (RFC 4787 §4.1). Of one that does only the server's own is
// learned; then a destination is reached by the gateway's own checks, or not at all (docs/adr/0059).
package mapping

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

const (
	// Every is the time between two questions of one port, ± 20 %: as between two checks, so that a mapping that changed is followed as soon as one of a
	// destination's NAT. NATs forget a mapping after 30 s at the earliest, as far as is known, and should not before two minutes (RFC 4787 §4.3).
	Every = models.ConsentEvery
	// Patience is how long a port whose mapping isn't known yet may wait for it; then it is used without.
	Patience   = 3 * time.Second
	firstAgain = 250 * time.Millisecond // after a question that isn't answered; then doubling up to Every
)

// Machine is for one goroutine. The zero value has no ports and asks nobody.
type Machine struct {
	server netip.AddrPort
	ports  map[consent.Sender]*port
}

// port is how the questions of one go.
type port struct {
	since, due time.Time
	again      time.Duration
	asked      consentcheck.ID
	waiting    bool           // for the answer to asked
	mapped     netip.AddrPort // the zero AddrPort: not known
}

// Ask makes this the server, over IPv4; the zero AddrPort is none. Another one is asked at once.
func (m *Machine) Ask(now time.Time, server netip.AddrPort) {
	if server == m.server {
		return
	}
	m.server = server
	for _, p := range m.ports {
		p.since, p.due, p.again = now, now, firstAgain
	}
}

// Keep makes these the ports. A new one asks at once.
func (m *Machine) Keep(now time.Time, senders []consent.Sender) {
	before := m.ports
	m.ports = make(map[consent.Sender]*port, len(senders))
	for _, s := range senders {
		p := before[s]
		if p == nil {
			p = &port{since: now, due: now, again: firstAgain}
		}
		m.ports[s] = p
	}
}

// Tick gives the questions that are due, and when the next ones are, a minute from now at the latest.
func (m *Machine) Tick(now time.Time) (questions []consent.Packet, next time.Time) {
	next = now.Add(time.Minute)
	if !m.server.IsValid() {
		return nil, next
	}
	for s, p := range m.ports {
		if !now.Before(p.due) {
			var data []byte
			data, p.asked = consentcheck.NewQuestion()
			p.waiting = true
			questions = append(questions, consent.Packet{Sender: s, To: m.server, Data: data})
			p.due, p.again = now.Add(p.again), min(2*p.again, Every)
		}
		if p.due.Before(next) {
			next = p.due
		}
	}
	return questions, next
}

// Receive takes a datagram that came to a port. Ours is false for what doesn't come from the server; moved tells whether the mapping is another one now.
func (m *Machine) Receive(now time.Time, s consent.Sender, from netip.AddrPort, datagram []byte) (ours, moved bool) {
	if from != m.server {
		return false, false
	}
	p := m.ports[s]
	answer, ok := consentcheck.Parse(datagram)
	if p == nil || !p.waiting || !ok || answer.Kind != consentcheck.Answer || answer.ID != p.asked || !usable(answer.Mapped) {
		return true, false
	}
	p.waiting = false
	p.due, p.again = now.Add(time.Duration(float64(Every)*(0.8+0.4*rand.Float64()))), firstAgain //nolint:gosec // nobody gains by guessing it
	moved, p.mapped = p.mapped != answer.Mapped, answer.Mapped
	return true, moved
}

// usable tells whether receivers can send there at all.
func usable(at netip.AddrPort) bool {
	return at.Addr().Is4() && at.Addr().IsGlobalUnicast() && at.Port() != 0
}

// Of gives what the NAT makes of a sender's port: the zero AddrPort as long as that isn't known. Settled is false while it may become known any moment.
func (m *Machine) Of(now time.Time, s consent.Sender) (mapped netip.AddrPort, settled bool) {
	p := m.ports[s]
	if p == nil {
		return netip.AddrPort{}, true
	}
	return p.mapped, p.mapped.IsValid() || !m.server.IsValid() || now.Sub(p.since) >= Patience
}
