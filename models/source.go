package models

import "net/netip"

// SourcePrefix is the network that stands for a caller's address where callers are counted or remembered: the /24 of an IPv4 address and the /64
// of an IPv6 address, which is the least that one line gets. The zero address gives the zero prefix.
func SourcePrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}
