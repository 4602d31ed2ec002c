// Package accounts keeps the tenants and what belongs to them: accounts, premises, devices, services, and the links by which
// an account consents to a service. It is what an operator bootstraps, and what a caller is authenticated against.
//
// It never issues or reads a token, and never decides what a caller may do.
package accounts

import (
	"context"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/store"
)

// Account is an account with everything that belongs to it, each oldest first.
type Account struct {
	models.Account
	Premises []models.Premises
	Devices  []models.Device
	Links    []models.Link
}

// Service keeps accounts.
type Service struct {
	store  *store.Store
	quotas models.Quotas
}

// New makes the service.
func New(st *store.Store, q models.Quotas) *Service { return &Service{store: st, quotas: q} }

// CreateAccount creates an account.
func (s *Service) CreateAccount(ctx context.Context, name string) (a models.Account, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		a, err = s.AddAccount(ctx, tx, name)
		return err
	})
	return a, err
}

// AddAccount is CreateAccount as a step of a transaction.
func (s *Service) AddAccount(ctx context.Context, tx *store.Tx, name string) (models.Account, error) {
	a, err := tx.InsertAccount(models.Account{ID: models.NewAccountID(), Name: name})
	if err != nil {
		return a, err
	}
	return a, audit.Note(ctx, tx, audit.Entry{Account: a.ID, Action: audit.AccountCreate, Object: audit.OfAccount(a.ID)})
}

// Account reads an account.
func (s *Service) Account(ctx context.Context, id models.AccountID) (models.Account, error) {
	a, found, err := s.store.Account(ctx, id)
	if err == nil && !found {
		err = noAccount(id)
	}
	return a, err
}

// Change changes what is not nil.
type Change struct {
	Name       *string
	JoinPolicy *models.JoinPolicy
}

// ChangeAccount renames an account or replaces its join policy. A policy may name a service that isn't linked: it says who is to join, and
// the link who may, so neither has to come first, and a policy outlives a link that is ended and made again. A service that doesn't exist is
// CodeNotFound, because it is a slip of the pen.
func (s *Service) ChangeAccount(ctx context.Context, id models.AccountID, change Change) (a models.Account, err error) {
	var policy models.JoinPolicy
	if change.JoinPolicy != nil {
		if policy, err = change.JoinPolicy.Normal(); err != nil {
			return a, err
		}
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		var found bool
		if a, found, err = tx.LockAccount(id); err != nil {
			return err
		}
		if !found {
			return noAccount(id)
		}
		if change.Name != nil {
			a.Name = *change.Name
		}
		if change.JoinPolicy != nil {
			if err := knownServices(tx, policy.Services); err != nil {
				return err
			}
			a.JoinPolicy = policy
		}
		if err := tx.SetAccount(a); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: id, Action: audit.AccountChange, Object: audit.OfAccount(id)})
	})
	return a, err
}

func knownServices(tx *store.Tx, ids []models.ServiceID) error {
	if len(ids) == 0 {
		return nil
	}
	known, err := tx.ServicesAmong(ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.Contains(known, id) {
			return models.Errorf(models.CodeNotFound, "There is no service %s. Check its id, or leave it out of joinPolicy.", id)
		}
	}
	return nil
}

// room refuses what would be one more than a quota allows. It locks the account first, so that of two requests at once one counts what the
// other added.
func room(tx *store.Tx, account models.AccountID, quota string, limit int, count func(models.AccountID) (int, error)) error {
	if limit == 0 {
		return nil
	}
	if _, found, err := tx.LockAccount(account); err != nil || !found {
		return err // whoever inserts hears that there is none
	}
	used, err := count(account)
	if err == nil && used >= limit {
		err = models.QuotaExceeded(quota, limit, used, "Remove what isn't used any more, or ask the operator for more.")
	}
	return err
}

// CreatePremises creates a premises of an account for an operator, whom no quota stops.
func (s *Service) CreatePremises(ctx context.Context, account models.AccountID, name string, allowPublicRange bool) (models.Premises, error) {
	return s.createPremises(ctx, account, name, allowPublicRange, 0)
}

// AddPremises creates a premises for an account holder. One more than the quota is CodeQuotaExceeded.
func (s *Service) AddPremises(ctx context.Context, account models.AccountID, name string) (models.Premises, error) {
	return s.createPremises(ctx, account, name, false, s.quotas.PremisesPerAccount)
}

func (s *Service) createPremises(ctx context.Context, account models.AccountID, name string, allowPublicRange bool, limit int) (p models.Premises, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if err := room(tx, account, models.QuotaPremises, limit, tx.CountPremises); err != nil {
			return err
		}
		p, err = tx.InsertPremises(models.Premises{ID: models.NewPremisesID(), AccountID: account, Name: name, AllowPublicRange: allowPublicRange})
		if err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.PremisesCreate, Object: audit.OfPremises(p.ID)})
	})
	if s.store.IsReference(err) {
		return p, noAccount(account)
	}
	return p, err
}

