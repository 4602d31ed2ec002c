package store

import (
	"context"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
)

const webhookColumns = "w.id, w.service_id, w.url, w.event_types, w.disabled, w.secret_sealed, w.old_secret_sealed, w.old_secret_until, w.old_secret_until > {now}, " +
	"w.failures, w.failing_since, w.last_success, w.last_failure, w.last_error, w.created_at"

const webhookPending = ", (SELECT count(*) FROM webhook_streams s WHERE s.webhook_id = w.id)"

func scanWebhook(r row) (w models.Webhook, err error) {
	err = r.Scan(append(webhookDest(&w), &w.Pending)...)
	return w, err
}

func webhookDest(w *models.Webhook) []any {
	return []any{
		&w.ID, &w.ServiceID, &w.URL,
		typesColumn{&w.Types},
		&w.Disabled, &w.Secret, &w.OldSecret,
		timeColumn{&w.OldSecretUntil},
		&w.Overlap,
		&w.Failures,
		timeColumn{&w.FailingSince},
		timeColumn{&w.LastSuccess},
		timeColumn{&w.LastFailure},
		&w.LastError,
		timeColumn{&w.CreatedAt},
	}
}

// typesColumn scans what typesText wrote.
type typesColumn struct{ to *[]models.EventType }

func (c typesColumn) Scan(src any) error {
	var text string
	switch v := src.(type) {
	case string:
		text = v
	case []byte:
		text = string(v)
	}
	*c.to = nil
	for t := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '|' }) {
		*c.to = append(*c.to, models.EventType(t))
	}
	return nil
}

func typesText(types []models.EventType) string {
	if len(types) == 0 {
		return ""
	}
	var b strings.Builder
	for _, t := range types {
		b.WriteString("|" + string(t))
	}
	return b.String() + "|"
}

// InsertWebhook adds a webhook. A service that doesn't exist is IsReference.
func (tx *Tx) InsertWebhook(w models.Webhook) error {
	_, err := tx.exec(`
		INSERT INTO webhooks (id, service_id, url, event_types, secret_sealed, old_secret_sealed, created_at) VALUES (?, ?, ?, ?, ?, ?, {now})`,
		string(w.ID), string(w.ServiceID), w.URL, typesText(w.Types), w.Secret, []byte{})
	return err
}

// LockService makes everybody else who calls it for the service wait until commit, and tells whether there is such a service.
func (tx *Tx) LockService(id models.ServiceID) (bool, error) {
	n, err := tx.exec("UPDATE services SET name = name WHERE id = ?", string(id))
	return n == 1, err
}

// CountWebhooks counts those of a service.
func (tx *Tx) CountWebhooks(service models.ServiceID) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT count(*) FROM webhooks WHERE service_id = ?", string(service))
	return n, err
}

// Webhook reads a webhook of a service with its status.
func (s *Store) Webhook(ctx context.Context, service models.ServiceID, id models.WebhookID) (w models.Webhook, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		w, found, err = tx.Webhook(service, id)
		return err
	})
	return w, found, err
}

// Webhook reads a webhook of a service with its status.
func (tx *Tx) Webhook(service models.ServiceID, id models.WebhookID) (models.Webhook, bool, error) {
	return one(tx, scanWebhook, "SELECT "+webhookColumns+webhookPending+" FROM webhooks w WHERE w.service_id = ? AND w.id = ?", string(service), string(id))
}

// WebhookPage reads up to limit webhooks of a service after an id, oldest first.
func (s *Store) WebhookPage(ctx context.Context, service models.ServiceID, after string, limit int) (all []models.Webhook, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanWebhook, "SELECT "+webhookColumns+webhookPending+
			" FROM webhooks w WHERE w.service_id = ? AND w.id > ? ORDER BY w.id LIMIT ?", string(service), after, limit)
		return err
	})
	return all, err
}

// UpdateWebhook changes where a webhook is and what it wants.
func (tx *Tx) UpdateWebhook(w models.Webhook) error {
	_, err := tx.exec("UPDATE webhooks SET url = ?, event_types = ? WHERE service_id = ? AND id = ?",
		w.URL, typesText(w.Types), string(w.ServiceID), string(w.ID))
	return err
}

