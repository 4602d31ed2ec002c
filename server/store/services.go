package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

// InsertService adds a service and fills in when.
func (tx *Tx) InsertService(v models.Service) (_ models.Service, err error) {
	v.CreatedAt, _, err = one(tx, scanTime, "INSERT INTO services (id, name, created_at) VALUES (?, ?, {now}) RETURNING created_at",
		string(v.ID), v.Name)
	return v, err
}

// Service reads a service.
func (s *Store) Service(ctx context.Context, id models.ServiceID) (v models.Service, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = tx.Service(id)
		return err
	})
	return v, found, err
}

// Service reads a service.
func (tx *Tx) Service(id models.ServiceID) (models.Service, bool, error) {
	return one(tx, func(r row) (v models.Service, err error) {
		err = r.Scan(&v.ID, &v.Name, timeColumn{&v.NotBefore}, timeColumn{&v.CreatedAt})
		return v, err
	}, "SELECT id, name, not_before, created_at FROM services WHERE id = ?", string(id))
}

// ServicesAmong gives which of the ids are services, sorted.
func (tx *Tx) ServicesAmong(ids []models.ServiceID) ([]models.ServiceID, error) {
	return list(tx, scanInto[models.ServiceID], "SELECT id FROM services WHERE id {among texts} ORDER BY id", texts(tx, ids))
}

const linkColumns = "service_id, account_id, service_account_id, created_at"

func scanLink(r row) (l models.Link, err error) {
	err = r.Scan(&l.ServiceID, &l.AccountID, &l.ServiceAccountID, timeColumn{&l.CreatedAt})
	return l, err
}

// InsertLink adds a link and fills in when. A service or an account that doesn't exist is IsReference.
func (tx *Tx) InsertLink(l models.Link) (_ models.Link, err error) {
	l.CreatedAt, _, err = one(tx, scanTime, `
		INSERT INTO service_links (service_id, account_id, service_account_id, created_at) VALUES (?, ?, ?, {now}) RETURNING created_at`,
		string(l.ServiceID), string(l.AccountID), int64(l.ServiceAccountID))
	return l, err
}

// PutLink adds a link unless the account is linked with the service already, and tells whether it was added.
func (tx *Tx) PutLink(l models.Link) (bool, error) {
	n, err := tx.exec(`
		INSERT INTO service_links (service_id, account_id, service_account_id, created_at) VALUES (?, ?, ?, {now})
		ON CONFLICT (service_id, account_id) DO NOTHING`, string(l.ServiceID), string(l.AccountID), int64(l.ServiceAccountID))
	return n == 1, err
}

// LinkPage reads up to limit links of an account after a service's id, sorted by that.
func (s *Store) LinkPage(ctx context.Context, account models.AccountID, after string, limit int) (all []models.NamedLink, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (l models.NamedLink, err error) {
			err = r.Scan(&l.ServiceID, &l.AccountID, &l.ServiceAccountID, timeColumn{&l.CreatedAt}, &l.ServiceName)
			return l, err
		}, `SELECT l.service_id, l.account_id, l.service_account_id, l.created_at, s.name
			FROM service_links l JOIN services s ON s.id = l.service_id
			WHERE l.account_id = ? AND l.service_id > ? ORDER BY l.service_id LIMIT ?`, string(account), after, limit)
		return err
	})
	return all, err
}

// LinkByServiceAccountID reads the link that a service means.
func (s *Store) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (l models.Link, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		l, found, err = one(tx, scanLink, "SELECT "+linkColumns+" FROM service_links WHERE service_id = ? AND service_account_id = ?",
			string(service), int64(id))
		return err
	})
	return l, found, err
}

// Link reads the link of an account with a service.
func (tx *Tx) Link(service models.ServiceID, account models.AccountID) (models.Link, bool, error) {
	return one(tx, scanLink, "SELECT "+linkColumns+" FROM service_links WHERE service_id = ? AND account_id = ?",
		string(service), string(account))
}

// LinksOf reads the links of several accounts, oldest first.
func (tx *Tx) LinksOf(accounts []models.AccountID) ([]models.Link, error) {
	return list(tx, scanLink, "SELECT "+linkColumns+" FROM service_links WHERE account_id {among texts} ORDER BY created_at, service_id",
		texts(tx, accounts))
}

// DeleteLink removes a link and what its service's webhooks have not got of the account. One whose service still has registrations in the
// account is IsReference.
func (tx *Tx) DeleteLink(l models.Link) error {
	if err := tx.forgetLink(l); err != nil {
		return err
	}
	_, err := tx.exec("DELETE FROM service_links WHERE service_id = ? AND service_account_id = ?",
		string(l.ServiceID), int64(l.ServiceAccountID))
	return err
}
