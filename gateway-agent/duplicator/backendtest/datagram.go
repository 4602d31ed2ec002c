package backendtest

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// raw describes an IPv4 packet that a camera puts on the wire as it stands.
type raw struct {
	from, to     netip.Addr // Camera and Groupcast1 unless given
	sport, dport uint16     // 4000 and the media port unless given
	options      []byte     // padded with end-of-options
	noOptions    bool       // else StreamID stands for missing options
	id           uint16
	tos, ttl     byte   // ttl: 64 unless given
	flags        uint16 // don't-fragment
	noChecksum   bool   // the UDP checksum is zero
	payload      []byte
	protocol     byte
}

func (r raw) bytes() []byte {
	from, to := or(r.from, Camera), or(r.to, Groupcast1)
	options := r.options
	if options == nil && !r.noOptions {
		options = StreamID
	}
	options = slices.Clone(options)
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	body := make([]byte, 8, 8+len(r.payload))
	binary.BigEndian.PutUint16(body, or(r.sport, 4000))
	binary.BigEndian.PutUint16(body[2:], or(r.dport, mediaPort))
	binary.BigEndian.PutUint16(body[4:], uint16(8+len(r.payload)))
	body = append(body, r.payload...)
	if !r.noChecksum {
		binary.BigEndian.PutUint16(body[6:], udpChecksum(from, to, body))
	}
	header := 20 + len(options)
	b := make([]byte, header, header+len(body))
	b[0] = 4<<4 | byte(header/4)
	b[1] = r.tos
	binary.BigEndian.PutUint16(b[2:], uint16(header+len(body)))
	binary.BigEndian.PutUint16(b[4:], r.id)
	binary.BigEndian.PutUint16(b[6:], r.flags)
	b[8], b[9] = or(r.ttl, 64), or(r.protocol, 17)
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, body...)
}

// fragments cuts a datagram into fragments of at most size bytes of IP payload; size is a multiple of 8.
func fragments(r raw, size int) [][]byte {
	whole := r.bytes()
	header := int(whole[0]&15) * 4
	body := whole[header:]
	var all [][]byte
	for offset := 0; offset < len(body); offset += size {
		part := body[offset:min(offset+size, len(body))]
		b := append(slices.Clone(whole[:header]), part...)
		flags := uint16(offset / 8)
		if offset+len(part) < len(body) {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], flags)
		copy(b[10:12], []byte{0, 0})
		binary.BigEndian.PutUint16(b[10:], ^sum(b[:header]))
		all = append(all, b)
	}
	return all
}

func or[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// udpChecksum is the one of RFC 768, computed from scratch.
func udpChecksum(from, to netip.Addr, udp []byte) uint16 {
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 17}, binary.BigEndian.AppendUint16(nil, uint16(len(udp))), udp)
	if c := ^sum(pseudo); c != 0 {
		return c
	}
	return 0xffff
}

func sum(b []byte) uint16 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// datagram is what a receiver gets: fragments are put together.
type datagram struct {
	from, to netip.AddrPort
	ttl      byte
	payload  string
}

// assemble makes datagrams of IPv4 packets, in the order of their last packets. Incomplete ones are left out.
func assemble(packets [][]byte) []datagram {
	type key struct {
		from, to [4]byte
		id       uint16
	}
	pending := map[key]map[int][]byte{}
	var all []datagram
	for _, p := range packets {
		if p[9] != 17 {
			continue
		}
		header, field := int(p[0]&15)*4, binary.BigEndian.Uint16(p[6:])
		body := p[header:]
		if field&0x3fff != 0 {
			k := key{[4]byte(p[12:16]), [4]byte(p[16:20]), binary.BigEndian.Uint16(p[4:])}
			if pending[k] == nil {
				pending[k] = map[int][]byte{}
			}
			pending[k][int(field&0x1fff)*8] = body
			if field&0x2000 == 0 {
				pending[k][-1] = []byte{1}
			}
			if body = joined(pending[k]); body == nil {
				continue
			}
			delete(pending, k)
		}
		length := int(binary.BigEndian.Uint16(body[4:]))
		at := func(ip, port int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[ip:])), binary.BigEndian.Uint16(body[port:]))
		}
		all = append(all, datagram{at(12, 0), at(16, 2), p[8], string(body[8:min(length, len(body))])})
	}
	return all
}

// joined gives the whole of the parts by their offsets, or nil if some are missing. Offset -1 marks that the last one came.
func joined(parts map[int][]byte) []byte {
	if parts[-1] == nil {
		return nil
	}
	var whole []byte
	for count := len(parts) - 1; count > 0; count-- {
		part, ok := parts[len(whole)]
		if !ok {
			return nil
		}
		whole = append(whole, part...)
	}
	return whole
}
