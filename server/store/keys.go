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
	CreatedAt     time.Time
}

// SealingKey is a key that seals the ids inside tokens, sealed at rest.
type SealingKey struct {
	Version   int
	KeySealed []byte
	CreatedAt time.Time
}

// SigningKeys reads all signing keys, oldest first.
func (s *Store) SigningKeys(ctx context.Context) (keys []SigningKey, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		keys, err = list(tx, func(r row) (k SigningKey, err error) {
			err = r.Scan(&k.KID, &k.Alg, &k.PrivateSealed, timeColumn{&k.CreatedAt})
			return k, err
		}, "SELECT kid, alg, private_sealed, created_at FROM signing_keys ORDER BY created_at, kid")
		return err
	})
	return keys, err
}

// AddSigningKey adds the key only if there is none yet, and tells whether it did: of several callers at once one wins, and the
// others find its key with SigningKeys. CreatedAt is the database's.
func (s *Store) AddSigningKey(ctx context.Context, k SigningKey) (bool, error) {
	return s.addFirst(ctx, "SELECT count(*) FROM signing_keys",
		"INSERT INTO signing_keys (kid, alg, private_sealed, created_at) VALUES (?, ?, ?, {now})", k.KID, k.Alg, sealed(k.PrivateSealed))
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
