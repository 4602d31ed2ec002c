package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

const gatewayColumns = `gateways.id, gateways.account_id, gateways.premises_id, gateways.lan_prefix, gateways.lan_addr, gateways.uplink,
	gateways.range_first, gateways.range_last, gateways.revision, gateways.behind_nat, gateways.tunnel_key, gateways.tunnel_address`

// lockedColumns are those of a gateway that is being locked, the relay that serves it, and the one that it leaves.
const lockedColumns = gatewayColumns + ", gateways.relay_id, gateways.leaving_id"

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
		tunnelKeyColumn{&g.TunnelKey},
		addrColumn{&g.TunnelAddress},
	}
}

// scanLocked scans a gateway that is being locked, and notes that it and its relays have news. The database raises the relays' revisions with the
// gateway's (docs/adr/0063).
func (tx *Tx) scanLocked(r row) (g models.Gateway, err error) {
	var relays [2]models.ID
	if err = r.Scan(append(gatewayFields(&g), &relays[0], &relays[1])...); err != nil {
		return g, err
	}
	tx.changed.raised(g.ID)
	for _, id := range relays {
		if id != 0 {
			tx.changed.raised(id)
		}
	}
	return g, nil
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
	return one(tx, tx.scanLocked, lockGateway(where), args...)
}

// lockGateway is the statement that locks the gateway whose id the condition gives.
func lockGateway(where string) string { return lockGatewaysWhere("id " + where) }

func lockGatewaysWhere(where string) string {
	return "UPDATE gateways SET revision = revision + 1 WHERE " + where + " RETURNING " + lockedColumns
}

// HoldGatewaysOf locks the gateways of some premises until commit without raising a revision, so that none of their groups changes.
func (tx *Tx) HoldGatewaysOf(premises ...models.PremisesID) error {
	_, err := tx.exec("UPDATE gateways SET revision = revision WHERE premises_id {among texts}", texts(tx, premises))
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

// SetDeclaration records what a gateway, which is locked, declared. One that is new in a premises that a relay serves becomes the relay's.
func (tx *Tx) SetDeclaration(g models.Gateway) error {
	if err := tx.joinRelay(g); err != nil {
		return err
	}
	_, err := tx.exec("UPDATE gateways SET lan_prefix = ?, lan_addr = ?, uplink = ?, range_first = ?, range_last = ?, behind_nat = ?,"+
		" tunnel_key = ?, tunnel_address = ? WHERE id = ?",
		g.LANPrefix.String(), addrText(g.LANAddr), addrText(g.Uplink), addrText(g.Range.First), addrText(g.Range.Last), g.BehindNAT,
		g.TunnelKey.String(), addrText(g.TunnelAddress), int64(g.ID))
	return err
}

// EndTunnel takes back what a camera without groups declared. Its addresses stay, because a generation never starts again.
func (tx *Tx) EndTunnel(id models.ID) error {
	_, err := tx.exec("UPDATE gateways SET lan_prefix = '', range_first = '', range_last = '', tunnel_key = '' WHERE id = ?", int64(id))
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

// StandingsOf reads where those of the gateways and relays stand that exist, in one statement whatever their number. On Postgres those who ask for one
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
		}, `SELECT g.id, g.revision, d.not_before FROM gateways g JOIN devices d ON d.id = g.id WHERE g.id {among bigints}
			UNION ALL SELECT id, revision, not_before FROM relays WHERE id {among bigints} AND NOT removed`, tx.ids(ids), tx.ids(ids))
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

// RecordPolls records when gateways and relays asked and what they acknowledged. What is older than what is there changes nothing, and
// those that are gone are left out, so batches of several replicas may come in any order.
func (s *Store) RecordPolls(ctx context.Context, polls []models.Poll) error {
	var relays, gateways []models.Poll
	for _, p := range polls {
		if p.Relay {
			relays = append(relays, p)
		} else {
			gateways = append(gateways, p)
		}
	}
	if err := s.recordPolls(ctx, "relay_polls", "relay_id", relays); err != nil {
		return err
	}
	return s.recordPolls(ctx, "gateway_polls", "gateway_id", gateways)
}

func (s *Store) recordPolls(ctx context.Context, to, id string, polls []models.Poll) error {
	for len(polls) > 0 {
		batch := polls[:min(len(polls), maxPolls)]
		polls = polls[len(batch):]
		rows := newColumns(len(batch))
		for _, p := range batch {
			rows.add(int64(p.GatewayID), p.Epoch, p.Revision, p.Ago.Milliseconds())
			rows.end()
		}
		table, args := rows.table(s.dialect)
		write := s.writing
		if s.dialect != sqliteDialect {
			write = s.gathered // gorm would take arrays apart
		}
		err := write(ctx, func(tx *Tx) error {
			_, err := tx.exec(`
				WITH poll (id, epoch, revision, ago) AS (`+table+`)
				UPDATE `+to+` AS held SET
					acked_revision = CASE WHEN held.epoch = poll.epoch AND held.acked_revision > poll.revision
						THEN held.acked_revision ELSE poll.revision END,
					epoch = poll.epoch,
					polled_at = CASE WHEN polled_at > {now} - poll.ago THEN polled_at ELSE {now} - poll.ago END
				FROM poll WHERE held.`+id+` = poll.id`, args...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
