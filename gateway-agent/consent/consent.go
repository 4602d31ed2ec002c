// Package consent decides who may get media (SPEC §10): nobody at an address and port from where it wasn't proved, by the secret of a
// registration and within the last 30 seconds, that the stream is wanted there.
//
// A Machine is one gateway's state of that and nothing else: it opens no socket, reads no clock and starts no goroutine. Whoever owns it gives
// it each STUN datagram that came and the time, and sends what it answers. What it concludes gets into the packet path by table.Derive only.
//
// A receiver speaks first. Its request, if it is right, is met with a request of our own to where the media would go, never longer than
// the first, and only the right answer to that from that address makes it live (path validation as in RFC 9000 §8.2; the consent that then has to
// be kept fresh is RFC 7675's). The receiver's request itself is answered after that. So whoever forges a source address has one small packet
// sent there for each that it sends. Everything that isn't right is met with silence.
package consent

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// How long and how often (RFC 7675 §5.1, SPEC §10).
const (
	// Life is how long media may go on after the last right answer, at most; the service may say less.
	Life = models.ConsentExpires
	// Every is the time between two requests to a live destination, ± 20 %, unless the service says otherwise.
	Every = models.ConsentEvery
	// Patience is how long a destination may be pending before it counts as unreachable.
	Patience = models.ConsentPatience
)

// What goes at most to addresses that have proved nothing.
const (
	maxRequests = models.MaxProbes       // to one address and port for one destination and sender, per slotLife; as probes in all
	firstProbe  = 500 * time.Millisecond // between the first two probes; then doubling
	slotLife    = 60 * time.Second       // how long an address that doesn't answer counts
	retryCapped = time.Second
)

// At so many addresses and ports at a time may be asked that have proved nothing.
const (
	maxPerTarget      = 4 // of one host, over all groups
	maxPerDestination = 8 // that one destination names, at all its senders: none takes them all from the others
	maxPerGroup       = 64
	maxPerGateway     = 512
)

// Sender is one reserved port: that for the copies of one source's datagrams to one group.
type Sender struct {
	Group  string // group id
	Source string // registration id
}

// Key is what consent is kept for: one destination at one sender.
type Key struct {
	Sender
	Destination string // registration id
}

// Wanted is what the server says about one destination at one sender.
type Wanted struct {
	Key
	Credential consentcheck.Credential
	// Addr is where the destination says that it is.
	Addr netip.Addr
	// Port is where it wants the media; 0: where its check comes from.
	Port uint16
	// Strict keeps it to Addr; otherwise its check may come from anywhere, as through a NAT.
	Strict bool
	// Probes is how many requests may go to Addr and Port before anything came from there, at all its senders together; 5 at most.
	Probes int
	// Every and Expires are what holds for this one in place of Every and Life; zero: those. More than Life counts as Life.
	Every, Expires time.Duration
}

func (w Wanted) every() time.Duration { return cmp.Or(w.Every, Every) }

func (w Wanted) life() time.Duration { return min(cmp.Or(w.Expires, Life), Life) }

// Lease is where and until when media may go.
type Lease struct {
	At    netip.AddrPort
	Until time.Time
}

// Packet is a datagram to be sent from a sender's port.
type Packet struct {
	Sender Sender
	To     netip.AddrPort
	Data   []byte
}

// Counters of datagrams and events; they only rise.
type Counters struct {
	Malformed uint64 `json:"malformed"` // STUN that isn't a check
	Unknown   uint64 `json:"unknown"`   // requests of no destination of that sender
	Forged    uint64 `json:"forged"`    // without the secret
	Unasked   uint64 `json:"unasked"`   // answers to nothing, or from another address than was asked
	Refused   uint64 `json:"refused"`   // from an address that may get nothing
	Capped    Capped `json:"capped"`    // not answered, because enough goes to addresses that have proved nothing
	Answered  uint64 `json:"answered"`  // requests answered
	Asked     uint64 `json:"asked"`     // requests to addresses that had proved nothing
	Probed    uint64 `json:"probed"`    // of those: unasked for
	Validated uint64 `json:"validated"` // addresses that proved it
	Renewed   uint64 `json:"renewed"`
	Expired   uint64 `json:"expired"`
}

// Capped are requests and probes that led to nothing, by what there was enough of.
type Capped struct {
	Address     uint64 `json:"address"`     // requests to that address and port
	Target      uint64 `json:"target"`      // addresses and ports of that host
	Destination uint64 `json:"destination"` // and of that destination, and so on
	Group       uint64 `json:"group"`
	Gateway     uint64 `json:"gateway"`
}

