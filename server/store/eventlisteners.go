package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/groupcast/groupcast/models"
)

// EventMark is a place in the table of all events, by their ids.
type EventMark struct {
	// Newest is the highest id that could be seen, 0 if there was no event.
	Newest int64
	// Writer is a transaction's id that is higher than that of whoever took an id up to Newest. SQLite, which has one writer at a
	// time, needs none.
	Writer int64
}

// MarkEvents reads where the events stand, if that is not the place that the caller knows. Ids are taken before their events are committed:
// an event with a lower id may still come until [Store.MarkSettled].
func (s *Store) MarkEvents(ctx context.Context, known int64) (m EventMark, err error) {
	if m.Newest, err = s.NewestEvent(ctx); err != nil || m.Newest == known || s.dialect == sqliteDialect {
		return m, err
	}
	// It comes after the read: whoever took one of those ids had an id of a transaction by then. A transaction that does nothing else isn't
	// waited for by the disk.
	err = s.writing(ctx, func(tx *Tx) error {
		m.Writer, _, err = one(tx, scanInto[int64], "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)")
		return err
	})
	return m, err
}

// MarkSettled tells whether every event up to the mark is there that ever will be.
func (s *Store) MarkSettled(ctx context.Context, m EventMark) (settled bool, err error) {
	if s.dialect == sqliteDialect {
		return true, nil
	}
	err = s.reading(ctx, func(tx *Tx) error {
		settled, _, err = one(tx, scanInto[bool], "SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) > CAST(? AS bigint)", m.Writer)
		return err
	})
	return settled, err
}

// EventPlacesBetween reads which streams have events with ids in (after, upTo], with the newest of each.
func (s *Store) EventPlacesBetween(ctx context.Context, after, upTo int64) (all []models.EventPlace, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (p models.EventPlace, err error) {
			err = r.Scan(&p.AccountID, &p.GroupID, &p.Rev)
			return p, err
		}, "SELECT account_id, group_id, max(rev) FROM events WHERE id > ? AND id <= ? GROUP BY account_id, group_id", after, upTo)
		return err
	})
	return all, err
}

// NewestEvent is the highest id that can be seen; 0 if there is no event.
func (s *Store) NewestEvent(ctx context.Context) (id int64, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		id, _, err = one(tx, scanInto[int64], "SELECT coalesce(max(id), 0) FROM events")
		return err
	})
	return id, err
}

// OldestEvent is the lowest id that is still there; 0 if there is no event.
func (s *Store) OldestEvent(ctx context.Context) (id int64, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		id, _, err = one(tx, scanInto[int64], "SELECT coalesce(min(id), 0) FROM events")
		return err
	})
	return id, err
}

// Hearer is who hears events: an account, a device of it if Device is set too, or else a service.
type Hearer struct {
	Account models.AccountID
	Device  models.ID
	Service models.ServiceID
}

// HeardEvent is an event with what its hearer is in it at the time of the read.
type HeardEvent struct {
	StoredEvent
	// Link is the service account id of the service's link; 0 if it has none.
	Link models.ID
	// Member tells whether the device is a live member of the event's group.
	Member bool
}

// EventsHeard reads up to limit events with ids in (after, upTo] that a hearer may be concerned by, in the order of the ids: of a device's account
// only those of groups that it is in, that begin or end, and of devices that were added; of a service only those that a consent of their time let it hear, and ends of links.
func (s *Store) EventsHeard(ctx context.Context, h Hearer, after, upTo int64, limit int) ([]HeardEvent, error) {
	where, args := "e.account_id = ?", []any{string(h.Account)}
	switch {
	case h.Service != "":
		where, args = "(l.account_id IS NOT NULL OR e.type = '"+string(models.EventLinkRevoked)+"')", nil
	case h.Device != 0:
		where += " AND (e.type IN ('" + string(models.EventDeviceAdded) + "', '" + string(models.EventGroupCreated) + "', '" + string(models.EventGroupEnded) +
			"') OR " + isMember + ")"
		args = append(args, int64(h.Device))
	}
	return s.heard(ctx, h, "LEFT JOIN", where+" AND e.id > ? AND e.id <= ? ORDER BY e.id LIMIT ?", append(args, after, upTo, limit))
}

// GroupEventsHeard reads up to limit events of a group that are newer than rev, oldest first, whether or not the device is a member.
func (s *Store) GroupEventsHeard(ctx context.Context, h Hearer, group models.GroupID, rev int64, limit int) ([]HeardEvent, error) {
	where, args := "e.account_id = ?", []any{string(h.Account)}
	if h.Service != "" {
		where, args = "1 = 1", nil
	}
	return s.heard(ctx, h, "JOIN", where+" AND e.group_id = ? AND e.rev > ? ORDER BY e.rev LIMIT ?", append(args, string(group), rev, limit))
}

