package duplicator

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

const (
	batchSize     = 16      // datagrams per system call
	datagramSize  = 1 << 16 // what fits any datagram
	ancillarySize = 256     // 40 bytes of options and four small messages fit
	receiveBuffer = 4 << 20 // bytes in the kernel: a burst of key frames
	tidyInterval  = 30 * time.Second
	errorPause    = 100 * time.Millisecond
)

// listener receives what is sent to one port of one group IP. All but close and wake runs on its own goroutine, which also owns
// the streams, so the packet path takes no lock.
type listener struct {
	owner    *Socket
	at       netip.AddrPort
	conn     *ipv4.PacketConn
	batch    []ipv4.Message
	counters *groupCounters
	overflow uint32 // what the kernel last said it dropped
	streams  map[netip.AddrPort]*stream
	hops     *hops
	log      *slog.Logger
	done     chan struct{}
}

func startListener(s *Socket, at netip.AddrPort) (*listener, error) {
	control := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = prepareListener(int(fd)) }), err)
	}}
	conn, err := control.ListenPacket(context.Background(), "udp4", at.String())
	if err != nil {
		return nil, err
	}
	l := &listener{
		owner: s, at: at, conn: ipv4.NewPacketConn(conn), batch: newBatch(), counters: s.counters.group(at.Addr()),
		streams: map[netip.AddrPort]*stream{}, hops: newHops(), done: make(chan struct{}),
		log: s.config.Log.With("groupIP", at.Addr(), "port", at.Port()),
	}
	go l.run()
	return l, nil
}

// prepareListener asks for the options, the address and the TTL of each datagram, and for the number of those that were lost.
// A group IP is no address of this host, hence IP_FREEBIND.
func prepareListener(fd int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// Without the privilege the system's limit applies.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVOPTS, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
	)
}

func newBatch() []ipv4.Message {
	batch := make([]ipv4.Message, batchSize)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, datagramSize)}
		batch[i].OOB = make([]byte, ancillarySize)
	}
	return batch
}

func (l *listener) run() {
	defer close(l.done)
	defer l.closeStreams()
	l.tidy(time.Now())
	for {
		n, err := l.conn.ReadBatch(l.batch, 0)
		now := time.Now()
		switch {
		case err == nil:
			for i := range l.batch[:n] {
				l.receive(&l.batch[i], now)
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.tidy(now)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			l.log.Error("receiving from cameras failed; trying again", "error", err)
			time.Sleep(errorPause)
		}
	}
}

// receive judges one datagram by one snapshot, and has it copied if that is the verdict.
func (l *listener) receive(m *ipv4.Message, now time.Time) {
	l.counters.received.Add(1)
	a, err := readAncillary(m.OOB[:m.NN])
	l.countOverflow(a.overflow)
	if err != nil || m.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		l.counters.reasons[packet.Malformed].Add(1)
		return
	}
	d := packet.Datagram{
		Source:      sourceOf(m.Addr),
		Destination: netip.AddrPortFrom(a.destination, l.at.Port()),
		TTL:         a.ttl,
		StreamID:    a.streamID,
	}
	verdict := packet.Decide(l.owner.plan.Load().Snapshot, now, d)
	l.counters.reasons[verdict.Reason].Add(1)
	if verdict.Reason == packet.Copy {
		l.copy(verdict, d, m.Buffers[0][:m.N], now)
	}
}

// countOverflow turns the kernel's running number, which wraps, into ours.
func (l *listener) countOverflow(total uint32) {
	if total != 0 {
		l.counters.overflow.Add(uint64(total - l.overflow))
		l.overflow = total
	}
}

func sourceOf(a net.Addr) netip.AddrPort {
	if udp, ok := a.(*net.UDPAddr); ok {
		from := udp.AddrPort()
		return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	return netip.AddrPort{}
}

// tidy closes the sockets of streams that ended and of destinations that left. It runs now and then, and after each Apply.
func (l *listener) tidy(now time.Time) {
	// Before the plan is read, so that a wake that comes with a newer plan isn't overwritten.
	_ = l.conn.SetReadDeadline(now.Add(min(tidyInterval, l.owner.config.StreamIdle)))
	group, ok := l.owner.plan.Load().Group(l.at.Addr())
	for from, s := range l.streams {
		if !ok || !s.serves(group, from.Addr()) || now.Sub(s.used) > l.owner.config.StreamIdle {
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
