package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/mapping"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	// settleLeases is how long leases that were only prolonged may wait to be put into force.
	settleLeases = time.Second
	// waitingChecks is how many datagrams may wait for the goroutine that judges them; the others are lost, as on the way. A relay has those of thousands of homes:
	// as many come while a change is put into force.
	waitingChecks      = 256
	waitingRelayChecks = 1 << 13
	// takenAtOnce is the part of them that is judged before what follows from it is put into force.
	takenAtOnce = 4
	// atMostOneIn so much time is spent on looking through all consents.
	atMostOneIn = 20
)

// heardCheck is a datagram that came to a reserved port.
type heardCheck struct {
	port     uint16
	from     netip.AddrPort
	datagram []byte
}

// consents asks destinations for their consent: it joins the machine that decides, the ports that the questions leave from and the clock. It
// belongs to the goroutine of the forwarder.
type consents struct {
	machine *consent.Machine
	permit  func(netip.Addr) bool // which hosts may get media, if they consent
	ports   *sender.Ports
	heard   chan heardCheck
	due     *time.Timer
	unasked bool
	ipv6    netip.Addr // that copies to IPv6 destinations leave from; the zero Addr if there is none

	relay     bool
	private6  bool // among the private networks that may get media there is one of IPv6
	uplink    netip.Addr
	behindNAT bool
	mapping   mapping.Machine
	found     atomic.Pointer[sync.Service] // as the poller found it last
	service   *sync.Service                // of that, what is in force; nil: not known yet
	elsewhere bool                         // the service is, and what is in force was made before
	own       map[netip.Addr]bool          // addresses of this host, and the broadcast addresses of its networks

	resumed map[consent.Key]consent.Lease // what the last agent left, until somebody is wanted
	exempt  map[string]bool               // registration ids that were logged
	applied consent.Counters              // as they were when the leases in force were taken
	settle  time.Time                     // when prolonged leases are due; zero: none is
	log     *slog.Logger
}

func newConsents(c config.Config, portFile string, log *slog.Logger) *consents {
	waiting := waitingChecks
	if c.Mode == config.ModeRelay {
		waiting = waitingRelayChecks
	}
	k := &consents{
		heard: make(chan heardCheck, waiting), due: time.NewTimer(0), unasked: c.AllowWithoutConsent,
		relay: c.Mode == config.ModeRelay, uplink: c.Gateway.Uplink, behindNAT: c.Gateway.BehindNAT, exempt: map[string]bool{}, log: log,
	}
	if k.unasked {
		log.Warn("allow-without-consent is set: copies go to whatever address is registered, asked for or not; whoever can register can flood others")
	}
	k.private6 = slices.ContainsFunc(c.PrivateNetworks, func(p netip.Prefix) bool { return p.Addr().Is6() })
	k.permit = k.permitted(c)
	k.machine = consent.New(k.permit)
	k.ports = sender.Open(c.Gateway.Uplink, portFile, k.hear, log)
	k.ports.Within(c.SenderPorts)
	return k
}

// permitted tells which hosts may get media if they consent.
func (k *consents) permitted(c config.Config) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		switch {
		case c.Gateway.Range.Contains(a), a == c.Gateway.LANAddr, a == c.Gateway.Uplink && !a.IsLoopback():
			return false
		case a.IsLoopback():
			return c.AllowLoopback && a.Is4()
		case k.own[a]:
			return false
		case c.Gateway.IsHost(a), slices.ContainsFunc(c.PrivateNetworks, func(p netip.Prefix) bool { return p.Contains(a) }):
			return true
		}
		return models.PublicHost(a)
	}
}

// find takes over where the service is. It runs on the poller's goroutine.
func (k *consents) find(s sync.Service) { k.found.Store(&s) }

// settleService takes over what was found: nobody is a receiver there, and its STUN port is asked.
func (k *consents) settleService(now time.Time) {
	found := k.found.Load()
	if found == nil || found == k.service {
		return
	}
	k.service, k.settle, k.elsewhere = found, now, true // the leases in force are looked at again
	k.machine.Avoid(found.Endpoints)
	if !k.behindNAT {
		return
	}
	if !found.STUN.IsValid() {
		k.log.Warn("this gateway is behind a NAT, and there is no STUN port of the service (or no IPv4 address of it) that tells what becomes of its ports: destinations outside can't send " +
			"their checks here, and only those that may be asked first get copies; have the operator set stun-listen")
	}
	k.mapping.Ask(now, found.STUN)
}

