package receiver

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/receiver/consentcheck"
	"github.com/groupcast/groupcast/receiver/stunfilter"
)

// Beside is a socket for checks at a port that another program has, one that knows nothing of them: it sees the STUN that comes to the port, besides that
// program, and sends from the port. It sees and sends nothing else, and only while somebody has the port: where nobody listens any more, nobody consents.
//
// It is a raw socket, so it needs CAP_NET_RAW.
type Beside struct {
	conn *net.IPConn
	at   netip.AddrPort
}

var (
	errNobody      = errors.New("no program has the port")
	errNoRawSocket = fmt.Errorf("a raw socket needs CAP_NET_RAW: run this as root, or give the program that capability (setcap cap_net_raw+ep FILE): %w", os.ErrPermission)
)

// OpenBeside is for the port at one address of this host, IPv4 or IPv6, or at all of that kind if the address is unspecified. Without CAP_NET_RAW the error wraps
// os.ErrPermission and says what to do.
func OpenBeside(at netip.AddrPort) (*Beside, error) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if !at.Addr().IsValid() || at.Port() == 0 {
		return nil, errors.New("to consent beside another program, say at which address and port that receives")
	}
	network := "ip4:udp"
	if at.Addr().Is6() {
		network = "ip6:udp"
	}
	conn, err := net.ListenIP(network, &net.IPAddr{IP: at.Addr().AsSlice(), Zone: at.Addr().Zone()})
	if errors.Is(err, os.ErrPermission) {
		return nil, errNoRawSocket
	}
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = errors.Join(raw.Control(func(fd uintptr) {
			set = stunfilter.OnRaw(int(fd), at.Port(), at.Addr().Is4())
			if at.Addr().Is6() { // without a checksum nobody takes it (RFC 8200 §8.1); the kernel makes it
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, udpChecksum))
			}
		}), set)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up a raw socket: %w", err), conn.Close())
	}
	return &Beside{conn, at}, nil
}

const (
	udpHeader   = 8
	udpChecksum = 6 // where it is in the header
)

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
			return n, netip.AddrPortFrom(addr.Unmap().WithZone(from.Zone), binary.BigEndian.Uint16(raw)), nil
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
	// Over IPv4 without a checksum, which is allowed (RFC 768): the fingerprint of a check is one.
	if _, err := b.conn.WriteToIP(append(raw, datagram...), &net.IPAddr{IP: to.Addr().AsSlice(), Zone: to.Addr().Zone()}); err != nil {
		return 0, fmt.Errorf("send a check: %w", err)
	}
	return len(datagram), nil
}

// Close ends reading.
func (b *Beside) Close() error { return b.conn.Close() }

// listens tells whether a UDP socket of this host would get what comes there.
func listens(at netip.AddrPort) (bool, error) {
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} { // a socket for both kinds of IP stands in the second
		if at.Addr().Is6() && !strings.HasSuffix(file, "6") {
			continue
		}
		table, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			own, ok := bound(fields[1])
			if !ok || own.Port() != at.Port() {
				continue
			}
			same := own.Addr().Is4() == at.Addr().Is4() && (at.Addr().IsUnspecified() || own.Addr() == at.Addr().WithZone(""))
			if same || own.Addr().IsUnspecified() {
				return true, nil
			}
		}
	}
	return false, nil
}

// bound reads an address as the kernel's tables write it: words in the host's order, in hexadecimal.
func bound(text string) (netip.AddrPort, bool) {
	words, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(words)
	n, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}
