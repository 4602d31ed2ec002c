package duplicator

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// Counters is what was copied and what wasn't. Numbers only rise.
type Counters struct {
	Destinations map[string]DestinationCounters // by registration id; kept for a while after the destination left
	Groups       map[netip.Addr]GroupCounters   // by group IP
	UnknownGroup uint64                         // datagrams to a group IP of nobody, where the backend sees those
	Refused      int                            // destinations of the snapshot in force that never get media (refuse.go)
}

// DestinationCounters counts the copies for one destination.
type DestinationCounters struct {
	Packets uint64
	Bytes   uint64            // UDP payload
	Drops   map[string]uint64 // copies that were not sent or came back, by reason; see the Drop constants
}

// GroupCounters counts what arrived at one group IP.
type GroupCounters struct {
	Received uint64
	Drops    map[string]uint64 // datagrams not copied, by packet.Reason, DropOverflow or DropStreams
}

// Reasons beside those of package packet.
const (
	DropOverflow = "overflow" // group: the kernel had no room for the datagram
	DropStreams  = "streams"  // group: one camera stream more than there may be

	DropFull        = "full"        // destination: its socket's send buffer has no room
	DropRefused     = "refused"     // destination: the host said that nobody listens at the port
	DropUnreachable = "unreachable" // destination: no way there
	DropTooBig      = "too-big"     // destination: the datagram doesn't fit
	DropNoSocket    = "no-socket"   // destination: no socket could be opened; logged
	DropError       = "error"       // destination: any other error of the send
	DropPort        = "other-port"  // group: not a port that cameras send to, where the backend sees those
	DropNotUDP      = "not-udp"     // group: a packet of another protocol, where the backend sees those
	DropRate        = "rate"        // destination: more than it may get (DestinationRate)
	DropStale       = "stale"       // destination: it may not be served any longer unless the agent says so
)

// How long, and of how many at most, the counters of a destination that left can still be read.
const (
	departedKept = 10 * time.Minute
	maxDeparted  = 1024
)

// Forgettable gives those of what left whose counters needn't be kept any longer: they left long ago, or many others left since. It is asked at each Apply,
// so it sorts only if there are too many.
func Forgettable(departed map[string]time.Time, now time.Time) (keys []string) {
	for key, at := range departed {
		if now.Sub(at) > departedKept {
			keys = append(keys, key)
		}
	}
	others := len(departed) - len(keys)
	if others <= maxDeparted {
		return keys
	}
	newest := make([]string, 0, others)
	for key, at := range departed {
		if now.Sub(at) <= departedKept {
			newest = append(newest, key)
		}
	}
	slices.SortFunc(newest, func(a, b string) int { return departed[b].Compare(departed[a]) })
	return append(keys, newest[maxDeparted:]...)
}

type destinationCounters struct {
	packets, bytes                                        atomic.Uint64
	full, refused, unreachable, tooBig, noSocket, failure atomic.Uint64
	overRate, stale                                       atomic.Uint64
	pace                                                  pace
	departed                                              time.Time // guarded by registry.mu; zero while it is a destination
}

func (c *destinationCounters) read() DestinationCounters {
	d := DestinationCounters{Packets: c.packets.Load(), Bytes: c.bytes.Load()}
	for _, drop := range [...]struct {
		reason string
		n      uint64
	}{
		{DropFull, c.full.Load()},
		{DropRefused, c.refused.Load()},
		{DropUnreachable, c.unreachable.Load()},
		{DropTooBig, c.tooBig.Load()},
		{DropNoSocket, c.noSocket.Load()},
		{DropRate, c.overRate.Load()},
		{DropStale, c.stale.Load()},
		{DropError, c.failure.Load()},
	} {
		d.Drops = with(d.Drops, drop.reason, drop.n)
	}
	return d
}

type groupCounters struct {
	received, overflow, streams atomic.Uint64
	reasons                     [packet.ReasonCount]atomic.Uint64
}

func (c *groupCounters) read() GroupCounters {
	drops := with(with(nil, DropOverflow, c.overflow.Load()), DropStreams, c.streams.Load())
	for r := range c.reasons {
		if reason := packet.Reason(r); reason != packet.Copy {
			drops = with(drops, reason.String(), c.reasons[r].Load())
		}
	}
	return GroupCounters{Received: c.received.Load(), Drops: drops}
}

// with makes a map only for what there is: most destinations lose nothing.
func with(drops map[string]uint64, reason string, n uint64) map[string]uint64 {
	if n == 0 {
		return drops
	}
	if drops == nil {
		drops = map[string]uint64{}
	}
	drops[reason] = n
	return drops
}

// registry holds the counters under stable names, so that they survive every swap of the snapshot.
type registry struct {
	mu           sync.Mutex
	destinations map[string]*destinationCounters
	groups       map[netip.Addr]*groupCounters
}

func newRegistry() *registry {
	return &registry{destinations: map[string]*destinationCounters{}, groups: map[netip.Addr]*groupCounters{}}
}

func (r *registry) destination(id string) *destinationCounters {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.destinations[id]
	if !ok {
		c = &destinationCounters{}
		r.destinations[id] = c
	}
	return c
}

func (r *registry) group(ip netip.Addr) *groupCounters {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.groups[ip]
	if !ok {
		c = &groupCounters{}
		r.groups[ip] = c
	}
	return c
}

// keep makes counters for the destinations of a plan, and forgets those of destinations that left long ago.
func (r *registry) keep(p *plan, now time.Time) {
	present := map[string]bool{}
	p.destinations(present)
	r.keepThose(present, now)
}

func (r *registry) keepThose(present map[string]bool, now time.Time) {
	for id := range present {
		r.destination(id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	departed := map[string]time.Time{}
	for id, c := range r.destinations {
		switch {
		case present[id]:
			c.departed = time.Time{}
			continue
		case c.departed.IsZero():
			c.departed = now
		}
		departed[id] = c.departed
	}
	for _, id := range Forgettable(departed, now) {
		delete(r.destinations, id)
	}
}

func (r *registry) read() Counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := Counters{Destinations: map[string]DestinationCounters{}, Groups: map[netip.Addr]GroupCounters{}}
	for id, d := range r.destinations {
		c.Destinations[id] = d.read()
	}
	for ip, g := range r.groups {
		c.Groups[ip] = g.read()
	}
	return c
}
