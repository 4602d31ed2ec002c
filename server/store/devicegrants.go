package store

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
)

const grantColumns = `user_code, client_id, scope, device_type, model, serial, jkt, source_prefix, status, coalesce(account_id, ''),
	coalesce(premises_id, ''), user_id, name, interval_s, polled_at, created_at, expires_at`

func scanGrant(r row) (g models.DeviceGrant, err error) {
	err = r.Scan(&g.UserCode, &g.ClientID, &g.Scope, &g.DeviceType, &g.Model, &g.Serial, &g.JKT, &g.SourcePrefix, &g.Status, &g.AccountID,
		&g.PremisesID, &g.UserID, &g.Name, secsColumn{&g.Interval}, timeColumn{&g.PolledAt}, timeColumn{&g.CreatedAt}, timeColumn{&g.ExpiresAt})
	return g, err
}

// InsertDeviceGrant adds a pending grant that ends after life. A user code that another grant has is IsDuplicate.
func (s *Store) InsertDeviceGrant(ctx context.Context, codeHash []byte, g models.DeviceGrant, life time.Duration) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec(`
			INSERT INTO device_grants (code_hash, user_code, client_id, scope, device_type, model, serial, jkt, source_prefix, interval_s, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {now}, {now} + CAST(? AS bigint))`,
			blob(codeHash), g.UserCode, g.ClientID, g.Scope, string(g.DeviceType), g.Model, g.Serial, g.JKT, g.SourcePrefix,
			int64(g.Interval/time.Second), life.Milliseconds())
		return err
	})
}

// PendingDeviceGrants counts the grants that wait and were begun from one source prefix.
func (s *Store) PendingDeviceGrants(ctx context.Context, prefix string) (n int, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		n, _, err = one(tx, scanInto[int], "SELECT count(*) FROM device_grants WHERE source_prefix = ? AND status = 'pending' AND expires_at > {now}", prefix)
		return err
	})
	return n, err
}

// DeviceGrantByUserCode reads a grant that has not ended.
func (tx *Tx) DeviceGrantByUserCode(userCode string) (models.DeviceGrant, bool, error) {
	return one(tx, scanGrant, "SELECT "+grantColumns+" FROM device_grants WHERE user_code = ? AND expires_at > {now}", userCode)
}

// PolledGrant is a grant with what there was before this poll.
type PolledGrant struct {
	models.DeviceGrant
	// Expired tells that its time is over.
	Expired bool
	// Early tells that the client did not wait for the interval.
	Early bool
}

// PollDeviceGrant reads a grant by its device code and records that its client asked.
func (tx *Tx) PollDeviceGrant(codeHash []byte) (PolledGrant, bool, error) {
	p, found, err := one(tx, func(r row) (p PolledGrant, err error) {
		p.DeviceGrant, err = scanGrant(grantRow{r, &p})
		return p, err
	}, "SELECT "+grantColumns+`, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END,
		CASE WHEN polled_at + interval_s * 1000 - 500 > {now} THEN 1 ELSE 0 END FROM device_grants WHERE code_hash = ?`, blob(codeHash))
	if err != nil || !found {
		return p, found, err
	}
	slower := 0
	if p.Early {
		slower = 5 // RFC 8628 §3.5
	}
	_, err = tx.exec("UPDATE device_grants SET polled_at = {now}, interval_s = interval_s + ? WHERE code_hash = ?", slower, blob(codeHash))
	return p, true, err
}

// grantRow scans two more columns than scanGrant asks for.
type grantRow struct {
	row
	p *PolledGrant
}

func (g grantRow) Scan(dest ...any) error {
	var expired, early int
	err := g.row.Scan(append(dest, &expired, &early)...)
	g.p.Expired, g.p.Early = expired == 1, early == 1
	return err
}

// DecideDeviceGrant records what the account holder decided about a pending grant, and tells whether it was pending.
func (tx *Tx) DecideDeviceGrant(userCode string, status models.GrantStatus, g models.DeviceGrant) (bool, error) {
	n, err := tx.exec(`
		UPDATE device_grants SET status = ?, account_id = ?, premises_id = ?, user_id = ?, name = ?
		WHERE user_code = ? AND status = 'pending' AND expires_at > {now}`,
		string(status), orNull(string(g.AccountID)), orNull(string(g.PremisesID)), g.UserID, g.Name, userCode)
	return n == 1, err
}

// DeleteDeviceGrant removes a grant and tells whether it was there: of several that redeem it at once, one does.
func (tx *Tx) DeleteDeviceGrant(codeHash []byte) (bool, error) {
	n, err := tx.exec("DELETE FROM device_grants WHERE code_hash = ?", blob(codeHash))
	return n == 1, err
}

// WrongUserCodes is how many wrong codes an approver typed within the window that is running.
func (tx *Tx) WrongUserCodes(approver string, window time.Duration) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT wrong FROM user_code_tries WHERE approver = ? AND since > {now} - CAST(? AS bigint)",
		approver, window.Milliseconds())
	return n, err
}

// CountWrongUserCode records one more.
func (tx *Tx) CountWrongUserCode(approver string, window time.Duration) error {
	_, err := tx.exec(`
		INSERT INTO user_code_tries (approver, wrong, since) VALUES (?, 1, {now})
		ON CONFLICT (approver) DO UPDATE SET
			wrong = CASE WHEN user_code_tries.since > {now} - CAST(? AS bigint) THEN user_code_tries.wrong + 1 ELSE 1 END,
			since = CASE WHEN user_code_tries.since > {now} - CAST(? AS bigint) THEN user_code_tries.since ELSE {now} END`,
		approver, window.Milliseconds(), window.Milliseconds())
	return err
}
