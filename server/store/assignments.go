package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
)

// RelayReadyAfter is how long the acknowledgement of a relay waits for the consents that the gateway has.
const RelayReadyAfter = 3 * time.Second

// RelayLeftAfter is how long a relay holds a premises at most that leaves it, while its gateway hasn't acknowledged that it is to forward there no more.
const RelayLeftAfter = 5 * time.Second

// Assignment is which relay serves a premises.
type Assignment struct {
	PremisesID models.PremisesID
	AccountID  models.AccountID
	// RelayID is 0 if none does.
	RelayID    models.ID
	Forwarding bool
	Halted     bool
}

// InsertAssignment lets a premises be served by a relay; none does yet.
func (tx *Tx) InsertAssignment(id models.PremisesID) error {
	_, err := tx.exec("INSERT INTO relay_assignments (premises_id) VALUES (?) ON CONFLICT (premises_id) DO NOTHING", string(id))
	return err
}

// DeleteAssignment lets no relay serve a premises; MoveAssignments to none has to come before.
func (tx *Tx) DeleteAssignment(id models.PremisesID) error {
	_, err := tx.exec("DELETE FROM relay_assignments WHERE premises_id = ?", string(id))
	return err
}

// SetHalted says whether nobody copies while no relay can. It changes only what no relay does.
func (tx *Tx) SetHalted(id models.PremisesID, halted bool) error {
	where := " AND NOT forwarding"
	if halted {
		where = " AND relay_id IS NULL"
	}
	_, err := tx.exec("UPDATE relay_assignments SET halted = ? WHERE premises_id = ?"+where, halted, string(id))
	return err
}

// LockGatewaysOf raises the revisions of all gateways of some premises, which locks them until commit, and with them the relay that serves each.
func (tx *Tx) LockGatewaysOf(premises []models.PremisesID) error {
	_, err := list(tx, tx.scanLocked, lockGatewaysWhere("premises_id {among texts}"), texts(tx, premises))
	return err
}

// joinRelay lets a gateway, which is locked, belong to the relay that serves its premises, if it is new there: the gateways that were there when the relay was
// assigned do already. The assignment is locked, so that it isn't changed between what is read and what is written.
func (tx *Tx) joinRelay(g models.Gateway) error {
	relay, found, err := one(tx, scanInto[models.ID], "UPDATE relay_assignments SET halted = halted WHERE premises_id = ? RETURNING coalesce(relay_id, 0)", string(g.PremisesID))
	if err != nil || !found || relay == 0 {
		return err
	}
	n, err := tx.exec(`UPDATE gateways SET relay_id = ?, forwarding = (SELECT ra.forwarding FROM relay_assignments ra WHERE ra.premises_id = gateways.premises_id)
		WHERE id = ? AND relay_id <> ?`, int64(relay), int64(g.ID), int64(relay))
	if err == nil && n > 0 {
		_, _, err = tx.LockRelay(relay)
	}
	return err
}

// Assignments reads those of some premises, sorted.
func (tx *Tx) Assignments(premises []models.PremisesID) ([]Assignment, error) {
	return list(tx, func(r row) (v Assignment, err error) {
		err = r.Scan(&v.PremisesID, &v.AccountID, &v.RelayID, &v.Forwarding, &v.Halted)
		return v, err
	}, `SELECT ra.premises_id, p.account_id, coalesce(ra.relay_id, 0), ra.forwarding, ra.halted FROM relay_assignments ra JOIN premises p ON p.id = ra.premises_id
		WHERE ra.premises_id {among texts} ORDER BY ra.premises_id`, texts(tx, premises))
}

// membersOf are the registrations in the groups of some premises.
const membersOf = `(SELECT r.id FROM registrations r JOIN groups g ON g.id = r.group_id JOIN gateways w ON w.id = g.gateway_id
	WHERE w.premises_id {among texts})`

// haltedIfWanted lets nobody copy for an assignment whose relay doesn't copy any more, if the account holder wants that and no gateway did before.
const haltedIfWanted = `halted = (forwarding OR halted)
	AND EXISTS (SELECT 1 FROM premises p WHERE p.id = relay_assignments.premises_id AND p.on_relay_loss = 'stop')`

