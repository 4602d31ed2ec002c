package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/groupcast/groupcast/models"
)

const accountColumns = "id, name, join_policy, created_at"

func scanAccount(r row) (a models.Account, err error) {
	var policy []byte
	if err = r.Scan(&a.ID, &a.Name, &policy, timeColumn{&a.CreatedAt}); err != nil {
		return a, err
	}
	if err = json.Unmarshal(policy, &a.JoinPolicy); err != nil {
		err = fmt.Errorf("join_policy of %s: %w", a.ID, err)
	}
	return a, err
}

// InsertAccount adds an account and fills in when.
func (tx *Tx) InsertAccount(a models.Account) (_ models.Account, err error) {
	a.CreatedAt, _, err = one(tx, scanTime, "INSERT INTO accounts (id, name, created_at) VALUES (?, ?, {now}) RETURNING created_at",
		string(a.ID), a.Name)
	return a, err
}

// Account reads an account.
func (s *Store) Account(ctx context.Context, id models.AccountID) (a models.Account, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		a, found, err = tx.Account(id)
		return err
	})
	return a, found, err
}

// Account reads an account.
func (tx *Tx) Account(id models.AccountID) (models.Account, bool, error) {
	return one(tx, scanAccount, "SELECT "+accountColumns+" FROM accounts WHERE id = ?", string(id))
}

// LockAccount reads an account and keeps others from changing it, and from counting what it has, until commit. It comes after the locks of
// gateways and groups.
func (tx *Tx) LockAccount(id models.AccountID) (models.Account, bool, error) {
	return one(tx, scanAccount, "UPDATE accounts SET name = name WHERE id = ? RETURNING "+accountColumns, string(id))
}

// SetAccount stores name and join policy of an account.
func (tx *Tx) SetAccount(a models.Account) error {
	policy, err := json.Marshal(a.JoinPolicy)
	if err != nil {
		return err
	}
	_, err = tx.exec("UPDATE accounts SET name = ?, join_policy = ? WHERE id = ?", a.Name, string(policy), string(a.ID))
	return err
}

// Accounts reads up to limit accounts after an id, sorted by id.
func (tx *Tx) Accounts(after string, limit int) ([]models.Account, error) {
	return list(tx, scanAccount, "SELECT "+accountColumns+" FROM accounts WHERE id > ? ORDER BY id LIMIT ?", after, limit)
}

const premisesColumns = `id, account_id, name, allow_public_range, fanout, on_relay_loss,
	coalesce((SELECT 'network' FROM gateways w WHERE w.premises_id = premises.id AND w.leaving_id <> 0 LIMIT 1),
		(SELECT CASE WHEN ra.forwarding THEN 'network' WHEN ra.halted THEN 'nowhere' END FROM relay_assignments ra WHERE ra.premises_id = premises.id),
		CASE WHEN EXISTS (SELECT 1 FROM gateways w WHERE w.premises_id = premises.id AND w.lan_prefix LIKE '%/32') THEN 'nowhere' ELSE 'home' END),
	created_at`

func scanPremises(r row) (p models.Premises, err error) {
	err = r.Scan(&p.ID, &p.AccountID, &p.Name, &p.AllowPublicRange, &p.Fanout, &p.OnRelayLoss, &p.CopiedAt, timeColumn{&p.CreatedAt})
	return p, err
}

// InsertPremises adds a premises and fills in when. An account that doesn't exist is IsReference.
func (tx *Tx) InsertPremises(p models.Premises) (_ models.Premises, err error) {
	p.Fanout, p.OnRelayLoss, p.CopiedAt = models.FanoutHome, models.OnRelayLossHome, models.CopiedHome
	p.CreatedAt, _, err = one(tx, scanTime, `
		INSERT INTO premises (id, account_id, name, allow_public_range, created_at) VALUES (?, ?, ?, ?, {now}) RETURNING created_at`,
		string(p.ID), string(p.AccountID), p.Name, p.AllowPublicRange)
	return p, err
}

// CountPremises counts the premises of an account.
func (tx *Tx) CountPremises(account models.AccountID) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT count(*) FROM premises WHERE account_id = ?", string(account))
	return n, err
}

// PremisesPage reads up to limit premises of an account after an id, sorted by id, which is the order of creation.
func (s *Store) PremisesPage(ctx context.Context, account models.AccountID, after string, limit int) (all []models.Premises, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanPremises, "SELECT "+premisesColumns+" FROM premises WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?",
			string(account), after, limit)
		return err
	})
	return all, err
}

// LockPremisesOf does what LockPremises does with a premises of an account.
func (tx *Tx) LockPremisesOf(account models.AccountID, id models.PremisesID) (models.Premises, bool, error) {
	return one(tx, scanPremises, "UPDATE premises SET name = name WHERE id = ? AND account_id = ? RETURNING "+premisesColumns, string(id), string(account))
}

// SetPremises changes what an account holder may of a premises.
func (tx *Tx) SetPremises(p models.Premises) error {
	_, err := tx.exec("UPDATE premises SET name = ?, fanout = ?, on_relay_loss = ? WHERE id = ? AND account_id = ?",
		p.Name, string(p.Fanout), string(p.OnRelayLoss), string(p.ID), string(p.AccountID))
	return err
}

// DeletePremises removes a premises of an account and tells whether there was one. One that still has devices is IsReference.
func (tx *Tx) DeletePremises(account models.AccountID, id models.PremisesID) (bool, error) {
	n, err := tx.exec("DELETE FROM premises WHERE id = ? AND account_id = ?", string(id), string(account))
	return n == 1, err
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
