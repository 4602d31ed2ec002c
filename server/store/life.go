package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/groupcast/groupcast/models"
)

// longTimeout bounds a transaction that touches every gateway or address.
const longTimeout = 5 * time.Minute

// Life is what beginning a new life of the database led to.
type Life struct {
	Epoch string
	// Groups is how many groups ended.
	Groups int64
}

// BeginLife makes the database one whose past is not known to its end, because it was restored from a backup. Whatever was handed
// out since the backup was made, and to whom, is lost; so nothing that this database says about free addresses can be believed.
//
//   - The epoch is a new one: gateways take the whole group information, whatever revision they had.
//   - Every address without a group is quarantined from now on, and no group name has a claim on it.
//   - Generations go on from the clock's seconds (see [generationAt]). None that was ever handed out, in whatever life, was ahead of the
//     clock at that time (see [Tx.Allocate]), so all that are handed out from now on are new.
//   - So do the numbers of events, which leave a gap where the lost life's were: a receiver applies only what is newer than what it has.
//     Every group gets an event that says how it is now.
//   - Relays served in the lost life whom they don't serve here: each copies again when it has acknowledged its premises in this life and has asked for consents,
//     and until then the gateways copy, or nobody does if the account holder wants that.
//   - Addresses that a gateway declares later begin the same way (see [Tx.InsertAddresses]).
//
// keep decides, from how far the replicas were with ending leases, whether groups keep their addresses. If not, they all end.
// The transaction may take minutes, and other writers wait for it. then is its last
// step.
func (s *Store) BeginLife(ctx context.Context, keep func(Watch) bool, then func(*Tx, Life) error) (life Life, err error) {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return Life{}, fmt.Errorf("draw an epoch: %w", err)
	}
	err = s.long(ctx, "begin a new life of the database", func(tx *Tx) error {
		life = Life{Epoch: hex.EncodeToString(random)}
		if err := tx.beginLife(&life, keep); err != nil {
			return err
		}
		return then(tx, life)
	})
	if err != nil {
		return Life{}, err
	}
	return life, nil
}

// long runs a transaction that touches every gateway, and may take minutes.
func (s *Store) long(ctx context.Context, what string, f func(tx *Tx) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	pool := s.pools[0]
	if s.dialect == postgresDialect { // a connection whose statements may take long
		if pool, err = s.postgresPool(longTimeout); err != nil {
			return err
		}
		defer func() { _ = pool.Close() }()
	}
	db, err := s.gormOn(pool)
	if err != nil {
		return err
	}
	if err := s.transaction(ctx, db, &sql.TxOptions{}, f); err != nil {
		return s.failure(ctx, fmt.Errorf("%s: %w", what, err), s.dialect.classify(err) == conflict)
	}
	return nil
}

// generationAt makes a generation of a time: seconds since 2020, which the contract's 32 bits hold until 2088.
func generationAt(ms string) string { return "((" + ms + " - 1577836800000) / 1000)" }

func (tx *Tx) beginLife(life *Life, keep func(Watch) bool) error {
	w, err := tx.LockWatch()
	if err != nil {
		return err
	}
	fallen, err := list(tx, scanInto[models.PremisesID], "SELECT premises_id FROM relay_assignments WHERE forwarding")
	if err != nil {
		return err
	}
	// The gateways' rows are the locks of all that follows.
	statements := []string{
		"UPDATE gateways SET revision = revision + 1",
		"UPDATE groups SET rev = " + generationAt("{now}") + " WHERE rev < " + generationAt("{now}"),
		"UPDATE accounts SET account_rev = " + generationAt("{now}") + " WHERE account_rev < " + generationAt("{now}"),
	}
	statements = append(statements, backFromRelays...)
	happened := models.EventGroupChanged // whoever heard events of the lost life hears the truth
	kept := keep(w)
	if !kept {
		if life.Groups, _, err = one(tx, scanInto[int64], "SELECT count(*) FROM groups"); err != nil {
			return err
		}
		happened = models.EventGroupEnded
		statements = append(statements,
			"UPDATE addresses SET state = 'quarantined', group_id = NULL WHERE state = 'allocated'",
			"DELETE FROM registrations")
	}
	if err := tx.execAll(statements); err != nil {
		return err
	}
	if err := tx.appendGroupEvents(happened, "<> ''"); err != nil {
		return err
	}
	statements = nil
	if !kept {
		statements = append(statements, "DELETE FROM groups")
	}
	statements = append(statements,
		`UPDATE addresses SET state = 'quarantined', last_group_name = '', released_at = {now},
			released_revision = (SELECT g.revision FROM gateways g WHERE g.id = addresses.gateway_id), `+releasedByRelay+` WHERE state <> 'allocated'`,
		"UPDATE addresses SET generation = "+generationAt("{now}")+" WHERE generation < "+generationAt("{now}"),
		// Gateways may hold the lost life's groups, so they count as live until they had the time to ask.
		"UPDATE gateway_polls SET epoch = '', acked_revision = 0, polled_at = {now}",
		"UPDATE relay_polls SET epoch = '', acked_revision = 0, polled_at = {now}",
	)
	if err := tx.execAll(statements); err != nil {
		return err
	}
	if _, err = tx.exec("UPDATE installation SET epoch = ?, restored_at = {now}", life.Epoch); err != nil {
		return err
	}
	return tx.AppendPremisesEvents(fallen)
}

// backFromRelays lets no relay copy, as it is before a relay is ready. The gateways are locked.
var backFromRelays = []string{
	"DELETE FROM senders WHERE relay_id <> 0",
	"DELETE FROM consents WHERE relay_id <> 0",
	"UPDATE consents SET counts = true WHERE NOT counts",
	"UPDATE relay_assignments SET acked_at = 0, forwarding = false, " + haltedIfWanted,
	"UPDATE gateways SET forwarding = false WHERE forwarding",
}

func (tx *Tx) execAll(statements []string) error {
	for _, statement := range statements {
		if _, err := tx.exec(statement); err != nil {
			return err
		}
	}
	return nil
}
