package duplicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// Network is what every backend of a relay does.
type Network interface {
	// Apply makes the snapshots, by the premises' tunnel addresses, those in force. Otherwise it is as Duplicator.Apply.
	Apply(map[netip.Addr]*table.Snapshot) error
	// Counters gives what was counted since the start.
	Counters() RelayCounters
	// Stood is when it was found that this process stood still for StandStill, last; zero: never. Nothing is copied by a snapshot that was heard before.
	Stood() time.Time
	// Close returns when nothing is copied any more.
	Close() error
}

var _ Network = (*Relay)(nil)

// Inside is this host's end of a tunnel.
type Inside interface {
	Interface() string
	Address() netip.Addr
}

// Relay is the socket backend in the network: it copies what comes out of the tunnel, and nothing else. Its table begins with the premises, which a datagram's
// outer source address proves, so the same group IP in two homes is two groups.
//
// It differs from Socket in that it sees whole IPv4 packets: it puts fragments together itself, and any port of a group IP is served, because which are is the
// gateway's business.
type Relay struct {
	core     *Socket // what streams need: configuration, counters, the bound on streams
	premises atomic.Pointer[premises]
	file     *os.File
	raw      syscall.RawConn
	in       *packets
	flight   flight
	fragment *packet.Reassembler
	done     chan struct{}
	batch    sync.Mutex // held while packets are copied by what is in force

	// Those belong to run.
	groups   map[groupKey]relayGroup
	waiting  []relayed
	overflow uint32
	looked   time.Time // when run last had the processor
	tidied   time.Time

	untidy                     atomic.Bool
	stood                      atomic.Pointer[time.Time] // when run found that it hadn't had the processor for StandStill; nil: never
	lost, strangers, malformed atomic.Uint64

	mu       sync.Mutex // one Apply or Close at a time, and counters
	counters map[string]*groupCounters
	departed map[string]time.Time // since when a group of counters isn't in force
	own      map[netip.Addr]bool  // this host's addresses at the last Apply
	closed   bool
}

// relayStreams bounds the camera streams of all homes, unless the configuration does.
const relayStreams = 1 << 15

// StandStill is for how long a relay's process may not have run (stopped, a host that was paused) and still go on by what it heard before. The service takes a
// relay for dead that isn't heard of for models.RelayLiveFor, and its last question may have waited: after that another may copy, and what was on its way to this one
// and waited with it would come late, to destinations that may have left.
const StandStill = models.RelayLiveFor - models.RelayMaxWait

// pulse is how often a relay looks whether it stood still, at least.
const pulse = time.Second

// premises are the plans in force by tunnel address.
type premises map[netip.Addr]*plan

type groupKey struct{ premises, group netip.Addr }

// relayGroup holds a group's streams, in a listener that receives nothing itself.
type relayGroup struct {
	*listener
	id string
}

// relayed is a datagram that is to be copied.
type relayed struct {
	groupKey
	packet.Whole
	packet.Verdict
}

// OpenRelay makes a backend that copies nothing until Apply. GroupRange, Ports, AnyPort and Answered don't count for it.
func OpenRelay(c Config, inside Inside) (*Relay, error) {
	c.relay = true
	if c.MaxStreams == 0 {
		c.MaxStreams = relayStreams
	}
	c, err := c.Complete()
	if err != nil {
		return nil, err
	}
	in, err := newPackets(0)
	if err != nil {
		return nil, fmt.Errorf("duplicator: %w", err)
	}
	fd, err := openInner(inside)
	if err != nil {
		in.free()
		return nil, fmt.Errorf("duplicator: %w", err)
	}
	r := &Relay{
		core: &Socket{config: c, counters: newRegistry()}, file: os.NewFile(uintptr(fd), "tunnel"), in: in, fragment: packet.NewReassembler(),
		done: make(chan struct{}), groups: map[groupKey]relayGroup{}, counters: map[string]*groupCounters{},
		departed: map[string]time.Time{},
	}
	r.flight.build()
	r.premises.Store(&premises{})
	if r.raw, err = r.file.SyscallConn(); err != nil {
		in.free()
		return nil, errors.Join(fmt.Errorf("duplicator: %w", err), r.file.Close())
	}
	go r.run()
	return r, nil
}

// Apply makes the snapshots, by the premises' tunnel addresses, those in force: all in one step. Errors are those of Duplicator.Apply. When it returns, nothing is copied by
// what was in force before.
func (r *Relay) Apply(snapshots map[netip.Addr]*table.Snapshot) error {
	err := r.apply(snapshots)
	r.batch.Lock() // whoever copies by the plans before is done; it may want mu for that
	defer r.batch.Unlock()
	return err
}

