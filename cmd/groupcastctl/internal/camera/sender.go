package camera

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/internal/rtp"
)

// ErrNoOption says that the system doesn't let this user set the IP option.
var ErrNoOption = errors.New("this user may not set the IP option 0x88 that asks for copies: it needs CAP_NET_RAW " +
	"(run as root, or give this program cap_net_raw with setcap). " +
	"Without it, have this camera copied by its address alone: \"groupcastctl admin device set --trigger source\", and start with --no-option")

// Sender sends datagrams to the group IP from the address that the camera registered.
type Sender struct {
	conn   *net.UDPConn // nil if tunnel is there
	tunnel *Tunnel
	target atomic.Pointer[netip.AddrPort]
	log    *datagramlog.Log
	errors *slog.Logger
	sent   atomic.Uint64
	failed atomic.Uint64
	// dropped went nowhere, because nobody copied.
	dropped atomic.Uint64

	mu        sync.Mutex // one Send or Close at a time
	closed    bool
	reception rtp.Reception
}

// OpenSender binds the private address; port 0 takes a free one. With option set, every datagram carries the address in the
// option; ErrNoOption if that isn't permitted.
func OpenSender(private netip.AddrPort, option bool, log *datagramlog.Log, errorLog *slog.Logger) (*Sender, error) {
	if !private.Addr().Is4() {
		return nil, errors.New("a camera sends from its private IPv4 address: give it with --private-ip")
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(private))
	if err != nil {
		return nil, fmt.Errorf("bind the camera's private address: %w: --private-ip must be an address of this host", err)
	}
	s := &Sender{conn: conn, log: log, errors: errorLog}
	if option {
		if err := setOption(conn, private.Addr()); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return s, nil
}

func setOption(conn *net.UDPConn, private netip.Addr) error {
	address := private.As4()
	option := append([]byte{packet.OptionType, packet.OptionLength}, address[:]...)
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	if err := raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(option))
	}); err != nil {
		return err
	}
	// Linux says EINVAL to those who lack the privilege.
	if errors.Is(refused, unix.EINVAL) || errors.Is(refused, unix.EPERM) {
		return fmt.Errorf("%w (%w)", ErrNoOption, refused)
	}
	return refused
}

// Aim sets where the next datagrams go. It is safe on any goroutine; without it Send drops.
func (s *Sender) Aim(group netip.AddrPort) { s.target.Store(&group) }

// Send sends one datagram and writes it into the send log if the system took it. What the system doesn't take is lost, as on
// a network, and is reported now and then. After Close it does nothing: who reads the stream may still have a datagram in hand when the camera leaves.
func (s *Sender) Send(datagram []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target := s.target.Load()
	if target == nil || s.closed {
		return
	}
	switch err := s.write(datagram, *target); {
	case errors.Is(err, errNoWay):
		s.dropped.Add(1)
		return
	case err != nil:
		if failed := s.failed.Add(1); failed&(failed-1) == 0 {
			s.errors.Error("a datagram could not be sent", "error", err, "failed", failed)
		}
		return
	}
	now := time.Now()
	s.sent.Add(1)
	sequence, isRTP := s.reception.Note(datagram)
	s.log.Datagram(now, datagram, sequence, isRTP)
}

func (s *Sender) write(datagram []byte, target netip.AddrPort) error {
	if s.tunnel != nil {
		return s.tunnel.send(datagram, target)
	}
	_, err := s.conn.WriteToUDPAddrPort(datagram, target)
	return err
}

// Close ends sending and frees the socket, once.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.conn == nil {
		return nil
	}
	return s.conn.Close()
}
