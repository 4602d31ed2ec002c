package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

const credentialColumns = "id, service_id, name, secret_hash, jwks, created_at"

func scanCredential(r row) (c models.ServiceCredential, err error) {
	err = r.Scan(&c.ID, &c.ServiceID, &c.Name, &c.SecretHash, &c.JWKS, timeColumn{&c.CreatedAt})
	return c, err
}

// InsertServiceCredential adds a credential and fills in when. A service that doesn't exist is IsReference.
func (s *Store) InsertServiceCredential(ctx context.Context, c models.ServiceCredential) (models.ServiceCredential, error) {
	err := s.writing(ctx, func(tx *Tx) (err error) {
		var hash any
		if len(c.SecretHash) > 0 {
			hash = blob(c.SecretHash)
		}
		c.CreatedAt, _, err = one(tx, scanTime, `
			INSERT INTO service_credentials (id, service_id, name, secret_hash, jwks, created_at) VALUES (?, ?, ?, ?, ?, {now}) RETURNING created_at`,
			c.ID, string(c.ServiceID), c.Name, hash, c.JWKS)
		return err
	})
	return c, err
}

// ServiceCredentials reads all credentials of a service, oldest first.
func (s *Store) ServiceCredentials(ctx context.Context, id models.ServiceID) (all []models.ServiceCredential, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanCredential, "SELECT "+credentialColumns+" FROM service_credentials WHERE service_id = ? ORDER BY created_at, id", string(id))
		return err
	})
	return all, err
}

// DeleteServiceCredential removes a credential, ends the tokens that the service has, and tells whether it was there.
func (s *Store) DeleteServiceCredential(ctx context.Context, service models.ServiceID, id string) (found bool, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		n, err := tx.exec("DELETE FROM service_credentials WHERE service_id = ? AND id = ?", string(service), id)
		found = n == 1
		if err != nil || !found {
			return err
		}
		return tx.endServiceTokens(service)
	})
	return found, err
}

// EndServiceTokens ends every token that was issued for a service until now.
func (s *Store) EndServiceTokens(ctx context.Context, id models.ServiceID) error {
	return s.writing(ctx, func(tx *Tx) error { return tx.endServiceTokens(id) })
}

func (tx *Tx) endServiceTokens(id models.ServiceID) error {
	_, err := tx.exec("UPDATE services SET not_before = "+endNow+" WHERE id = ?", string(id))
	return err
}
