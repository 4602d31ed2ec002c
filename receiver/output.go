package receiver

import (
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/groupcast/groupcast/internal/rtp"
)

// ToWriter hands the stream on to w, such as a file or a player's standard input. A stream of bytes can't keep the borders of datagrams: so of RTP with an
// MPEG transport stream (RFC 2250) it gets the transport stream, which every player reads, and of everything else the whole payload. An error of w
// ends the receiver.
func ToWriter(w io.Writer) func(Datagram) error {
	return func(d Datagram) error {
		content := rtp.TransportStream(d.Payload)
		if content == nil {
			content = d.Payload
		}
		if _, err := w.Write(content); err != nil {
			return fmt.Errorf("hand on the stream: %w", err)
		}
		return nil
	}
}

// Port hands each datagram on to a UDP port, such as a player's on this host, as it is.
type Port struct {
	conn *net.UDPConn
	to   netip.AddrPort
}

// ToPort opens the way to a UDP port. It doesn't matter whether anybody listens there yet. Close it after the receiver.
func ToPort(to netip.AddrPort) (*Port, error) {
	// Not connected: a player that isn't there yet must not cost the datagram after its refusal.
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, fmt.Errorf("open a socket to hand on the stream: %w", err)
	}
	return &Port{conn, to}, nil
}

// Media is for Config.
func (p *Port) Media(d Datagram) error {
	if _, err := p.conn.WriteToUDPAddrPort(d.Payload, p.to); err != nil {
		return fmt.Errorf("hand on the stream: %w", err)
	}
	return nil
}

// Close frees the socket.
func (p *Port) Close() error { return p.conn.Close() }
