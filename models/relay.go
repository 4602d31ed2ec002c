package models

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
)

// Fanout says where the copies of a premises' groups are made (SPEC §9).
type Fanout string

// The places.
const (
	FanoutHome    Fanout = "home"    // the gateway copies
	FanoutNetwork Fanout = "network" // a relay does
)

// CopiedAt says where copies are made now.
type CopiedAt string

// The places.
const (
	CopiedHome    CopiedAt = "home"
	CopiedNetwork CopiedAt = "network"
	CopiedNowhere CopiedAt = "nowhere" // OnRelayLossStop waits for a relay
)

// OnRelayLoss says what happens while no relay can serve a premises whose fanout is the network.
type OnRelayLoss string

// The policies.
const (
	OnRelayLossHome OnRelayLoss = "home" // the gateway copies
	OnRelayLossStop OnRelayLoss = "stop" // nobody does
)

// RelayLiveFor is for how long a relay counts as alive after it last asked, and RelayMaxWait the longest wait that it is granted.
const (
	RelayLiveFor = 6 * time.Second
	RelayMaxWait = 2 * time.Second
)

// TunnelKey is the public key of a node's WireGuard interface (X25519); the zero value is none.
type TunnelKey [32]byte

// ErrBadTunnelKey is wrapped by every error of ParseTunnelKey.
var ErrBadTunnelKey = errors.New("not a tunnel key: give 32 bytes as base64, as `wg pubkey` prints them")

// ParseTunnelKey reads the base64 form (RFC 4648 §4). A key of zeros only is refused.
func ParseTunnelKey(s string) (k TunnelKey, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) || TunnelKey(b) == (TunnelKey{}) {
		return TunnelKey{}, fmt.Errorf("%q is %w", truncate(s, 48), ErrBadTunnelKey)
	}
	return TunnelKey(b), nil
}

// Valid tells whether it is a key.
func (k TunnelKey) Valid() bool { return k != TunnelKey{} }

// String gives the base64 form; empty for none.
func (k TunnelKey) String() string {
	if !k.Valid() {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k[:])
}

// MarshalText gives the form of the contract.
func (k TunnelKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *TunnelKey) UnmarshalText(b []byte) error {
	v, err := ParseTunnelKey(string(b))
	if err != nil {
		return err
	}
	*k = v
	return nil
}

// Relay is a node of the operator's that copies in the network, with what it declared; it belongs to no account.
type Relay struct {
	ID   ID
	Name string
	// TunnelKey is the zero key, and addresses are none, before it declared itself.
	TunnelKey TunnelKey
	// Endpoint is where gateways' tunnels end.
	Endpoint netip.AddrPort
	// Uplink is the address that copies leave with.
	Uplink netip.Addr
	// TunnelAddress is its address within the tunnels.
	TunnelAddress netip.Addr
	// Revision rises, from 1, each time the relay's group information changes.
	Revision int64
	// NotBefore ends every token that was issued earlier; zero if none was withdrawn.
	NotBefore time.Time
	// All lets it serve all premises.
	All bool
}

// Declared tells whether the relay has said anything yet.
func (r Relay) Declared() bool { return r.TunnelKey.Valid() }

// RelayAssignment is what a gateway hears of the relay that serves its premises.
type RelayAssignment struct {
	Relay Relay
	// Forwarding is true once the relay copies; until then the gateway does.
	Forwarding bool
}

// RelayHome is a premises that a relay serves. It isn't changed once it is made, and many snapshots share it.
type RelayHome struct {
	PremisesID PremisesID
	Gateways   []RelayPremises // sorted by id
	Groups     []GatewayGroup  // sorted by group IP

	written atomic.Pointer[WrittenHome]
}

// WrittenHome is a home as it is sent: its gateways and its groups.
type WrittenHome struct{ Gateways, Groups []byte }

// Written gives what write makes of the home, which is made once; the same home has to give the same.
func (h *RelayHome) Written(write func(*RelayHome) (WrittenHome, error)) (WrittenHome, error) {
	if w := h.written.Load(); w != nil {
		return *w, nil
	}
	w, err := write(h)
	if err == nil {
		h.written.Store(&w)
	}
	return w, err
}

// RelayPremises is a gateway that a relay serves.
type RelayPremises struct {
	PremisesID PremisesID
	GatewayID  ID
	TunnelKey  TunnelKey
	// TunnelAddress is the gateway's within the tunnels: what a datagram comes from is of this premises.
	TunnelAddress netip.Addr
}
