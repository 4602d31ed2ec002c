//go:build !mipsle

package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

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
//   - groups beyond relayEntries, counted with their destinations.
//
// Nothing is pinned: the tunnel ends with the agent, and so does the program.
type Relay struct {
	path
	socket *duplicator.Relay
	homes  map[netip.Addr]*table.Snapshot // what the socket backend has in force; guarded by mu
}

var _ duplicator.Network = (*Relay)(nil)

const (
	// relayEntries is the number of groups, and of counters and deadlines: a group with three destinations takes four.
	relayEntries = 1 << 14
	outerHeader  = 40 // of IPv6, in bytes
)

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
	r := &Relay{path: newPath(c, device.MTU-outerHeader), socket: socket}
	if err := r.open(device, inside.Address()); err != nil {
		return nil, errors.Join(err, r.free())
	}
	r.done.Go(func() { r.run(r.swap, r.tidy) })
	return r, nil
}

func (r *Relay) open(device *net.Interface, inside netip.Addr) error {
	if err := allowMaps(); err != nil {
		return err
	}
	spec, err := loadRelay()
	if err == nil {
		err = errors.Join(configureBoth(spec, r.config, relayEntries, relayEntries, 1), spec.Variables[relayVarInside].Set(inside.As16()))
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
	r.homes = r.socket.InForce()
	for _, s := range r.homes {
		r.until.strict = !s.Heard.IsZero()
	}
	r.counters.keep(r.counted(), time.Now())
	return errors.Join(err, r.swap(), r.hops.ask())
}

// counted gives the keys of what the kernel may serve, or did: what it counted stays.
func (r *Relay) counted() map[string]bool {
	present := map[string]bool{}
	for _, s := range r.homes {
		for _, g := range s.Groups {
			if _, known := r.counters.index(groupKey(g.ID)); known || r.candidate(g) {
				keys(present, g.ID, g)
			}
		}
	}
	return present
}

// candidates are the groups that the kernel may serve if it can reach their destinations.
func (r *Relay) candidates() map[place]*table.Group {
	all := map[place]*table.Group{}
	for premises, s := range r.homes {
		for ip, g := range s.Groups {
			if r.candidate(g) {
				all[place{premises, ip}] = g
			}
		}
	}
	return all
}

// candidate tells whether a group has destinations and sources, each with a reserved port.
func (*Relay) candidate(g *table.Group) bool {
	return len(g.Destinations) > 0 && len(g.Sources) > 0 && !slices.ContainsFunc(g.Sources, func(s table.Source) bool { return s.Port == 0 })
}

// swap makes the kernel's maps those of the table, as the network is now. The kernel waits once for all groups, not for each, until no packet is copied by what
// was there before.
func (r *Relay) swap() error {
	r.until.look()
	wanted := r.candidates()
	var addrs []netip.Addr
	for _, g := range wanted {
		for _, d := range g.Destinations {
			if d.Addr.Is4() {
				addrs = append(addrs, d.Addr)
			}
		}
	}
	hops, err := r.hops.resolve(addrs)
	errs := []error{err}
	fresh := map[place]*group{}
	inner := map[place]*ebpf.Map{}
	stay := map[place]bool{}
	for at, g := range wanted {
		built := r.build(at, g, r.ends(r.homes[at.premises]), hops)
		if built.index == 0 || built.socket {
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
	errs = append(errs, r.removeAllBut(stay))
	r.until.keep(r.present())
	return errors.Join(errs...)
}

// ends is when a home's groups end if nothing is heard.
func (r *Relay) ends(home *table.Snapshot) time.Time {
	if home.HeardBefore(r.until.stood) {
		return r.until.stood
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

// removeAllBut takes the other groups out of force.
func (r *Relay) removeAllBut(stay map[place]bool) error {
	var gone []place
	var places20 [][20]byte
	for at := range r.groups {
		if !stay[at] {
			gone = append(gone, at)
			places20 = append(places20, r.key(at).([20]byte))
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
