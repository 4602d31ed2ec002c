package duplicator

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

const (
	receiveBuffer = 4 << 20 // bytes in the kernel: a burst of key frames
	tidyInterval  = 30 * time.Second
	errorPause    = 100 * time.Millisecond
)

// anyPort stands for all ports of a group IP where a listener's port does. The kernel binds the socket to a port that is free, which nobody needs to know.
const anyPort = 0

// listener receives what is sent to one port of one group IP, or to all of them. All but close and wake runs on its own goroutine, which also owns
// the streams, so the packet path takes no lock.
type listener struct {
	owner    *Socket
	at       netip.AddrPort
	conn     net.PacketConn
	raw      syscall.RawConn
	counters *groupCounters
	overflow uint32 // what the kernel last said it dropped
	last     int    // datagrams that the last receive gave
	most     int    // that the next one takes
	streams  map[flow]*stream
	log      *slog.Logger
	done     chan struct{}
	empty    atomic.Uint64 // how often nothing waited
}

// flow is what one camera sends from one port to one port of the group IP.
type flow struct {
	camera netip.AddrPort
	port   uint16
}

func flowOf(d packet.Datagram) flow { return flow{d.Source, d.Destination.Port()} }

func startListener(s *Socket, at netip.AddrPort) (*listener, error) {
	control := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = prepareListener(int(fd), at.Port() == anyPort) }), err)
	}}
	conn, err := control.ListenPacket(context.Background(), "udp4", at.String())
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if s.steering != nil {
		var steerErr error
		if err := errors.Join(raw.Control(func(fd uintptr) { steerErr = s.steering.add(at.Addr(), int(fd)) }), steerErr); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	l := &listener{
		owner: s, at: at, conn: conn, raw: raw, counters: s.counters.group(at.Addr()),
		streams: map[flow]*stream{}, done: make(chan struct{}), most: batchSize,
		log: s.config.Log.With("groupIP", at.Addr(), "port", at.Port()),
	}
	go l.run()
	return l, nil
}

// prepareListener asks for the options and the TTL of each datagram, for the number of those that were lost, and for its address and port if they
// aren't those that the socket is bound to: each answer costs time. A group IP is no address of this host, hence IP_FREEBIND.
func prepareListener(fd int, everyPort bool) error {
	var err error
	if everyPort {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// Without the privilege the system's limit applies.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	return errors.Join(
		err,
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVOPTS, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
	)
}

func (l *listener) run() {
	defer close(l.done)
	defer l.closeStreams()
	l.tidy(time.Now())
	for {
		err := l.serve()
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.tidy(time.Now())
		case errors.Is(err, net.ErrClosed):
			return
		default:
			l.log.Error("receiving from cameras failed; trying again", "error", err)
			time.Sleep(errorPause)
		}
	}
}

// serve waits for datagrams and has those copied that are there at once. It holds an arena only while there is something to do.
func (l *listener) serve() error {
	var a *arena
	n := 0
	var receiveErr error
	err := l.raw.Read(func(fd uintptr) bool {
		a = <-l.owner.arenas
		n, receiveErr = a.receive(int(fd), l.most)
		l.expect(n)
		if errors.Is(receiveErr, unix.EAGAIN) {
			l.owner.arenas <- a
			a = nil
			l.empty.Add(1)
			return false
		}
		return true
	})
	if a == nil {
		return err
	}
	defer func() { l.owner.arenas <- a }()
	if err := errors.Join(err, receiveErr); err != nil {
		return err
	}
	l.copyBatch(a, n, time.Now())
	return nil
}

// expect says how many datagrams the next receive takes. A camera that sent one alone is likely to do so again, and to look for a second one before the
// copies of the first have left would delay them; what waits by then is received together.
func (l *listener) expect(received int) {
	if received > 0 {
		l.last, l.most = received, batchSize
	} else if l.last == 1 {
		l.most = 1
	}
}

// judged is a received datagram that is to be copied.
type judged struct {
	slot   int
	camera packet.Datagram
	packet.Verdict
}

// copyBatch judges the datagrams of a batch, each by the one snapshot, and has them copied if that is the verdict.
func (l *listener) copyBatch(a *arena, n int, now time.Time) {
	snapshot := l.owner.plan.Load().Snapshot
	left := a.judged[:0]
	var last judged // cameras send one like the other
	for i := range n {
		l.counters.received.Add(1)
		d, err := l.read(a, i)
		if err != nil {
			l.counters.reasons[packet.Malformed].Add(1)
			continue
		}
		if last.Reason == 0 || d != last.camera {
			last = judged{camera: d, Verdict: packet.Decide(snapshot, now, d)}
		}
		l.counters.reasons[last.Reason].Add(1)
		if last.Reason == packet.Copy {
			last.slot = i
			left = append(left, last)
		}
	}
	for len(left) > 0 {
		first := left[0]
		left = a.gather(left)
		l.copy(first.Verdict, first.camera, &a.flight, now)
	}
	clear(a.judged[:n]) // what was decided by an old snapshot shouldn't keep it in memory
}

// gather makes a flight of the first datagram and those of its stream that are like it, and gives the others in their order.
func (a *arena) gather(left []judged) []judged {
	first := left[0]
	rest := left[:0]
	a.flight.reset()
	for i, j := range left {
		if j.camera != first.camera {
			if j.camera.Source == first.camera.Source { // a stream stays in order
				return append(rest, left[i:]...)
			}
			rest = append(rest, j)
			continue
		}
		a.flight.add(&a.slots[j.slot*slotSize], int(a.in[j.slot].length))
	}
	return rest
}

// read gives what the decision needs to know about a datagram.
func (l *listener) read(a *arena, i int) (packet.Datagram, error) {
	about, err := readAncillary(a.ancillary(i))
	l.countOverflow(about.overflow)
	if err == nil && a.in[i].Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errAncillary
	}
	if !about.destination.IsValid() {
		about.destination = l.at
		if l.at.Port() == anyPort {
			err = errors.Join(err, errAncillary)
		}
	}
	from := &a.names[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	return packet.Datagram{
		Source:      netip.AddrPortFrom(netip.AddrFrom4(from.Addr), port),
		Destination: about.destination,
		TTL:         about.ttl,
		StreamID:    about.streamID,
	}, err
}

// countOverflow turns the kernel's running number, which wraps, into ours.
func (l *listener) countOverflow(total uint32) {
	if total != 0 {
		l.counters.overflow.Add(uint64(total - l.overflow))
		l.overflow = total
	}
}

// tidy closes the sockets of streams that ended and of destinations that left. It runs now and then, and after each Apply.
func (l *listener) tidy(now time.Time) {
	// Before the plan is read, so that a wake that comes with a newer plan isn't overwritten.
	_ = l.conn.SetReadDeadline(now.Add(min(tidyInterval, l.owner.config.StreamIdle)))
	group, ok := l.owner.plan.Load().Group(l.at.Addr())
	for from, s := range l.streams {
		if !ok || !s.serves(group, from.camera.Addr()) || now.Sub(s.used) > l.owner.config.StreamIdle {
			l.closeStream(from, s)
			continue
		}
		s.follow(group, l.owner.counters)
	}
}

// wake has the listener tidy up soon. It is safe on any goroutine.
func (l *listener) wake() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) }

// close returns when the listener's sockets are closed. It is safe on any goroutine but the listener's.
func (l *listener) close() {
	_ = l.conn.Close()
	<-l.done
}
