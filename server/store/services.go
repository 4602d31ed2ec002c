package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

// InsertService adds a service and fills in when.
func (s *Store) InsertService(ctx context.Context, v models.Service) (models.Service, error) {
	err := s.writing(ctx, func(tx *Tx) (err error) {
		v.CreatedAt, _, err = one(tx, scanTime, "INSERT INTO services (id, name, created_at) VALUES (?, ?, {now}) RETURNING created_at",
			string(v.ID), v.Name)
		return err
	})
	return v, err
}

// Service reads a service.
func (s *Store) Service(ctx context.Context, id models.ServiceID) (v models.Service, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = one(tx, func(r row) (v models.Service, err error) {
			err = r.Scan(&v.ID, &v.Name, timeColumn{&v.NotBefore}, timeColumn{&v.CreatedAt})
			return v, err
		}, "SELECT id, name, not_before, created_at FROM services WHERE id = ?", string(id))
		return err
	})
	return v, found, err
}

const linkColumns = "service_id, account_id, service_account_id, created_at"

func scanLink(r row) (l models.Link, err error) {
	err = r.Scan(&l.ServiceID, &l.AccountID, &l.ServiceAccountID, timeColumn{&l.CreatedAt})
	return l, err
}

// InsertLink adds a link and fills in when. A service or an account that doesn't exist is IsReference.
func (s *Store) InsertLink(ctx context.Context, l models.Link) (models.Link, error) {
	err := s.writing(ctx, func(tx *Tx) (err error) {
		l.CreatedAt, _, err = one(tx, scanTime, `
			INSERT INTO service_links (service_id, account_id, service_account_id, created_at) VALUES (?, ?, ?, {now}) RETURNING created_at`,
			string(l.ServiceID), string(l.AccountID), int64(l.ServiceAccountID))
		return err
	})
	return l, err
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

// DeleteLink removes a link. One whose service still has registrations in the account is IsReference.
func (tx *Tx) DeleteLink(l models.Link) error {
	_, err := tx.exec("DELETE FROM service_links WHERE service_id = ? AND service_account_id = ?",
		string(l.ServiceID), int64(l.ServiceAccountID))
	return err
}
