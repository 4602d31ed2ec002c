package gateways

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// The bounds of what may be declared.
const (
	minPrefixBits = 16
	maxPrefixBits = 30
	maxRange      = 254

	// The default range in the gateway's /24 (SPEC §5).
	defaultFirst, defaultLast = 230, 254
)

// understand reads a declaration and refuses what no gateway may declare, wherever it is.
func (s *Service) understand(d Declaration) (models.Gateway, error) {
	lan, err := netip.ParsePrefix(d.LANPrefix)
	if err != nil || !lan.Addr().Is4() || lan.Bits() < minPrefixBits || lan.Bits() > maxPrefixBits {
		return models.Gateway{}, badRange("lanPrefix must be an IPv4 prefix from /%d to /%d, such as 192.168.1.0/24.", minPrefixBits, maxPrefixBits)
	}
	g := models.Gateway{ID: d.GatewayID, LANPrefix: lan.Masked(), LANAddr: d.GatewayIPv4.Unmap(), Uplink: d.UplinkIPv4.Unmap(), BehindNAT: d.BehindNAT, TunnelKey: d.TunnelKey}
	if !g.Hosts().Contains(g.LANAddr) {
		return g, badRange("gatewayIPv4 must be the gateway's own address in %s, neither its network nor its broadcast address.", g.LANPrefix)
	}
	if d.GroupRange == "" {
		g.Range, err = defaultRange(g)
	} else {
		g.Range, err = parseRange(d.GroupRange)
	}
	if err != nil {
		return g, err
	}
	hosts := g.Hosts()
	switch {
	case !hosts.Contains(g.Range.First) || !hosts.Contains(g.Range.Last):
		return g, badRange("groupRange %s must lie within %s, without its network and broadcast address: from %s to %s at most.",
			g.Range, g.LANPrefix, hosts.First, hosts.Last)
	case g.Range.Contains(g.LANAddr):
		return g, badRange("groupRange %s must not contain the gateway's own address %s.", g.Range, g.LANAddr)
	case g.Range.Size() > maxRange:
		return g, badRange("groupRange %s has %d addresses; declare at most %d.", g.Range, g.Range.Size(), maxRange)
	}
	return g, s.checkUplink(g)
}

// parseRange reads a prefix or first-last.
func parseRange(text string) (models.AddrRange, error) {
	var r models.AddrRange
	if prefix, err := netip.ParsePrefix(text); err == nil && prefix.Addr().Is4() {
		if r = models.PrefixRange(prefix); r.First != prefix.Addr() {
			return r, badRange("groupRange %s doesn't begin at its first address: write %s or first-last.", text, prefix.Masked())
		}
		return r, nil
	}
	first, last, _ := strings.Cut(text, "-")
	var err1, err2 error
	r.First, err1 = netip.ParseAddr(first)
	r.Last, err2 = netip.ParseAddr(last)
	if err1 != nil || err2 != nil || r.Size() == 0 {
		return r, badRange("groupRange must be a prefix such as 192.168.1.240/29, or first-last such as 192.168.1.230-192.168.1.254.")
	}
	return r, nil
}

// defaultRange is .230 to .254 of the /24 that the gateway is in, as far as it lies in the LAN.
func defaultRange(g models.Gateway) (models.AddrRange, error) {
	at := func(host byte) netip.Addr {
		b := g.LANAddr.As4()
		b[3] = host
		return netip.AddrFrom4(b)
	}
	hosts := g.Hosts()
	r := models.AddrRange{First: at(defaultFirst), Last: at(defaultLast)}
	if r.First.Less(hosts.First) {
		r.First = hosts.First
	}
	if hosts.Last.Less(r.Last) {
		r.Last = hosts.Last
	}
	switch g.LANAddr { // a gateway at one end of the range leaves the rest
	case r.First:
		r.First = r.First.Next()
	case r.Last:
		r.Last = r.Last.Prev()
	}
	if r.Size() == 0 || r.Contains(g.LANAddr) {
		return r, badRange("The usual range, .%d to .%d, isn't free in %s. Declare a groupRange.", defaultFirst, defaultLast, g.LANPrefix)
	}
	return r, nil
}

// checkUplink refuses an uplink that can't be the address of an interface.
func (s *Service) checkUplink(g models.Gateway) error {
	u := g.Uplink
	switch {
	case !u.Is4() || u.IsUnspecified() || u.IsMulticast() || netip.MustParsePrefix("240.0.0.0/4").Contains(u),
		u.IsLoopback() && !s.opts.AllowLoopback:
		return badRange("uplinkIPv4 must be the address that copies leave with.")
	case g.Range.Contains(u):
		return badRange("groupRange %s must not contain the uplink's address %s.", g.Range, u)
	}
	return nil
}

// private is the space a group range may lie in without the operator's allowPublicRange (SPEC §5): RFC 1918, RFC 6598, RFC 2544.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15"),
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// checkSpace refuses a range that isn't private, unless the operator allowed it for the premises.
func (s *Service) checkSpace(r models.AddrRange, p models.Premises) error {
	inside := func(p netip.Prefix) bool { return p.Contains(r.First) && p.Contains(r.Last) }
	if loopback.Contains(r.First) || loopback.Contains(r.Last) {
		if s.opts.AllowLoopback && inside(loopback) {
			return nil
		}
		return badRange("groupRange %s is loopback. Only a server with allow-loopback takes that, for demonstrations.", r)
	}
	if r.First.IsMulticast() || r.First.As4()[0] == 0 || r.First.As4()[0] >= 240 {
		return badRange("groupRange %s holds no addresses of hosts. Declare a part of the LAN.", r)
	}
	if p.AllowPublicRange {
		return nil
	}
	if slices.ContainsFunc(private, inside) {
		return nil
	}
	return badRange("groupRange %s is not private (10/8, 172.16/12, 192.168/16, 100.64/10, 198.18/15). If the gateway is down, video would go to "+
		"strangers. Use private addresses, or ask the operator for allowPublicRange on this premises.", r)
}

func badRange(format string, args ...any) error {
	return models.Errorf(models.CodeBadRange, format, args...)
}
