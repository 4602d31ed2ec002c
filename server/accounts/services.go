package accounts

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
)

// CreateService creates a service. CodeAlreadyExists is an id that is taken.
func (s *Service) CreateService(ctx context.Context, id models.ServiceID, name string, allowed ...models.AllowedCIDR) (models.Service, error) {
	var v models.Service
	allowed, err := consents.NormalAllowed(allowed)
	if err != nil {
		return v, err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) (err error) {
		if v, err = tx.InsertService(models.Service{ID: id, Name: name}); err != nil {
			return err
		}
		if _, err := tx.SetService(v, allowed); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.ServiceCreate, Object: audit.OfService(id)})
	})
	if s.store.IsDuplicate(err) {
		return v, models.Errorf(models.CodeAlreadyExists, "There is a service %s already. Choose another id.", id)
	}
	return v, err
}

// ChangeService names a service and says where it may receive, and makes its registrations what that allows: those elsewhere end. CodeNotFound is no service,
// CodeBadRequest a prefix that is none.
func (s *Service) ChangeService(ctx context.Context, v models.Service, allowed []models.AllowedCIDR) error {
	allowed, err := consents.NormalAllowed(allowed)
	if err != nil {
		return err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		there, err := tx.SetService(v, allowed)
		if err != nil {
			return err
		}
		if !there {
			return noService(v.ID)
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.ServiceChange, Object: audit.OfService(v.ID)})
	})
	if err != nil {
		return err
	}
	// Whoever registered by the former prefixes has committed by now, and is found. A crash in between leaves what the same request again makes good.
	return s.store.Write(ctx, func(tx *store.Tx) error { return applyAllowed(ctx, tx, v.ID) })
}

// applyAllowed makes all registrations of a service what the operator allows it, gateway by gateway.
func applyAllowed(ctx context.Context, tx *store.Tx, id models.ServiceID) error {
	places, err := tx.PlacesOf(store.Owner{Service: id})
	if err != nil {
		return err
	}
	for _, gateway := range slices.Sorted(maps.Keys(store.ByGateway(places))) {
		g, found, err := tx.LockGateway(gateway)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		allowed, err := tx.HoldAllowedCIDRs(id)
		if err != nil {
			return err
		}
		beyond, err := registrations.ApplyAllowed(tx, g, id, allowed)
		if err != nil {
			return err
		}
		if _, err := registrations.End(ctx, tx, g, beyond, models.EventMemberLeft); err != nil {
			return err
		}
	}
	return nil
}

// AllowedCIDRs reads where the operator lets a service receive.
func (s *Service) AllowedCIDRs(ctx context.Context, id models.ServiceID) (all []models.AllowedCIDR, err error) {
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		all, err = tx.AllowedCIDRs(id)
		return err
	})
	return all, err
}

func noService(id models.ServiceID) error {
	return models.Errorf(models.CodeNotFound, "There is no service %s. Create it first.", id)
}

// Service reads a service.
func (s *Service) Service(ctx context.Context, id models.ServiceID) (models.Service, error) {
	v, found, err := s.store.Service(ctx, id)
	if err == nil && !found {
		err = noService(id)
	}
	return v, err
}

// ServicePrincipal reads the service that a token names, as a caller without scopes. A service that is gone is
// CodeUnauthenticated.
func (s *Service) ServicePrincipal(ctx context.Context, id models.ServiceID) (models.Principal, error) {
	v, found, err := s.store.Service(ctx, id)
	if err != nil {
		return models.Principal{}, err
	}
	if !found {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "The service of this token was removed. Ask the operator to create it again.")
	}
	return models.Principal{Kind: models.KindService, Service: v}, nil
}

// ByOperator is who grants a consent on the operator's socket.
const ByOperator = "operator"

