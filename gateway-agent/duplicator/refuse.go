package duplicator

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/groupcast/groupcast/models"
)

// refusals says which addresses never get media, whatever the server says: sending there would make a loop, reach everybody
// on a network, or reach this gateway itself.
type refusals struct {
	groupRange    models.AddrRange
	permit        func(netip.Addr) bool
	allowLoopback bool
	own           map[netip.Addr]bool // addresses of this host, and the broadcast addresses of its networks
}

func newRefusals(c Config) (refusals, error) {
	own, err := OwnAddresses()
	return refusals{groupRange: c.GroupRange, permit: c.Permit, allowLoopback: c.AllowLoopback, own: own}, err
}

// why gives the reason to refuse an address, or "".
func (r refusals) why(a netip.Addr) string {
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.Zone() != "":
		return "not an address of a host"
	case r.groupRange.Contains(a):
		return "inside the group range"
	case r.permit != nil && !r.permit(a):
		return "neither a public host's address nor one of this home's hosts"
	case a.Is4() && a.IsLoopback():
		if r.allowLoopback {
			return ""
		}
		return "loopback"
	case a.IsLoopback():
		return "loopback"
	case a.Is4() && a.As4()[0] == 0:
		return "inside 0/8"
	case a.IsMulticast():
		return "multicast"
	case a.Is4() && a.As4()[0] >= 240:
		return "broadcast or reserved"
	case a.IsLinkLocalUnicast():
		return "link-local"
	case r.own[a]:
		return "this gateway's own or a broadcast address of its networks"
	}
	return ""
}

// OwnAddresses are those of this host, and the broadcast addresses of its networks. They are asked for at each Apply: an uplink may get another
// address at any time.
func OwnAddresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read this host's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, fmt.Errorf("read this host's addresses: %w", err)
		}
		own[prefix.Addr().Unmap().WithZone("")] = true
		if prefix.Addr().Is4() && prefix.Bits() < 31 {
			own[broadcast(prefix)] = true
		}
	}
	return own, nil
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}
