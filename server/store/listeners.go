package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

// What an edge asks on behalf of all its listeners at once. The parameters may name some hundreds.

// DevicesAmong reads those of the devices that exist.
func (s *Store) DevicesAmong(ctx context.Context, ids []models.ID) (all []models.Device, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanDevice, "SELECT "+deviceColumns+" FROM devices WHERE id {among bigints}", tx.ids(ids))
		return err
	})
	return all, err
}

// RevsOf reads the newest rev of those of the groups that live.
func (s *Store) RevsOf(ctx context.Context, ids []models.GroupID) (map[models.GroupID]int64, error) {
	revs := make(map[models.GroupID]int64, len(ids))
	err := s.reading(ctx, func(tx *Tx) error {
		all, err := list(tx, scanGroup, "SELECT "+groupColumns+" FROM groups g WHERE g.id {among texts}", texts(tx, ids))
		for _, g := range all {
			revs[g.ID] = g.Rev
		}
		return err
	})
	return revs, err
}

// AccountNews is how far an account's events are.
type AccountNews struct {
	Rev int64 // of its own events, which belong to no group
	// Groups are those that live.
	Groups []models.GroupID
}

// NewsOf reads how far the events of those of the accounts are that exist.
func (s *Store) NewsOf(ctx context.Context, ids []models.AccountID) (map[models.AccountID]AccountNews, error) {
	type line struct {
		account models.AccountID
		rev     int64
		group   models.GroupID
	}
	news := make(map[models.AccountID]AccountNews, len(ids))
	err := s.reading(ctx, func(tx *Tx) error {
		all, err := list(tx, func(r row) (l line, err error) {
			err = r.Scan(&l.account, &l.rev, &l.group)
			return l, err
		}, "SELECT a.id, a.account_rev, coalesce(g.id, '') FROM accounts a LEFT JOIN groups g ON g.account_id = a.id WHERE a.id {among texts}", texts(tx, ids))
		for _, l := range all {
			n := news[l.account]
			n.Rev = l.rev
			if l.group != "" {
				n.Groups = append(n.Groups, l.group)
			}
			news[l.account] = n
		}
		return err
	})
	return news, err
}

// LastEvents reads the newest events of a stream, up to limit of them, newest first.
func (s *Store) LastEvents(ctx context.Context, of models.EventStream, limit int) (all []models.Event, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (models.Event, error) {
			e, err := scanEvent(r)
			return e.Event, err
		}, "SELECT "+eventColumns+" FROM events e WHERE e.account_id = ? AND e.group_id = ? ORDER BY e.rev DESC LIMIT ?",
			string(of.AccountID), string(of.GroupID), limit)
		return err
	})
	return all, err
}
