package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

const gatewayColumns = `gateways.id, gateways.account_id, gateways.premises_id, gateways.lan_prefix, gateways.lan_addr, gateways.uplink,
	gateways.range_first, gateways.range_last, gateways.revision, gateways.behind_nat`

func gatewayFields(g *models.Gateway) []any {
	return []any{
		&g.ID, &g.AccountID, &g.PremisesID,
		prefixColumn{&g.LANPrefix},
		addrColumn{&g.LANAddr},
		addrColumn{&g.Uplink},
		addrColumn{&g.Range.First},
		addrColumn{&g.Range.Last},
		&g.Revision,
		&g.BehindNAT,
	}
}

func scanGateway(r row) (g models.Gateway, err error) {
	err = r.Scan(gatewayFields(&g)...)
	return g, err
}

// Gateway reads a gateway of one account.
func (tx *Tx) Gateway(account models.AccountID, id models.ID) (models.Gateway, bool, error) {
	return one(tx, scanGateway, "SELECT "+gatewayColumns+" FROM gateways WHERE id = ? AND account_id = ?", int64(id), string(account))
}

// GatewaysOf reads the gateways of a premises, sorted by id, whether they have declared anything or not.
func (tx *Tx) GatewaysOf(premises models.PremisesID) ([]models.Gateway, error) {
	return list(tx, scanGateway, "SELECT "+gatewayColumns+" FROM gateways WHERE premises_id = ? ORDER BY id", string(premises))
}

// LockGateway raises the gateway's revision, which locks it until commit, and reads it as it is then.
func (tx *Tx) LockGateway(id models.ID) (models.Gateway, bool, error) {
	return tx.lockGateway("= ?", int64(id))
}

// LockGatewayOfRegistration does the same with the gateway of an owner's registration.
func (tx *Tx) LockGatewayOfRegistration(id models.RegistrationID, o Owner) (models.Gateway, bool, error) {
	owner, args := o.where()
	return tx.lockGateway(`= (SELECT g.gateway_id FROM registrations r JOIN groups g ON g.id = r.group_id WHERE r.id = ? AND `+owner+`)`,
		append([]any{string(id)}, args...)...)
}

func (tx *Tx) lockGateway(where string, args ...any) (models.Gateway, bool, error) {
	v, found, err := one(tx, scanGateway, lockGateway(where), args...)
	if found {
		tx.changed.raised(v.ID)
	}
	return v, found, err
}

// lockGateway is the statement that locks the gateway whose id the condition gives.
func lockGateway(where string) string {
	return "UPDATE gateways SET revision = revision + 1 WHERE id " + where + " RETURNING " + gatewayColumns
}

// HoldGatewaysOf locks the gateways of a premises until commit without raising a revision, so that none of their groups changes.
func (tx *Tx) HoldGatewaysOf(premises models.PremisesID) error {
	_, err := tx.exec("UPDATE gateways SET revision = revision WHERE premises_id = ?", string(premises))
	return err
}

// HoldGatewaysOfAccount does the same with all gateways of an account, in the order of their ids.
func (tx *Tx) HoldGatewaysOfAccount(account models.AccountID) error {
	ids, err := list(tx, scanInto[int64], "SELECT id FROM gateways WHERE account_id = ? ORDER BY id", string(account))
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := tx.exec("UPDATE gateways SET revision = revision WHERE id = ?", id); err != nil {
			return err
		}
	}
	return nil
}

// InsertGateway adds a gateway that has declared nothing yet.
func (tx *Tx) InsertGateway(g models.Gateway) error {
	if _, err := tx.exec("INSERT INTO gateways (id, account_id, premises_id) VALUES (?, ?, ?)",
		int64(g.ID), string(g.AccountID), string(g.PremisesID)); err != nil {
		return err
	}
	_, err := tx.exec("INSERT INTO gateway_polls (gateway_id) VALUES (?)", int64(g.ID))
	return err
}