// Machine is for one goroutine.
type Machine struct {
	permit   func(netip.Addr) bool
	avoided  []netip.AddrPort
	checks   map[Key]*check
	groups   map[string][]*check // the same, by group
	moved    map[string]bool     // groups whose leases have changed since Moved
	ufrags   map[ufrag]*check
	asked    map[consentcheck.ID]asked
	slots    map[slotKey]*slot
	probes   map[string]*probes // by destination
	counters Counters
}

// probes is what was sent to a destination that had not said anything.
type probes struct {
	to   netip.AddrPort
	sent int
}

type ufrag struct {
	Sender
	ufrag string
}

// check is one destination at one sender.
type check struct {
	Wanted
	since   time.Time // first wanted
	lease   Lease     // the zero one while it isn't live
	lived   bool      // it was live once
	renewAt time.Time
	probes  *probes
	probeAt time.Time
	backOff time.Duration // until the probe after the next one
}

// asked is a request that was sent and may be answered.
type asked struct {
	check   *check
	to      netip.AddrPort
	at      time.Time
	renewal bool
}

type slotKey struct {
	Key
	to netip.AddrPort
}

// slot is an address and port that has proved nothing and was sent something.
type slot struct {
	since    time.Time
	requests int
	waiting  *question
}

// question is a destination's request that is answered when its address has proved itself.
type question struct {
	id   consentcheck.ID
	from netip.AddrPort
	size int
}

// New makes a machine that wants nobody. Permit tells whether a host with that address may get media at all.
func New(permit func(netip.Addr) bool) *Machine {
	return &Machine{
		permit: permit, checks: map[Key]*check{}, groups: map[string][]*check{}, moved: map[string]bool{}, ufrags: map[ufrag]*check{},
		asked: map[consentcheck.ID]asked{}, slots: map[slotKey]*slot{}, probes: map[string]*probes{},
	}
}

// Avoid replaces the places that get nothing, whatever they prove.
func (m *Machine) Avoid(places []netip.AddrPort) {
	m.avoided = places
	for _, c := range m.checks {
		if c.lease.At.IsValid() && !m.permits(c, c.lease.At) {
			m.end(c)
		}
	}
}

// Want replaces what is wanted. Who stays keeps its consent, as long as it may be where it is.
func (m *Machine) Want(now time.Time, all []Wanted) {
	before, budgets := m.checks, map[string]*probes{}
	m.checks, m.groups, m.ufrags = make(map[Key]*check, len(all)), map[string][]*check{}, make(map[ufrag]*check, len(all))
	for _, w := range all {
		w.Addr = w.Addr.Unmap()
		budget := m.probes[w.Destination]
		if at := netip.AddrPortFrom(w.Addr, w.Port); budget == nil || budget.to != at {
			budget = &probes{to: at}
		}
		m.probes[w.Destination], budgets[w.Destination] = budget, budget
		c := before[w.Key]
		if c == nil || c.Credential != w.Credential {
			c = &check{since: now}
		}
		if c.probes != budget {
			c.probes, c.probeAt, c.backOff = budget, now, firstProbe
		}
		c.Wanted = w
		if c.lease.At.IsValid() {
			c.lease.Until, c.renewAt = earlier(c.lease.Until, now.Add(c.life())), earlier(c.renewAt, now.Add(c.every()))
			if !m.permits(c, c.lease.At) {
				c.lease = Lease{}
			}
		}
		m.checks[w.Key], m.ufrags[ufrag{w.Sender, w.Credential.Ufrag}] = c, c
		m.groups[w.Group] = append(m.groups[w.Group], c)
	}
	m.probes = budgets
	for id, a := range m.asked {
		if m.checks[a.check.Key] != a.check {
			delete(m.asked, id)
		}
	}
	// Slots stay: who leaves and comes again has no new ones.
}

// Resume takes over leases that another machine gave and that are not over. Those that are not wanted, or not where they are, it leaves; who gets one
// is asked at once.
func (m *Machine) Resume(now time.Time, leases map[Key]Lease) {
	for key, l := range leases {
		c := m.checks[key]
		if c == nil || !now.Before(l.Until) || !m.permits(c, l.At) {
			continue
		}
		c.lease, c.lived, c.renewAt = Lease{l.At, earlier(l.Until, now.Add(c.life()))}, true, now
	}
}

