package store

import (
	"context"
	"time"
)

// SigningKey is a key that signs tokens, sealed at rest.
type SigningKey struct {
	KID           string
	Alg           string
	PrivateSealed []byte
	State         SigningKeyState
	CreatedAt     time.Time
	// StateSince is when it came to its state.
	StateSince time.Time
}

// SigningKeyState is where a signing key stands in its life.
type SigningKeyState string

// The states of a signing key; at the end its row goes.
const (
	SigningKeyNext     SigningKeyState = "next"     // published, doesn't sign yet
	SigningKeyActive   SigningKeyState = "active"   // signs
	SigningKeyRetiring SigningKeyState = "retiring" // published until the last token it signed has ended
)

// SealingKey is a key that seals the ids inside tokens, sealed at rest.
type SealingKey struct {
	Version   int
	KeySealed []byte
	CreatedAt time.Time
}

// SigningKeys reads all signing keys, oldest first, and the clock they are to be judged by.
func (s *Store) SigningKeys(ctx context.Context) (keys []SigningKey, now time.Time, err error) {
	err = s.Read(ctx, func(tx *Tx) error {
		keys, now, err = tx.SigningKeys()
		return err
	})
	return keys, now, err
}

// SigningKeys reads all signing keys, oldest first, and the clock they are to be judged by.
func (tx *Tx) SigningKeys() (keys []SigningKey, now time.Time, err error) {
	keys, err = list(tx, func(r row) (k SigningKey, err error) {
		err = r.Scan(&k.KID, &k.Alg, &k.PrivateSealed, &k.State, timeColumn{&k.CreatedAt}, timeColumn{&k.StateSince})
		return k, err
	}, "SELECT kid, alg, private_sealed, state, created_at, CASE state_since WHEN 0 THEN created_at ELSE state_since END FROM signing_keys ORDER BY created_at, kid")
	if err != nil {
		return nil, now, err
	}
	now, _, err = one(tx, scanTime, "SELECT {now}")
	return keys, now, err
}

// InsertSigningKey adds a key.
func (tx *Tx) InsertSigningKey(k SigningKey) error {
	_, err := tx.exec("INSERT INTO signing_keys (kid, alg, private_sealed, state, created_at, state_since) VALUES (?, ?, ?, ?, {now}, {now})",
		k.KID, k.Alg, sealed(k.PrivateSealed), string(k.State))
	return err
}

// SetSigningKeyState moves a key on.
func (tx *Tx) SetSigningKeyState(kid string, state SigningKeyState) error {
	_, err := tx.exec("UPDATE signing_keys SET state = ?, state_since = {now} WHERE kid = ?", string(state), kid)
	return err
}

// DeleteSigningKey removes a key.
func (tx *Tx) DeleteSigningKey(kid string) error {
	_, err := tx.exec("DELETE FROM signing_keys WHERE kid = ?", kid)
	return err
}

// SealingKeys reads all sealing keys, oldest first.
func (s *Store) SealingKeys(ctx context.Context) (keys []SealingKey, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		keys, err = list(tx, func(r row) (k SealingKey, err error) {
			err = r.Scan(&k.Version, &k.KeySealed, timeColumn{&k.CreatedAt})
			return k, err
		}, "SELECT version, key_sealed, created_at FROM sealing_keys ORDER BY version")
		return err
	})
	return keys, err
}

// AddSealingKey adds the key only if there is none yet, and tells whether it did, like AddSigningKey.
func (s *Store) AddSealingKey(ctx context.Context, k SealingKey) (bool, error) {
	return s.addFirst(ctx, "SELECT count(*) FROM sealing_keys",
		"INSERT INTO sealing_keys (version, key_sealed, created_at) VALUES (?, ?, {now})", k.Version, sealed(k.KeySealed))
}

// addFirst inserts if count gives 0. The installation's row is the lock: an INSERT that looks for itself whether there is a row
// doesn't see the one that another transaction is inserting.
func (s *Store) addFirst(ctx context.Context, count, insert string, args ...any) (added bool, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		added = false
		if _, err := tx.LockWatch(); err != nil {
			return err
		}
		if n, _, err := one(tx, scanInto[int], count); err != nil || n > 0 {
			return err
		}
		_, err := tx.exec(insert, args...)
		added = err == nil
		return err
	})
	return added, err
}

// sealed keeps nil out of columns that are never null.
func sealed(b []byte) []byte { return append([]byte{}, b...) }
