package store

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
)

// AppendGroupEvents raises the rev of groups and records for each of them an event with the group as it is now, so it comes after all
// that changes the group. On Postgres it is one statement.
func (tx *Tx) AppendGroupEvents(t models.EventType, ids []models.GroupID) error {
	if len(ids) == 0 {
		return nil
	}
	return tx.appendGroupEvents(t, "{among texts}", texts(tx, ids))
}

func (tx *Tx) appendGroupEvents(t models.EventType, which string, args ...any) error {
	policy := "'policy', ''"
	if t == models.EventGroupCreated {
		policy = "'policy', (SELECT a.join_policy FROM accounts a WHERE a.id = raised.account_id)"
	}
	return tx.appendEvents(raising{table: "groups", number: "rev", which: which, args: args},
		"raised.account_id, raised.premises_id, raised.id, raised.rev, CAST(? AS text), CAST("+tx.store.dialect.groupState("raised", policy)+" AS text)",
		string(t))
}

// AppendAccountEvent raises an account's own rev and records an event that belongs to no group; the event's stream, number and time
// come from that. It holds the account's row until commit, and is the last lock that a transaction takes.
func (tx *Tx) AppendAccountEvent(account models.AccountID, e models.Event) error {
	state, err := json.Marshal(stateOfAccount(e))
	if err != nil {
		return fmt.Errorf("write the state of an event: %w", err)
	}
	err = tx.appendEvents(raising{table: "accounts", number: "account_rev", which: "= ?", args: []any{string(account)}},
		"raised.id, CAST(? AS text), '', raised.account_rev, CAST(? AS text), CAST(? AS text)",
		string(e.PremisesID), string(e.Type), string(state))
	if err == nil && e.Link != nil {
		err = tx.noteLinkEvent(account, e.Link.Link)
	}
	return err
}

// AppendPremisesEvents tells the accounts of premises how these are now. Accounts are locked in the order of their ids.
func (tx *Tx) AppendPremisesEvents(ids []models.PremisesID) error {
	all, err := list(tx, scanPremises, "SELECT "+premisesColumns+" FROM premises WHERE id {among texts} ORDER BY account_id, id", texts(tx, ids))
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := tx.AppendAccountEvent(p.AccountID, models.Event{Type: models.EventPremisesChanged, PremisesID: p.ID, Premises: &p}); err != nil {
			return err
		}
	}
	return nil
}

// AppendLinkEvent records that a link was granted or revoked.
func (tx *Tx) AppendLinkEvent(t models.EventType, l models.Link) error {
	v, _, err := tx.Service(l.ServiceID)
	if err != nil {
		return err
	}
	return tx.AppendAccountEvent(l.AccountID, models.Event{Type: t, Link: &models.NamedLink{Link: l, ServiceName: v.Name}})
}

// raising are the rows whose number the next events get.
type raising struct {
	table, number, which string
	args                 []any
}

// appendEvents raises the numbers, inserts an event for each of the rows and notes those of groups for webhooks. SQLite can't do that in one
// statement.
func (tx *Tx) appendEvents(n raising, values string, args ...any) error {
	raise := "UPDATE " + n.table + " SET " + n.number + " = " + n.number + " + 1 WHERE id " + n.which
	const insert = "INSERT INTO events (account_id, premises_id, group_id, rev, type, payload, created_at) SELECT "
	const place = " RETURNING account_id, group_id, rev"
	happened := func(r row) error {
		var p models.EventPlace
		err := r.Scan(&p.AccountID, &p.GroupID, &p.Rev)
		tx.changed.Events = append(tx.changed.Events, p)
		return err
	}
	groups := n.table == "groups"
	if tx.store.dialect != sqliteDialect {
		noted := ""
		if groups {
			noted = ", noted AS (" + noteGroupEvents + "told" + ofLinkedService + webhookNewest + ")"
		}
		return tx.later(happened, "WITH raised AS ("+raise+" RETURNING *), told AS ("+insert+values+", {now} FROM raised"+place+", type)"+noted+
			" SELECT account_id, group_id, rev FROM told", slices.Concat(n.args, args)...)
	}
	if _, err := tx.exec(raise, n.args...); err != nil {
		return err
	}
	err := tx.later(happened, insert+values+", {now} FROM "+n.table+" raised WHERE raised.id "+n.which+place, slices.Concat(args, n.args)...)
	if err != nil || !groups {
		return err
	}
	return tx.later(nil, noteGroupEvents+
		"groups raised JOIN events told ON told.account_id = raised.account_id AND told.group_id = raised.id AND told.rev = raised.rev"+
		ofLinkedService+" AND raised.id "+n.which+webhookNewest, n.args...)
}