// end ends a lease that was in force.
func (m *Machine) end(c *check) {
	c.lease, m.moved[c.Group] = Lease{}, true
	m.counters.Expired++
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// permits tells whether media for the destination may go there.
func (m *Machine) permits(c *check, to netip.AddrPort) bool {
	switch {
	case to.Port() == 0, c.Port != 0 && to.Port() != c.Port, c.Strict && to.Addr() != c.Addr:
		return false
	}
	return m.permit(to.Addr()) && !slices.Contains(m.avoided, to)
}

// target is where the media of a destination goes whose check came from there.
func (c *check) target(from netip.AddrPort) netip.AddrPort {
	if c.Port != 0 {
		return netip.AddrPortFrom(from.Addr(), c.Port)
	}
	return from
}

// Receive takes a datagram that came to a sender's port and gives what to send.
func (m *Machine) Receive(now time.Time, s Sender, from netip.AddrPort, datagram []byte) []Packet {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	message, ok := consentcheck.Parse(datagram)
	switch {
	case !ok:
		m.counters.Malformed++
		return nil
	case message.Kind == consentcheck.Answer:
		return m.answered(now, s, from, message)
	}
	name, _ := consentcheck.ToAgent.Ufrag(message.Username)
	c := m.ufrags[ufrag{s, name}]
	switch {
	case c == nil:
		m.counters.Unknown++
		return nil
	case !message.Authentic(c.Credential.Password):
		m.counters.Forged++
		return nil
	}
	to, q := c.target(from), question{message.ID, from, len(datagram)}
	switch {
	case !m.permits(c, to):
		m.counters.Refused++
		return nil
	case c.lease.At == to && now.Before(c.lease.Until):
		return []Packet{m.answer(c, q)}
	}
	return m.validate(now, c, to, &q)
}

func (m *Machine) answer(c *check, q question) Packet {
	m.counters.Answered++
	return Packet{c.Sender, q.from, consentcheck.NewAnswer(c.Credential, q.id, q.from, q.size)}
}

// validate asks an address that has proved nothing, unless that was done often enough.
func (m *Machine) validate(now time.Time, c *check, to netip.AddrPort, q *question) []Packet {
	key := slotKey{c.Key, to}
	s := m.slots[key]
	if s == nil || now.Sub(s.since) >= slotLife {
		if !m.room(now, key) {
			return nil
		}
		s = &slot{since: now}
		m.slots[key] = s
	}
	if s.requests >= maxRequests {
		m.counters.Capped.Address++
		return nil
	}
	s.requests++
	if q != nil {
		s.waiting = q
	}
	m.counters.Asked++
	return []Packet{m.ask(now, c, to, false)}
}

func (m *Machine) ask(now time.Time, c *check, to netip.AddrPort, renewal bool) Packet {
	data, id := consentcheck.NewRequest(c.Credential, consentcheck.ToReceiver)
	m.asked[id] = asked{c, to, now, renewal}
	return Packet{c.Sender, to, data}
}

// room tells whether one more address may be sent something that has proved nothing, and counts if not.
func (m *Machine) room(now time.Time, key slotKey) bool {
	var target, destination, group, all int
	for other, s := range m.slots {
		if now.Sub(s.since) >= slotLife {
			continue
		}
		all++
		if other.Group == key.Group {
			group++
		}
		if other.Destination == key.Destination {
			destination++
		}
		if sameHost(other.to.Addr(), key.to.Addr()) {
			target++
		}
	}
	switch {
	case target >= maxPerTarget:
		m.counters.Capped.Target++
	case destination >= maxPerDestination:
		m.counters.Capped.Destination++
	case group >= maxPerGroup:
		m.counters.Capped.Group++
	case all >= maxPerGateway:
		m.counters.Capped.Gateway++
	default:
		return true
	}
	return false
}

// sameHost takes an IPv6 network for one host, which may have all of its addresses.
func sameHost(a, b netip.Addr) bool {
	if a.Is6() && b.Is6() {
		return netip.PrefixFrom(b, 64).Contains(a)
	}
	return a == b
}

// answered takes the answer to a request of ours.
func (m *Machine) answered(now time.Time, s Sender, from netip.AddrPort, message consentcheck.Message) []Packet {
	a, ok := m.asked[message.ID]
	switch {
	case !ok, a.check.Sender != s, a.to != from, now.Sub(a.at) >= a.check.life():
		m.counters.Unasked++
		return nil
	case !message.Authentic(a.check.Credential.Password):
		m.counters.Forged++
		return nil
	}
	delete(m.asked, message.ID)
	c := a.check
	if !m.permits(c, from) { // no longer
		m.counters.Refused++
		return nil
	}
	if a.renewal {
		if c.lease.At != from || !now.Before(c.lease.Until) {
			m.counters.Unasked++ // it moved, or was lost, meanwhile
			return nil
		}
		m.counters.Renewed++
		c.lease.Until, m.moved[c.Group] = now.Add(c.life()), true
		return nil
	}
	m.counters.Validated++
	m.moved[c.Group] = true
	c.lease, c.lived, c.renewAt = Lease{from, now.Add(c.life())}, true, now.Add(spread(c.every()))
	c.probes.sent, c.backOff = 0, firstProbe
	key := slotKey{c.Key, from}
	var packets []Packet
	if s := m.slots[key]; s != nil && s.waiting != nil {
		packets = []Packet{m.answer(c, *s.waiting)}
	}
	delete(m.slots, key)
	return packets
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64())) //nolint:gosec // nobody gains by guessing it
}

