package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Whole is a UDP datagram, put together if it came in fragments. Payload refers to what it was made from.
type Whole struct {
	Datagram
	Payload []byte
}

// What a Reassembler holds at most. The fragments of a datagram leave a camera together, so they needn't wait long for each other.
const (
	reassemblyTime     = 2 * time.Second
	maxUnfinished      = 8        // datagrams of one sender
	maxUnfinishedBytes = 32 << 20 // of all senders together
)

var (
	errOverlap  = fmt.Errorf("%w: its fragments overlap or don't agree where it ends", ErrMalformed)
	errChecked  = fmt.Errorf("%w: the UDP checksum is wrong", ErrMalformed)
	errNoRoom   = fmt.Errorf("%w: too many datagrams of this sender, or of all, wait for fragments", ErrMalformed)
	errNotFirst = fmt.Errorf("%w: no fragment of it has a UDP header", ErrMalformed)
)

// Reassembler puts fragments together (RFC 791 §3.2), of many senders whose addresses may be the same, and never those of one with another's. It is for one
// goroutine. Nobody holds much of it: neither one sender nor all.
type Reassembler struct {
	unfinished map[fragmentKey]*unfinished
	of         map[netip.Addr]int // how many of each sender
	bytes      int
	tidied     time.Time
}

type fragmentKey struct {
	sender, source, destination netip.Addr
	id                          uint16
}

type unfinished struct {
	since time.Time
	first Packet // without bytes; zero before it came
	parts []part // sorted by offset
	have  int    // bytes
	end   int    // of the whole; 0 while it isn't known
}

type part struct {
	offset int
	bytes  []byte
}

// NewReassembler makes one that holds nothing.
func NewReassembler() *Reassembler {
	return &Reassembler{unfinished: map[fragmentKey]*unfinished{}, of: map[netip.Addr]int{}}
}

// Add takes a packet of a sender and gives the datagram that it is or that it completes; done is false while fragments are missing. A whole one isn't copied.
// Its UDP checksum is checked, unless it has none: whoever sends the payload on with a new one would hide that it was damaged. Errors wrap ErrMalformed.
func (r *Reassembler) Add(now time.Time, sender netip.Addr, p Packet) (w Whole, done bool, err error) {
	field := binary.BigEndian.Uint16(p.bytes[6:])
	offset, more := int(field&offsetMask)*8, field&moreBit != 0
	if offset == 0 && !more {
		w, err = wholeOf(p.Datagram, p.bytes[p.header:])
		return w, err == nil, err
	}
	r.tidy(now)
	key := fragmentKey{sender, p.Source.Addr(), p.Destination.Addr(), binary.BigEndian.Uint16(p.bytes[4:])}
	u := r.unfinished[key]
	bytes := p.bytes[p.header:]
	if u == nil {
		if r.of[sender] == maxUnfinished || r.bytes+len(bytes) > maxUnfinishedBytes {
			return Whole{}, false, errNoRoom
		}
		u = &unfinished{since: now}
		r.unfinished[key] = u
		r.of[sender]++
	}
	if r.bytes+len(bytes) > maxUnfinishedBytes {
		r.drop(key, u)
		return Whole{}, false, errNoRoom
	}
	before := u.have
	ok := u.add(offset, more, bytes)
	r.bytes += u.have - before
	if !ok {
		r.drop(key, u)
		return Whole{}, false, errOverlap
	}
	if p.first {
		u.first = Packet{Datagram: p.Datagram, first: true}
	}
	if u.end == 0 || u.have < u.end {
		return Whole{}, false, nil
	}
	r.drop(key, u)
	if !u.first.first {
		return Whole{}, false, errNotFirst
	}
	datagram := make([]byte, 0, u.end)
	for _, part := range u.parts {
		datagram = append(datagram, part.bytes...)
	}
	w, err = wholeOf(u.first.Datagram, datagram)
	return w, err == nil, err
}