// CreateLink records an account's consent for a service, on its behalf. The service account id is drawn if it is zero. CodeAlreadyExists is
// a link that exists, or a service account id that the service knows another account by.
func (s *Service) CreateLink(ctx context.Context, l models.Link) (models.Link, error) {
	if l.ServiceAccountID == 0 {
		l.ServiceAccountID = models.NewID()
	}
	l.GrantedBy = ByOperator
	duplicate := models.Errorf(models.CodeAlreadyExists, "The account is linked with %s already, or the service knows another account by this service "+
		"account id. End that link first.", l.ServiceID)
	err := s.store.Write(ctx, func(tx *store.Tx) (err error) {
		if l.Consent, err = normalConsent(tx, l.AccountID, l.Consent); err != nil {
			return err
		}
		added, err := tx.InsertLink(l)
		if err != nil {
			return err
		}
		if !added {
			return duplicate
		}
		if l, err = readLink(tx, l.ServiceID, l.AccountID); err != nil {
			return err
		}
		return linked(ctx, tx, l)
	})
	switch {
	case s.store.IsDuplicate(err):
		return l, duplicate
	case s.store.IsReference(err):
		return l, models.Errorf(models.CodeNotFound, "There is no service %s or no account %s. Create both first.", l.ServiceID, l.AccountID)
	}
	return l, err
}

// normalConsent checks what an account wants to consent to and brings it into the order in which it is kept: all scopes if it names none.
// Premises that aren't the account's are CodeNotFound.
func normalConsent(tx *store.Tx, account models.AccountID, c models.Consent) (models.Consent, error) {
	n := models.Consent{ExpiresAt: c.ExpiresAt.Truncate(time.Millisecond)}
	for _, scope := range models.ServiceScopes() {
		if c.Scopes == nil || slices.Contains(c.Scopes, scope) {
			n.Scopes = append(n.Scopes, scope)
		}
	}
	for _, scope := range c.Scopes {
		if !slices.Contains(n.Scopes, scope) {
			return n, models.Errorf(models.CodeBadRequest, "No service can have the scope %q. Choose some of %s.", scope, strings.Join(models.ServiceScopes(), ", "))
		}
	}
	switch {
	case !c.ExpiresAt.IsZero() && c.ExpiresAt.UnixMilli() <= 0: // 0 would be for ever
		return n, past()
	case len(n.Scopes) == 0:
		return n, models.Errorf(models.CodeBadRequest, "A consent without scopes would allow nothing. Name some, leave scopes out for all, or end the link.")
	case c.Premises == nil:
		return n, nil
	case len(c.Premises) == 0:
		return n, models.Errorf(models.CodeBadRequest, "A consent for no premises would allow nothing. Name some, leave premises out for all, or end the link.")
	}
	own, err := tx.PremisesOf([]models.AccountID{account})
	if err != nil {
		return n, err
	}
	for _, id := range c.Premises {
		if !slices.ContainsFunc(own, func(p models.Premises) bool { return p.ID == id }) {
			return n, models.NotFound()
		}
	}
	n.Premises = slices.Compact(slices.Sorted(slices.Values(c.Premises)))
	return n, nil
}

// readLink reads a link that was just written. One that has ended already is CodeBadRequest.
func readLink(tx *store.Tx, service models.ServiceID, account models.AccountID) (models.Link, error) {
	l, found, err := tx.Link(service, account)
	switch {
	case err != nil:
		return l, err
	case !found: // it was ended while we were at it
		return l, store.ErrAgain
	case !l.Live:
		return l, past()
	}
	return l, nil
}

func past() error {
	return models.Errorf(models.CodeBadRequest, "expiresAt lies in the past. Give a time to come, or leave it out.")
}

