package netlab

import (
	"encoding/binary"
	"fmt"
)

// VerifyIPv4 recomputes the checksums of a whole IPv4 packet from scratch: the header's always, and the UDP checksum (RFC 768) if
// the packet is UDP, no fragment, and the checksum isn't zero.
func VerifyIPv4(packet []byte) error {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return fmt.Errorf("%d bytes are no IPv4 packet", len(packet))
	}
	header := int(packet[0]&0x0f) * 4
	if header < 20 || header > len(packet) {
		return fmt.Errorf("header length %d of %d bytes", header, len(packet))
	}
	if s := ones(packet[:header]); s != 0xffff {
		return fmt.Errorf("header checksum is wrong: sums to %#04x", s)
	}
	fragment := binary.BigEndian.Uint16(packet[6:])&0x3fff != 0
	if packet[9] != 17 || fragment {
		return nil
	}
	udp := packet[header:]
	if len(udp) < 8 {
		return fmt.Errorf("%d bytes of UDP", len(udp))
	}
	if udp[6] == 0 && udp[7] == 0 {
		return nil
	}
	pseudo := append([]byte(nil), packet[12:20]...)
	pseudo = append(pseudo, 0, 17, udp[4], udp[5])
	if s := ones(append(pseudo, udp...)); s != 0xffff {
		return fmt.Errorf("UDP checksum is wrong: sums to %#04x", s)
	}
	return nil
}

// ones is the one's complement sum of RFC 1071.
func ones(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
