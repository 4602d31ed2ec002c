package store

import (
	"time"

	"github.com/groupcast/groupcast/models"
)

// InsertTicket adds a ticket that ends after life, and fills in when.
func (tx *Tx) InsertTicket(hash []byte, t models.Ticket, life time.Duration) (_ models.Ticket, err error) {
	t.ExpiresAt, _, err = one(tx, scanTime, `
		INSERT INTO enrolment_tickets (hash, account_id, premises_id, device_type, device_id, name, pop, created_at, expires_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, {now}, {now} + CAST(? AS bigint)) RETURNING expires_at`,
		blob(hash), string(t.AccountID), string(t.PremisesID), string(t.DeviceType), orNull(int64(t.DeviceID)), t.Name, t.PoP, life.Milliseconds())
	return t, err
}

// TakeTicket removes a ticket that has not ended, so that it is used once.
func (tx *Tx) TakeTicket(hash []byte) (models.Ticket, bool, error) {
	return one(tx, func(r row) (t models.Ticket, err error) {
		err = r.Scan(&t.AccountID, &t.PremisesID, &t.DeviceType, &t.DeviceID, &t.Name, &t.PoP, timeColumn{&t.ExpiresAt})
		return t, err
	}, `DELETE FROM enrolment_tickets WHERE hash = ? AND expires_at > {now}
		RETURNING account_id, premises_id, device_type, coalesce(device_id, 0), name, pop, expires_at`, blob(hash))
}