// What the column payload holds; dialect.groupState writes groupPayload.
type (
	groupPayload struct {
		Name       string          `json:"name"`
		IP         netip.Addr      `json:"ip"`
		Generation int64           `json:"generation"`
		Policy     string          `json:"policy"` // the column join_policy, in the event that the group was created
		Members    []memberPayload `json:"members"`
		Uplink     netip.Addr      `json:"uplink"`
		Senders    []senderPayload `json:"senders"`
	}
	memberPayload struct {
		Type models.MemberType `json:"type"`
		ID   models.ID         `json:"id"`
		Role models.Role       `json:"role"`
		Name string            `json:"name"`
		// Consent is missing in events of older versions.
		Consent models.ConsentState `json:"consent"`
	}
	accountPayload struct {
		Device *devicePayload `json:"device,omitempty"`
		Link   *linkPayload   `json:"link,omitempty"`
		Pool   *poolPayload   `json:"pool,omitempty"`

		Premises *premisesPayload `json:"premises,omitempty"`
	}
	devicePayload struct {
		ID    models.ID         `json:"id"`
		Type  models.DeviceType `json:"type"`
		Name  string            `json:"name"`
		Model string            `json:"model"`
	}
	premisesPayload struct {
		Name        string             `json:"name"`
		Fanout      models.Fanout      `json:"fanout"`
		OnRelayLoss models.OnRelayLoss `json:"onRelayLoss"`
		CopiedAt    models.CopiedAt    `json:"copiedAt"`
	}
	linkPayload struct {
		ServiceID        models.ServiceID `json:"service"`
		ServiceName      string           `json:"name"`
		ServiceAccountID models.ID        `json:"serviceAccountId"`
		models.Consent
	}
	poolPayload struct {
		GatewayID   models.ID `json:"gateway"`
		Size        int       `json:"size"`
		Allocated   int       `json:"allocated"`
		Quarantined int       `json:"quarantined"`
	}
)

func stateOfAccount(e models.Event) (p accountPayload) {
	switch {
	case e.Device != nil:
		p.Device = &devicePayload{ID: e.Device.ID, Type: e.Device.Type, Name: e.Device.Name, Model: e.Device.Model}
	case e.Link != nil:
		p.Link = &linkPayload{
			ServiceID: e.Link.ServiceID, ServiceName: e.Link.ServiceName, ServiceAccountID: e.Link.ServiceAccountID, Consent: e.Link.Consent,
		}
	case e.Pool != nil:
		p.Pool = &poolPayload{GatewayID: e.Pool.GatewayID, Size: e.Pool.Size, Allocated: e.Pool.Allocated, Quarantined: e.Pool.Quarantined}
	case e.Premises != nil:
		p.Premises = &premisesPayload{Name: e.Premises.Name, Fanout: e.Premises.Fanout, OnRelayLoss: e.Premises.OnRelayLoss, CopiedAt: e.Premises.CopiedAt}
	}
	return p
}

const eventColumns = "e.id, e.account_id, e.premises_id, e.group_id, e.rev, e.type, e.payload, e.created_at"

// StoredEvent is an event with its place in the table.
type StoredEvent struct {
	ID int64
	models.Event
}

func scanEvent(r row) (e StoredEvent, err error) {
	var payload string
	if err = r.Scan(&e.ID, &e.AccountID, &e.PremisesID, &e.GroupID, &e.Rev, &e.Type, &payload, timeColumn{&e.At}); err != nil {
		return e, err
	}
	if err = e.read([]byte(payload)); err != nil {
		return e, fmt.Errorf("read the payload of event %d: %w", e.ID, err)
	}
	return e, nil
}

func (e *StoredEvent) read(payload []byte) error {
	if e.GroupID != "" {
		var p groupPayload
		if err := json.Unmarshal(payload, &p); err != nil {
			return err
		}
		e.Group = &models.GroupState{Group: models.Group{
			ID: e.GroupID, AccountID: e.AccountID, PremisesID: e.PremisesID, Name: p.Name, IP: p.IP, Generation: p.Generation, Rev: e.Rev,
		}, Members: []models.Member{}}
		if p.Policy != "" {
			e.JoinPolicy = &models.JoinPolicy{}
			if err := json.Unmarshal([]byte(p.Policy), e.JoinPolicy); err != nil {
				return err
			}
		}
		for _, m := range p.Members {
			e.Group.Members = append(e.Group.Members, models.Member{Type: m.Type, ID: m.ID, Role: m.Role, Name: m.Name, Consent: m.Consent})
			if m.Role == models.RoleDestination {
				e.Group.State++
			}
		}
		for _, s := range p.Senders {
			e.Group.Senders = append(e.Group.Senders, s.places(p.Uplink)...)
		}
		return nil
	}
	var p accountPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return err
	}
	switch {
	case p.Device != nil:
		e.Device = &models.Device{
			ID: p.Device.ID, AccountID: e.AccountID, PremisesID: e.PremisesID, Type: p.Device.Type, Name: p.Device.Name, Model: p.Device.Model,
		}
	case p.Link != nil:
		e.Link = &models.NamedLink{
			Link: models.Link{
				ServiceID: p.Link.ServiceID, AccountID: e.AccountID, ServiceAccountID: p.Link.ServiceAccountID, Consent: p.Link.Consent,
			},
			ServiceName: p.Link.ServiceName,
		}
	case p.Pool != nil:
		e.Pool = &models.GatewayPool{
			GatewayID: p.Pool.GatewayID,
			Pool:      models.Pool{Size: p.Pool.Size, Allocated: p.Pool.Allocated, Quarantined: p.Pool.Quarantined},
		}
	case p.Premises != nil:
		e.Premises = &models.Premises{
			ID: e.PremisesID, AccountID: e.AccountID, Name: p.Premises.Name, Fanout: p.Premises.Fanout, OnRelayLoss: p.Premises.OnRelayLoss, CopiedAt: p.Premises.CopiedAt,
		}
	}
	return nil
}