// MoveAssignments gives premises, whose gateways are locked, to a relay, or with 0 to none. Until it is ready the gateways copy; or nobody does, if the
// account holder wants that and no gateway did before. A relay that copies and lives keeps the premises until [Tx.LeaveRelays]; what another one reported is
// forgotten.
func (tx *Tx) MoveAssignments(premises []models.PremisesID, to models.ID) error {
	all := texts(tx, premises)
	var revision int64
	if to != 0 {
		relay, found, err := tx.LockRelay(to)
		if err != nil {
			return err
		}
		if !found {
			return ErrAgain
		}
		revision = relay.Revision
	}
	for _, s := range []struct {
		text string
		args []any
	}{
		{`INSERT INTO relay_departures (premises_id, relay_id, revision)
			SELECT DISTINCT w.premises_id, rl.id, rl.revision FROM gateways w JOIN relays rl ON rl.id IN (w.relay_id, w.leaving_id)
			WHERE w.premises_id {among texts} AND rl.id <> ?
			ON CONFLICT (premises_id, relay_id) DO UPDATE SET revision = excluded.revision`, []any{all, int64(to)}},
		{"UPDATE relay_assignments SET relay_id = ?, revision = ?, acked_at = 0, forwarding = false, " + haltedIfWanted + " WHERE premises_id {among texts}", []any{orNull(int64(to)), revision, all}},
		// A gateway that is told twice, before it has heard the first, may still forward to the relay of before.
		{fmt.Sprintf(`UPDATE gateways SET leaving_id = relay_id, leaving_revision = revision, leaving_until = {now} + %d
			WHERE premises_id {among texts} AND forwarding AND EXISTS (SELECT 1 FROM relays JOIN relay_polls rp ON rp.relay_id = relays.id
				WHERE relays.id = gateways.relay_id AND %s)`, RelayLeftAfter.Milliseconds(), liveRelay), []any{all}},
		{
			"UPDATE gateways SET relay_id = ?, forwarding = false, leaving_id = CASE leaving_id WHEN ? THEN 0 ELSE leaving_id END WHERE premises_id {among texts}",
			[]any{int64(to), int64(to), all},
		},
	} {
		if _, err := tx.exec(s.text, s.args...); err != nil {
			return err
		}
	}
	if err := tx.forgetRelays(premises); err != nil {
		return err
	}
	return tx.tellGroupsOf(premises, " AND w.leaving_id = 0")
}

// forgetRelays forgets what relays reported that don't hold the premises any more, and has those consents count that are with who copies.
func (tx *Tx) forgetRelays(premises []models.PremisesID) error {
	all := texts(tx, premises)
	for _, table := range []string{"senders", "consents"} {
		if _, err := tx.exec("DELETE FROM "+table+" WHERE (registration_id, relay_id) IN (SELECT t.registration_id, t.relay_id FROM "+table+` t
			JOIN registrations r ON r.id = t.registration_id JOIN groups g ON g.id = r.group_id JOIN gateways w ON w.id = g.gateway_id
			WHERE w.premises_id {among texts} AND t.relay_id NOT IN (0, w.relay_id, w.leaving_id))`, all); err != nil {
			return err
		}
	}
	return tx.recount(premises)
}

// recount has those consents count that are with who copies.
func (tx *Tx) recount(premises []models.PremisesID) error {
	_, err := tx.exec("UPDATE consents SET counts = NOT counts WHERE registration_id IN "+membersOf+" AND counts <> (relay_id = "+copier("consents.registration_id")+")",
		texts(tx, premises))
	return err
}

// tellGroupsOf tells the members of the groups of some premises how their consent stands now, and where copies come from. A condition on the gateways w leaves some out.
func (tx *Tx) tellGroupsOf(premises []models.PremisesID, but string) error {
	groups, err := list(tx, scanInto[models.GroupID], `SELECT g.id FROM groups g JOIN gateways w ON w.id = g.gateway_id
		WHERE w.premises_id {among texts}`+but+" ORDER BY g.id", texts(tx, premises))
	if err != nil || len(groups) == 0 {
		return err
	}
	return tx.AppendGroupEvents(models.EventConsentChanged, groups)
}

// acknowledged is the condition that the relay of an assignment under the alias ra lives and holds the premises.
var acknowledged = `EXISTS (SELECT 1 FROM relays JOIN relay_polls rp ON rp.relay_id = relays.id CROSS JOIN installation i
	WHERE relays.id = ra.relay_id AND ` + liveRelay + ` AND rp.epoch = i.epoch AND rp.acked_revision >= ra.revision)`

// ready is the condition that the relay of an assignment under the alias ra can copy instead of the gateways: it holds the premises, and every consent
// that a gateway has too; or it has had the time to ask for them.
var ready = "ra.relay_id IS NOT NULL AND NOT ra.forwarding AND " + acknowledged + fmt.Sprintf(` AND (ra.acked_at > 0 AND ra.acked_at <= {now} - %d OR NOT EXISTS (
	SELECT 1 FROM gateways w JOIN groups g ON g.gateway_id = w.id JOIN registrations r ON r.group_id = g.id
	JOIN consents c ON c.registration_id = r.id AND c.relay_id = 0 AND c.state = 'live'
	WHERE w.premises_id = ra.premises_id AND w.tunnel_key <> '' AND NOT EXISTS (SELECT 1 FROM consents n WHERE n.registration_id = c.registration_id AND n.sender_id = c.sender_id
		AND n.relay_id = ra.relay_id AND n.state = 'live')))`, RelayReadyAfter.Milliseconds())

