// Package gateways keeps what each gateway declares about its network: the LAN it serves, its uplink, and the range of group
// IPs it keeps out of DHCP (SPEC §5).
//
// It owns the rules for what may be declared, and with them which addresses are in a pool. It never hands out an address:
// that is server/addresspool, within server/registrations.
package gateways

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Waker is told which gateways have new group information, after the change is committed.
type Waker interface{ Wake(gatewayID models.ID) }

// Options are the operator's settings that the rules of declarations depend on.
type Options struct {
	// MaxStale is how long a gateway goes on without an answer of ours; the pool's figures depend on it.
	MaxStale time.Duration
	// AllowLoopback lets LAN, range and uplink lie in 127/8 (SPEC §10).
	AllowLoopback bool
}

// Declaration is what a gateway says, as it was sent.
type Declaration struct {
	GatewayID models.ID
	// LANPrefix is like 192.168.1.0/24.
	LANPrefix string
	// GatewayIPv4 is the gateway's own address in the LAN.
	GatewayIPv4 netip.Addr
	UplinkIPv4  netip.Addr
	// GroupRange is a prefix or first-last; empty means .230 to .254 of the /24 that the gateway is in.
	GroupRange string
}

// Service keeps declarations.
type Service struct {
	store *store.Store
	waker Waker
	opts  Options
}

// New makes the service; the waker is called after commit only.
func New(st *store.Store, waker Waker, opts Options) *Service {
	return &Service{store: st, waker: waker, opts: opts}
}

// Declare records what a gateway says of itself. Saying the same again changes nothing.
func (s *Service) Declare(ctx context.Context, p models.Principal, d Declaration) (models.Gateway, models.Pool, error) {
	return models.Gateway{}, models.Pool{}, errors.ErrUnsupported
}

// Get reads a gateway's declaration and how its pool stands. A gateway that has declared nothing yet is not found.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.ID) (models.Gateway, models.Pool, error) {
	return models.Gateway{}, models.Pool{}, errors.ErrUnsupported
}
