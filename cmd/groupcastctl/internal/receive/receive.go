// Package receive is a receiver's part of groupcast in software: it opens its socket, registers as a destination, hands on what
// arrives, counts what is missing, and leaves.
package receive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/lease"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/rtp"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/udpbuffer"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	largest = 1 << 16 // what fits any UDP datagram
	// settle is how long after the leave datagrams are still handed on that were sent before it.
	settle = 100 * time.Millisecond
)

// Socket is where the copies arrive. It is open before the receiver registers, so that the first copy finds it.
type Socket struct{ conn *net.UDPConn }

// Open binds the address; port 0 takes a free one.
func Open(at netip.AddrPort) (*Socket, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	udpbuffer.Enlarge(conn)
	return &Socket{conn}, nil
}

// At is the address that was bound.
func (s *Socket) At() netip.AddrPort {
	at := s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Close frees the socket.
func (s *Socket) Close() error { return s.conn.Close() }

// Config is what one receiver does.
type Config struct {
	Lease  *lease.Lease
	Socket *Socket
	// Output gets every datagram until the receiver has left.
	Output Output
	// Linger is how long after the leave the receiver goes on listening and logging, to show that nothing comes any more.
	Linger time.Duration

	Log *datagramlog.Log
	// Joined is told the answer at first and each time the group IP changed.
	Joined func(api.RegistrationAnswer)
}

// Summary is what a receiver got.
type Summary struct {
	Datagrams uint64       `json:"datagrams"`
	Bytes     uint64       `json:"bytes"`
	Streams   []rtp.Report `json:"streams"`
}

// Run registers and receives until ctx is done, and leaves. The leave and the lingering may take until leaveBy is done.
func Run(ctx, leaveBy context.Context, c Config) (Summary, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	r := &running{Config: c, keeping: keeping{lease: c.Lease, socket: c.Socket.conn}}
	received := make(chan error, 1)
	go func() { received <- r.receive(stop) }()

	err := r.stay(ctx, leaveBy)
	_ = c.Socket.Close()
	receiveErr := <-received
	r.summary.Streams = r.reception.Reports()
	return r.summary, errors.Join(receiveErr, r.outputErr, err)
}

// running is one receiver at work.
type running struct {
	Config
	keeping keeping

	done      atomic.Bool // nothing is handed on any more
	reception rtp.Reception
	summary   Summary
	outputErr error
}

// stay is the member's life in the group.
func (r *running) stay(ctx, leaveBy context.Context) error {
	err := r.keeping.stay(ctx, leaveBy, r.Joined)
	if !r.keeping.joined {
		return err
	}
	pause(leaveBy, settle)
	r.done.Store(true)
	pause(leaveBy, r.Linger-settle)
	return err
}

// receive runs until the socket is closed. It has the receiver leave if nothing can be handed on any more.
func (r *running) receive(leave func()) error {
	buffer := make([]byte, largest)
	for {
		n, from, err := r.Socket.conn.ReadFromUDPAddrPort(buffer)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			leave()
			return fmt.Errorf("receive: %w", err)
		}
		datagram := buffer[:n]
		if r.keeping.take(from, datagram) {
			continue
		}
		r.summary.Datagrams++
		r.summary.Bytes += uint64(n)
		sequence, isRTP := r.reception.Note(datagram)
		r.Log.Datagram(now, datagram, sequence, isRTP)
		if r.outputErr == nil && !r.done.Load() {
			if r.outputErr = r.Output.Write(datagram); r.outputErr != nil {
				leave()
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
