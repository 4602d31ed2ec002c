package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrMalformed is what Parse and StreamID report about bytes that no host should have sent.
var ErrMalformed = errors.New("malformed datagram")

// ErrNotUDP is what Parse reports about IPv4 that carries another protocol; groups are for UDP only.
var ErrNotUDP = errors.New("not a UDP datagram")

// Datagram is what the decision needs to know about a datagram, wherever it was read: from the bytes (Parse) or from what the
// kernel says about a received one.
type Datagram struct {
	Source      netip.AddrPort // port 0 in a fragment other than the first
	Destination netip.AddrPort // the group IP; port 0 in a fragment other than the first
	TTL         uint8          // as received
	StreamID    netip.Addr     // the address in option 0x88; the zero Addr if the option isn't there
}

// Packet is a valid IPv4 packet that carries a UDP datagram or a fragment of one.
type Packet struct {
	Datagram
	bytes  []byte // the IPv4 packet, without whatever followed it in the buffer
	header int    // length of the IPv4 header with options, in bytes
	first  bool   // whole, or the first fragment: the UDP header is here
}

// Sizes in bytes.
const (
	minHeader  = 20
	udpHeader  = 8
	maxIPv4    = 65535
	protoUDP   = 17
	moreBit    = 0x2000
	offsetMask = 0x1fff
)

var (
	errShort    = fmt.Errorf("%w: shorter than its IPv4 header", ErrMalformed)
	errVersion  = fmt.Errorf("%w: not IPv4", ErrMalformed)
	errLength   = fmt.Errorf("%w: the IPv4 total length doesn't fit", ErrMalformed)
	errChecksum = fmt.Errorf("%w: the IPv4 header checksum is wrong", ErrMalformed)
	errFragment = fmt.Errorf("%w: a fragment can't be where it claims to be", ErrMalformed)
	errUDP      = fmt.Errorf("%w: the UDP length doesn't fit", ErrMalformed)
)

// Parse validates an IPv4 packet as a router must (RFC 1812 §5.2.2) and reads what the decision needs. The UDP checksum is the
// receivers' business and isn't checked. The packet refers to b. Errors wrap ErrMalformed or ErrNotUDP.
func Parse(b []byte) (Packet, error) {
	p, err := parseHeader(b)
	if err != nil {
		return Packet{}, err
	}
	if p.bytes[9] != protoUDP {
		return Packet{}, ErrNotUDP
	}
	if p.first, err = fragmentPosition(p.bytes, p.header); err != nil {
		return Packet{}, err
	}
	if p.StreamID, err = StreamID(p.bytes[minHeader:p.header]); err != nil {
		return Packet{}, err
	}
	var source, destination uint16
	if p.first {
		udp := p.bytes[p.header:]
		source, destination = binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
	}
	p.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p.bytes[12:16])), source)
	p.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p.bytes[16:20])), destination)
	p.TTL = p.bytes[8]
	return p, nil
}

func parseHeader(b []byte) (Packet, error) {
	if len(b) < minHeader {
		return Packet{}, errShort
	}
	if b[0]>>4 != 4 {
		return Packet{}, errVersion
	}
	header := int(b[0]&0x0f) * 4
	if header < minHeader || header > len(b) {
		return Packet{}, errShort
	}
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total < header || total > len(b) {
		return Packet{}, errLength
	}
	if onesSum(b[:header]) != 0xffff {
		return Packet{}, errChecksum
	}
	return Packet{bytes: b[:total], header: header}, nil
}

// fragmentPosition tells whether the UDP header is in this packet, and refuses fragments that no sender makes.
func fragmentPosition(b []byte, header int) (first bool, err error) {
	field := binary.BigEndian.Uint16(b[6:])
	offset, more, payload := int(field&offsetMask)*8, field&moreBit != 0, b[header:]
	if more && (len(payload) == 0 || len(payload)%8 != 0) || header+offset+len(payload) > maxIPv4 {
		return false, errFragment
	}
	if offset > 0 {
		return false, nil
	}
	if len(payload) < udpHeader {
		return false, errUDP
	}
	length := int(binary.BigEndian.Uint16(payload[4:]))
	if length < udpHeader || !more && length > len(payload) {
		return false, errUDP
	}
	return true, nil
}

// Payload is what follows the UDP header, or in a later fragment what follows the IPv4 header.
func (p Packet) Payload() []byte {
	if !p.first {
		return p.bytes[p.header:]
	}
	payload := p.bytes[p.header+udpHeader:]
	if n := int(binary.BigEndian.Uint16(p.bytes[p.header+4:])) - udpHeader; n < len(payload) {
		return payload[:n]
	}
	return payload
}
