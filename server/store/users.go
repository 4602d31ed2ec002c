package store

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

// InsertUser adds a user and fills in when. A name that another user has is IsDuplicate, an account that doesn't exist IsReference.
func (tx *Tx) InsertUser(u models.User) (_ models.User, err error) {
	u.CreatedAt, _, err = one(tx, scanTime, `
		INSERT INTO users (id, account_id, name, password_hash, created_at) VALUES (?, ?, ?, ?, {now}) RETURNING created_at`,
		u.ID, string(u.AccountID), u.Name, u.PasswordHash)
	return u, err
}

const userColumns = "u.id, u.account_id, u.name, u.password_hash, u.not_before, u.created_at"

func userFields(u *models.User) []any {
	return []any{&u.ID, &u.AccountID, &u.Name, &u.PasswordHash, timeColumn{&u.NotBefore}, timeColumn{&u.CreatedAt}}
}

// UserByName reads the user who logs in with a name, and whether they have logged in from the network before.
func (s *Store) UserByName(ctx context.Context, name string, from netip.Prefix) (u models.User, known, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		var networks int
		u, found, err = one(tx, func(r row) (u models.User, err error) {
			err = r.Scan(append(userFields(&u), &networks)...)
			return u, err
		}, "SELECT "+userColumns+`, (SELECT count(*) FROM user_networks n WHERE n.user_id = u.id AND n.network = ?)
			FROM users u WHERE u.name = ?`, prefixText(from), name)
		known = networks > 0
		return err
	})
	return u, known, found, err
}

// User reads a user of an account.
func (s *Store) User(ctx context.Context, account models.AccountID, id string) (u models.User, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		u, found, err = tx.User(account, id)
		return err
	})
	return u, found, err
}

// User reads a user of an account.
func (tx *Tx) User(account models.AccountID, id string) (models.User, bool, error) {
	return one(tx, func(r row) (u models.User, err error) {
		err = r.Scan(userFields(&u)...)
		return u, err
	}, "SELECT "+userColumns+" FROM users u WHERE u.id = ? AND u.account_id = ?", id, string(account))
}

// InsertIdentity adds whom a user is at an external issuer, unless somebody is that already, and gives what there is then.
func (tx *Tx) InsertIdentity(i models.Identity) (models.Identity, error) {
	if _, err := tx.exec(`INSERT INTO identities (id, issuer, subject, user_id, created_at) VALUES (?, ?, ?, ?, {now})
		ON CONFLICT (issuer, subject) DO NOTHING`, i.ID, i.Issuer, i.Subject, i.UserID); err != nil {
		return i, err
	}
	there, found, err := one(tx, func(r row) (i models.Identity, err error) {
		err = r.Scan(&i.ID, &i.Issuer, &i.Subject, &i.UserID, timeColumn{&i.CreatedAt})
		return i, err
	}, "SELECT id, issuer, subject, user_id, created_at FROM identities WHERE issuer = ? AND subject = ?", i.Issuer, i.Subject)
	if err == nil && !found { // it was removed while we were at it
		err = ErrAgain
	}
	return there, err
}

// DeleteIdentity removes an identity and gives the user it was of.
func (tx *Tx) DeleteIdentity(id string) (user models.User, found bool, err error) {
	userID, found, err := one(tx, scanInto[string], "DELETE FROM identities WHERE id = ? RETURNING user_id", id)
	if err != nil || !found {
		return user, false, err
	}
	return one(tx, func(r row) (u models.User, err error) {
		err = r.Scan(userFields(&u)...)
		return u, err
	}, "SELECT "+userColumns+" FROM users u WHERE u.id = ?", userID)
}

// UserByIdentity reads the user who is somebody at an external issuer.
func (s *Store) UserByIdentity(ctx context.Context, issuer, subject string) (u models.User, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		u, found, err = one(tx, func(r row) (u models.User, err error) {
			err = r.Scan(userFields(&u)...)
			return u, err
		}, "SELECT "+userColumns+" FROM identities i JOIN users u ON u.id = i.user_id WHERE i.issuer = ? AND i.subject = ?", issuer, subject)
		return err
	})
	return u, found, err
}

