package packet

import "encoding/binary"

// onesSum is the one's complement sum of RFC 1071 over an even number of bytes.
func onesSum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return fold(sum)
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// delta corrects a checksum by what changed: HC' = ~(~HC + ~m + m'), equation 3 of RFC 1624.
type delta uint32

func newDelta(checksum uint16) delta { return delta(^checksum) }

func (d *delta) remove(b []byte) {
	for ; len(b) >= 2; b = b[2:] {
		*d += delta(^binary.BigEndian.Uint16(b))
	}
}

func (d *delta) add(b []byte) { *d += delta(onesSum(b)) }

// replace corrects the checksum and writes the new bytes over the old ones.
func (d *delta) replace(old, with []byte) {
	d.remove(old)
	d.add(with)
	copy(old, with)
}

func (d delta) checksum() uint16 { return ^fold(uint32(d)) }
