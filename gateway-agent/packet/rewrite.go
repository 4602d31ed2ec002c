package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// CopyOptions says what the copies carry in place of the camera's options (SPEC §9, "strip" and "nop").
type CopyOptions string

const (
	// Strip leaves no options: many networks drop packets that have any.
	Strip CopyOptions = "strip"
	// NOP leaves one no-operation and ends the list: FIGs 9–11 of the source document.
	NOP CopyOptions = "nop"
)

// nop is the options area of FIGs 9–11, padded to the four bytes that IPv4 counts in.
var nop = []byte{optionNOP, optionEnd, 0, 0}

// For gives the options area of the copies of a source, to be read only. A source that needn't set the option has nothing to
// replace: its copies stay as small as its datagrams.
func (o CopyOptions) For(source table.Source) []byte {
	if o == NOP && source.Trigger != table.TriggerSource {
		return nop
	}
	return nil
}

// Rewrite is what changes from the camera's datagram to one copy. The TTL goes down by one in any case.
type Rewrite struct {
	Source      netip.AddrPort // the gateway's uplink address; port 0 keeps the camera's
	Destination netip.AddrPort // the receiver; port 0 keeps the camera's
	Options     []byte         // the whole options area of the copy, a multiple of 4 bytes, at most 40
}

var errRewrite = errors.New("a copy needs an IPv4 source and destination, at most 40 bytes of options in whole words, " +
	"and a hop left")

// AppendCopy appends the copy to b. Checksums are corrected by the difference (RFC 1624), never recomputed, so a payload that was
// damaged stays recognisable as damaged, and a zero UDP checksum stays zero. Fragments are rewritten where they are: all have
// the addresses, only the first has ports and the UDP checksum.
func (p Packet) AppendCopy(b []byte, r Rewrite) ([]byte, error) {
	total := minHeader + len(r.Options) + len(p.bytes) - p.header
	if !r.Source.Addr().Is4() || !r.Destination.Addr().Is4() || len(r.Options)%4 != 0 || len(r.Options) > 40 ||
		total > maxIPv4 || p.TTL <= 1 {
		return b, errRewrite
	}
	start := len(b)
	b = append(b, p.bytes[:minHeader]...)
	b = append(b, r.Options...)
	b = append(b, p.bytes[p.header:]...)
	out := b[start:]

	rewriteHeader(out, p.bytes[minHeader:p.header], r, total)
	if p.first {
		rewriteUDP(out[minHeader+len(r.Options):], p.Datagram, r)
	}
	return b, nil
}

func rewriteHeader(out, oldOptions []byte, r Rewrite, total int) {
	sum := newDelta(binary.BigEndian.Uint16(out[10:]))
	sum.replace(out[0:2], []byte{4<<4 | byte((minHeader+len(r.Options))/4), out[1]})
	sum.replace(out[2:4], binary.BigEndian.AppendUint16(nil, uint16(total)))
	sum.replace(out[8:10], []byte{out[8] - 1, out[9]})
	source, destination := r.Source.Addr().As4(), r.Destination.Addr().As4()
	sum.replace(out[12:16], source[:])
	sum.replace(out[16:20], destination[:])
	sum.remove(oldOptions)
	sum.add(r.Options)
	binary.BigEndian.PutUint16(out[10:], sum.checksum())
}

func rewriteUDP(udp []byte, d Datagram, r Rewrite) {
	old := binary.BigEndian.Uint16(udp[6:])
	sum := newDelta(old)
	for _, a := range []struct{ from, to netip.Addr }{
		{d.Source.Addr(), r.Source.Addr()}, {d.Destination.Addr(), r.Destination.Addr()},
	} {
		from, to := a.from.As4(), a.to.As4()
		sum.remove(from[:])
		sum.add(to[:])
	}
	if port := r.Source.Port(); port != 0 {
		sum.replace(udp[0:2], binary.BigEndian.AppendUint16(nil, port))
	}
	if port := r.Destination.Port(); port != 0 {
		sum.replace(udp[2:4], binary.BigEndian.AppendUint16(nil, port))
	}
	if old == 0 {
		return // the sender computed none (RFC 768)
	}
	checksum := sum.checksum()
	if checksum == 0 {
		checksum = 0xffff // zero would mean "none"
	}
	binary.BigEndian.PutUint16(udp[6:], checksum)
}