// DisableWebhook ends the deliveries of a webhook, and forgets what waits, unless they have ended before; it tells whether they hadn't.
func (tx *Tx) DisableWebhook(id models.WebhookID, why models.WebhookDisabled) (bool, error) {
	n, err := tx.exec("UPDATE webhooks SET disabled = ? WHERE id = ? AND disabled = ''", string(why), string(id))
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.forgetWebhook(id)
}

// EnableWebhook lets deliveries begin, as if none had failed. One that is enabled already tries at once what waits. For one that was disabled nothing
// waits, not even what somebody recorded at the moment of the disabling: it hears what happens from now on.
func (tx *Tx) EnableWebhook(id models.WebhookID) error {
	began, err := tx.exec("UPDATE webhooks SET disabled = '' WHERE id = ? AND disabled <> ''", string(id))
	if err != nil {
		return err
	}
	if _, err := tx.exec("UPDATE webhooks SET failures = 0, failing_since = 0, paused_until = 0, last_error = '' WHERE id = ?", string(id)); err != nil {
		return err
	}
	if began == 1 {
		return tx.forgetWebhook(id)
	}
	return tx.hurryWebhook(id)
}

// hurryWebhook makes what waits for another try due, unless that comes about as soon: somebody may be trying it.
func (tx *Tx) hurryWebhook(id models.WebhookID) error {
	_, err := tx.exec("UPDATE webhook_streams SET due_at = {now} WHERE webhook_id = ? AND attempts > 0 AND due_at > {now} + ?",
		string(id), WebhookLease.Milliseconds())
	return err
}

// SetWebhookSecret gives a webhook another secret. The one before signs as well for a time; if it is in such a time already, the one that was
// there at its beginning goes on until its end.
func (tx *Tx) SetWebhookSecret(id models.WebhookID, sealed []byte, overlap time.Duration) error {
	_, err := tx.exec(`
		UPDATE webhooks SET old_secret_sealed = CASE WHEN old_secret_until > {now} THEN old_secret_sealed ELSE secret_sealed END,
			old_secret_until = CASE WHEN old_secret_until > {now} THEN old_secret_until ELSE {now} + ? END, secret_sealed = ? WHERE id = ?`,
		overlap.Milliseconds(), sealed, string(id))
	return err
}

// DeleteWebhook removes a webhook of a service and tells whether it was there.
func (tx *Tx) DeleteWebhook(service models.ServiceID, id models.WebhookID) (bool, error) {
	n, err := tx.exec("DELETE FROM webhooks WHERE service_id = ? AND id = ?", string(service), string(id))
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.forgetWebhook(id)
}

func (tx *Tx) forgetWebhook(id models.WebhookID) error {
	_, err := tx.exec("DELETE FROM webhook_streams WHERE webhook_id = ?", string(id))
	return err
}

// What follows notes for webhooks that a stream has something new. It needs the events that were recorded, as told.
const (
	webhookInsert = "INSERT INTO webhook_streams (webhook_id, service_account_id, group_id, account_id, rev, newest_rev, due_at) "
	webhookNewest = " ON CONFLICT (webhook_id, service_account_id, group_id) DO UPDATE SET newest_rev = excluded.newest_rev"
	webhookWants  = "w.disabled = '' AND (w.event_types = '' OR w.event_types LIKE '%|' || told.type || '|%')"

	noteGroupEvents = webhookInsert + "SELECT w.id, l.service_account_id, told.group_id, told.account_id, told.rev - 1, told.rev, {now} FROM "
	ofLinkedService = " JOIN service_links l ON l.account_id = told.account_id JOIN webhooks w ON w.service_id = l.service_id WHERE " + webhookWants
)