// Tick does what is due and says when something is again, a minute from now at the latest.
func (m *Machine) Tick(now time.Time) (packets []Packet, next time.Time) {
	next = now.Add(time.Minute)
	soon := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, c := range m.checks {
		if c.lease.At.IsValid() && !now.Before(c.lease.Until) {
			m.end(c)
			c.probeAt = now
		}
		switch {
		case c.lease.At.IsValid():
			if !now.Before(c.renewAt) {
				packets = append(packets, m.ask(now, c, c.lease.At, true))
				c.renewAt = now.Add(spread(c.every()))
			}
			soon(c.renewAt)
			soon(c.lease.Until)
		case c.mayProbe():
			if !now.Before(c.probeAt) {
				packets = append(packets, m.probe(now, c)...)
			}
			if c.mayProbe() {
				soon(c.probeAt)
			}
		}
		if end := c.since.Add(Patience); !c.lived && now.Before(end) {
			soon(end)
		}
	}
	maps.DeleteFunc(m.asked, func(_ consentcheck.ID, a asked) bool { return now.Sub(a.at) >= Life })
	maps.DeleteFunc(m.slots, func(_ slotKey, s *slot) bool { return now.Sub(s.since) >= slotLife })
	return packets, next
}

func (c *check) mayProbe() bool {
	return c.Port != 0 && c.Addr.IsValid() && c.probes.sent < min(c.Probes, maxRequests)
}

func (m *Machine) probe(now time.Time, c *check) []Packet {
	to := netip.AddrPortFrom(c.Addr, c.Port)
	if !m.permits(c, to) {
		m.counters.Refused++
		c.probes.sent = maxRequests
		return nil
	}
	var packets []Packet
	if m.slots[slotKey{c.Key, to}] == nil && len(m.slots) >= maxPerGateway {
		m.counters.Capped.Gateway++ // without looking at each slot for each of the tens of thousands that a relay may want to ask
	} else {
		packets = m.validate(now, c, to, nil)
	}
	if len(packets) == 0 {
		c.probeAt = now.Add(retryCapped)
		return nil
	}
	m.counters.Probed++
	c.probes.sent++
	c.probeAt, c.backOff = now.Add(c.backOff), 2*c.backOff
	return packets
}

// Leases gives the destinations that may get media now.
func (m *Machine) Leases(now time.Time) map[Key]Lease {
	leases := map[Key]Lease{}
	for key, c := range m.checks {
		if c.lease.At.IsValid() && now.Before(c.lease.Until) {
			leases[key] = c.lease
		}
	}
	return leases
}

// LeasesOf gives those of these groups, and all senders that somebody is wanted at there.
func (m *Machine) LeasesOf(now time.Time, groups map[string]bool) (leases map[Key]Lease, senders map[Sender]bool) {
	leases, senders = map[Key]Lease{}, map[Sender]bool{}
	for g := range groups {
		for _, c := range m.groups[g] {
			senders[c.Sender] = true
			if c.lease.At.IsValid() && now.Before(c.lease.Until) {
				leases[c.Key] = c.lease
			}
		}
	}
	return leases, senders
}

// Moved gives the groups in which a lease began, was prolonged or ended since it was asked last, otherwise than by Want and Resume.
func (m *Machine) Moved() map[string]bool {
	moved := m.moved
	m.moved = map[string]bool{}
	return moved
}

// States gives how each destination stands at each sender.
func (m *Machine) States(now time.Time) map[Key]models.ConsentState {
	states := map[Key]models.ConsentState{}
	for key, c := range m.checks {
		switch {
		case c.lease.At.IsValid() && now.Before(c.lease.Until):
			states[key] = models.ConsentLive
		case c.lived:
			states[key] = models.ConsentLost
		case now.Sub(c.since) >= Patience:
			states[key] = models.ConsentUnreachable
		default:
			states[key] = models.ConsentPending
		}
	}
	return states
}

// Counters gives what was counted since New.
func (m *Machine) Counters() Counters { return m.counters }
