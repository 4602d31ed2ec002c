package duplicator

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Socket is the portable backend: ordinary UDP sockets and nothing that needs a privilege, except for raising the receive buffer
// beyond the system's limit. It runs on any Linux.
//
// What follows from using the host's own IP stack: the kernel puts fragments together before they are copied; copies
// have a type of service, an identification and a don't-fragment bit of their own; and only datagrams to the configured ports
// are seen, unless the process has the rights for AnyPort.
type Socket struct {
	config   Config
	counters *registry
	plan     atomic.Pointer[plan] // read once per batch of datagrams
	streams  atomic.Int64         // camera streams that hold sockets, over all listeners
	arenas   arenas
	steering *steering // nil unless every port is seen

	mu        sync.Mutex // one Apply or Close at a time
	listeners map[netip.AddrPort]*listener
	closed    bool
}

var _ Duplicator = (*Socket)(nil)

var errClosed = errors.New("the duplicator is closed")

// OpenSocket makes a backend that copies nothing until Apply.
func OpenSocket(c Config) (*Socket, error) {
	c, err := c.Complete()
	if err != nil {
		return nil, err
	}
	arenas, err := newArenas()
	if err != nil {
		return nil, fmt.Errorf("duplicator: %w", err)
	}
	s := &Socket{config: c, counters: newRegistry(), arenas: arenas, listeners: map[netip.AddrPort]*listener{}}
	if c.AnyPort {
		s.config.Ports = []uint16{anyPort}
		if s.steering, err = openSteering(); err != nil {
			arenas.free()
			return nil, fmt.Errorf("duplicator: %w", err)
		}
	}
	empty, _ := newPlan(nil, time.Now(), c, refusals{})
	s.plan.Store(empty)
	return s, nil
}

// Apply implements Duplicator. If the host's addresses can't be read, the old snapshot stays in force until it is stale.
func (s *Socket) Apply(snapshot *table.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: %w", ErrNotApplied, errClosed)
	}
	refusals, err := newRefusals(s.config)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	now := time.Now()
	p, err := newPlan(snapshot, now, s.config, refusals)
	s.logRefused(p, s.plan.Load())
	s.counters.keep(p, now)
	s.plan.Store(p)
	return errors.Join(err, s.listen(p))
}

// listen makes the listeners those of the plan.
func (s *Socket) listen(p *plan) error {
	for at, l := range s.listeners {
		if _, ok := p.Group(at.Addr()); !ok {
			l.close()
			delete(s.listeners, at)
			continue
		}
		l.wake() // closes the sockets of destinations that left
	}
	var errs []error
	for ip, g := range p.Groups {
		for _, port := range s.config.Ports {
			at := netip.AddrPortFrom(ip, port)
			if s.listeners[at] != nil {
				continue
			}
			l, err := startListener(s, at)
			if err != nil {
				errs = append(errs, fmt.Errorf("group %s: listen on %s: %w", g.ID, at, err))
				continue
			}
			s.listeners[at] = l
		}
	}
	return errors.Join(errs...)
}

// Drain returns when every datagram that had come when it was called has been judged by the snapshot in force, or after the timeout: then it
// tells that it may be otherwise. Whoever forwards datagrams elsewhere calls it before they are copied here again, so that none is both.
func (s *Socket) Drain(timeout time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := map[*listener]uint64{}
	for _, l := range s.listeners {
		before[l] = l.empty.Load()
		l.wake()
	}
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for l, n := range before {
			if l.empty.Load() > n {
				delete(before, l)
			}
		}
		if len(before) == 0 {
			return true
		}
	}
	return false
}

// logRefused says once which destinations get nothing and why. Their addresses stay out of the log.
func (s *Socket) logRefused(now, before *plan) {
	for r, why := range now.refused {
		if before.refused[r] != why {
			s.config.Log.Warn("destination refused: it gets no copies", "group", r.group, "destination", r.destination, "why", why)
		}
	}
}

// Counters implements Duplicator.
func (s *Socket) Counters() Counters {
	c := s.counters.read()
	c.Refused = len(s.plan.Load().refused)
	return c
}

// Close implements Duplicator. It returns when every socket is closed and every goroutine has ended.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for at, l := range s.listeners {
		l.close()
		delete(s.listeners, at)
	}
	s.arenas.free()
	if s.steering == nil {
		return nil
	}
	steering := s.steering
	s.steering = nil
	return steering.close()
}