// hear runs on the goroutine of whatever socket a check came to.
func (k *consents) hear(port uint16, from netip.AddrPort, datagram []byte) {
	select {
	case k.heard <- heardCheck{port, from, slices.Clone(datagram)}:
	default:
	}
}

// want asks those that the group information names, from ports that are reserved for its sources, and gives what is to be derived from it.
func (k *consents) want(now time.Time, info models.GroupInformation) error {
	var senders []consent.Sender
	var wanted []consent.Wanted
	exempt := map[string]bool{}
	for _, g := range info.Groups {
		if k.relay && len(g.Destinations) == 0 {
			continue // a home has few sources, a relay tens of thousands: there isn't a port for each
		}
		for _, s := range g.Sources {
			senders = append(senders, consent.Sender{Group: string(g.ID), Source: string(s.RegistrationID)})
		}
		for _, d := range g.Destinations {
			id := string(d.RegistrationID)
			if d.Policy == models.PolicyExempt {
				exempt[id] = true
				if !k.exempt[id] {
					k.log.Warn("a destination gets copies unasked: the operator exempts it", "group", g.ID, "destination", id)
				}
			}
			if d.Policy != models.PolicyLearned && d.Policy != models.PolicyStrict {
				continue
			}
			for _, s := range senders[len(senders)-len(g.Sources):] {
				wanted = append(wanted, consent.Wanted{
					Key: consent.Key{Sender: s, Destination: id}, Credential: d.Credential, Addr: d.Addr(), Port: d.Port,
					Strict: d.Policy == models.PolicyStrict, Probes: d.Probes, Every: d.Every, Expires: d.Expires,
				})
			}
		}
	}
	k.exempt = exempt
	k.ipv6 = sender.IPv6Address()
	k.ports.Only4(k.relay && !k.ipv6.IsValid() && !k.private6)
	err := k.ports.Keep(senders)
	if own, ownErr := duplicator.OwnAddresses(); ownErr == nil { // else those of before; the duplicator says why
		k.own = own
	}
	if k.behindNAT {
		k.mapping.Keep(now, senders)
	}
	k.machine.Want(now, wanted)
	k.machine.Resume(now, k.resumed)
	k.resumed = nil
	k.due.Reset(0)
	return err
}

// leasesFile is what an agent that stops leaves for the next one, so that its start interrupts nobody who has just proved it. One that is killed leaves
// nothing, and all have to prove it anew: to write each proof would wear the flash of a router.
const leasesFile = "leases.json"

// left is a lease in that file.
type left struct {
	Group, Source, Destination string

	At  netip.AddrPort
	For time.Duration // from when it was written
}

// leave is for the end.
func (k *consents) leave(now time.Time, store *state.Store) error {
	all := []left{}
	for key, l := range k.machine.Leases(now) {
		all = append(all, left{key.Group, key.Source, key.Destination, l.At, l.Until.Sub(now)})
	}
	return store.Leave(leasesFile, all)
}

// resume is for the beginning.
func (k *consents) resume(now time.Time, store *state.Store) {
	var all []left
	age, err := store.Find(leasesFile, &all)
	if err != nil {
		return
	}
	k.resumed = map[consent.Key]consent.Lease{}
	for _, l := range all {
		key := consent.Key{Sender: consent.Sender{Group: l.Group, Source: l.Source}, Destination: l.Destination}
		k.resumed[key] = consent.Lease{At: l.At, Until: now.Add(min(l.For, consent.Life) - age)}
	}
}

// inputs are the leases and ports as they are now, which are in force from here on.
func (k *consents) inputs(now time.Time, in table.Inputs) table.Inputs {
	k.machine.Moved()
	k.elsewhere = false
	in.Ports, in.Leases = k.ports.Of(), k.machine.Leases(now)
	return k.common(in)
}

