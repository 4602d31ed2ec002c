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
