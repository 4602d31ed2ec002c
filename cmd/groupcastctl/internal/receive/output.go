package receive

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/rtp"
)

// Output is where datagrams go. There are two kinds: a byte stream and another UDP socket.
type Output interface {
	// Write takes one datagram.
	Write(datagram []byte) error
	Close() error
}

// OpenOutput opens "-" (standard output), "udp:ADDRESS:PORT" or a file, which gets no more than limit bytes; 0 is no limit.
func OpenOutput(to string, limit int64) (Output, error) {
	if at, ok := strings.CutPrefix(to, "udp:"); ok {
		address, err := netip.ParseAddrPort(at)
		if err != nil {
			return nil, fmt.Errorf("--to: %q is not an address and port: give for example udp:127.0.0.1:6000", at)
		}
		// Not connected: a player that isn't there yet must not cost the datagram after its refusal.
		conn, err := net.ListenUDP("udp", nil)
		if err != nil {
			return nil, fmt.Errorf("--to: %w", err)
		}
		return port{conn, address}, nil
	}
	if to == "-" {
		return &byteStream{w: os.Stdout, limit: limit}, nil
	}
	file, err := os.Create(to)
	if err != nil {
		return nil, fmt.Errorf("--to: %w", err)
	}
	return &byteStream{w: file, limit: limit}, nil
}

// byteStream can't keep the borders of datagrams. So of RTP with a transport stream it writes the transport stream, which every
// player reads, and of everything else the whole payload.
type byteStream struct {
	w       io.WriteCloser
	limit   int64
	written int64
}

func (s *byteStream) Write(datagram []byte) error {
	content := rtp.TransportStream(datagram)
	if content == nil {
		content = datagram
	}
	if s.limit > 0 && s.written+int64(len(content)) > s.limit {
		return nil
	}
	s.written += int64(len(content))
	if _, err := s.w.Write(content); err != nil {
		return fmt.Errorf("hand on the stream: %w", err)
	}
	return nil
}

func (s *byteStream) Close() error { return s.w.Close() }

type port struct {
	conn *net.UDPConn
	to   netip.AddrPort
}

func (p port) Write(datagram []byte) error {
	if _, err := p.conn.WriteToUDPAddrPort(datagram, p.to); err != nil {
		return fmt.Errorf("hand on the stream: %w", err)
	}
	return nil
}

func (p port) Close() error { return p.conn.Close() }
