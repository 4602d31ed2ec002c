//go:build !mipsle

package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Relay copies in the kernel what comes out of the tunnel. Beside it is the socket backend with the whole table: whatever the program leaves alone goes on to it,
// so each datagram is copied by one of the two, to all of its group's destinations. Those are left alone:
//   - fragments, and with them each datagram that doesn't fit into the tunnel in one piece: the socket backend puts them together;
//   - groups of which the kernel can't reach each destination (over IPv4, by Ethernet), and those whose sources have no reserved port: of both paths' copies
//     a receiver is to see one source address;
//   - groups that there is no room for among relayEntries, counted with their destinations.
//
// Nothing is pinned: the tunnel ends with the agent, and so does the program.
type Relay struct {
	path
	socket *duplicator.Relay

	// Guarded by mu. A change is about one home of thousands, so all of it is kept for each.
	homes   map[netip.Addr]*table.Snapshot // what the socket backend has in force
	counted map[netip.Addr][]string        // keys of what is counted
	serving map[netip.Addr][]inKernel      // what the kernel serves
	whole   bool                           // the next Apply goes through all homes: something could not be done
	short   bool                           // it does if there is room again: there was none for something
}

var _ duplicator.Network = (*Relay)(nil)

// inKernel is a group of a home that the kernel serves, with its deadlines.
type inKernel struct {
	at  place
	has []served
}

const (
	// maxRelayEntries is the number of groups, and of counters and deadlines at most: a group with three destinations takes four, and an index has 16 bits.
	maxRelayEntries = 1 << 16
	// maxCounts bounds the counters, which each processor has for itself, in bytes.
	maxCounts   = 256 << 20
	outerHeader = 40 // of IPv6, in bytes
)

const _ = uint(math.MaxUint16 + 1 - maxRelayEntries) // an index fits

// relayEntries is maxRelayEntries on a host with up to forty processors.
func relayEntries() int {
	return min(maxRelayEntries, maxCounts/(int(unsafe.Sizeof(tally{}))*ebpf.MustPossibleCPU()))
}

// OpenRelay loads the program. Interface and PinDir don't count for it, nor does what doesn't for duplicator.OpenRelay.
func OpenRelay(c Config, inside duplicator.Inside) (*Relay, error) {
	if c.Lease == 0 {
		c.Lease = duplicator.StandStill
	}
	if err := c.completeLease(); err != nil {
		return nil, err
	}
	if c.DestinationRate != 0 {
		return nil, fmt.Errorf("%w: destination-rate is set, and what goes by sockets beside it would be counted apart", ErrUnavailable)
	}
	device, err := net.InterfaceByName(inside.Interface())
	if err != nil {
		return nil, fmt.Errorf("duplicator: find the tunnel %s: %w", inside.Interface(), err)
	}
	if len(device.HardwareAddr) != 0 {
		return nil, fmt.Errorf("%w: the tunnel %s is Ethernet", ErrUnavailable, device.Name)
	}
	socket, err := duplicator.OpenRelay(c.Config, inside)
	if err != nil {
		return nil, err
	}
	c.Config = socket.Config()
	c.AnyPort = true // which ones are is the gateways' business
	r := &Relay{path: newPath(c, device.MTU-outerHeader), socket: socket, counted: map[netip.Addr][]string{}, serving: map[netip.Addr][]inKernel{}}
	if err := r.open(device, inside.Address()); err != nil {
		return nil, errors.Join(err, r.free())
	}
	r.done.Go(func() { r.run(r.swapAll, r.tidy) })
	r.done.Go(r.renew)
	return r, nil
}

