package store

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/groupcast/groupcast/server/replay"
)

// Replays is the memory of what may be used only once that all replicas share.
type Replays struct{ store *Store }

// Replays gives the shared memory.
func (s *Store) Replays() Replays { return Replays{s} }

// Use marks the key as used until then. It fails with replay.ErrUsed if the key was used before.
func (r Replays) Use(ctx context.Context, key string, until time.Time) error {
	hash := sha256.Sum256([]byte(key))
	used := false
	err := r.store.writing(ctx, func(tx *Tx) error {
		n, err := tx.exec("INSERT INTO replays (hash, expires_at) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING", hash[:], until.UnixMilli())
		used = n == 0
		return err
	})
	if err == nil && used {
		return replay.ErrUsed
	}
	return err
}

// Sweep removes what ended by itself: tickets, device grants, refresh tokens, what was used once. It tells how many rows.
func (s *Store) Sweep(ctx context.Context) (removed int64, err error) {
	// A replay is remembered a while longer, because its time is by the clock of the replica that saw it.
	for _, text := range []string{
		"DELETE FROM enrolment_tickets WHERE expires_at <= {now}",
		"DELETE FROM device_grants WHERE expires_at <= {now} - 600000",
		"DELETE FROM refresh_tokens WHERE expires_at <= {now}",
		"DELETE FROM user_code_tries WHERE since <= {now} - 86400000",
		"DELETE FROM replays WHERE expires_at <= {now} - 300000",
	} {
		err := s.writing(ctx, func(tx *Tx) error {
			n, err := tx.exec(text)
			removed += n
			return err
		})
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}