// SetPassword gives a user another password hash, if it still is the one that the caller has seen; and ends all tokens that were issued
// until now.
func (tx *Tx) SetPassword(id, from, to string) (bool, error) {
	n, err := tx.exec("UPDATE users SET password_hash = ?, not_before = "+nextNotBefore+" WHERE id = ? AND password_hash = ?", to, id, from)
	return n == 1, err
}

// Rehash stores the same password in another form.
func (tx *Tx) Rehash(id, from, to string) error {
	_, err := tx.exec("UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?", to, id, from)
	return err
}

// KeepNetwork remembers that a user has logged in from a network.
func (tx *Tx) KeepNetwork(id string, network netip.Prefix) error {
	_, err := tx.exec("INSERT INTO user_networks (user_id, network) VALUES (?, ?) ON CONFLICT DO NOTHING", id, prefixText(network))
	return err
}

// InsertSession begins a session.
func (tx *Tx) InsertSession(hash []byte, userID string) error {
	_, err := tx.exec("INSERT INTO sessions (hash, user_id, created_at, used_at, confirmed_at) VALUES (?, ?, {now}, {now}, {now})", blob(hash), userID)
	return err
}

// Session reads a session that was used within idle and began within life.
func (s *Store) Session(ctx context.Context, hash []byte, idle, life time.Duration) (v models.Session, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = one(tx, func(r row) (v models.Session, err error) {
			var used, confirmed, left int64
			err = r.Scan(append(userFields(&v.User), &used, &confirmed, &left)...)
			v.Idle, v.Confirmed, v.ExpiresIn = ms(used), ms(confirmed), ms(left)
			return v, err
		}, "SELECT "+userColumns+`, {now} - s.used_at, {now} - s.confirmed_at, s.created_at + CAST(? AS bigint) - {now}
			FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.hash = ? AND s.used_at > {now} - CAST(? AS bigint) AND s.created_at > {now} - CAST(? AS bigint)`,
			life.Milliseconds(), blob(hash), idle.Milliseconds(), life.Milliseconds())
		return err
	})
	return v, found, err
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// TouchSession records that a session is used.
func (s *Store) TouchSession(ctx context.Context, hash []byte) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec("UPDATE sessions SET used_at = {now} WHERE hash = ?", blob(hash))
		return err
	})
}

// ConfirmSession records that the password was typed.
func (tx *Tx) ConfirmSession(hash []byte) error {
	_, err := tx.exec("UPDATE sessions SET confirmed_at = {now} WHERE hash = ?", blob(hash))
	return err
}

// DeleteSession ends a session.
func (tx *Tx) DeleteSession(hash []byte) error {
	_, err := tx.exec("DELETE FROM sessions WHERE hash = ?", blob(hash))
	return err
}

// DeleteOtherSessions ends all sessions of a user but one.
func (tx *Tx) DeleteOtherSessions(userID string, but []byte) error {
	_, err := tx.exec("DELETE FROM sessions WHERE user_id = ? AND hash <> ?", userID, blob(but))
	return err
}

// InsertInvitation adds an invitation, for a further user of an account or, if that is empty, for a new account. An account that doesn't
// exist is IsReference.
func (tx *Tx) InsertInvitation(hash []byte, account models.AccountID, life time.Duration) error {
	_, err := tx.exec("INSERT INTO invitations (hash, account_id, expires_at) VALUES (?, ?, {now} + CAST(? AS bigint))",
		blob(hash), orNull(string(account)), life.Milliseconds())
	return err
}

// TakeInvitation uses an invitation up and gives the account that it is for.
func (tx *Tx) TakeInvitation(hash []byte) (account models.AccountID, found bool, err error) {
	return one(tx, scanInto[models.AccountID], "DELETE FROM invitations WHERE hash = ? AND expires_at > {now} RETURNING coalesce(account_id, '')", blob(hash))
}
