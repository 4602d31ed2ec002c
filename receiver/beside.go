package receiver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/groupcast/groupcast/receiver/consentcheck"
	"github.com/groupcast/groupcast/receiver/stunfilter"
)

// Beside is a socket for checks at a port that another program has, one that knows nothing of them: it sees the STUN that comes to the port, besides that
// program, and sends from the port. It sees and sends nothing else, and only while somebody has the port: where nobody listens any more, nobody consents.
//
// It is a raw socket, so it needs CAP_NET_RAW. IPv4 only.
type Beside struct {
	conn *net.IPConn
	at   netip.AddrPort
}

var errNobody = errors.New("no program has the port")

// OpenBeside is for the port at one address of this host, or at all if the address is unspecified.
func OpenBeside(at netip.AddrPort) (*Beside, error) {
	if !at.Addr().Is4() || at.Port() == 0 {
		return nil, fmt.Errorf("%s is not an IPv4 address and a port", at)
	}
	conn, err := net.ListenIP("ip4:udp", &net.IPAddr{IP: at.Addr().AsSlice()})
	if errors.Is(err, os.ErrPermission) {
		return nil, errors.New("a raw socket needs CAP_NET_RAW: run this as root, or give the program that capability")
	}
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = errors.Join(raw.Control(func(fd uintptr) { set = stunfilter.OnRaw(int(fd), at.Port(), true) }), set)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Beside{conn, at}, nil
}

const udpHeader = 8

// ReadFromUDPAddrPort waits for a check.
func (b *Beside) ReadFromUDPAddrPort(datagram []byte) (int, netip.AddrPort, error) {
	raw := make([]byte, len(datagram)+udpHeader)
	for {
		n, from, err := b.conn.ReadFromIP(raw)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		addr, ok := netip.AddrFromSlice(from.IP)
		size := int(binary.BigEndian.Uint16(raw[4:]))
		// Before the filter was there something else may have come.
		if ok && n >= udpHeader && size >= udpHeader && size <= n && binary.BigEndian.Uint16(raw[2:]) == b.at.Port() && consentcheck.IsSTUN(raw[udpHeader:size]) {
			n = copy(datagram, raw[udpHeader:size])
			return n, netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(raw)), nil
		}
	}
}

// WriteToUDPAddrPort sends from the port, if a program has it.
func (b *Beside) WriteToUDPAddrPort(datagram []byte, to netip.AddrPort) (int, error) {
	has, err := listens(b.at)
	if err == nil && !has {
		err = errNobody
	}
	if err != nil {
		return 0, err
	}
	raw := make([]byte, udpHeader, udpHeader+len(datagram))
	binary.BigEndian.PutUint16(raw, b.at.Port())
	binary.BigEndian.PutUint16(raw[2:], to.Port())
	binary.BigEndian.PutUint16(raw[4:], uint16(udpHeader+len(datagram)))
	// No checksum, which IPv4 allows (RFC 768): the fingerprint of a check is one.
	if _, err := b.conn.WriteToIP(append(raw, datagram...), &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		return 0, fmt.Errorf("send a check: %w", err)
	}
	return len(datagram), nil
}

// Close ends reading.
func (b *Beside) Close() error { return b.conn.Close() }

// listens tells whether a UDP socket of this host would get what comes there.
func listens(at netip.AddrPort) (bool, error) {
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} { // a socket for both kinds of IP stands in the second
		table, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", at.Port())) {
				continue
			}
			addr, _, _ := strings.Cut(fields[1], ":")
			a := at.Addr().As4()
			own := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
			if strings.Trim(addr, "0") == "" || at.Addr().IsUnspecified() || addr == own {
				return true, nil
			}
		}
	}
	return false, nil
}
