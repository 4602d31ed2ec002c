package store

import (
	"context"
	"time"
)

// maxStaleInForce is, in seconds, what decides whether a gateway may still copy: the setting, or for a while the longer one before it.
const maxStaleInForce = "CASE WHEN {now} < max_stale_until AND max_stale_before > max_stale_seconds THEN max_stale_before ELSE max_stale_seconds END"

// SetMaxStale records how long gateways go on without an answer of ours, in whole seconds, and tells whether that is a change. Every gateway
// hears of a change, because its revision rises. One that doesn't ask goes by what it heard last; so the longer time counts until that
// and the margin are over: by then the addresses that were released before had their cooldown too.
func (s *Store) SetMaxStale(ctx context.Context, d, margin time.Duration) (changed bool, err error) {
	now, err := s.MaxStale(ctx)
	if err != nil || now == d {
		return false, err // at nearly every start
	}
	seconds := int64(d / time.Second)
	err = s.long(ctx, "change max-stale", func(tx *Tx) error {
		n, err := tx.exec(`
			UPDATE installation SET max_stale_before = `+maxStaleInForce+`, max_stale_until = {now} + (`+maxStaleInForce+` + ?) * 1000, max_stale_seconds = ?
			WHERE max_stale_seconds <> ?`, int64(margin/time.Second), seconds, seconds)
		changed = n > 0
		if err != nil || !changed {
			return err
		}
		_, err = tx.exec("UPDATE gateways SET revision = revision + 1")
		return err
	})
	return changed, err
}

// MaxStale is how long gateways go on without an answer of ours.
func (s *Store) MaxStale(ctx context.Context) (d time.Duration, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		d, _, err = one(tx, func(r row) (d time.Duration, err error) { err = r.Scan(secsColumn{&d}); return d, err }, "SELECT max_stale_seconds FROM installation")
		return err
	})
	return d, err
}
