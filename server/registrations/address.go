package registrations

import (
	"net/netip"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/groups"
)

// checkAddresses refuses addresses that nobody may register wherever the group is, and makes the others canonical. What the
// caller didn't say but we derived from its request is dropped instead.
func (s *Service) checkAddresses(m *member) error {
	v := &m.registration
	for _, a := range []struct {
		name string
		addr *netip.Addr
		is   func(netip.Addr) bool
		want string
	}{
		{"privateIPv4", &v.PrivateIPv4, netip.Addr.Is4, "an IPv4 address"},
		{"publicIPv4", &v.PublicIPv4, netip.Addr.Is4, "an IPv4 address"},
		{"IPv6", &v.IPv6, netip.Addr.Is6, "an IPv6 address that doesn't hide an IPv4 one"},
	} {
		if !a.addr.IsValid() {
			continue
		}
		*a.addr = a.addr.Unmap()
		switch {
		case a.is(*a.addr) && s.usable(*a.addr):
		case *a.addr == m.remote:
			*a.addr = netip.Addr{}
		case !a.is(*a.addr):
			return models.Errorf(models.CodeBadAddress, "%s must be %s. Correct it or send null.", a.name, a.want)
		default:
			return models.Errorf(models.CodeBadAddress,
				"%s is %s, which is no address of a single host that copies can be sent to or come from. Correct it or send null.", a.name, a.addr)
		}
	}
	return nil
}

// reserved are ranges that no member has its address in: "this network", link-local, and what used to be class E with the
// limited broadcast (RFC 6890).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("fe80::/10"),
}

// usable tells whether an address can be that of a host at all.
func (s *Service) usable(a netip.Addr) bool {
	if a.IsLoopback() {
		return s.opts.AllowLoopback && a.Is4()
	}
	if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		return false
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// checkTarget refuses an address that copies must not go to, whoever consents: outside the home that is everything but a public host's (SPEC §10). Inside
// is a host of the LAN that is reached by the home's public address, or that asks from there.
func (s *Service) checkTarget(g models.Gateway, at netip.Addr, m member) error {
	inside := g.IsHost(at) && (m.registration.PublicIPv4 == g.Uplink || at == m.remote)
	switch {
	case inside, models.PublicHost(at), s.opts.AllowLoopback && at.Is4() && at.IsLoopback():
		return nil
	case at == m.remote:
		return models.Errorf(models.CodeNoUsableAddress, "The request came from an address that isn't public, so copies can't be sent there. Send the public "+
			"address as publicIPv4 or IPv6; inside the home also send privateIPv4.")
	default:
		return models.Errorf(models.CodeBadAddress, "Copies are sent to public addresses only, and this one is set aside for another purpose (private, shared, "+
			"documentation, tunnels). Send the destination's public address; inside the home send privateIPv4 and the home's public address.")
	}
}

// checkSource refuses a source that its gateway can't have as a neighbour.
func checkSource(g models.Gateway, m member) error {
	if !g.IsCamera() && !g.IsHost(m.registration.PrivateIPv4) {
		return models.Errorf(models.CodeBadAddress, "privateIPv4 is %s, which is the gateway itself, a group IP of its range %s, or the "+
			"LAN's network or broadcast address. Send the address that the camera sends from.", m.registration.PrivateIPv4, g.Range)
	}
	return nil
}

// checkDestination refuses a destination that the gateway can't or must not send to.
func (s *Service) checkDestination(g models.Gateway, m member) error {
	v := m.registration
	switch public := v.PublicIPv4; {
	case !public.IsValid():
	case g.Range.Contains(public), public == g.LANAddr:
		return models.Errorf(models.CodeBadAddress, "publicIPv4 is a group IP or the gateway itself. Send the destination's own address.")
	case g.LANPrefix.Contains(public) && public != m.remote && !public.IsLoopback():
		// Nobody is inside the home because he says so (SPEC §4).
		return models.Errorf(models.CodeBadAddress, "publicIPv4 is inside the gateway's LAN. A destination inside the home sends that address as "+
			"privateIPv4 and the home's public address as publicIPv4.")
	case public == g.Uplink && g.LANPrefix.Contains(v.PrivateIPv4) && !g.IsHost(v.PrivateIPv4):
		return models.Errorf(models.CodeBadAddress, "privateIPv4 is a group IP, the gateway itself, or the LAN's network or broadcast address. "+
			"Send the destination's own address.")
	}
	if at := groups.Reach(g, v); at.IsValid() {
		return s.checkTarget(g, at, m)
	}
	if v.PublicIPv4.IsValid() {
		return models.Errorf(models.CodeNoUsableAddress, "publicIPv4 is this home's own uplink. Send the destination's address in the LAN as "+
			"privateIPv4 too, or an IPv6 address.")
	}
	return models.Errorf(models.CodeNoUsableAddress, "There is no address to send copies to. Send publicIPv4 or IPv6.")
}
