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
func (tx *Tx) InsertServiceCredential(c models.ServiceCredential) (_ models.ServiceCredential, err error) {
	var hash any
	if len(c.SecretHash) > 0 {
		hash = blob(c.SecretHash)
	}
	c.CreatedAt, _, err = one(tx, scanTime, `
		INSERT INTO service_credentials (id, service_id, name, secret_hash, jwks, created_at) VALUES (?, ?, ?, ?, ?, {now}) RETURNING created_at`,
		c.ID, string(c.ServiceID), c.Name, hash, c.JWKS)
	return c, err
}

// ServiceCredentialPage reads the credentials of a service after the one with this id, oldest first; "" starts with the first.
func (s *Store) ServiceCredentialPage(ctx context.Context, id models.ServiceID, after string, limit int) (all []models.ServiceCredential, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanCredential, "SELECT "+credentialColumns+" FROM service_credentials WHERE service_id = ? AND id > ? ORDER BY id LIMIT ?",
			string(id), after, limit)
		return err
	})
	return all, err
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
func (tx *Tx) DeleteServiceCredential(service models.ServiceID, id string) (found bool, err error) {
	n, err := tx.exec("DELETE FROM service_credentials WHERE service_id = ? AND id = ?", string(service), id)
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.EndServiceTokens(service)
}

// EndServiceTokens ends every token that was issued for a service until now.
func (tx *Tx) EndServiceTokens(id models.ServiceID) error {
	_, err := tx.exec("UPDATE services SET not_before = "+nextNotBefore+" WHERE id = ?", string(id))
	return err
}
