package accounts

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
)

// CreateService creates a service. CodeAlreadyExists is an id that is taken.
func (s *Service) CreateService(ctx context.Context, id models.ServiceID, name string) (models.Service, error) {
	v, err := s.store.InsertService(ctx, models.Service{ID: id, Name: name})
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
	l, err := s.store.InsertLink(ctx, l)
	switch {
	case s.store.IsDuplicate(err):
		return l, models.Errorf(models.CodeAlreadyExists, "The account is linked with %s already, or the service knows another account by this service "+
			"account id. End that link first.", service)
	case s.store.IsReference(err):
		return l, models.Errorf(models.CodeNotFound, "There is no service %s or no account %s. Create both first.", service, account)
	}
	return l, err
}

// DeleteLink ends the consent and with it the service's registrations in the account.
func (s *Service) DeleteLink(ctx context.Context, service models.ServiceID, account models.AccountID) error {
	var changed []models.ID
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		link, found, err := tx.Link(service, account)
		if err != nil {
			return err
		}
		if !found {
			return models.Errorf(models.CodeNotFound, "The account %s is not linked with %s. Check both ids; there is nothing to end.", account, service)
		}
		if changed, err = registrations.EndOwned(tx, store.Owner{Service: service, ServiceAccountID: link.ServiceAccountID}); err != nil {
			return err
		}
		err = tx.DeleteLink(link)
		if s.store.IsReference(err) { // the service registered while we were at it
			return store.ErrAgain
		}
		return err
	})
	if err != nil {
		return err
	}
	s.wake(changed)
	return nil
}

// LinkByServiceAccountID finds the account that a service means by a service account id.
func (s *Service) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (models.Link, error) {
	l, found, err := s.store.LinkByServiceAccountID(ctx, service, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return l, err
}