// noteLinkEvent notes for the webhooks of a link's service that it began or ended.
func (tx *Tx) noteLinkEvent(account models.AccountID, l models.Link) error {
	return tx.later(nil, webhookInsert+"SELECT w.id, l.service_account_id, '', told.account_id, told.rev - 1, told.rev, {now} FROM events told "+
		"CROSS JOIN (SELECT CAST(? AS bigint) AS service_account_id) l JOIN webhooks w ON w.service_id = ? "+
		"WHERE told.account_id = ? AND told.group_id = '' AND told.rev = (SELECT account_rev FROM accounts WHERE id = told.account_id) AND "+
		webhookWants+webhookNewest, int64(l.ServiceAccountID), string(l.ServiceID), string(account))
}

// forgetLink drops what waits for the webhooks of a link's service.
func (tx *Tx) forgetLink(l models.Link) error {
	_, err := tx.exec("DELETE FROM webhook_streams WHERE account_id = ? AND service_account_id = ? AND webhook_id IN (SELECT id FROM webhooks WHERE service_id = ?)",
		string(l.AccountID), int64(l.ServiceAccountID), string(l.ServiceID))
	return err
}

// DueWebhook is a webhook that something waits for.
type DueWebhook struct {
	ID models.WebhookID
	// Failing tells whether the last try failed.
	Failing bool
}

// DueWebhooks reads the webhooks that something is to be tried for now.
func (s *Store) DueWebhooks(ctx context.Context) (all []DueWebhook, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (d DueWebhook, err error) {
			var failures int
			err = r.Scan(&d.ID, &failures)
			d.Failing = failures > 0
			return d, err
		}, `SELECT w.id, w.failures FROM webhooks w WHERE w.disabled = '' AND w.paused_until <= {now}
			AND EXISTS (SELECT 1 FROM webhook_streams s WHERE s.webhook_id = w.id AND s.due_at <= {now})`)
		return err
	})
	return all, err
}

// WebhookLease is how long a claim holds. A process that is killed leaves its claims to others after that.
const WebhookLease = 30 * time.Second

// ClaimWebhookStreams gives up to limit streams of a webhook that are due, for nobody else to try for WebhookLease.
func (s *Store) ClaimWebhookStreams(ctx context.Context, id models.WebhookID, limit int) (all []models.WebhookStream, err error) {
	err = s.writing(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (v models.WebhookStream, err error) {
			err = r.Scan(&v.WebhookID, &v.ServiceAccountID, &v.GroupID, &v.AccountID, &v.Rev, &v.NewestRev, &v.Attempts, &v.Claim)
			return v, err
		}, `UPDATE webhook_streams SET due_at = {now} + ? WHERE webhook_id = ? AND due_at <= {now} AND (service_account_id, group_id) IN (
			SELECT service_account_id, group_id FROM webhook_streams WHERE webhook_id = ? AND due_at <= {now} ORDER BY due_at LIMIT ?)
			RETURNING webhook_id, service_account_id, group_id, account_id, rev, newest_rev, attempts, due_at`,
			WebhookLease.Milliseconds(), string(id), string(id), limit)
		return err
	})
	return all, err
}

// WebhookDelivery is an event that a webhook is to get now. Webhook has no count of what waits.
type WebhookDelivery struct {
	Webhook models.Webhook
	Event   models.Event
}

// NextWebhookEvent reads the oldest event of a stream that its webhook has not got and may still hear: the link is asked in the same
// statement, and only its own end outlives it.
func (s *Store) NextWebhookEvent(ctx context.Context, v models.WebhookStream) (d WebhookDelivery, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		d, found, err = one(tx, func(r row) (d WebhookDelivery, err error) {
			e, err := scanEvent(scanAlso{r, webhookDest(&d.Webhook)})
			d.Event = e.Event
			return d, err
		}, "SELECT "+eventColumns+", "+webhookColumns+` FROM webhooks w JOIN events e ON e.account_id = ? AND e.group_id = ? AND e.rev > ?
			WHERE w.id = ? AND w.disabled = '' AND (w.event_types = '' OR w.event_types LIKE '%|' || e.type || '|%')
			AND (e.group_id <> '' OR e.type IN ('link.granted', 'link.revoked'))
			AND (e.type = 'link.revoked' OR EXISTS (SELECT 1 FROM service_links l WHERE l.service_id = w.service_id AND l.account_id = e.account_id
				AND l.service_account_id = ? AND `+linkHears+`))
			ORDER BY e.rev LIMIT 1`,
			string(v.AccountID), string(v.GroupID), v.Rev, string(v.WebhookID), int64(v.ServiceAccountID))
		return err
	})
	return d, found, err
}

