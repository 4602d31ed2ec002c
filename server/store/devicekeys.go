package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

const deviceKeyColumns = "thumbprint, device_id, jwk, serial, created_at"

func scanDeviceKey(r row) (k models.DeviceKey, err error) {
	err = r.Scan(&k.Thumbprint, &k.DeviceID, &k.JWK, &k.Serial, timeColumn{&k.CreatedAt})
	return k, err
}

// DeviceKey reads a key by its thumbprint.
func (s *Store) DeviceKey(ctx context.Context, thumbprint string) (k models.DeviceKey, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		k, found, err = one(tx, scanDeviceKey, "SELECT "+deviceKeyColumns+" FROM device_keys WHERE thumbprint = ?", thumbprint)
		return err
	})
	return k, found, err
}

// DeviceKey reads a key by its thumbprint.
func (tx *Tx) DeviceKey(thumbprint string) (models.DeviceKey, bool, error) {
	return one(tx, scanDeviceKey, "SELECT "+deviceKeyColumns+" FROM device_keys WHERE thumbprint = ?", thumbprint)
}

// PutDeviceKey gives a device its key, in place of any it had. A key that another device has is IsDuplicate.
func (tx *Tx) PutDeviceKey(k models.DeviceKey) error {
	_, err := tx.exec(`
		INSERT INTO device_keys (thumbprint, device_id, jwk, serial, created_at) VALUES (?, ?, ?, ?, {now})
		ON CONFLICT (device_id) DO UPDATE SET thumbprint = excluded.thumbprint, jwk = excluded.jwk, serial = excluded.serial, created_at = excluded.created_at`,
		k.Thumbprint, int64(k.DeviceID), k.JWK, k.Serial)
	return err
}

// nextNotBefore ends all tokens that were issued until now. A token carries whole seconds: those of the running second have to end too, and not
// those of the next. A token that was issued since an earlier revocation in this second is of the next second already, so each further
// revocation goes one on; but not far, or whoever has a stolen key could lock out its owner for long.
const nextNotBefore = `CASE WHEN not_before >= ({now} / 1000 + 1) * 1000 AND not_before < ({now} / 1000 + 20) * 1000 THEN not_before + 1000
	WHEN not_before >= ({now} / 1000 + 20) * 1000 THEN not_before ELSE ({now} / 1000 + 1) * 1000 END`

// EndDeviceTokens ends everything that was issued for a device until now: access tokens by not_before, refresh tokens by removing
// them.
func (tx *Tx) EndDeviceTokens(id models.ID) error {
	if _, err := tx.exec("UPDATE devices SET not_before = "+nextNotBefore+" WHERE id = ?", int64(id)); err != nil {
		return err
	}
	tx.changed.raised(id) // what waits with one of its tokens hears of it
	_, err := tx.exec("DELETE FROM refresh_tokens WHERE device_id = ?", int64(id))
	return err
}