// EventsAfter reads up to limit events of a stream that are newer than rev, oldest first.
func (s *Store) EventsAfter(ctx context.Context, of models.EventStream, rev int64, limit int) (all []models.Event, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (models.Event, error) {
			e, err := scanEvent(r)
			return e.Event, err
		}, "SELECT "+eventColumns+" FROM events e WHERE e.account_id = ? AND e.group_id = ? AND e.rev > ? ORDER BY e.rev LIMIT ?",
			string(of.AccountID), string(of.GroupID), rev, limit)
		return err
	})
	return all, err
}

// EventBounds tells the oldest event of a stream that is still there, 0 if none is, and the number that the newest one had.
func (s *Store) EventBounds(ctx context.Context, of models.EventStream) (oldest, newest int64, err error) {
	type bounds struct{ oldest, newest int64 }
	// A group that ended has no row, an account without events is none that was ever numbered.
	number, id := "SELECT rev FROM groups WHERE id = ? AND account_id = ?", []any{string(of.GroupID), string(of.AccountID)}
	if of.GroupID == "" {
		number, id = "SELECT account_rev FROM accounts WHERE id = ?", []any{string(of.AccountID)}
	}
	err = s.reading(ctx, func(tx *Tx) error {
		b, _, err := one(tx, func(r row) (b bounds, err error) { err = r.Scan(&b.oldest, &b.newest); return b, err },
			"SELECT coalesce(min(e.rev), 0), coalesce(("+number+"), max(e.rev), 0) FROM events e WHERE e.account_id = ? AND e.group_id = ?",
			append(id, string(of.AccountID), string(of.GroupID))...)
		oldest, newest = b.oldest, b.newest
		return err
	})
	return oldest, newest, err
}

// NewestEvents names the newest event of each of the streams that has any; a stream of which all were swept has none.
func (s *Store) NewestEvents(ctx context.Context, of []models.EventStream) (all []models.EventPlace, err error) {
	asked := make(map[models.EventStream]bool, len(of))
	accounts, groups := make([]models.AccountID, len(of)), make([]models.GroupID, len(of))
	for i, o := range of {
		asked[o] = true
		accounts[i], groups[i] = o.AccountID, o.GroupID
	}
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (p models.EventPlace, err error) {
			err = r.Scan(&p.AccountID, &p.GroupID, &p.Rev)
			return p, err
		}, "SELECT account_id, group_id, max(rev) FROM events WHERE account_id {among texts} AND group_id {among texts} GROUP BY account_id, group_id",
			texts(tx, accounts), texts(tx, groups))
		return err
	})
	return slices.DeleteFunc(all, func(p models.EventPlace) bool { return !asked[p.EventStream] }), err
}

// EventBacklog is what waits to be published.
type EventBacklog struct {
	Count int
	// Oldest is how long the oldest of it has been waiting; 0 if nothing waits.
	Oldest time.Duration
}

// EventBacklog tells what waits to be published.
func (s *Store) EventBacklog(ctx context.Context) (b EventBacklog, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		b, _, err = one(tx, func(r row) (b EventBacklog, err error) {
			var ms int64
			err = r.Scan(&b.Count, &ms)
			b.Oldest = max(time.Duration(ms)*time.Millisecond, 0)
			return b, err
		}, "SELECT count(*), coalesce({now} - min(created_at), 0) FROM events WHERE published_at = 0")
		return err
	})
	return b, err
}

// EventRetention is how long events stay, for readers that resume and for a queue that lost what it had.
const EventRetention = 24 * time.Hour

// SweepEvents removes published events that are older than EventRetention, and tells how many. It looks at the oldest limit only. The newest
// event that a webhook waits for stays until it was delivered or given up.
func (s *Store) SweepEvents(ctx context.Context, limit int) (removed int64, err error) {
	err = s.writing(ctx, func(tx *Tx) error {
		removed, err = tx.exec(`
			DELETE FROM events WHERE id IN (SELECT o.id FROM (SELECT e.id FROM events e WHERE NOT EXISTS (
				SELECT 1 FROM webhook_streams s WHERE s.account_id = e.account_id AND s.group_id = e.group_id AND s.newest_rev = e.rev) ORDER BY e.id LIMIT ?) o)
			AND published_at <> 0 AND created_at <= {now} - ?`, limit, EventRetention.Milliseconds())
		return err
	})
	return removed, err
}