// PutLink makes an account's consent for a service what is asked for. A consent that grants less than before ends at once what it doesn't
// cover any more. There is no service: CodeNotFound.
func (s *Service) PutLink(ctx context.Context, want models.Link) (l models.NamedLink, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		next := want
		next.ServiceAccountID = models.NewID()
		if next.Consent, err = normalConsent(tx, want.AccountID, want.Consent); err != nil {
			return err
		}
		same, err := s.consent(ctx, tx, next)
		if err != nil {
			return err
		}
		if l.Link, err = readLink(tx, want.ServiceID, want.AccountID); err != nil {
			return err
		}
		v, _, err := tx.Service(want.ServiceID)
		if l.ServiceName = v.Name; err != nil || same {
			return err
		}
		return linked(ctx, tx, l.Link)
	})
	if s.store.IsReference(err) {
		return l, models.NotFound()
	}
	return l, err
}

// linked records that a consent was given.
func linked(ctx context.Context, tx *store.Tx, l models.Link) error {
	if err := tx.AppendLinkEvent(models.EventLinkGranted, l); err != nil {
		return err
	}
	return audit.Note(ctx, tx, audit.Entry{Account: l.AccountID, Action: audit.LinkPut, Object: audit.OfService(l.ServiceID)})
}

// consent writes a link: a new one if there is none or its time is over, otherwise what is there with another consent. It tells whether it was
// the same already.
func (s *Service) consent(ctx context.Context, tx *store.Tx, next models.Link) (same bool, err error) {
	before, found, err := tx.Link(next.ServiceID, next.AccountID)
	if err != nil {
		return false, err
	}
	if found && !before.Live { // what ended is gone: a new consent has a new service account id
		if err := s.endLink(ctx, tx, before); err != nil {
			return false, err
		}
		found = false
	}
	if !found {
		added, err := tx.InsertLink(next)
		if err == nil && !added { // somebody consented at the same moment
			err = store.ErrAgain
		}
		return false, err
	}
	if before.Consent.Equal(next.Consent) {
		return true, nil
	}
	// Whoever is registering has its gateway locked, or sees the new consent.
	if err := tx.HoldGatewaysOfAccount(next.AccountID); err != nil {
		return false, err
	}
	next.ServiceAccountID = before.ServiceAccountID
	there, err := tx.SetConsent(next)
	if err != nil {
		return false, err
	}
	if !there {
		return false, store.ErrAgain
	}
	places, err := tx.PlacesBeyond(next)
	if err != nil {
		return false, err
	}
	return false, registrations.EndPlaces(ctx, tx, places)
}

// endLink removes a link with the service's registrations in the account, and says so.
func (s *Service) endLink(ctx context.Context, tx *store.Tx, l models.Link) error {
	if err := registrations.EndOwned(ctx, tx, store.Owner{Service: l.ServiceID, ServiceAccountID: l.ServiceAccountID}); err != nil {
		return err
	}
	err := tx.DeleteLink(l)
	if s.store.IsReference(err) { // the service registered while we were at it
		return store.ErrAgain
	}
	if err != nil {
		return err
	}
	return tx.AppendLinkEvent(models.EventLinkRevoked, l)
}

// ListLinks reads a page of an account's links, sorted by service, and the token of the next page, which is empty on the last.
func (s *Service) ListLinks(ctx context.Context, account models.AccountID, page models.Page) (all []models.NamedLink, next string, err error) {
	after, err := page.After(models.ListLinks)
	if err != nil {
		return nil, "", err
	}
	all, err = s.store.LinkPage(ctx, account, after, page.Limit()+1)
	all, next = models.Cut(all, page, models.ListLinks, func(l models.NamedLink) string { return string(l.ServiceID) })
	return all, next, err
}

// DeleteLink ends the consent and with it the service's registrations in the account.
func (s *Service) DeleteLink(ctx context.Context, service models.ServiceID, account models.AccountID) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		link, found, err := tx.Link(service, account)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		if err := s.endLink(ctx, tx, link); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.LinkEnd, Object: audit.OfService(service)})
	})
}

// LinkByServiceAccountID finds the account that a service means by a service account id.
func (s *Service) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (models.Link, error) {
	l, found, err := s.store.LinkByServiceAccountID(ctx, service, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return l, err
}
