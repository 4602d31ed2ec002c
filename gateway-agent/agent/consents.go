package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	// settleLeases is how long leases that were only prolonged may wait to be put into force.
	settleLeases = time.Second
	// waitingChecks is how many datagrams may wait for the goroutine that judges them; the others are lost, as on the way.
	waitingChecks = 256
	checksAtOnce  = 64
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
	ports   *sender.Ports
	heard   chan heardCheck
	due     *time.Timer
	unasked bool
	ipv6    netip.Addr // that copies to IPv6 destinations leave from; the zero Addr if there is none

	exempt  map[string]bool  // registration ids that were logged
	applied consent.Counters // as they were when the leases in force were taken
	settle  time.Time        // when prolonged leases are due; zero: none is
	log     *slog.Logger
}

func newConsents(c config.Config, portFile string, log *slog.Logger) *consents {
	k := &consents{
		heard: make(chan heardCheck, waitingChecks), due: time.NewTimer(0), unasked: c.AllowWithoutConsent,
		exempt: map[string]bool{}, log: log,
	}
	if k.unasked {
		log.Warn("allow-without-consent is set: copies go to whatever address is registered, asked for or not; whoever can register can flood others")
	}
	k.machine = consent.New(permitted(c))
	k.ports = sender.Open(c.Gateway.Uplink, portFile, k.hear, log)
	return k
}

// permitted tells which hosts may get media if they consent.
func permitted(c config.Config) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		switch {
		case c.Gateway.Range.Contains(a), a == c.Gateway.LANAddr, a == c.Gateway.Uplink && !a.IsLoopback():
			return false
		case a.IsLoopback():
			return c.AllowLoopback && a.Is4()
		case c.Gateway.IsHost(a), slices.ContainsFunc(c.PrivateNetworks, func(p netip.Prefix) bool { return p.Contains(a) }):
			return true
		}
		return models.PublicHost(a)
	}
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
					Strict: d.Policy == models.PolicyStrict, Probes: d.Probes,
				})
			}
		}
	}
	k.exempt = exempt
	k.ipv6 = sender.IPv6Address()
	err := k.ports.Keep(senders)
	k.machine.Want(now, wanted)
	k.due.Reset(0)
	return err
}

// inputs are the leases and ports as they are now, which are in force from here on.
func (k *consents) inputs(now time.Time, in table.Inputs) table.Inputs {
	k.applied, k.settle = k.machine.Counters(), time.Time{}
	in.Ports, in.Leases, in.Unasked = k.ports.Of(), k.machine.Leases(now), k.unasked
	return in
}

// take judges a check and those that wait behind it.
func (k *consents) take(now time.Time, first heardCheck) {
	next, more := first, true
	for n := 0; more && n < checksAtOnce; n++ {
		if s, ok := k.ports.At(next.port); ok {
			for _, p := range k.machine.Receive(now, s, next.from, next.datagram) {
				k.ports.Send(p)
			}
		}
		select {
		case next = <-k.heard:
		default:
			more = false
		}
	}
}

// tick does what is due, and has the timer fire when something is again, a second from now at the latest: others look at how things stand.
func (k *consents) tick(now time.Time) {
	packets, next := k.machine.Tick(now)
	for _, p := range packets {
		k.ports.Send(p)
	}
	k.due.Reset(min(max(next.Sub(now), 10*time.Millisecond), time.Second))
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

// report is where copies come from and how consents stand.
func (k *consents) report(now time.Time) (map[string]api.ReportedSender, map[consent.Key]standing) {
	senders := map[string]api.ReportedSender{}
	for source, port := range k.ports.Of() {
		s := api.ReportedSender{RegistrationID: models.RegistrationID(source), Port: int32(port)}
		if at, ok := k.ports.At(port); ok && k.ipv6.IsValid() && k.ports.IPv6(at) {
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