// NoteAcknowledged notes when relays hold the premises that they were given.
func (s *Store) NoteAcknowledged(ctx context.Context) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec("UPDATE relay_assignments AS ra SET acked_at = {now} WHERE acked_at = 0 AND NOT forwarding AND relay_id IS NOT NULL AND " + acknowledged)
		return err
	})
}

// Forward lets relays copy for those of the premises, whose gateways are held, for which they are ready, and gives them. Their gateways hear of it; the relays
// have no news.
func (tx *Tx) Forward(premises []models.PremisesID) ([]models.PremisesID, error) {
	turned, err := list(tx, scanInto[models.PremisesID], "UPDATE relay_assignments AS ra SET forwarding = true, halted = false WHERE premises_id {among texts} AND "+ready+
		" RETURNING premises_id", texts(tx, premises))
	if err != nil || len(turned) == 0 {
		return nil, err
	}
	if _, err := list(tx, tx.scanRaised, "UPDATE gateways SET revision = revision + 1, forwarding = true WHERE premises_id {among texts} RETURNING id",
		texts(tx, turned)); err != nil {
		return nil, err
	}
	if err := tx.recount(turned); err != nil {
		return nil, err
	}
	return turned, tx.tellGroupsOf(turned, "")
}

// left is the condition that a gateway under the name gateways, which leaves a relay, doesn't forward there any more, or had the time to hear that it shouldn't.
const left = `gateways.leaving_id <> 0 AND (gateways.leaving_until <= {now} OR EXISTS (SELECT 1 FROM gateway_polls p CROSS JOIN installation i
	WHERE p.gateway_id = gateways.id AND p.epoch = i.epoch AND p.acked_revision >= gateways.leaving_revision))`

// LeaveRelays takes premises, whose gateways are held, from the relays that those have left, and gives the premises. The relays hear of it; the gateways have no news.
func (tx *Tx) LeaveRelays(premises []models.PremisesID) ([]models.PremisesID, error) {
	type gone struct {
		premises models.PremisesID
		relay    models.ID
	}
	all := texts(tx, premises)
	those, err := list(tx, func(r row) (v gone, err error) { err = r.Scan(&v.premises, &v.relay); return v, err },
		"UPDATE gateways SET leaving_until = 0 WHERE premises_id {among texts} AND "+left+" RETURNING premises_id, leaving_id", all)
	if err != nil || len(those) == 0 {
		return nil, err
	}
	of := map[models.PremisesID]bool{}
	relays := map[models.ID]bool{}
	for _, v := range those {
		of[v.premises], relays[v.relay] = true, true
	}
	for _, id := range slices.Sorted(maps.Keys(relays)) {
		if _, _, err := tx.LockRelay(id); err != nil { // one that was removed hears nothing more
			return nil, err
		}
	}
	for _, text := range []string{
		`INSERT INTO relay_departures (premises_id, relay_id, revision)
			SELECT DISTINCT w.premises_id, rl.id, rl.revision FROM gateways w JOIN relays rl ON rl.id = w.leaving_id
			WHERE w.premises_id {among texts} AND w.leaving_id <> 0 AND w.leaving_until = 0
			ON CONFLICT (premises_id, relay_id) DO UPDATE SET revision = excluded.revision`,
		"UPDATE gateways SET leaving_id = 0 WHERE premises_id {among texts} AND leaving_until = 0",
	} {
		if _, err := tx.exec(text, all); err != nil {
			return nil, err
		}
	}
	turned := slices.Sorted(maps.Keys(of))
	if err := tx.forgetRelays(turned); err != nil {
		return nil, err
	}
	return turned, tx.tellGroupsOf(turned, "")
}

// scanRaised notes that a gateway has news, and its relay none.
func (tx *Tx) scanRaised(r row) (id models.ID, err error) {
	if id, err = scanInto[models.ID](r); err == nil {
		tx.changed.raised(id)
	}
	return id, err
}

// Due is what is to be done about assignments.
type Due struct {
	// Pending tells that a relay isn't ready yet somewhere.
	Pending bool
	// Lost are premises whose relay is dead or may not serve them any more, Unserved those that have none and could have one, Ready those whose relay can copy
	// now; each up to the limit.
	Lost, Unserved, Ready []models.PremisesID
	// Left are premises that a relay holds still and needs to no more; up to the limit.
	Left []models.PremisesID
	// Rechecked are relays that serve nobody any more whom they may not.
	Rechecked []models.ID
}

