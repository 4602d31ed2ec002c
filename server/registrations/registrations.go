// Package registrations decides who is in a group: joining, renewing, moving and leaving (SPEC §4).
//
// It owns the rules of a registration: who may ask for what, which addresses may be used, how long a lease lives, and what
// ends when a member leaves. It never reads a request body or writes an answer, and it never ends a lease because time
// passed: that is server/expiry.
package registrations

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

// Options are the operator's settings that the rules of registrations depend on.
type Options struct {
	// MaxStale is how long a gateway goes on without an answer of ours; it decides when a group IP may be reused (SPEC §5).
	MaxStale time.Duration
	// AllowLoopback lifts the rules against 127/8 and ::1 (SPEC §10).
	AllowLoopback bool
}

// Request asks to join a group, to renew or to move. Addresses that were null are the zero netip.Addr.
type Request struct {
	Type     models.MemberType
	ID       models.ID
	Role     models.Role
	Instance string
	// PremisesID is optional; without it the group name must be unambiguous in the account.
	PremisesID  models.PremisesID
	PrivateIPv4 netip.Addr
	PublicIPv4  netip.Addr
	IPv6        netip.Addr
	// RemoteAddr is where the request came from, with trusted proxies applied.
	RemoteAddr netip.Addr
	// Port is the UDP port for the copies; 0 means the port the camera sends to.
	Port      uint16
	GroupName string
	GroupIP   netip.Addr
	// TTL is in seconds; nil means 3600.
	TTL        *int
	DeviceType models.DeviceType
	Model      string
	Name       string
}

// Answer is what the member needs to know.
type Answer struct {
	GroupIP netip.Addr
	// State is the number of live destinations, the member included.
	State int
	// TTL is the granted life of the lease and RenewAfter the time after which to post again, both in seconds.
	TTL            int
	RenewAfter     int
	Generation     int64
	RegistrationID models.RegistrationID
}

// Registration is a live registration with the group it is in.
type Registration struct {
	models.Registration
	Group models.Group
	// ExpiresIn is how long the lease lives, grace not counted; 0 if it is in its grace.
	ExpiresIn time.Duration
}

// Service joins, renews, moves and ends registrations.
type Service struct {
	store *store.Store
	waker Waker
	opts  Options
}

// New makes the service; the waker is called after commit only.
func New(st *store.Store, waker Waker, opts Options) *Service {
	return &Service{store: st, waker: waker, opts: opts}
}

// Join registers the caller, renews its lease, or moves its address.
func (s *Service) Join(ctx context.Context, p models.Principal, r Request) (Answer, error) {
	return Answer{}, errors.ErrUnsupported
}

// Leave ends one of the caller's registrations and answers the group IP and the number of destinations that remain.
func (s *Service) Leave(ctx context.Context, p models.Principal, id models.RegistrationID) (netip.Addr, int, error) {
	return netip.Addr{}, 0, errors.ErrUnsupported
}

// Get reads one of the caller's registrations.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.RegistrationID) (Registration, error) {
	return Registration{}, errors.ErrUnsupported
}

// List reads a page of the caller's registrations and the token of the next page, which is empty on the last.
func (s *Service) List(ctx context.Context, p models.Principal, page models.Page) ([]Registration, string, error) {
	return nil, "", errors.ErrUnsupported
}