// scanAlso scans more columns after those that a scan function knows.
type scanAlso struct {
	row
	more []any
}

func (s scanAlso) Scan(dest ...any) error { return s.row.Scan(append(dest, s.more...)...) }

const ofStream = " WHERE webhook_id = ? AND service_account_id = ? AND group_id = ?"

func keyOfStream(v models.WebhookStream) []any {
	return []any{string(v.WebhookID), int64(v.ServiceAccountID), string(v.GroupID)}
}

// AdvanceWebhookStream records that a stream is done up to a rev, and that the next is due if there is more. It does nothing if the claim has
// ended.
func (tx *Tx) AdvanceWebhookStream(v models.WebhookStream, rev int64) error {
	n, err := tx.exec("DELETE FROM webhook_streams"+ofStream+" AND due_at = ? AND newest_rev <= ?", append(keyOfStream(v), v.Claim, rev)...)
	if err != nil || n == 1 {
		return err
	}
	_, err = tx.exec("UPDATE webhook_streams SET rev = ?, attempts = 0, due_at = {now}"+ofStream+" AND due_at = ?",
		append(append([]any{rev}, keyOfStream(v)...), v.Claim)...)
	return err
}

// RetryWebhookStream lets a stream be tried again after a while, with one more failure on its account if it failed.
func (tx *Tx) RetryWebhookStream(v models.WebhookStream, failed int, after time.Duration) error {
	_, err := tx.exec("UPDATE webhook_streams SET attempts = attempts + ?, due_at = {now} + ?"+ofStream+" AND due_at = ?",
		append(append([]any{failed, after.Milliseconds()}, keyOfStream(v)...), v.Claim)...)
	return err
}

// WebhookSucceeded records a success, at most once a second unless it ends failures, and tries at once what waited for a webhook that was down:
// one that failed at least so often in a row.
func (tx *Tx) WebhookSucceeded(w models.Webhook, down int) error {
	_, err := tx.exec("UPDATE webhooks SET last_success = {now}, failures = 0, failing_since = 0, paused_until = 0, last_error = '' "+
		"WHERE id = ? AND (failures > 0 OR last_success < {now} - 1000)", string(w.ID))
	if err != nil || w.Failures < down {
		return err
	}
	return tx.hurryWebhook(w.ID)
}

// WebhookFailed records a failure, lets the webhook rest, and tells how long it has been failing.
func (tx *Tx) WebhookFailed(id models.WebhookID, problem string, rest time.Duration) (failing time.Duration, err error) {
	ms, _, err := one(tx, scanInto[int64], `
		UPDATE webhooks SET failures = failures + 1, failing_since = CASE failing_since WHEN 0 THEN {now} ELSE failing_since END,
			last_failure = {now}, last_error = ?, paused_until = {now} + ? WHERE id = ? RETURNING {now} - failing_since`,
		problem, rest.Milliseconds(), string(id))
	return time.Duration(ms) * time.Millisecond, err
}

// SweepWebhookStreams removes what waits for webhooks that are gone or disabled, or for links that have ended: somebody changed a group while
// somebody else removed those.
func (s *Store) SweepWebhookStreams(ctx context.Context) (removed int64, err error) {
	err = s.writing(ctx, func(tx *Tx) error {
		removed, err = tx.exec(`
			DELETE FROM webhook_streams WHERE NOT EXISTS (
				SELECT 1 FROM webhooks w WHERE w.id = webhook_streams.webhook_id AND w.disabled = '' AND (webhook_streams.group_id = '' OR EXISTS (
					SELECT 1 FROM service_links l WHERE l.service_id = w.service_id AND l.account_id = webhook_streams.account_id
					AND l.service_account_id = webhook_streams.service_account_id)))`)
		return err
	})
	return removed, err
}