func (r *Relay) apply(snapshots map[netip.Addr]*table.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("%w: %w", ErrNotApplied, errClosed)
	}
	refusals, err := newRefusals(r.core.config)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	now, before := time.Now(), *r.premises.Load()
	next := make(premises, len(snapshots))
	groups, present := map[string]bool{}, map[string]bool{}
	var errs []error
	for at, s := range snapshots {
		p, err := r.plan(before[at], s, now, refusals)
		errs = append(errs, err)
		next[at] = p
		old := before[at]
		if old == nil {
			old = &plan{}
		}
		r.core.logRefused(p, old)
		for _, g := range p.Groups {
			groups[g.ID] = true
			if r.counters[g.ID] == nil {
				r.counters[g.ID] = &groupCounters{}
			}
		}
		p.destinations(present)
	}
	for id := range r.counters {
		if _, before := r.departed[id]; groups[id] {
			delete(r.departed, id)
		} else if !before {
			r.departed[id] = now
		}
	}
	for _, id := range Forgettable(r.departed, now) {
		delete(r.counters, id)
		delete(r.departed, id)
	}
	r.core.counters.keepThose(present, now)
	r.premises.Store(&next)
	r.own = refusals.own
	r.wake()
	return errors.Join(errs...)
}

// Config is the configuration with its defaults.
func (r *Relay) Config() Config { return r.core.config }

// InForce is what a backend beside this one acts by, as Config.Effective is at home: the snapshots by the premises' tunnel addresses, without what this host
// refuses. They are not to be changed.
func (r *Relay) InForce() map[netip.Addr]*table.Snapshot {
	all := map[netip.Addr]*table.Snapshot{}
	for at, p := range *r.premises.Load() {
		all[at] = p.Snapshot
	}
	return all
}

// plan is that of a home. One that has the same snapshot as before keeps it: most changes are about one home of thousands.
func (r *Relay) plan(before *plan, s *table.Snapshot, now time.Time, refused refusals) (*plan, error) {
	if before != nil && before.of == s && maps.Equal(r.own, refused.own) {
		return before, nil
	}
	p, err := newPlan(s, now, r.core.config, refused)
	if err == nil {
		p.of = s
	}
	return p, err
}

// RelayCounters is what a relay copied and what it didn't. Numbers only rise; those of what left are kept for ten minutes.
type RelayCounters struct {
	Destinations map[string]DestinationCounters // by registration id
	Groups       map[string]GroupCounters       // by group id
	Strangers    uint64                         // datagrams of premises that aren't this relay's, or to no group of theirs
	Malformed    uint64                         // what came out of the tunnel and isn't a UDP datagram over IPv4
	Lost         uint64                         // the kernel had no room
	Refused      int                            // as in Counters
}

// Counters gives what was counted since the start.
func (r *Relay) Counters() RelayCounters {
	c := RelayCounters{
		Groups: map[string]GroupCounters{}, Strangers: r.strangers.Load(), Malformed: r.malformed.Load(), Lost: r.lost.Load(),
		Destinations: r.core.counters.read().Destinations,
	}
	for _, p := range *r.premises.Load() {
		c.Refused += len(p.refused)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, g := range r.counters {
		c.Groups[id] = g.read()
	}
	return c
}

// Close returns when every socket is closed and every goroutine has ended.
func (r *Relay) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.file.Close()
	<-r.done
	r.in.free()
	return err
}

// wake has run tidy up soon.
func (r *Relay) wake() {
	r.untidy.Store(true)
	_ = r.file.SetReadDeadline(time.Unix(1, 0))
}

func (r *Relay) run() {
	defer close(r.done)
	defer func() {
		for _, l := range r.groups {
			l.closeStreams()
		}
	}()
	r.looked = time.Now()
	r.rest(r.looked)
	for {
		n := 0
		var receiveErr error
		err := r.raw.Read(func(fd uintptr) bool {
			n, receiveErr = r.in.receive(int(fd))
			return !errors.Is(receiveErr, unix.EAGAIN)
		})
		now := time.Now()
		r.look(now)
		switch {
		case err == nil && receiveErr == nil:
			r.copyBatch(n, now)
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.rest(now)
		case err != nil: // closed
			return
		default:
			r.core.config.Log.Error("receiving from the tunnel failed; trying again", "error", receiveErr)
			time.Sleep(errorPause)
		}
	}
}

// look notes if this process stood still: then nothing is copied by what was heard before.
func (r *Relay) look(now time.Time) {
	if still := now.Sub(r.looked); still > StandStill {
		r.stood.Store(&now)
		r.core.config.Log.Error("this process stood still: nothing is copied until the service answers", "for", still.Round(time.Millisecond))
	}
	r.looked = now
}