// moved are the inputs for those groups only whose leases have changed since inputs or moved was asked; no map: something has changed that may concern any.
func (k *consents) moved(now time.Time, in table.Inputs) (groups map[string]bool, _ table.Inputs) {
	if k.elsewhere {
		return nil, in
	}
	groups = k.machine.Moved()
	leases, senders := k.machine.LeasesOf(now, groups)
	in.Leases, in.Ports = leases, map[string]uint16{}
	for s := range senders {
		in.Ports[s.Source] = k.ports.Port(s)
	}
	return groups, k.common(in)
}

func (k *consents) common(in table.Inputs) table.Inputs {
	k.applied, k.settle, in.Unasked = k.machine.Counters(), time.Time{}, k.unasked
	if k.service != nil {
		in.Avoided = k.service.Endpoints
	}
	return in
}

// take judges a check and those that wait behind it, and tells whether the NAT does something else with a port now.
func (k *consents) take(now time.Time, first heardCheck) (moved bool) {
	next, more := first, true
	for n := 0; more && n < cap(k.heard)/takenAtOnce; n++ {
		if s, ok := k.ports.At(next.port); ok {
			ours, elsewhere := k.mapping.Receive(now, s, next.from, next.datagram)
			if elsewhere {
				moved = true
				k.log.Info("the NAT in front of this gateway has another port or address for a source's copies", "source", s.Source)
			}
			if !ours {
				for _, p := range k.machine.Receive(now, s, next.from, next.datagram) {
					k.ports.Send(p)
				}
			}
		}
		select {
		case next = <-k.heard:
		default:
			more = false
		}
	}
	return moved
}

// tick does what is due, and has the timer fire when something is again, a second from now at the latest: others look at how things stand.
func (k *consents) tick(now time.Time) {
	k.settleService(now)
	packets, next := k.machine.Tick(now)
	questions, soon := k.mapping.Tick(now)
	for _, p := range append(packets, questions...) {
		k.ports.Send(p)
	}
	if soon.Before(next) {
		next = soon
	}
	least := max(10*time.Millisecond, atMostOneIn*time.Since(now)) // with tens of thousands of checks something is always due
	k.due.Reset(min(max(next.Sub(now), least), time.Second))
}

// changed tells whether the leases in force have to be replaced now: at once if somebody came, went or moved, soon if they were only prolonged.
func (k *consents) changed(now time.Time) bool {
	c := k.machine.Counters()
	if c.Validated != k.applied.Validated || c.Expired != k.applied.Expired {
		return true
	}
	if c.Renewed != k.applied.Renewed && k.settle.IsZero() {
		k.settle = now.Add(settleLeases)
	}
	return !k.settle.IsZero() && !now.Before(k.settle)
}

// mapped is what a NAT makes of the ports, as far as it is known, by the source's registration id.
func (k *consents) mapped(now time.Time) map[string]netip.AddrPort {
	all := map[string]netip.AddrPort{}
	for source, port := range k.ports.Of() {
		at, _ := k.ports.At(port)
		if mapped, _ := k.mapping.Of(now, at); mapped.IsValid() {
			all[source] = mapped
		}
	}
	return all
}

// report is where copies come from and how consents stand. A port whose mapping may become known any moment isn't told yet: what stands there before is
// nobody's outside the NAT.
func (k *consents) report(now time.Time) (map[string]api.ReportedSender, map[consent.Key]standing) {
	senders := map[string]api.ReportedSender{}
	for source, port := range k.ports.Of() {
		s := api.ReportedSender{RegistrationID: models.RegistrationID(source), Port: int32(port)}
		at, _ := k.ports.At(port)
		mapped, settled := k.mapping.Of(now, at)
		if k.behindNAT && (!settled || k.service == nil) {
			continue
		}
		if mapped.IsValid() && mapped != netip.AddrPortFrom(k.uplink, port) {
			s.MappedIPv4, s.MappedPort = nullable.NewNullableWithValue(mapped.Addr()), nullable.NewNullableWithValue(int32(mapped.Port()))
		}
		if k.ipv6.IsValid() && k.ports.IPv6(at) {
			s.IPv6, s.PortIPv6 = nullable.NewNullableWithValue(k.ipv6), nullable.NewNullableWithValue(s.Port)
		}
		senders[source] = s
	}
	leases, standings := k.machine.Leases(now), map[consent.Key]standing{}
	for key, state := range k.machine.States(now) {
		standings[key] = standing{state, leases[key]}
	}
	return senders, standings
}
