package models

import (
	"net/netip"
	"time"
)

// Group is one life of a group: it begins when its first source registers and ends with its last (SPEC §5).
type Group struct {
	ID         GroupID
	AccountID  AccountID
	PremisesID PremisesID
	GatewayID  ID
	Name       string
	IP         netip.Addr
	Generation int64
	// Rev is the number of the group's newest event; see [EventStream].
	Rev int64
	// State is the number of live destinations.
	State     int
	CreatedAt time.Time
}

// MemberType is the type of a registration in the contract.
type MemberType string

// The member types, in the spelling of the contract.
const (
	MemberDevice  MemberType = "Device"
	MemberService MemberType = "Service"
)

// Role is what a member does in its group.
type Role string

// The roles of SPEC §2.
const (
	RoleSource      Role = "source"
	RoleDestination Role = "destination"
)

// MemberKey names a member within its group: posting again with the same key renews (SPEC §4).
type MemberKey struct {
	Type     MemberType
	ID       ID
	Role     Role
	Instance string
}

// Registration is one member's lease in a group.
type Registration struct {
	ID         RegistrationID
	GroupID    GroupID
	AccountID  AccountID
	PremisesID PremisesID
	Key        MemberKey
	// Owner is who may read, renew and end it: the device id of a device, or the service of a service account id.
	OwnerDevice  ID
	OwnerService ServiceID
	// Number counts the members with this role in one life of a group: 1, 2, … and is never reused in it.
	Number      int64
	PrivateIPv4 netip.Addr
	PublicIPv4  netip.Addr
	IPv6        netip.Addr
	// Port is the UDP port for the copies; 0 means the port of the camera's datagram.
	Port       uint16
	DeviceType DeviceType
	Model      string
	Name       string
	CreatedAt  time.Time
	// TTL is what was granted at the last renewal.
	TTL time.Duration
	// ExpiresAt is when the lease ends by the database's clock, grace not counted.
	ExpiresAt time.Time
	// Policy says where copies for a destination may go; empty for a source. Probes is how many checks its gateway may send to the registered address before
	// anything came from there.
	Policy ConsentPolicy
	Probes int
}

// Member is what everybody who sees a group may know of one of its members: no address (SPEC §4).
type Member struct {
	Type MemberType
	ID   ID
	Role Role
	Name string
	// Consent is that of a destination; empty for a source.
	Consent ConsentState
	// RegistrationID is known to the account holder only.
	RegistrationID RegistrationID
}

// GroupInformation is what one gateway forwards by, or one relay copies by, as of one revision (SPEC §6).
type GroupInformation struct {
	GatewayID ID // 0 for a relay's
	RelayID   ID `json:",omitzero"` // 0 for a gateway's
	// Camera tells that GatewayID is a camera that ends its tunnel itself: it hears of its relay, and of no group.
	Camera bool `json:",omitzero"`
	// Needed tells a camera that any of its groups has a destination.
	Needed   bool `json:",omitzero"`
	Epoch    string
	Revision int64
	// MaxStale is how long the gateway copies by it without hearing from the service, whole seconds.
	MaxStale time.Duration
	// NotBefore withdraws the gateway's tokens that were issued before it; the zero time withdraws none. It is for the service alone.
	NotBefore time.Time
	// Fanout tells a gateway who copies: itself, or Relay, or with neither nobody.
	Fanout Fanout
	// Relay is nil if no relay copies for the gateway, or is about to.
	Relay *RelayAssignment
	// TunnelAddress is the gateway's own; it matters with Relay only.
	TunnelAddress netip.Addr
	// Groups are a gateway's, sorted by group IP; the members within by their number.
	Groups []GatewayGroup
	// Homes are the premises that a relay serves, sorted by id.
	Homes []*RelayHome
}

// GatewayGroup is one group of a gateway with the addresses it forwards by.
type GatewayGroup struct {
	Group
	Sources      []GatewaySource
	Destinations []GatewayDestination
}

// GatewaySource is a camera as its gateway sees it.
type GatewaySource struct {
	RegistrationID RegistrationID
	Number         int64
	Name           string
	IPv4           netip.Addr
	IPv6           netip.Addr
	Trigger        Trigger
}

// Addr is where a destination registered: one of IPv4 and IPv6.
func (d GatewayDestination) Addr() netip.Addr {
	if d.IPv4.IsValid() {
		return d.IPv4.Unmap()
	}
	return d.IPv6.Unmap()
}

// GatewayDestination is a receiver as the gateway sees it: exactly one of IPv4 and IPv6 says where the copies go, IPv4 first.
type GatewayDestination struct {
	RegistrationID RegistrationID
	Number         int64
	Name           string
	IPv4           netip.Addr
	IPv6           netip.Addr
	Port           uint16
	Policy         ConsentPolicy
	Probes         int
	// Credential is zero if nobody asks for consent.
	Credential ConsentCredential
	// Every and Expires are how often consent is asked for and how long it lasts, as a gateway was told; zero: as usual.
	Every, Expires time.Duration
}