// add takes a fragment, and tells whether it agrees with the others. The same one again changes nothing.
func (u *unfinished) add(offset int, more bool, bytes []byte) bool {
	end := offset + len(bytes)
	if !more {
		if u.end != 0 && u.end != end {
			return false
		}
		u.end = end
	}
	at := len(u.parts)
	for i, p := range u.parts {
		if p.offset == offset && len(p.bytes) == len(bytes) {
			return true
		}
		if p.offset < end && offset < p.offset+len(p.bytes) {
			return false
		}
		if p.offset > offset && at == len(u.parts) {
			at = i
		}
	}
	u.parts = append(u.parts, part{})
	copy(u.parts[at+1:], u.parts[at:])
	u.parts[at] = part{offset, append([]byte(nil), bytes...)}
	u.have += len(bytes)
	last := u.parts[len(u.parts)-1]
	return u.end == 0 || last.offset+len(last.bytes) <= u.end
}

func (r *Reassembler) drop(key fragmentKey, u *unfinished) {
	delete(r.unfinished, key)
	r.bytes -= u.have
	if r.of[key.sender]--; r.of[key.sender] == 0 {
		delete(r.of, key.sender)
	}
}

// tidy forgets what waited too long.
func (r *Reassembler) tidy(now time.Time) {
	if now.Sub(r.tidied) < reassemblyTime/4 {
		return
	}
	r.tidied = now
	for key, u := range r.unfinished {
		if now.Sub(u.since) >= reassemblyTime {
			r.drop(key, u)
		}
	}
}

// wholeOf reads the UDP header and the payload behind it.
func wholeOf(d Datagram, udp []byte) (Whole, error) {
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < udpHeader || length > len(udp) {
		return Whole{}, errUDP
	}
	udp = udp[:length]
	if binary.BigEndian.Uint16(udp[6:]) != 0 && udpSum(d, udp) != 0xffff {
		return Whole{}, errChecked
	}
	return Whole{d, udp[udpHeader:]}, nil
}

// udpSum is the one's complement sum over a UDP datagram with its pseudo header (RFC 768).
func udpSum(d Datagram, udp []byte) uint16 {
	source, destination := d.Source.Addr().As4(), d.Destination.Addr().As4()
	sum := uint64(onesSum(source[:])) + uint64(onesSum(destination[:])) + protoUDP + uint64(len(udp))
	for ; len(udp) >= 8; udp = udp[8:] {
		v := binary.BigEndian.Uint64(udp)
		sum += v>>32 + v&0xffffffff
	}
	for ; len(udp) >= 2; udp = udp[2:] {
		sum += uint64(binary.BigEndian.Uint16(udp))
	}
	if len(udp) == 1 {
		sum += uint64(udp[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Complete writes the UDP checksum into a whole packet whose sender left it to a network card that it never passed.
func (p Packet) Complete() {
	udp := p.bytes[p.header:]
	if binary.BigEndian.Uint16(p.bytes[6:])&(offsetMask|moreBit) != 0 {
		return // such cards don't fragment
	}
	udp = udp[:binary.BigEndian.Uint16(udp[4:])]
	udp[6], udp[7] = 0, 0
	sum := ^udpSum(p.Datagram, udp)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

// Segments cuts a super-packet into the packets that it stands for: each has so many bytes of payload, the last one at most, and all other fields as the
// whole, but the identification, which counts. A kernel makes one of what a program sends with UDP_SEGMENT, as long as no network card has cut it.
func (p Packet) Segments(size int) (all [][]byte) {
	payload := p.Payload()
	for size > 0 && len(payload) > 0 {
		part := payload[:min(size, len(payload))]
		payload = payload[len(part):]
		one := Packet{Datagram: p.Datagram, header: p.header}
		one.bytes = append(append(make([]byte, 0, p.header+udpHeader+len(part)), p.bytes[:p.header+udpHeader]...), part...)
		binary.BigEndian.PutUint16(one.bytes[2:], uint16(len(one.bytes)))
		binary.BigEndian.PutUint16(one.bytes[4:], binary.BigEndian.Uint16(p.bytes[4:])+uint16(len(all)))
		one.bytes[10], one.bytes[11] = 0, 0
		binary.BigEndian.PutUint16(one.bytes[10:], ^onesSum(one.bytes[:p.header]))
		binary.BigEndian.PutUint16(one.bytes[p.header+4:], uint16(udpHeader+len(part)))
		one.Complete()
		all = append(all, one.bytes)
	}
	return all
}

// Bytes is the IPv4 packet as it came.
func (p Packet) Bytes() []byte { return p.bytes }
