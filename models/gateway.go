package models

import (
	"fmt"
	"net/netip"
	"time"
)

// AddrRange is an inclusive range of IPv4 addresses.
type AddrRange struct {
	First, Last netip.Addr
}

// PrefixRange is the range of all addresses of an IPv4 prefix; empty for any other.
func PrefixRange(p netip.Prefix) AddrRange {
	if !p.IsValid() || !p.Addr().Is4() {
		return AddrRange{}
	}
	first := v4(p.Masked().Addr())
	last := first | uint32(uint64(1)<<(32-p.Bits())-1)
	return AddrRange{First: p.Masked().Addr(), Last: netip.AddrFrom4([4]byte{byte(last >> 24), byte(last >> 16), byte(last >> 8), byte(last)})}
}

// Size is the number of addresses, 0 for a range that isn't one.
func (r AddrRange) Size() int {
	if !r.First.Is4() || !r.Last.Is4() || r.Last.Less(r.First) {
		return 0
	}
	return int(v4(r.Last)-v4(r.First)) + 1
}

// Contains tells whether the address lies in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return r.Size() > 0 && !a.Less(r.First) && !r.Last.Less(a) && a.Is4()
}

// Overlaps tells whether the two ranges share an address.
func (r AddrRange) Overlaps(o AddrRange) bool {
	return r.Size() > 0 && o.Size() > 0 && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// String gives first-last, the form of the contract.
func (r AddrRange) String() string { return fmt.Sprintf("%s-%s", r.First, r.Last) }

func v4(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// Gateway is what a gateway declared about its network, and where its group information stands.
type Gateway struct {
	ID         ID // the device id
	AccountID  AccountID
	PremisesID PremisesID
	LANPrefix  netip.Prefix
	// LANAddr is the gateway's own address in the LAN.
	LANAddr netip.Addr
	Uplink  netip.Addr
	Range   AddrRange
	// BehindNAT says that a NAT stands between the uplink and the destinations.
	BehindNAT bool
	// TunnelKey is its own, the zero key if no relay can serve it, and TunnelAddress where it is within the tunnels.
	TunnelKey     TunnelKey
	TunnelAddress netip.Addr
	// Revision rises, from 1, each time the gateway's group information changes (SPEC §6).
	Revision int64
	// AckedRevision is the newest revision the gateway has said it holds, in the epoch that is current.
	AckedRevision int64
	// PolledAt is when the gateway last asked; zero if never.
	PolledAt time.Time
}

// Declared tells whether the gateway has said anything yet.
func (g Gateway) Declared() bool { return g.LANPrefix.IsValid() }

// CameraRange is what the group IPs of a camera are of that ends its tunnel itself. They mean something within its tunnel only, so every such camera has the same;
// the range is one that no home has (RFC 2544).
var CameraRange = AddrRange{First: netip.AddrFrom4([4]byte{198, 18, 0, 230}), Last: netip.AddrFrom4([4]byte{198, 18, 0, 254})}

// IsCamera tells whether it is no gateway but a camera that ends its tunnel itself: its LAN is the camera alone, and it has neither LANAddr nor Uplink.
func (g Gateway) IsCamera() bool { return g.LANPrefix.IsSingleIP() }

// Hosts is the range of addresses that a host of the LAN may have: all but the network and the broadcast address.
func (g Gateway) Hosts() AddrRange { return Hosts(g.LANPrefix) }

// IsHost tells whether the address can be that of another host of the LAN: neither the gateway itself, nor a group IP, nor
// the LAN's network or broadcast address.
func (g Gateway) IsHost(a netip.Addr) bool {
	return g.Hosts().Contains(a) && a != g.LANAddr && !g.Range.Contains(a)
}

// Hosts is the range of an IPv4 prefix without its network and its broadcast address; empty for a prefix longer than /30.
func Hosts(p netip.Prefix) AddrRange {
	r := PrefixRange(p)
	if r.Size() < 4 {
		return AddrRange{}
	}
	return AddrRange{First: r.First.Next(), Last: r.Last.Prev()}
}

// Standing is where a gateway or a relay stands: what its polls are answered by.
type Standing struct {
	// Revision is that of its group information.
	Revision int64
	// NotBefore ends every token that was issued earlier; zero if none was withdrawn.
	NotBefore time.Time
}

// Poll says that a gateway or a relay asked for its group information and, by the cursor it sent, what it holds: its acknowledgement.
type Poll struct {
	GatewayID ID
	// Relay tells that the id is a relay's.
	Relay bool
	// Epoch and Revision are the cursor's; revision 0 acknowledges nothing.
	Epoch    string
	Revision int64
	// Ago is how long before now the gateway asked.
	Ago time.Duration
}

// AddressState is where a group IP stands in its cycle free → allocated → quarantined → free (SPEC §5).
type AddressState string

// The states of an address.
const (
	AddressFree        AddressState = "free"
	AddressAllocated   AddressState = "allocated"
	AddressQuarantined AddressState = "quarantined"
)

// Address is one group IP of a gateway's range: one row per address.
type Address struct {
	GatewayID ID
	IP        netip.Addr
	State     AddressState
	// GroupID is the group that has it, while it is allocated.
	GroupID GroupID
	// LastGroupName is the group that has or last had it, so that the same group gets it back.
	LastGroupName string
	// Generation rises each time the address is handed out.
	Generation int64
	// ReleasedAt is when its last group ended; zero if it never had one.
	ReleasedAt time.Time
	// ReleasedRevision is the gateway's revision that no longer holds the group.
	ReleasedRevision int64
	// HeldUntil is until when a relay may still copy for a group that had it; zero if none may.
	HeldUntil time.Time
}

// Pool counts the addresses of a gateway's range.
type Pool struct {
	Size        int
	Allocated   int
	Quarantined int
	// NextFreeAt is the earliest instant at which a quarantined address may become free; zero if none is quarantined.
	NextFreeAt time.Time
}