func (r *Relay) open(device *net.Interface, inside netip.Addr) error {
	if err := allowMaps(); err != nil {
		return err
	}
	spec, err := loadRelay()
	if err == nil {
		err = errors.Join(configureBoth(spec, r.config, relayEntries(), relayEntries(), 1), spec.Variables[relayVarInside].Set(inside.As16()))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	k := &kernel{lan: device.Index, taken: true}
	if err := k.load(spec); err != nil {
		return err
	}
	r.kernel = k
	if err := r.begin(); err != nil {
		return err
	}
	r.until.limit = forever // homes may differ
	k.link, err = link.AttachTCX(link.TCXOptions{Interface: k.lan, Program: k.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		return fmt.Errorf("%w: attach the program to %s: %w%s", ErrUnavailable, device.Name, err, advice(err))
	}
	return nil
}

// Apply implements duplicator.Network. The socket backend goes first.
func (r *Relay) Apply(snapshots map[netip.Addr]*table.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("%w: the duplicator is closed", duplicator.ErrNotApplied)
	}
	err := r.socket.Apply(snapshots)
	if errors.Is(err, duplicator.ErrNotApplied) {
		return err
	}
	before := r.homes
	r.homes = r.socket.InForce()
	r.until.strictly(heard(r.homes))
	now := time.Now()
	r.counters.forget(r.counters.departed, now)
	some := changed(before, r.homes)
	whole := r.whole || r.short && r.counters.hasRoom()
	if whole {
		some = append(slices.Collect(maps.Keys(r.homes)), gone(before, r.homes)...)
	}
	r.count(some, now)
	if whole || r.hops.outdated() {
		return errors.Join(err, r.swapAll(), r.hops.ask())
	}
	return errors.Join(err, r.swap(some, r.hops.more), r.hops.ask())
}

// heard tells whether it is known when the service was asked.
func heard(homes map[netip.Addr]*table.Snapshot) bool {
	for _, s := range homes {
		return !s.Heard.IsZero()
	}
	return false
}

// changed gives the homes that came, went or aren't what they were: the socket backend keeps what it has of the others.
func changed(before, now map[netip.Addr]*table.Snapshot) (some []netip.Addr) {
	for at, s := range now {
		if before[at] != s {
			some = append(some, at)
		}
	}
	return append(some, gone(before, now)...)
}

func gone(before, now map[netip.Addr]*table.Snapshot) (some []netip.Addr) {
	for at := range before {
		if now[at] == nil {
			some = append(some, at)
		}
	}
	return some
}

// count has counters for what the kernel may serve in these homes, or did: what it counted stays.
func (r *Relay) count(homes []netip.Addr, now time.Time) {
	for _, at := range homes {
		var present []string
		if s := r.homes[at]; s != nil {
			for _, g := range s.Groups {
				if _, known := r.counters.index(groupKey(g.ID)); known || r.candidate(g) {
					present = append(present, keys(g.ID, g)...)
				}
			}
		}
		held := r.counters.hold(present)
		r.counters.release(r.counted[at], now) // what is in force until the swap still counts there
		r.counted[at] = held
		if held == nil {
			delete(r.counted, at)
		}
	}
}

// candidate tells whether a group has destinations and sources, each with a reserved port.
func (*Relay) candidate(g *table.Group) bool {
	return len(g.Destinations) > 0 && len(g.Sources) > 0 && !slices.ContainsFunc(g.Sources, func(s table.Source) bool { return s.Port == 0 })
}

// swapAll is swap for all homes, as the network is now.
func (r *Relay) swapAll() error {
	homes := slices.Collect(maps.Keys(r.homes))
	for premises := range r.serving {
		if r.homes[premises] == nil {
			homes = append(homes, premises)
		}
	}
	r.whole, r.short = false, false
	return r.swap(homes, r.hops.resolve)
}

// swap makes the kernel's maps those of the table, for these homes. The kernel waits once for all groups, not for each, until no packet is copied by what
// was there before.
func (r *Relay) swap(homes []netip.Addr, resolve func([]netip.Addr) (map[netip.Addr]nextHop, error)) error {
	stood := r.until.look()
	wanted := map[place]*table.Group{}
	var addrs []netip.Addr
	for _, premises := range homes {
		s := r.homes[premises]
		if s == nil {
			continue
		}
		for ip, g := range s.Groups {
			if !r.candidate(g) {
				continue
			}
			wanted[place{premises, ip}] = g
			for _, d := range g.Destinations {
				if d.Addr.Is4() {
					addrs = append(addrs, d.Addr)
				}
			}
		}
	}
	hops, err := resolve(addrs)
	errs := []error{err}
	fresh := map[place]*group{}
	inner := map[place]*ebpf.Map{}
	stay := map[place]bool{}
	for at, g := range wanted {
		built := r.build(at, g, homeEnds(r.homes[at.premises], stood), hops)
		if built.index == 0 || built.socket {
			r.short = r.short || !r.counters.has(keys(g.ID, g))
			continue
		}
		stay[at] = true
		if r.keep(at, built) {
			continue
		}
		first, err := r.prepare(at, built)
		if err != nil {
			errs = append(errs, fmt.Errorf("group %s: %w", g.ID, err))
			stay[at] = false // the sockets have it
			continue
		}
		fresh[at], inner[at] = built, first
	}
	errs = append(errs, r.putAll(fresh, inner))
	for _, m := range inner {
		_ = m.Close()
	}
	errs = append(errs, r.removeAllBut(homes, stay))
	err = errors.Join(append(errs, r.serve(homes))...)
	r.whole = r.whole || err != nil
	return err
}

// homeEnds is when a home's groups end if nothing is heard, in a process that stood still.
func homeEnds(home *table.Snapshot, stood time.Time) time.Time {
	if home.HeardBefore(stood) {
		return stood
	}
	return home.ValidUntil
}

// putAll puts groups into force.
func (r *Relay) putAll(fresh map[place]*group, inner map[place]*ebpf.Map) error {
	if len(fresh) == 0 {
		return nil
	}
	places, places20, maps := make([]place, 0, len(fresh)), make([][20]byte, 0, len(fresh)), make([]uint32, 0, len(fresh))
	for at := range fresh {
		places = append(places, at)
		places20 = append(places20, r.key(at).([20]byte))
		maps = append(maps, uint32(inner[at].FD()))
	}
	if n, err := r.kernel.maps.Groups.BatchUpdate(places20, maps, nil); err == nil && n == len(places) {
		for _, at := range places {
			r.settle(at, fresh[at])
		}
		return nil
	}
	// Each by itself then, so that one that can't be put doesn't keep the others out.
	var errs []error
	for _, at := range places {
		errs = append(errs, r.put(at, fresh[at], inner[at]))
	}
	return errors.Join(errs...)
}

// removeAllBut takes the other groups of these homes out of force.
func (r *Relay) removeAllBut(homes []netip.Addr, stay map[place]bool) error {
	var gone []place
	var places20 [][20]byte
	for _, premises := range homes {
		for _, g := range r.serving[premises] {
			if !stay[g.at] && r.groups[g.at] != nil {
				gone = append(gone, g.at)
				places20 = append(places20, r.key(g.at).([20]byte))
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if n, err := r.kernel.maps.Groups.BatchDelete(places20, nil); err == nil && n == len(gone) {
		for _, at := range gone {
			old := r.groups[at]
			delete(r.groups, at)
			r.forget(at, old)
		}
		return nil
	}
	var errs []error
	for _, at := range gone {
		errs = append(errs, r.remove(at))
	}
	return errors.Join(errs...)
}

// serve has the deadlines of these homes be those of the groups that the kernel has now.
func (r *Relay) serve(homes []netip.Addr) error {
	var gone, come []served
	for _, premises := range homes {
		places := map[place]bool{}
		for _, g := range r.serving[premises] {
			places[g.at] = true
			gone = append(gone, g.has...)
		}
		if s := r.homes[premises]; s != nil {
			for ip := range s.Groups {
				places[place{premises, ip}] = true
			}
		}
		var now []inKernel
		for at := range places {
			if g := r.groups[at]; g != nil {
				now = append(now, inKernel{at, g.served()})
				come = append(come, now[len(now)-1].has...)
			}
		}
		r.serving[premises] = now
		if now == nil {
			delete(r.serving, premises)
		}
	}
	return r.until.change(gone, come)
}

func (r *Relay) tidy() error {
	var of map[netip.Addr]map[*table.Group]bool // the groups that have a destination there
	r.answers(func(to netip.AddrPort, a answer) {
		if of == nil {
			of = r.groupsOf()
		}
		for g := range of[to.Addr()] {
			r.answered(g, to, a)
		}
	}, nil)
	return r.hops.ask()
}

func (r *Relay) groupsOf() map[netip.Addr]map[*table.Group]bool {
	of := map[netip.Addr]map[*table.Group]bool{}
	for at := range r.groups {
		g, ok := r.homes[at.premises].Group(at.group)
		if !ok {
			continue
		}
		for _, d := range g.Destinations {
			if of[d.Addr] == nil {
				of[d.Addr] = map[*table.Group]bool{}
			}
			of[d.Addr][g] = true
		}
	}
	return of
}

// Counters implements duplicator.Network.
func (r *Relay) Counters() duplicator.RelayCounters {
	c := r.socket.Counters()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.counters.addTo(&c)
	}
	return c
}

// Stood implements duplicator.Network.
func (r *Relay) Stood() time.Time {
	stood := r.until.look()
	if other := r.socket.Stood(); other.After(stood) {
		return other
	}
	return stood
}

// Kernel gives how many groups the kernel serves; the sockets serve the others.
func (r *Relay) Kernel() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.groups)
}

// Close implements duplicator.Network. Nothing goes on after it.
func (r *Relay) Close() error {
	if !r.end(0) {
		return nil
	}
	return r.free()
}

// free takes the program away before the sockets, which would get what it doesn't take any more.
func (r *Relay) free() error { return errors.Join(r.path.free(), r.socket.Close()) }