// SetDeclaration records what a gateway declared.
func (tx *Tx) SetDeclaration(g models.Gateway) error {
	_, err := tx.exec("UPDATE gateways SET lan_prefix = ?, lan_addr = ?, uplink = ?, range_first = ?, range_last = ?, behind_nat = ? WHERE id = ?",
		g.LANPrefix.String(), addrText(g.LANAddr), addrText(g.Uplink), addrText(g.Range.First), addrText(g.Range.Last), g.BehindNAT, int64(g.ID))
	return err
}

// DeleteGateway removes a gateway without groups, and its addresses.
func (tx *Tx) DeleteGateway(id models.ID) error {
	for _, statement := range []string{
		"DELETE FROM addresses WHERE gateway_id = ?",
		"DELETE FROM gateway_polls WHERE gateway_id = ?",
		"DELETE FROM gateways WHERE id = ?",
	} {
		if _, err := tx.exec(statement, int64(id)); err != nil {
			return err
		}
	}
	return nil
}

// StandingsOf reads where those of the gateways stand that exist, in one statement whatever their number. On Postgres those who ask for one
// gateway at the same time share it.
func (s *Store) StandingsOf(ctx context.Context, ids []models.ID) (map[models.ID]models.Standing, error) {
	standings := make(map[models.ID]models.Standing, len(ids))
	if len(ids) == 0 {
		return standings, nil
	}
	if len(ids) == 1 && s.standings != nil {
		v, err := s.standings.ask(ctx, ids[0])
		if v != nil {
			standings[ids[0]] = *v
		}
		return standings, err
	}
	type standing struct {
		models.Standing
		id models.ID
	}
	err := s.reading(ctx, func(tx *Tx) error {
		all, err := list(tx, func(r row) (v standing, err error) {
			err = r.Scan(&v.id, &v.Revision, timeColumn{&v.NotBefore})
			return v, err
		}, "SELECT g.id, g.revision, d.not_before FROM gateways g JOIN devices d ON d.id = g.id WHERE g.id {among bigints}", tx.ids(ids))
		for _, v := range all {
			standings[v.id] = v.Standing
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return standings, nil
}

func (s *Store) standingsOfMany(ctx context.Context, ids []models.ID) ([]*models.Standing, error) {
	if len(ids) == 1 {
		ids = append(ids, 0) // nobody's, so that this doesn't ask itself
	}
	known, err := s.StandingsOf(ctx, ids)
	all := make([]*models.Standing, len(ids))
	for i, id := range ids {
		if v, there := known[id]; there {
			all[i] = &v
		}
	}
	return all, err
}

// maxPolls keeps a statement below the number of parameters that SQLite takes.
const maxPolls = 1000

// RecordPolls records when gateways asked and what they acknowledged. What is older than what is there changes nothing, and
// gateways that are gone are left out, so batches of several replicas may come in any order.
func (s *Store) RecordPolls(ctx context.Context, polls []models.Poll) error {
	for len(polls) > 0 {
		batch := polls[:min(len(polls), maxPolls)]
		polls = polls[len(batch):]
		values := tuples("(CAST(? AS bigint), ?, CAST(? AS bigint), CAST(? AS bigint))", len(batch))
		var args []any
		for _, p := range batch {
			args = append(args, int64(p.GatewayID), p.Epoch, p.Revision, p.Ago.Milliseconds())
		}
		err := s.writing(ctx, func(tx *Tx) error {
			_, err := tx.exec(`
				WITH poll (gateway_id, epoch, revision, ago) AS (VALUES `+values+`)
				UPDATE gateway_polls SET
					acked_revision = CASE WHEN gateway_polls.epoch = poll.epoch AND gateway_polls.acked_revision > poll.revision
						THEN gateway_polls.acked_revision ELSE poll.revision END,
					epoch = poll.epoch,
					polled_at = CASE WHEN polled_at > {now} - poll.ago THEN polled_at ELSE {now} - poll.ago END
				FROM poll WHERE gateway_polls.gateway_id = poll.gateway_id`, args...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
