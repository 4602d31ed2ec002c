package store

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
)

// InsertRefreshToken adds a refresh token that ends after life unless it is used.
func (tx *Tx) InsertRefreshToken(hash []byte, t models.RefreshToken, life time.Duration) error {
	_, err := tx.exec(`
		INSERT INTO refresh_tokens (hash, jkt, client_id, scope, account_id, device_id, user_id, created_at, expires_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, {now}, {now} + CAST(? AS bigint))`,
		blob(hash), t.JKT, t.ClientID, t.Scope, string(t.AccountID), orNull(int64(t.DeviceID)), t.UserID, life.Milliseconds())
	return err
}

// RefreshToken reads a refresh token that has not ended.
func (s *Store) RefreshToken(ctx context.Context, hash []byte) (t models.RefreshToken, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		t, found, err = one(tx, func(r row) (t models.RefreshToken, err error) {
			var left int64
			err = r.Scan(&t.JKT, &t.ClientID, &t.Scope, &t.AccountID, &t.DeviceID, &t.UserID, &left)
			t.ExpiresIn = ms(left)
			return t, err
		}, `SELECT jkt, client_id, scope, account_id, coalesce(device_id, 0), user_id, expires_at - {now} FROM refresh_tokens
			WHERE hash = ? AND expires_at > {now}`, blob(hash))
		return err
	})
	return t, found, err
}

// ExtendRefreshToken lets a refresh token live for life from now.
func (s *Store) ExtendRefreshToken(ctx context.Context, hash []byte, life time.Duration) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec("UPDATE refresh_tokens SET expires_at = {now} + CAST(? AS bigint) WHERE hash = ?", life.Milliseconds(), blob(hash))
		return err
	})
}

// DeleteRefreshToken removes a refresh token that is bound to the key, and gives whose it was.
func (tx *Tx) DeleteRefreshToken(hash []byte, jkt string) (t models.RefreshToken, found bool, err error) {
	return one(tx, func(r row) (t models.RefreshToken, err error) {
		err = r.Scan(&t.AccountID, &t.DeviceID, &t.UserID)
		return t, err
	}, "DELETE FROM refresh_tokens WHERE hash = ? AND jkt = ? RETURNING account_id, coalesce(device_id, 0), user_id", blob(hash), jkt)
}

// DeleteRefreshTokensOfUser removes all refresh tokens of a user.
func (tx *Tx) DeleteRefreshTokensOfUser(account models.AccountID, userID string) error {
	_, err := tx.exec("DELETE FROM refresh_tokens WHERE account_id = ? AND user_id = ?", string(account), userID)
	return err
}
