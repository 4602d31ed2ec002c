package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

// InsertAccount adds an account and fills in when.
func (s *Store) InsertAccount(ctx context.Context, a models.Account) (models.Account, error) {
	err := s.writing(ctx, func(tx *Tx) (err error) {
		a.CreatedAt, _, err = one(tx, scanTime, "INSERT INTO accounts (id, name, created_at) VALUES (?, ?, {now}) RETURNING created_at",
			string(a.ID), a.Name)
		return err
	})
	return a, err
}

// Accounts reads up to limit accounts after an id, sorted by id.
func (tx *Tx) Accounts(after string, limit int) ([]models.Account, error) {
	return list(tx, func(r row) (a models.Account, err error) {
		err = r.Scan(&a.ID, &a.Name, timeColumn{&a.CreatedAt})
		return a, err
	}, "SELECT id, name, created_at FROM accounts WHERE id > ? ORDER BY id LIMIT ?", after, limit)
}

const premisesColumns = "id, account_id, name, allow_public_range, created_at"

func scanPremises(r row) (p models.Premises, err error) {
	err = r.Scan(&p.ID, &p.AccountID, &p.Name, &p.AllowPublicRange, timeColumn{&p.CreatedAt})
	return p, err
}

// InsertPremises adds a premises and fills in when. An account that doesn't exist is IsReference.
func (s *Store) InsertPremises(ctx context.Context, p models.Premises) (models.Premises, error) {
	err := s.writing(ctx, func(tx *Tx) (err error) {
		p.CreatedAt, _, err = one(tx, scanTime, `
			INSERT INTO premises (id, account_id, name, allow_public_range, created_at) VALUES (?, ?, ?, ?, {now}) RETURNING created_at`,
			string(p.ID), string(p.AccountID), p.Name, p.AllowPublicRange)
		return err
	})
	return p, err
}

// Premises reads one premises.
func (tx *Tx) Premises(id models.PremisesID) (models.Premises, bool, error) {
	return one(tx, scanPremises, "SELECT "+premisesColumns+" FROM premises WHERE id = ?", string(id))
}

// LockPremises reads one premises and keeps its gateways' declarations from changing until commit.
func (tx *Tx) LockPremises(id models.PremisesID) (models.Premises, bool, error) {
	return one(tx, scanPremises, "UPDATE premises SET name = name WHERE id = ? RETURNING "+premisesColumns, string(id))
}

// PremisesOf reads the premises of several accounts, sorted by id.
func (tx *Tx) PremisesOf(accounts []models.AccountID) ([]models.Premises, error) {
	return list(tx, scanPremises, "SELECT "+premisesColumns+" FROM premises WHERE account_id {among texts} ORDER BY id", texts(tx, accounts))
}
