package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

const deviceColumns = "id, account_id, premises_id, type, name, model, pop, trigger, not_before, created_at"

func scanDevice(r row) (d models.Device, err error) {
	err = r.Scan(&d.ID, &d.AccountID, &d.PremisesID, &d.Type, &d.Name, &d.Model, &d.PoP, &d.Trigger,
		timeColumn{&d.NotBefore}, timeColumn{&d.CreatedAt})
	return d, err
}

// Device reads a device of any account.
func (s *Store) Device(ctx context.Context, id models.ID) (d models.Device, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		d, found, err = tx.Device(id)
		return err
	})
	return d, found, err
}

// DeviceOf reads a device of one account. Every request of a device begins with it, so on Postgres those that come at the same time share
// a statement.
func (s *Store) DeviceOf(ctx context.Context, account models.AccountID, id models.ID) (d models.Device, found bool, err error) {
	if s.devices == nil {
		err = s.reading(ctx, func(tx *Tx) error {
			d, found, err = tx.DeviceOf(account, id)
			return err
		})
		return d, found, err
	}
	known, err := s.devices.ask(ctx, deviceKey{account, id})
	if err != nil || known == nil {
		return d, false, err
	}
	return *known, true, nil
}

// deviceKey names a device of one account.
type deviceKey struct {
	account models.AccountID
	id      models.ID
}

func (s *Store) devicesByKey(ctx context.Context, keys []deviceKey) (devices []*models.Device, err error) {
	ids, accounts := make([]int64, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		ids[i], accounts[i] = int64(k.id), string(k.account)
	}
	err = s.gathered(ctx, func(tx *Tx) error {
		devices = make([]*models.Device, len(keys))
		found, err := list(tx, scanDevice, `
			SELECT `+deviceColumns+` FROM unnest(`+arrayOf("bigint")+`, `+arrayOf("text")+`) AS asked (asked_id, asked_account)
			JOIN devices ON id = asked_id AND account_id = asked_account`, ids, accounts)
		known := map[deviceKey]*models.Device{}
		for _, d := range found {
			known[deviceKey{d.AccountID, d.ID}] = &d
		}
		for i, k := range keys {
			devices[i] = known[k]
		}
		return err
	})
	return devices, err
}

// Device reads a device of any account.
func (tx *Tx) Device(id models.ID) (models.Device, bool, error) {
	return one(tx, scanDevice, "SELECT "+deviceColumns+" FROM devices WHERE id = ?", int64(id))
}

// DeviceOf reads a device of one account.
func (tx *Tx) DeviceOf(account models.AccountID, id models.ID) (models.Device, bool, error) {
	return one(tx, scanDevice, "SELECT "+deviceColumns+" FROM devices WHERE id = ? AND account_id = ?", int64(id), string(account))
}

// DevicePage reads up to limit devices of an account after an id, sorted by id.
func (s *Store) DevicePage(ctx context.Context, account models.AccountID, after models.ID, limit int) (all []models.Device, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanDevice, "SELECT "+deviceColumns+" FROM devices WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?",
			string(account), int64(after), limit)
		return err
	})
	return all, err
}

// CountDevices counts the devices of an account.
func (tx *Tx) CountDevices(account models.AccountID) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT count(*) FROM devices WHERE account_id = ?", string(account))
	return n, err
}

// DevicesOf reads the devices of several accounts, oldest first.
func (tx *Tx) DevicesOf(accounts []models.AccountID) ([]models.Device, error) {
	return list(tx, scanDevice, "SELECT "+deviceColumns+" FROM devices WHERE account_id {among texts} ORDER BY created_at, id",
		texts(tx, accounts))
}

// InsertDevice adds a device and fills in when.
func (tx *Tx) InsertDevice(d models.Device) (_ models.Device, err error) {
	d.CreatedAt, _, err = one(tx, scanTime, `
		INSERT INTO devices (id, account_id, premises_id, type, name, model, pop, trigger, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, {now}) RETURNING created_at`,
		int64(d.ID), string(d.AccountID), string(d.PremisesID), string(d.Type), d.Name, d.Model, d.PoP, string(d.Trigger))
	return d, err
}

// SetDevice changes a device's name and trigger.
func (tx *Tx) SetDevice(id models.ID, name string, trigger models.Trigger) error {
	_, err := tx.exec("UPDATE devices SET name = ?, trigger = ? WHERE id = ?", name, string(trigger), int64(id))
	return err
}

// DeleteDevice removes a device. One that still has registrations is IsReference.
func (tx *Tx) DeleteDevice(id models.ID) error {
	_, err := tx.exec("DELETE FROM devices WHERE id = ?", int64(id))
	return err
}