// DueAssignments reads what is to be done, given how all relays stand.
func (s *Store) DueAssignments(ctx context.Context, relays []RelayStanding, limit int) (d Due, err error) {
	var live, dead, recheck []models.ID
	anyAll := false
	for _, r := range relays {
		switch {
		case r.Live:
			live = append(live, r.ID)
			anyAll = anyAll || r.All
			if r.Recheck {
				recheck = append(recheck, r.ID)
			}
		case r.Served > 0:
			dead = append(dead, r.ID)
		}
	}
	err = s.reading(ctx, func(tx *Tx) error {
		if d.Left, err = list(tx, scanInto[models.PremisesID], "SELECT DISTINCT premises_id FROM gateways WHERE "+left+" ORDER BY premises_id LIMIT ?", limit); err != nil {
			return err
		}
		pending, err := list(tx, scanInto[models.PremisesID], "SELECT premises_id FROM relay_assignments WHERE NOT forwarding AND relay_id IS NOT NULL LIMIT 1")
		if err != nil {
			return err
		}
		if d.Pending = len(pending) > 0; d.Pending {
			if d.Ready, err = list(tx, scanInto[models.PremisesID], "SELECT premises_id FROM relay_assignments ra WHERE "+ready+" ORDER BY premises_id LIMIT ?", limit); err != nil {
				return err
			}
		}
		if len(dead) > 0 {
			if d.Lost, err = list(tx, scanInto[models.PremisesID], "SELECT premises_id FROM relay_assignments WHERE relay_id {among bigints} ORDER BY premises_id LIMIT ?",
				tx.ids(dead), limit); err != nil {
				return err
			}
		}
		for _, id := range recheck {
			beyond, err := list(tx, scanInto[models.PremisesID], `SELECT ra.premises_id FROM relay_assignments ra JOIN relays rl ON rl.id = ra.relay_id
				WHERE ra.relay_id = ? AND NOT rl.all_premises
				AND NOT EXISTS (SELECT 1 FROM relay_premises m WHERE m.relay_id = ra.relay_id AND m.premises_id = ra.premises_id) ORDER BY ra.premises_id LIMIT ?`, int64(id), limit)
			if err != nil {
				return err
			}
			d.Lost = append(d.Lost, beyond...)
			if len(beyond) == 0 {
				d.Rechecked = append(d.Rechecked, id)
			}
		}
		if len(live) == 0 {
			return nil
		}
		d.Unserved, err = list(tx, scanInto[models.PremisesID], `SELECT ra.premises_id FROM relay_assignments ra WHERE ra.relay_id IS NULL AND NOT ra.forwarding
			AND EXISTS (SELECT 1 FROM gateways w WHERE w.premises_id = ra.premises_id AND w.tunnel_key <> '')
			AND (? OR EXISTS (SELECT 1 FROM relay_premises m WHERE m.premises_id = ra.premises_id AND m.relay_id {among bigints})) ORDER BY ra.premises_id LIMIT ?`,
			anyAll, tx.ids(live), limit)
		return err
	})
	return d, err
}

// EndRecheck notes that a relay, which is locked, serves nobody whom it may not.
func (tx *Tx) EndRecheck(id models.ID) error {
	_, err := tx.exec(`UPDATE relays SET recheck = false WHERE id = ? AND (all_premises OR NOT EXISTS (SELECT 1 FROM relay_assignments ra WHERE ra.relay_id = relays.id
		AND NOT EXISTS (SELECT 1 FROM relay_premises m WHERE m.relay_id = ra.relay_id AND m.premises_id = ra.premises_id)))`, int64(id))
	return err
}

// ServableBy reads which of the relays that may not serve all may serve some premises, and which premises any relay can serve: they have a gateway with a
// tunnel.
func (tx *Tx) ServableBy(premises []models.PremisesID) (map[models.PremisesID][]models.ID, error) {
	type line struct {
		premises models.PremisesID
		relay    models.ID
	}
	all, err := list(tx, func(r row) (v line, err error) { err = r.Scan(&v.premises, &v.relay); return v, err },
		`SELECT w.premises_id, coalesce(m.relay_id, 0) FROM (SELECT DISTINCT premises_id FROM gateways WHERE premises_id {among texts} AND tunnel_key <> '') w
		LEFT JOIN relay_premises m ON m.premises_id = w.premises_id`, texts(tx, premises))
	may := map[models.PremisesID][]models.ID{}
	for _, v := range all {
		may[v.premises] = append(may[v.premises], v.relay)
	}
	return may, err
}

// SweepDepartures forgets what relays have acknowledged.
func (s *Store) SweepDepartures(ctx context.Context) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec(`DELETE FROM relay_departures WHERE EXISTS (SELECT 1 FROM relay_polls rp CROSS JOIN installation i
			WHERE rp.relay_id = relay_departures.relay_id AND rp.epoch = i.epoch AND rp.acked_revision >= relay_departures.revision)`)
		return err
	})
}
