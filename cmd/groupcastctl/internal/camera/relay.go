package camera

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/groupcast/groupcast/internal/udpbuffer"
)

// largest is what fits any UDP datagram.
const largest = 1 << 16

// relay is a local UDP stream that goes out as it comes in: one datagram in, one datagram out, byte for byte.
type relay struct{ conn *net.UDPConn }

func openRelay(at netip.AddrPort) (*relay, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("--relay: %w", err)
	}
	udpbuffer.Enlarge(conn)
	return &relay{conn}, nil
}

func (r *relay) run(ctx context.Context, send func([]byte)) error {
	stop := context.AfterFunc(ctx, func() { _ = r.conn.Close() })
	defer stop()
	buffer := make([]byte, largest)
	for {
		n, err := r.conn.Read(buffer)
		switch {
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("receive the stream to relay: %w", err)
		}
		send(buffer[:n])
	}
}

func (r *relay) close() error { return r.conn.Close() }