// Stood implements Network.
func (r *Relay) Stood() time.Time {
	if at := r.stood.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// rest is what there is to do while nothing comes.
func (r *Relay) rest(now time.Time) {
	_ = r.file.SetReadDeadline(now.Add(min(pulse, r.core.config.StreamIdle)))
	if r.untidy.Swap(false) || now.Sub(r.tidied) >= min(tidyInterval, r.core.config.StreamIdle) {
		r.tidy(now)
	}
}

// copyBatch judges each packet of a batch by one set of plans, and has the datagrams copied if that is the verdict.
func (r *Relay) copyBatch(n int, now time.Time) {
	r.batch.Lock()
	defer r.batch.Unlock()
	all := *r.premises.Load()
	r.waiting = r.waiting[:0]
	for i := range n {
		r.countLost(r.in.control[i][:r.in.in[i].Controllen])
		p, err := packet.Parse(r.in.packet(i))
		if err != nil {
			r.malformed.Add(1)
			continue
		}
		key := groupKey{netip.AddrFrom16(r.in.names[i].Addr), p.Destination.Addr()}
		home := all[key.premises]
		if home == nil {
			r.strangers.Add(1)
			continue
		}
		group, ok := home.Group(key.group)
		if !ok {
			r.strangers.Add(1)
			continue
		}
		l := r.groupOf(key, group)
		// Each fragment is judged, so that what nobody registered takes no room.
		v := packet.Decide(home.Snapshot, now, p.Datagram)
		if home.HeardBefore(r.Stood()) {
			v = packet.Verdict{Reason: packet.Stale}
		}
		if v.Reason != packet.Copy {
			l.counters.received.Add(1)
			l.counters.reasons[v.Reason].Add(1)
			continue
		}
		whole, done, err := r.fragment.Add(now, key.premises, p)
		if err != nil {
			l.counters.received.Add(1)
			l.counters.reasons[packet.Malformed].Add(1)
			continue
		}
		if !done {
			continue
		}
		l.counters.received.Add(1)
		l.counters.reasons[packet.Copy].Add(1)
		r.waiting = append(r.waiting, relayed{key, whole, v})
	}
	for left := r.waiting; len(left) > 0; {
		first := left[0]
		left = r.gather(left)
		r.groups[first.groupKey].copy(first.Verdict, first.Datagram, &r.flight, now)
	}
	clear(r.waiting) // what was decided by an old plan shouldn't keep it in memory
}

// gather makes a flight of the first datagram and those of its stream that are like it, and gives the others in their order.
func (r *Relay) gather(left []relayed) []relayed {
	first := left[0]
	rest := left[:0]
	r.flight.reset()
	for i, d := range left {
		same := d.groupKey == first.groupKey
		if same && d.Datagram == first.Datagram && r.flight.datagrams < batchSize {
			r.flight.add(base(d.Payload), len(d.Payload))
			continue
		}
		if same && d.Source == first.Source { // a stream stays in order
			return append(rest, left[i:]...)
		}
		rest = append(rest, d)
	}
	return rest
}

// base is where the bytes are; a datagram without any is somewhere too.
func base(b []byte) *byte {
	if len(b) == 0 {
		return &empty
	}
	return &b[0]
}

var empty byte

// groupOf gives what holds a group's streams.
func (r *Relay) groupOf(key groupKey, g *table.Group) relayGroup {
	l, ok := r.groups[key]
	if ok && l.id == g.ID {
		return l
	}
	if ok { // another group has the address now
		l.closeStreams()
	}
	r.mu.Lock()
	counters := r.counters[g.ID]
	r.mu.Unlock()
	if counters == nil { // a newer table has no such group
		counters = &groupCounters{}
	}
	l = relayGroup{id: g.ID, listener: &listener{
		owner: r.core, at: netip.AddrPortFrom(key.group, anyPort), counters: counters, streams: map[flow]*stream{},
		log: r.core.config.Log.With("groupIP", key.group, "group", g.ID),
	}}
	r.groups[key] = l
	return l
}

// countLost turns the kernel's running number, which wraps, into ours.
func (r *Relay) countLost(oob []byte) {
	for len(oob) >= unix.CmsgLen(4) {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		oob = rest
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(data) >= 4 {
			total := binary.NativeEndian.Uint32(data)
			r.lost.Add(uint64(total - r.overflow))
			r.overflow = total
		}
	}
}

// tidy closes the sockets of streams that ended and of destinations that left. It runs now and then, and after each Apply.
func (r *Relay) tidy(now time.Time) {
	r.tidied = now
	all := *r.premises.Load()
	for key, l := range r.groups {
		var group *table.Group
		if home := all[key.premises]; home != nil {
			group, _ = home.Group(key.group)
		}
		for from, s := range l.streams {
			if group == nil || !s.serves(group, from.camera.Addr()) || now.Sub(s.used) > r.core.config.StreamIdle {
				l.closeStream(from, s)
				continue
			}
			s.follow(group, r.core.counters)
		}
		if len(l.streams) == 0 {
			delete(r.groups, key)
		}
	}
}
