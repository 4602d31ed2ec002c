package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// path is what the kernel paths of a home and of a relay have in common.
type path struct {
	config Config
	mtu    int // of what cameras send, in bytes of IPv4
	kernel *kernel
	hops   *nextHops
	until  *deadlines

	mu       sync.Mutex // guards everything below
	counters *registry
	groups   map[place]*group
	version  uint32 // of the last group
	closed   bool

	quit chan struct{}
	done sync.WaitGroup
}

// place is where a group is: at a relay the tunnel address of the premises says whose the group IP is; at home there is none.
type place struct{ premises, group netip.Addr }

// name is what a group is counted by: its IP at home, its id at a relay.
func (at place) name(g *table.Group) string {
	if at.premises.IsValid() {
		return g.ID
	}
	return at.group.String()
}

func newPath(c Config, mtu int) path {
	return path{config: c, mtu: mtu, groups: map[place]*group{}, quit: make(chan struct{})}
}

// begin opens what belongs to a program that is loaded.
func (b *path) begin() error {
	b.counters = newRegistry(b.kernel.maps.Counts, b.kernel.maps.Paces)
	var err error
	if b.until, err = newDeadlines(b.kernel.maps.Deadlines, b.config.Lease); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	b.hops, err = followNextHops(b.config.Uplink)
	return err
}

// present gives the indices of the groups and destinations that the kernel serves, and until when at most; the zero time is the snapshot's end.
func (b *path) present() map[uint32]time.Time {
	present := map[uint32]time.Time{}
	for _, g := range b.groups {
		present[g.index] = g.ends
		for _, s := range g.slots {
			present[uint32(s.Index)] = g.until[uint32(s.Index)]
		}
	}
	return present
}

// renew keeps what is in force from running out, also while a change of thousands of homes takes its time.
func (b *path) renew() {
	renewal := time.NewTicker(b.config.Lease / 6)
	defer renewal.Stop()
	for {
		select {
		case <-b.quit:
			return
		case <-renewal.C:
			if err := b.until.renew(); err != nil {
				b.config.Log.Warn("what is in force could not be renewed; trying again", "err", err)
			}
		}
	}
}

// run follows the network.
func (b *path) run(swap, tidy func() error) {
	seconds := time.NewTicker(time.Second)
	defer seconds.Stop()
	for {
		select {
		case <-b.quit:
			return
		case <-b.hops.changed:
			b.locked("follow the network", swap)
		case <-seconds.C:
			b.locked("tidy", tidy)
		}
	}
}

func (b *path) locked(what string, f func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := f(); err != nil {
		b.config.Log.Warn("the kernel path could not do all it should; trying again", "what", what, "err", err)
	}
}

// answers reads what the network answered to copies: at the sockets that hold reserved ports, and where else there are any.
func (b *path) answers(count func(to netip.AddrPort, a answer), others func(each func(to netip.AddrPort, a answer))) {
	each := func(to netip.AddrPort, a answer) {
		if a == answerTooBig {
			b.hops.forgetRoute(to.Addr()) // the kernel's knows the smaller MTU now
		}
		count(to, a)
	}
	if others != nil {
		others(each)
	}
	if b.config.Answered != nil {
		b.config.Answered(func(fd int) { answersAt(fd, each) })
	}
}

// answered counts an answer for the destinations of a group at that address and port.
func (b *path) answered(g *table.Group, to netip.AddrPort, a answer) {
	for _, d := range g.Destinations {
		if d.Addr == to.Addr() && (d.Port == to.Port() || d.Port == 0) {
			b.counters.answered(d.ID, a)
		}
	}
}

// end has nothing go on for longer than that, and tells whether it wasn't over before.
func (b *path) end(within time.Duration) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.closed = true
	b.until.end(within)
	b.mu.Unlock()
	close(b.quit)
	b.done.Wait()
	return true
}

func (b *path) free() error {
	var errs []error
	if b.hops != nil {
		errs = append(errs, b.hops.close())
	}
	if b.kernel != nil {
		errs = append(errs, b.kernel.close())
	}
	return errors.Join(errs...)
}
