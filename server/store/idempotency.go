package store

import (
	"context"
	"time"
)

// idempotencyBatch is how many ended answers one statement removes, so that nobody waits long for it.
const idempotencyBatch = 500

// KeptAnswer is what is kept of a request that carried an Idempotency-Key.
type KeptAnswer struct {
	Fingerprint []byte
	// Answer is sealed.
	Answer []byte
}

// ClaimAnswer takes a place for an answer, and is false if it is taken. Of several transactions at once one gets it; the others wait until
// that one has ended. Whose time is over counts as free.
func (tx *Tx) ClaimAnswer(id, fingerprint []byte, keep time.Duration) (bool, error) {
	n, err := tx.exec(`
		INSERT INTO idempotency_keys (id, fingerprint, answer, expires_at) VALUES (?, ?, ?, {now} + CAST(? AS bigint))
		ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, answer = excluded.answer, expires_at = excluded.expires_at
			WHERE idempotency_keys.expires_at <= {now}`,
		blob(id), blob(fingerprint), blob{}, keep.Milliseconds())
	return n > 0, err
}

// KeepAnswer fills a place that the same transaction has claimed.
func (tx *Tx) KeepAnswer(id, answer []byte) error {
	_, err := tx.exec("UPDATE idempotency_keys SET answer = ? WHERE id = ?", blob(answer), blob(id))
	return err
}

// KeptAnswer reads an answer.
func (tx *Tx) KeptAnswer(id []byte) (KeptAnswer, bool, error) {
	return one(tx, func(r row) (a KeptAnswer, err error) {
		err = r.Scan(&a.Fingerprint, &a.Answer)
		return a, err
	}, "SELECT fingerprint, answer FROM idempotency_keys WHERE id = ?", blob(id))
}

// sweepAnswers removes the answers whose time is over, a bounded number at a time.
func (s *Store) sweepAnswers(ctx context.Context) (removed int64, err error) {
	for {
		var n int64
		err := s.writing(ctx, func(tx *Tx) (err error) {
			n, err = tx.exec("DELETE FROM idempotency_keys WHERE id IN (SELECT id FROM idempotency_keys WHERE expires_at <= {now} LIMIT ?)", idempotencyBatch)
			return err
		})
		removed += n
		if err != nil || n < idempotencyBatch {
			return removed, err
		}
	}
}
