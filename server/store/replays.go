package store

import (
	"context"
	"time"
)

// InsertReplay records that a key was used, and tells whether it is the first time.
func (s *Store) InsertReplay(ctx context.Context, key string, expires time.Time) (first bool, err error) {
	err = s.writing(ctx, func(tx *Tx) error {
		n, err := tx.exec("INSERT INTO replays (key, expires_at) VALUES (?, ?) ON CONFLICT (key) DO NOTHING", key, expires.UnixMilli())
		first = n == 1
		return err
	})
	return first, err
}

// DeleteReplays forgets up to limit keys that expired longer ago than margin, by the database's clock, and counts them.
func (s *Store) DeleteReplays(ctx context.Context, margin time.Duration, limit int) (n int64, err error) {
	err = s.writing(ctx, func(tx *Tx) error {
		n, err = tx.exec("DELETE FROM replays WHERE key IN (SELECT key FROM replays WHERE expires_at < {now} - ? ORDER BY expires_at LIMIT ?)",
			margin.Milliseconds(), limit)
		return err
	})
	return n, err
}