const isMember = "EXISTS (SELECT 1 FROM registrations r WHERE r.group_id = e.group_id AND r.owner_device = ?)"

func (s *Store) heard(ctx context.Context, h Hearer, join, where string, args []any) (all []HeardEvent, err error) {
	columns, from, first := "0, "+isMember, "events e", []any{int64(h.Device)}
	if h.Service != "" {
		columns = "coalesce(l.service_account_id, 0), 1 = 0"
		from += " " + join + " service_links l ON l.service_id = ? AND l.account_id = e.account_id AND " + linkHeard + " AND " + linkHears
		first = []any{string(h.Service)}
	}
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (v HeardEvent, err error) {
			var payload string
			if err = r.Scan(&v.ID, &v.AccountID, &v.PremisesID, &v.GroupID, &v.Rev, &v.Type, &payload, timeColumn{&v.At}, &v.Link, &v.Member); err != nil {
				return v, err
			}
			if err = v.read([]byte(payload)); err != nil {
				return v, fmt.Errorf("read the payload of event %d: %w", v.ID, err)
			}
			return v, nil
		}, "SELECT "+eventColumns+", "+columns+" FROM "+from+" WHERE "+where, append(first, args...)...)
		return err
	})
	return all, err
}

// IsGroupMember tells whether a device is a live member of a group.
func (s *Store) IsGroupMember(ctx context.Context, device models.ID, group models.GroupID) (is bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		n, _, err := one(tx, scanInto[int], "SELECT count(*) FROM registrations WHERE owner_device = ? AND group_id = ?", int64(device), string(group))
		is = n > 0
		return err
	})
	return is, err
}

// HearingAccount is what a hearer of an account's groups needs to know of it.
type HearingAccount struct {
	JoinPolicy models.JoinPolicy
	// Link is the service account id of the service's link; 0 if it has none.
	Link models.ID
}

// HearingAccounts reads accounts as a service, or as nobody in particular, and the clock.
func (s *Store) HearingAccounts(ctx context.Context, service models.ServiceID, accounts []models.AccountID) (map[models.AccountID]HearingAccount, time.Time, error) {
	all, now := map[models.AccountID]HearingAccount{}, time.Time{}
	err := s.reading(ctx, func(tx *Tx) error {
		_, err := list(tx, func(r row) (struct{}, error) {
			var id models.AccountID
			var policy string
			var a HearingAccount
			if err := r.Scan(&id, &policy, &a.Link, timeColumn{&now}); err != nil {
				return struct{}{}, err
			}
			if policy != "" {
				if err := json.Unmarshal([]byte(policy), &a.JoinPolicy); err != nil {
					return struct{}{}, fmt.Errorf("join_policy of %s: %w", id, err)
				}
			}
			all[id] = a
			return struct{}{}, nil
		}, `SELECT a.id, a.join_policy, coalesce(l.service_account_id, 0), {now} FROM accounts a
			LEFT JOIN service_links l ON l.account_id = a.id AND l.service_id = ? AND (l.expires_at = 0 OR l.expires_at > {now})
			WHERE a.id {among texts}`, string(service), texts(tx, accounts))
		return err
	})
	return all, now, err
}

// HeldBy is who holds streams, by what they came with.
type HeldBy struct {
	Devices  []models.ID
	Services []models.ServiceID
	Users    []string
}

// NotBefore reads of all at once since when their tokens count; whoever is gone is missing.
func (s *Store) NotBefore(ctx context.Context, h HeldBy) (all map[string]time.Time, err error) {
	all = map[string]time.Time{}
	read := func(text string, among func(*Tx) string) error {
		return s.reading(ctx, func(tx *Tx) error {
			_, err := list(tx, func(r row) (struct{}, error) {
				var id string
				var at time.Time
				err := r.Scan(&id, timeColumn{&at})
				all[id] = at
				return struct{}{}, err
			}, text, among(tx))
			return err
		})
	}
	if len(h.Devices) > 0 {
		if err := read("SELECT CAST(id AS text), not_before FROM devices WHERE id {among bigints}", func(tx *Tx) string { return tx.ids(h.Devices) }); err != nil {
			return nil, err
		}
	}
	if len(h.Services) > 0 {
		if err := read("SELECT id, not_before FROM services WHERE id {among texts}", func(tx *Tx) string { return texts(tx, h.Services) }); err != nil {
			return nil, err
		}
	}
	if len(h.Users) > 0 {
		if err := read("SELECT id, not_before FROM users WHERE id {among texts}", func(tx *Tx) string { return texts(tx, h.Users) }); err != nil {
			return nil, err
		}
	}
	return all, nil
}
