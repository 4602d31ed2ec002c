package duplicator

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// ancillary is what the kernel says about a received datagram.
type ancillary struct {
	destination netip.AddrPort // as in the headers; the zero AddrPort if the kernel says nothing
	ttl         uint8
	streamID    netip.Addr // of option 0x88; the zero Addr if it isn't there
	overflow    uint32     // how many datagrams this socket has lost so far; 0 also if the kernel says nothing
}

var errAncillary = fmt.Errorf("%w: the kernel's description of it is incomplete", packet.ErrMalformed)

// readAncillary reads the control messages that prepareListener asked for. No message about options means that there were none.
func readAncillary(oob []byte) (ancillary, error) {
	var a ancillary
	var options []byte
	for len(oob) >= unix.CmsgLen(0) {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return a, fmt.Errorf("%w: %w", errAncillary, err)
		}
		oob = rest
		switch {
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			a.overflow = binary.NativeEndian.Uint32(data)
		case header.Level != unix.IPPROTO_IP:
		case header.Type == unix.IP_RECVOPTS:
			options = data
		case header.Type == unix.IP_TTL && len(data) >= 4:
			a.ttl = uint8(binary.NativeEndian.Uint32(data))
		case header.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			a.destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), binary.BigEndian.Uint16(data[2:]))
		}
	}
	var err error
	a.streamID, err = packet.StreamID(options)
	return a, err
}
