package packet_test

import (
	"encoding/binary"
	"net/netip"
)

// wire describes an IPv4 packet with UDP in it; compose writes it with every checksum computed from scratch. It shares no code
// with the package under test.
type wire struct {
	tos                 byte
	id, fragment        uint16 // fragment: flags and offset as on the wire
	ttl                 byte
	protocol            byte
	source, destination netip.AddrPort
	options             []byte
	payload             []byte
	noUDPChecksum       bool
}

func compose(w wire) []byte {
	return composeIP(w, composeUDP(w))
}

func composeUDP(w wire) []byte {
	udp := binary.BigEndian.AppendUint16(nil, w.source.Port())
	udp = binary.BigEndian.AppendUint16(udp, w.destination.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(w.payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, w.payload...)
	if w.noUDPChecksum {
		return udp
	}
	pseudo := append(w.source.Addr().AsSlice(), w.destination.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 17)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	sum := ^slowSum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return udp
}

func composeIP(w wire, content []byte) []byte {
	header := 20 + len(w.options)
	protocol := w.protocol
	if protocol == 0 {
		protocol = 17
	}
	b := []byte{4<<4 | byte(header/4), w.tos}
	b = binary.BigEndian.AppendUint16(b, uint16(header+len(content)))
	b = binary.BigEndian.AppendUint16(b, w.id)
	b = binary.BigEndian.AppendUint16(b, w.fragment)
	b = append(b, w.ttl, protocol, 0, 0)
	b = append(b, w.source.Addr().AsSlice()...)
	b = append(b, w.destination.Addr().AsSlice()...)
	b = append(b, w.options...)
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	return append(b, content...)
}

// slowSum adds 16-bit words with the carry brought round after each, as RFC 1071 words it; an odd byte is padded with zero.
func slowSum(b []byte) uint16 {
	var sum uint16
	for i := 0; i < len(b); i += 2 {
		word := uint16(b[i]) << 8
		if i+1 < len(b) {
			word |= uint16(b[i+1])
		}
		before := sum
		sum += word
		if sum < before {
			sum++
		}
	}
	return sum
}
