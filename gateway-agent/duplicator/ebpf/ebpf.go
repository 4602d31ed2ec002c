package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Config is how the backend copies.
type Config struct {
	duplicator.Config
	// Interface is the LAN interface that cameras are on. It has to be Ethernet.
	Interface string
	// PinDir is a directory in a BPF file system; it is made if it isn't there. Default: /sys/fs/bpf/groupcast.
	PinDir string
	// Lease is how long the kernel goes on without a living agent. Most, and default at home: 30 seconds (SPEC §9); a relay's default is duplicator.StandStill.
	Lease time.Duration
}

const (
	defaultPinDir = "/sys/fs/bpf/groupcast"
	maxLease      = 30 * time.Second
)

// ErrUnavailable is wrapped by errors of Open that say why this host can't run the backend.
var ErrUnavailable = errors.New("the kernel path is not available")

// Backend copies in the kernel.
type Backend struct {
	path
	lan    *net.Interface
	socket *duplicator.Socket // serves what the kernel path can't
	ports  *portPool

	// Guarded by mu.
	plan  *table.Snapshot // what is in force, without what is refused; never nil
	asked *table.Snapshot // what Apply was given last; never nil
}

var _ duplicator.Duplicator = (*Backend)(nil)

// Open loads the program. What an earlier agent left in the kernel goes on until the first Apply, or until its deadline.
func Open(c Config) (*Backend, error) {
	var err error
	if c.Config, err = c.Config.Complete(); err != nil {
		return nil, err
	}
	if c.PinDir == "" {
		c.PinDir = defaultPinDir
	}
	if err := c.completeLease(); err != nil {
		return nil, err
	}
	lan, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return nil, fmt.Errorf("duplicator: find LAN interface %q: %w; give the name of the interface that cameras are on", c.Interface, err)
	}
	if len(lan.HardwareAddr) != 6 {
		return nil, fmt.Errorf("%w: LAN interface %s is not Ethernet", ErrUnavailable, c.Interface)
	}
	b := &Backend{path: newPath(c, lan.MTU), lan: lan, plan: &table.Snapshot{}, asked: &table.Snapshot{}}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.free())
	}
	b.done.Go(func() { b.run(b.swap, b.tidy) })
	b.done.Go(b.renew)
	return b, nil
}

func (c *Config) completeLease() error {
	if c.Lease == 0 {
		c.Lease = maxLease
	}
	if c.Lease < time.Second || c.Lease > maxLease {
		return fmt.Errorf("duplicator: a lease of %s is not between 1s and %s", c.Lease, maxLease)
	}
	return nil
}

func (b *Backend) open() error {
	var err error
	if b.kernel, err = load(b.config, b.lan); err != nil {
		return err
	}
	b.ports = newPortPool(b.config.Uplink, b.kernel.maps.Ports, b.kernel.maps.Streams)
	if err := b.begin(); err != nil {
		return err
	}
	b.socket, err = duplicator.OpenSocket(b.config.Config)
	return err
}

// Apply implements duplicator.Duplicator. If the host's addresses can't be read, the old snapshot stays in force until it is stale.
func (b *Backend) Apply(s *table.Snapshot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("%w: the duplicator is closed", duplicator.ErrNotApplied)
	}
	plan, err := b.config.Effective(s)
	if plan == nil {
		return err
	}
	if s == nil {
		s = &table.Snapshot{}
	}
	handedOut := b.handedOut(plan)
	b.plan, b.asked = plan, s
	b.until.set(plan.ValidUntil)
	present := map[string]bool{}
	for ip, g := range plan.Groups {
		for _, key := range keys(place{group: ip}.name(g), g) {
			present[key] = true
		}
	}
	b.counters.keep(present, time.Now())
	// A stream that is new to this agent finds a port; those of the last agent keep theirs.
	errs := errors.Join(err, b.ports.fill(b.config.MaxStreams), b.swap())
	if takeErr := b.kernel.takeOver(b.ports); takeErr != nil {
		return errors.Join(fmt.Errorf("%w: %w", duplicator.ErrNotApplied, takeErr), errs)
	}
	b.ports.prune(func(ip, camera netip.Addr) bool { return !handedOut[ip] && b.keepsStream(ip, camera) }, b.config.StreamIdle)
	return errors.Join(errs, b.hops.ask())
}

// handedOut gives the group IPs that belong to another group by the next plan, or were handed out again.
func (b *Backend) handedOut(next *table.Snapshot) map[netip.Addr]bool {
	again := map[netip.Addr]bool{}
	for ip, old := range b.plan.Groups {
		if g, ok := next.Group(ip); ok && (g.ID != old.ID || g.Generation != old.Generation) {
			again[ip] = true
		}
	}
	return again
}

// keepsStream tells whether a camera stream may keep its port: its group is the same and the camera still in it.
func (b *Backend) keepsStream(ip, camera netip.Addr) bool {
	g, ok := b.plan.Group(ip)
	if !ok {
		return false
	}
	_, ok = g.Source(camera)
	return ok
}

// swap makes the kernel's maps and the socket backend's snapshot those of the plan, as the network is now. A group whose content
// stays isn't touched.
func (b *Backend) swap() error {
	var addrs []netip.Addr
	for _, g := range b.plan.Groups {
		for _, d := range g.Destinations {
			if d.Addr.Is4() {
				addrs = append(addrs, d.Addr)
			}
		}
	}
	b.hops.forget() // they are few at home, and what changed a moment ago counts at once
	hops, err := b.hops.resolve(addrs)
	errs := []error{err}
	rest := &table.Snapshot{Version: b.asked.Version, ValidUntil: b.plan.ValidUntil, Groups: map[netip.Addr]*table.Group{}}
	for ip, g := range b.plan.Groups {
		at := place{group: ip}
		built := b.build(at, g, time.Time{}, hops)
		if err := b.install(at, built); err != nil {
			errs = append(errs, fmt.Errorf("group %s: %w", g.ID, err))
			continue
		}
		if left := built.rest(b.asked.Groups[ip]); left != nil {
			rest.Groups[ip] = left
		}
	}
	for at := range maps.Clone(b.groups) {
		if _, ok := b.plan.Groups[at.group]; !ok {
			errs = append(errs, b.remove(at))
		}
	}
	b.until.keep(b.present())
	return errors.Join(append(errs, b.socket.Apply(rest))...)
}

func (b *Backend) tidy() error {
	b.ports.prune(b.keepsStream, b.config.StreamIdle)
	b.answers(b.count, b.ports.answers)
	return errors.Join(b.ports.fill(b.config.MaxStreams), b.hops.ask())
}

// count counts an answer of the network for each destination at that address and port. One that the kernel path served when the copy left may be
// the socket backend's by now: that is what the answer leads to if the copy was too big.
func (b *Backend) count(to netip.AddrPort, a answer) {
	for at := range b.groups {
		if planned, ok := b.plan.Group(at.group); ok {
			b.answered(planned, to, a)
		}
	}
}

// Counters implements duplicator.Duplicator.
func (b *Backend) Counters() duplicator.Counters {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return duplicator.Counters{}
	}
	return b.counters.read(b.socket.Counters())
}

// Close implements duplicator.Duplicator. What is in force stays so for Handover at most, unless the next agent takes over.
func (b *Backend) Close() error {
	if !b.end(Handover) {
		return nil
	}
	return b.free()
}

// free closes whatever is open.
func (b *Backend) free() error {
	var errs []error
	if b.socket != nil {
		errs = append(errs, b.socket.Close())
	}
	if b.ports != nil {
		b.ports.close()
	}
	return errors.Join(append(errs, b.path.free())...)
}
