package groups

import (
	"net/netip"

	"github.com/groupcast/groupcast/models"
)

// Reach is the address that a destination's copies go to, as its gateway sees it; invalid if there is none. A destination whose
// public address is the gateway's uplink is inside the home, and is served at its private address if that lies in the LAN
// outside the group range (SPEC §4); it is never served at the uplink, which is the gateway itself.
func Reach(g models.Gateway, r models.Registration) netip.Addr {
	inside := r.PublicIPv4.IsValid() && r.PublicIPv4 == g.Uplink
	switch {
	case inside && g.IsHost(r.PrivateIPv4):
		return r.PrivateIPv4
	case !inside && r.PublicIPv4.IsValid() && r.PublicIPv4 != g.LANAddr && !g.Range.Contains(r.PublicIPv4):
		return r.PublicIPv4
	default:
		return r.IPv6
	}
}

// reachFromNetwork is where a relay sends copies for a destination: it stands outside each home, so that one inside the home is reached through the home's
// NAT, where its own checks come from.
func reachFromNetwork(r models.Registration) netip.Addr {
	if r.PublicIPv4.IsValid() {
		return r.PublicIPv4
	}
	return r.IPv6
}
