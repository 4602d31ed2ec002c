package oauth

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
)

// CreateCredential gives a service a credential: with a key set the service signs assertions itself; without one a secret is drawn, which
// is shown once.
func (s *Service) CreateCredential(ctx context.Context, service models.ServiceID, name, jwks string) (c models.ServiceCredential, secret string, err error) {
	c = models.ServiceCredential{ID: models.NewCredentialID(), ServiceID: service, Name: name, JWKS: jwks}
	if jwks == "" {
		secret = secrets.New()
		c.SecretHash = secrets.Hash(secret)
	} else if _, err := parseKeySet([]byte(jwks)); err != nil {
		return c, "", models.Errorf(models.CodeBadRequest, "jwks can't be taken: %s.", err.Error())
	}
	err = s.Store.Write(ctx, func(tx *store.Tx) error {
		if c, err = tx.InsertServiceCredential(c); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.CredentialCreate, Object: audit.OfCredential(service, c.ID)})
	})
	if s.Store.IsReference(err) {
		return c, "", models.Errorf(models.CodeNotFound, "There is no service %s. Create it first.", service)
	}
	return c, secret, err
}

// ListCredentials reads a page of a service's credentials, oldest first, and the token of the next page, which is empty on the last.
func (s *Service) ListCredentials(ctx context.Context, service models.ServiceID, page models.Page) (all []models.ServiceCredential, next string, err error) {
	after, err := page.After(models.ListCredentials)
	if err != nil {
		return nil, "", err
	}
	if _, err := s.Accounts.Service(ctx, service); err != nil {
		return nil, "", err
	}
	all, err = s.Store.ServiceCredentialPage(ctx, service, after, page.Limit()+1)
	all, next = models.Cut(all, page, models.ListCredentials, func(c models.ServiceCredential) string { return c.ID })
	return all, next, err
}

// DeleteCredential takes a credential from a service. The service's tokens end with it.
func (s *Service) DeleteCredential(ctx context.Context, service models.ServiceID, id string) error {
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.DeleteServiceCredential(service, id)
		if err == nil && !found {
			err = models.Errorf(models.CodeNotFound, "The service %s has no such credential.", service)
		}
		if err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.CredentialRemove, Object: audit.OfCredential(service, id)})
	})
}
