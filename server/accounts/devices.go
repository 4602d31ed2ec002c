package accounts

import (
	"context"
	"maps"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
)

// NewDevice describes a device to create or to import.
type NewDevice struct {
	// ID is drawn if it is zero.
	ID         models.ID
	PremisesID models.PremisesID
	Type       models.DeviceType
	Name       string
	Model      string
	// NoPoP is for devices that can't prove possession of a key (SPEC §8).
	NoPoP bool
	// Trigger is TriggerOption if it is empty.
	Trigger models.Trigger
}

// CreateDevice creates or imports a device for an operator, whom no quota stops. A gateway can declare its network from then on. CodeAlreadyExists is an id that is
// taken, in whatever account.
func (s *Service) CreateDevice(ctx context.Context, n NewDevice) (d models.Device, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if d, err = s.addDevice(tx, n, 0); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: d.AccountID, Action: audit.DeviceEnrol, Object: audit.OfDevice(d.ID)})
	})
	return d, err
}

// AddDevice creates a device that enrols, as a step of a transaction. One more than the account's quota is CodeQuotaExceeded.
func (s *Service) AddDevice(tx *store.Tx, n NewDevice) (models.Device, error) {
	return s.addDevice(tx, n, s.quotas.DevicesPerAccount)
}

func (s *Service) addDevice(tx *store.Tx, n NewDevice, limit int) (models.Device, error) {
	d := models.Device{
		ID: n.ID, PremisesID: n.PremisesID, Type: n.Type, Name: n.Name, Model: n.Model, PoP: !n.NoPoP, Trigger: n.Trigger,
	}
	if d.ID == 0 {
		d.ID = models.NewID()
	}
	if d.Trigger == "" {
		d.Trigger = models.TriggerOption
	}
	premises, found, err := tx.Premises(d.PremisesID)
	if err != nil {
		return d, err
	}
	if !found {
		return d, models.Errorf(models.CodeNotFound, "There is no premises %s. Create it first.", d.PremisesID)
	}
	d.AccountID = premises.AccountID
	if n.ID != 0 { // one number names a node; drawn ones don't meet
		if _, found, err = tx.Relay(d.ID); err != nil {
			return d, err
		}
		if found {
			return d, models.Errorf(models.CodeAlreadyExists, "The id %s belongs to a relay. Leave it out, or choose another.", d.ID)
		}
	}
	if err := room(tx, d.AccountID, models.QuotaDevices, limit, tx.CountDevices); err != nil {
		return d, err
	}
	d, err = tx.InsertDevice(d)
	if s.store.IsDuplicate(err) {
		return d, models.Errorf(models.CodeAlreadyExists, "There is a device with the id %s already. Import each device once.", d.ID)
	}
	if err == nil && d.Type == models.DeviceGateway {
		err = tx.InsertGateway(models.Gateway{ID: d.ID, AccountID: d.AccountID, PremisesID: d.PremisesID})
	}
	if err != nil {
		return d, err
	}
	return d, tx.AppendAccountEvent(d.AccountID, models.Event{Type: models.EventDeviceAdded, PremisesID: d.PremisesID, Device: &d})
}

// Device reads a device of an account, or of any if account is empty, which is for operators.
func (s *Service) Device(ctx context.Context, account models.AccountID, id models.ID) (d models.Device, err error) {
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		d, err = device(tx, account, id)
		return err
	})
	return d, err
}

