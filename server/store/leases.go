package store

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
)

// DueLeases reads up to limit registrations whose lease and grace are over, the longest overdue first.
func (s *Store) DueLeases(ctx context.Context, limit int) (due []Place, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		due, err = list(tx, scanPlace, `
			SELECT r.id, g.gateway_id FROM leases l JOIN registrations r ON r.id = l.registration_id JOIN groups g ON g.id = r.group_id
			WHERE l.removable_at <= {now} ORDER BY l.removable_at LIMIT ?`, limit)
		return err
	})
	return due, err
}

// EndDueLeases removes those of the leases that are still over, and gives their registrations. It removes nothing while an amnesty
// is being given, or if leases haven't been looked at for longer than outage: then there is one to be given.
func (tx *Tx) EndDueLeases(ids []models.RegistrationID, outage time.Duration) ([]models.RegistrationID, error) {
	return list(tx, scanInto[models.RegistrationID], `
		DELETE FROM leases WHERE registration_id {among texts} AND removable_at <= {now}
		AND EXISTS (SELECT 1 FROM installation WHERE amnesty_ms = 0 AND expiry_ran_at >= {now} - ?)
		RETURNING registration_id`, texts(tx, ids), outage.Milliseconds())
}

// ExtendLeases gives the next leases after a registration id, at most limit, the lesser of by and their own TTL on top. It
// answers the last id, which is empty if there were none.
func (tx *Tx) ExtendLeases(after string, limit int, by time.Duration) (last string, err error) {
	const extension = "CASE WHEN ttl_seconds * CAST(1000 AS bigint) < ? THEN ttl_seconds * CAST(1000 AS bigint) ELSE ? END"
	ms := by.Milliseconds()
	ids, err := list(tx, scanInto[string], `
		UPDATE leases SET expires_at = expires_at + `+extension+`, removable_at = removable_at + `+extension+`
		WHERE registration_id IN (SELECT registration_id FROM leases WHERE registration_id > ? ORDER BY registration_id LIMIT ?)
		RETURNING registration_id`, ms, ms, ms, ms, after, limit)
	for _, id := range ids {
		last = max(last, id)
	}
	return last, err
}
