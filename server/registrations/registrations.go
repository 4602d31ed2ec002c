// Package registrations decides who is in a group: joining, renewing, moving and leaving (SPEC §4).
//
// It owns the rules of a registration: who may ask for what, which addresses may be used, how long a lease lives, and what
// ends when a member leaves. It never reads a request body or writes an answer, and it never ends a lease because time
// passed: that is server/expiry.
package registrations

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/store"
)

// Options are the operator's settings that the rules of registrations depend on.
type Options struct {
	// AllowLoopback lifts the rules against 127/8 (SPEC §10).
	AllowLoopback bool
	// Quotas bound what an account can have; those of registrations, groups and destinations are kept here.
	Quotas models.Quotas
	// Credentials are what destinations prove their consent with.
	Credentials *consents.Credentials
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
	// TTL is in seconds; nil means 3600. What is granted lies between 30 and 86400.
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
	Consent        Consent
}

// Consent is how a destination's consent stands; the zero value is a source's.
type Consent struct {
	Policy models.ConsentPolicy
	State  models.ConsentState
	// Credential is zero if nobody asks.
	Credential models.ConsentCredential
	// Senders are where this destination's copies come from.
	Senders []models.Sender
}

// Registration is a live registration with the group it is in.
type Registration struct {
	models.Registration
	Group models.Group
	// ExpiresIn is how long the lease lives, grace not counted; 0 if it is in its grace.
	ExpiresIn time.Duration
	// Consent has no credential: that is for who joins.
	Consent Consent
}

// Service joins, renews, moves and ends registrations.
type Service struct {
	store *store.Store
	opts  Options
}

// New makes the service.
func New(st *store.Store, opts Options) *Service {
	return &Service{store: st, opts: opts}
}

// Leave ends one of the caller's registrations, or one of the account for its holder, and answers the group IP and the number of destinations that remain.
func (s *Service) Leave(ctx context.Context, p models.Principal, id models.RegistrationID) (groupIP netip.Addr, state int, err error) {
	owner, err := ownerOf(p)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	var group models.Group
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		gateway, found, err := tx.LockGatewayOfRegistration(id, owner)
		if err != nil {
			return err
		}
		if found {
			group, found, err = tx.GroupOf(id)
		}
		if err != nil {
			return err
		}
		if !found { // or somebody else ended it while we waited for the gateway
			return models.NotFound()
		}
		if _, err := End(ctx, tx, gateway, []models.RegistrationID{id}, models.EventMemberLeft); err != nil {
			return err
		}
		group.State, err = tx.State(group.ID)
		return err
	})
	if err != nil {
		return netip.Addr{}, 0, err
	}
	return group.IP, group.State, nil
}

// Get reads one of the caller's registrations.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.RegistrationID) (Registration, error) {
	owner, err := ownerOf(p)
	if err != nil {
		return Registration{}, err
	}
	held, err := s.store.Registrations(ctx, owner, id, "", 1)
	if err != nil {
		return Registration{}, err
	}
	if len(held) == 0 {
		return Registration{}, models.NotFound()
	}
	return shown(held[0]), nil
}

// List reads a page of the caller's registrations, oldest first, and the token of the next page, which is empty on the last.
func (s *Service) List(ctx context.Context, p models.Principal, page models.Page) ([]Registration, string, error) {
	owner, err := ownerOf(p)
	if err != nil {
		return nil, "", err
	}
	after, err := page.After(models.ListRegistrations)
	if err != nil {
		return nil, "", err
	}
	held, err := s.store.Registrations(ctx, owner, "", after, page.Limit()+1)
	if err != nil {
		return nil, "", err
	}
	held, next := models.Cut(held, page, models.ListRegistrations, func(h store.Held) string { return string(h.ID) })
	all := make([]Registration, len(held))
	for i, h := range held {
		all[i] = shown(h)
	}
	return all, next, nil
}

func shown(h store.Held) Registration {
	return Registration{Registration: h.Registration, Group: h.Group, ExpiresIn: max(h.ExpiresIn, 0), Consent: standing(h.Consent, h.Registration)}
}

// ownerOf is whose registrations the caller may see and end: its own, or all of the account for its holder.
func ownerOf(p models.Principal) (store.Owner, error) {
	switch p.Kind {
	case models.KindDevice:
		return store.Owner{Device: p.Device.ID}, nil
	case models.KindUser:
		return store.Owner{Account: p.AccountID}, nil
	case models.KindService:
		return store.Owner{Service: p.Service.ID}, nil
	default:
		return store.Owner{}, models.Errorf(models.CodeForbidden, "A %s has no registrations. Use the token of a device or of a service.", p.Kind)
	}
}
