package accounts

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
)

// CreateService creates a service. CodeAlreadyExists is an id that is taken.
func (s *Service) CreateService(ctx context.Context, id models.ServiceID, name string) (models.Service, error) {
	var v models.Service
	err := s.store.Write(ctx, func(tx *store.Tx) (err error) {
		if v, err = tx.InsertService(models.Service{ID: id, Name: name}); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.ServiceCreate, Object: audit.OfService(id)})
	})
	if s.store.IsDuplicate(err) {
		return v, models.Errorf(models.CodeAlreadyExists, "There is a service %s already. Choose another id.", id)
	}
	return v, err
}

// Service reads a service.
func (s *Service) Service(ctx context.Context, id models.ServiceID) (models.Service, error) {
	v, found, err := s.store.Service(ctx, id)
	if err == nil && !found {
		err = models.Errorf(models.CodeNotFound, "There is no service %s. Create it first.", id)
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

// CreateLink records an account's consent for a service. The service account id is drawn if it is zero. CodeAlreadyExists is a
// link that exists, or a service account id that the service knows another account by.
func (s *Service) CreateLink(ctx context.Context, service models.ServiceID, account models.AccountID, serviceAccountID models.ID) (models.Link, error) {
	l := models.Link{ServiceID: service, AccountID: account, ServiceAccountID: serviceAccountID}
	if l.ServiceAccountID == 0 {
		l.ServiceAccountID = models.NewID()
	}
	err := s.store.Write(ctx, func(tx *store.Tx) (err error) {
		if l, err = tx.InsertLink(l); err != nil {
			return err
		}
		v, _, err := tx.Service(service)
		if err != nil {
			return err
		}
		if err := tx.AppendAccountEvent(account, linkEvent(models.EventLinkGranted, l, v)); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.LinkPut, Object: audit.OfService(service)})
	})
	switch {
	case s.store.IsDuplicate(err):
		return l, models.Errorf(models.CodeAlreadyExists, "The account is linked with %s already, or the service knows another account by this service "+
			"account id. End that link first.", service)
	case s.store.IsReference(err):
		return l, models.Errorf(models.CodeNotFound, "There is no service %s or no account %s. Create both first.", service, account)
	}
	return l, err
}

// PutLink records an account's consent for a service if it has not consented yet. There is no service: CodeNotFound.
func (s *Service) PutLink(ctx context.Context, service models.ServiceID, account models.AccountID) (l models.NamedLink, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		added, err := tx.PutLink(models.Link{ServiceID: service, AccountID: account, ServiceAccountID: models.NewID()})
		if err != nil {
			return err
		}
		var found bool
		if l.Link, found, err = tx.Link(service, account); err != nil {
			return err
		}
		if !found { // it was ended while we were at it
			return store.ErrAgain
		}
		v, _, err := tx.Service(service)
		if l.ServiceName = v.Name; err != nil || !added {
			return err
		}
		if err := tx.AppendAccountEvent(account, linkEvent(models.EventLinkGranted, l.Link, v)); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.LinkPut, Object: audit.OfService(service)})
	})
	if s.store.IsReference(err) {
		return l, models.NotFound()
	}
	return l, err
}

// ListLinks reads a page of an account's links, sorted by service, and the token of the next page, which is empty on the last.
func (s *Service) ListLinks(ctx context.Context, account models.AccountID, page models.Page) (all []models.NamedLink, next string, err error) {
	after, err := page.After()
	if err != nil {
		return nil, "", err
	}
	all, err = s.store.LinkPage(ctx, account, after, page.Limit()+1)
	all, next = cut(all, page, func(l models.NamedLink) string { return string(l.ServiceID) })
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
		if err = registrations.EndOwned(tx, store.Owner{Service: service, ServiceAccountID: link.ServiceAccountID}); err != nil {
			return err
		}
		err = tx.DeleteLink(link)
		if s.store.IsReference(err) { // the service registered while we were at it
			return store.ErrAgain
		}
		if err != nil {
			return err
		}
		v, _, err := tx.Service(service)
		if err != nil {
			return err
		}
		if err := tx.AppendAccountEvent(account, linkEvent(models.EventLinkRevoked, link, v)); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.LinkEnd, Object: audit.OfService(service)})
	})
}

func linkEvent(t models.EventType, l models.Link, v models.Service) models.Event {
	return models.Event{Type: t, Link: &models.NamedLink{Link: l, ServiceName: v.Name}}
}

// LinkByServiceAccountID finds the account that a service means by a service account id.
func (s *Service) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (models.Link, error) {
	l, found, err := s.store.LinkByServiceAccountID(ctx, service, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return l, err
}