// ListPremises reads a page of an account's premises, oldest first, and the token of the next page, which is empty on the last.
func (s *Service) ListPremises(ctx context.Context, account models.AccountID, page models.Page) (all []models.Premises, next string, err error) {
	after, err := page.After(models.ListPremises)
	if err != nil {
		return nil, "", err
	}
	all, err = s.store.PremisesPage(ctx, account, after, page.Limit()+1)
	all, next = models.Cut(all, page, models.ListPremises, func(p models.Premises) string { return string(p.ID) })
	return all, next, err
}

// PremisesChange is what an account holder changes of a premises; nil stays as it is.
type PremisesChange struct {
	Name        *string
	Fanout      *models.Fanout
	OnRelayLoss *models.OnRelayLoss
}

// ChangePremises changes a premises of an account. Where copies are made follows from it by and by, without a gap: see server/relays.
func (s *Service) ChangePremises(ctx context.Context, account models.AccountID, id models.PremisesID, c PremisesChange) (p models.Premises, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		old, found, err := tx.LockPremisesOf(account, id)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		p = old
		set(&p.Name, c.Name)
		set(&p.Fanout, c.Fanout)
		set(&p.OnRelayLoss, c.OnRelayLoss)
		if err := tx.SetPremises(p); err != nil {
			return err
		}
		if err := relays.Change(tx, old, p); err != nil {
			return err
		}
		if p, _, err = tx.Premises(id); err != nil {
			return err
		}
		if err := audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.PremisesChange, Object: audit.OfPremises(id)}); err != nil || p == old {
			return err
		}
		return tx.AppendPremisesEvents([]models.PremisesID{id})
	})
	return p, err
}

func set[T any](to, v *T) {
	if v != nil {
		*to = *v
	}
}

// DeletePremises removes a premises of an account. One that has devices is CodeNotEmpty.
func (s *Service) DeletePremises(ctx context.Context, account models.AccountID, id models.PremisesID) error {
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.DeletePremises(account, id)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.PremisesRemove, Object: audit.OfPremises(id)})
	})
	if s.store.IsReference(err) {
		return models.Errorf(models.CodeNotEmpty, "The premises still has devices. Remove them first.")
	}
	return err
}

// Premises reads a premises of any account; it is for operators.
func (s *Service) Premises(ctx context.Context, id models.PremisesID) (p models.Premises, err error) {
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		var found bool
		p, found, err = tx.Premises(id)
		if err == nil && !found {
			err = models.Errorf(models.CodeNotFound, "There is no premises %s. Create it first.", id)
		}
		return err
	})
	return p, err
}

// ListAccounts reads a page of accounts, oldest first, and the token of the next page, which is empty on the last.
func (s *Service) ListAccounts(ctx context.Context, page models.Page) (all []Account, next string, err error) {
	after, err := page.After(models.ListAccounts)
	if err != nil {
		return nil, "", err
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		all, next, err = readAccounts(tx, after, page)
		return err
	})
	return all, next, err
}

// readAccounts takes one statement for each noun, whatever the number of accounts.
func readAccounts(tx *store.Tx, after string, page models.Page) (all []Account, next string, err error) {
	accounts, err := tx.Accounts(after, page.Limit()+1)
	if err != nil {
		return nil, "", err
	}
	accounts, next = models.Cut(accounts, page, models.ListAccounts, func(a models.Account) string { return string(a.ID) })
	ids := make([]models.AccountID, len(accounts))
	at := make(map[models.AccountID]*Account, len(accounts))
	all = make([]Account, len(accounts))
	for i, a := range accounts {
		all[i] = Account{Account: a}
		ids[i], at[a.ID] = a.ID, &all[i]
	}
	premises, err := tx.PremisesOf(ids)
	if err != nil {
		return nil, "", err
	}
	for _, p := range premises {
		at[p.AccountID].Premises = append(at[p.AccountID].Premises, p)
	}
	devices, err := tx.DevicesOf(ids)
	if err != nil {
		return nil, "", err
	}
	for _, d := range devices {
		at[d.AccountID].Devices = append(at[d.AccountID].Devices, d)
	}
	links, err := tx.LinksOf(ids)
	if err != nil {
		return nil, "", err
	}
	for _, l := range links {
		at[l.AccountID].Links = append(at[l.AccountID].Links, l)
	}
	return all, next, nil
}

func noAccount(id models.AccountID) error {
	return models.Errorf(models.CodeNotFound, "There is no account %s. Create it first.", id)
}