// device reads a device as a step of a transaction.
func device(tx *store.Tx, account models.AccountID, id models.ID) (models.Device, error) {
	if account == "" {
		d, found, err := tx.Device(id)
		if err == nil && !found {
			err = noDevice(id)
		}
		return d, err
	}
	d, found, err := tx.DeviceOf(account, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return d, err
}

// ListDevices reads a page of an account's devices, sorted by id, and the token of the next page, which is empty on the last.
func (s *Service) ListDevices(ctx context.Context, account models.AccountID, page models.Page) (all []models.Device, next string, err error) {
	token, err := page.After(models.ListDevices)
	if err != nil {
		return nil, "", err
	}
	var after models.ID
	if token != "" {
		if after, err = models.ParseID(token); err != nil {
			return nil, "", models.Errorf(models.CodeBadRequest, "This pageToken is of another list. Leave it out to start with the first page.")
		}
	}
	all, err = s.store.DevicePage(ctx, account, after, page.Limit()+1)
	all, next = models.Cut(all, page, models.ListDevices, func(d models.Device) string { return d.ID.String() })
	return all, next, err
}

// DeviceChange changes what is not nil.
type DeviceChange struct {
	Name    *string
	Trigger *models.Trigger
}

// ChangeDevice renames a device or changes its trigger, which raises the revision of the gateways it is a source of. An empty account
// is for operators.
func (s *Service) ChangeDevice(ctx context.Context, account models.AccountID, id models.ID, change DeviceChange) (d models.Device, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if d, err = device(tx, account, id); err != nil {
			return err
		}
		trigger := d.Trigger
		if change.Name != nil {
			d.Name = *change.Name
		}
		if change.Trigger != nil {
			d.Trigger = *change.Trigger
		}
		if d.Trigger != trigger {
			if err = raiseSource(tx, d); err != nil {
				return err
			}
		}
		if err := tx.SetDevice(id, d.Name, d.Trigger); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: d.AccountID, Action: audit.DeviceChange, Object: audit.OfDevice(id)})
	})
	if err != nil {
		return models.Device{}, err
	}
	return d, nil
}

// raiseSource raises the revision of the gateways that a device is a source of. It holds the gateways of the premises meanwhile,
// so that the device can't become a source with the trigger it had.
func raiseSource(tx *store.Tx, d models.Device) error {
	if err := tx.HoldGatewaysOf(d.PremisesID); err != nil {
		return err
	}
	places, err := tx.PlacesOf(store.Owner{Device: d.ID, Role: models.RoleSource})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(store.ByGateway(places))) {
		if _, _, err := tx.LockGateway(id); err != nil {
			return err
		}
	}
	return nil
}

// DeleteDevice removes a device; its registrations end, and with a gateway all its groups. An empty account is for operators.
func (s *Service) DeleteDevice(ctx context.Context, account models.AccountID, id models.ID) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		d, err := device(tx, account, id)
		if err != nil {
			return err
		}
		if err = registrations.EndOwned(ctx, tx, store.Owner{Device: id}); err != nil {
			return err
		}
		if d.Type == models.DeviceGateway || d.Type == models.DeviceCamera { // which may have ended its tunnel itself
			if err := deleteGateway(ctx, tx, id); err != nil {
				return err
			}
		}
		err = tx.DeleteDevice(id)
		if s.store.IsReference(err) { // it registered while we were at it
			return store.ErrAgain
		}
		if err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: d.AccountID, Action: audit.DeviceRemove, Object: audit.OfDevice(id)})
	})
}

// EndDeviceTokens ends every token of a device, and what still waits with one.
func (s *Service) EndDeviceTokens(ctx context.Context, id models.ID) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		d, found, err := tx.Device(id)
		if err != nil || !found { // then its tokens are gone as well
			return err
		}
		if err := tx.EndDeviceTokens(id); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: d.AccountID, Action: audit.TokenRevoke, Object: audit.OfDevice(id)})
	})
}

// deleteGateway ends a gateway's groups and removes it with its addresses.
func deleteGateway(ctx context.Context, tx *store.Tx, id models.ID) error {
	gateway, found, err := tx.LockGateway(id)
	if err != nil || !found {
		return err
	}
	groups, err := tx.GroupsOfGateway(id)
	if err != nil {
		return err
	}
	if err := registrations.EndGroups(ctx, tx, gateway, groups); err != nil {
		return err
	}
	return tx.DeleteGateway(id)
}

// DevicePrincipal reads the device that a token names, as a caller without scopes. A device that is gone, or of another
// account, is CodeUnauthenticated.
func (s *Service) DevicePrincipal(ctx context.Context, account models.AccountID, device models.ID) (models.Principal, error) {
	d, found, err := s.store.DeviceOf(ctx, account, device)
	if err != nil {
		return models.Principal{}, err
	}
	if !found {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "The device of this token was removed. Enrol it again.")
	}
	p := models.Principal{Kind: models.KindDevice, AccountID: d.AccountID, PremisesID: d.PremisesID, Device: d}
	if d.Type == models.DeviceGateway {
		p.Kind = models.KindGateway
	}
	return p, nil
}

func noDevice(id models.ID) error {
	return models.Errorf(models.CodeNotFound, "There is no device %s. Check the id, or create it first.", id)
}
