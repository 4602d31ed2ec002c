package models

import (
	"net/netip"
	"slices"
)

// specialV4 is what IANA's special-purpose registry for IPv4 keeps from being a public host's address, with what was deprecated and multicast
// (RFC 6890; registry as of 2025-10).
var specialV4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4")

// Of IPv6 only global unicast is public, which leaves out loopback, link-local, unique local, multicast, segment routing, mapped and compatible IPv4
// addresses and both NAT64 prefixes (64:ff9b::/96, 64:ff9b:1::/48). specialV6 is what is special within it: Teredo and other protocols,
// documentation, 6to4, AS112.
var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	specialV6     = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// PublicHost tells whether an address can be that of a host on the public internet. An IPv4 address within an IPv6 one, in whatever form, can't:
// unmap first what may be mapped in good faith.
func PublicHost(a netip.Addr) bool {
	holds := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.IsValid() || a.Zone() != "":
		return false
	case a.Is4():
		return !slices.ContainsFunc(specialV4, holds)
	default:
		return globalUnicast.Contains(a) && !slices.ContainsFunc(specialV6, holds) && !isISATAP(a)
	}
}

// isISATAP tells an interface identifier that embeds an IPv4 address, which routers of that prefix would tunnel to (RFC 5214 §6.1).
func isISATAP(a netip.Addr) bool {
	id := a.As16()
	return id[8]&^0x02 == 0 && id[9] == 0 && id[10] == 0x5e && id[11] == 0xfe
}
