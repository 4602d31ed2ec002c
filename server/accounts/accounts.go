// Package accounts keeps the tenants and what belongs to them: accounts, premises, devices, services, and the links by which
// an account consents to a service. It is what an operator bootstraps, and what a caller is authenticated against.
//
// It never issues or reads a token, and never decides what a caller may do.
package accounts

import (
	"context"
	"errors"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Waker is told which gateways have new group information, after the change is committed.
type Waker interface{ Wake(gatewayID models.ID) }

// Account is an account with everything that belongs to it, each oldest first.
type Account struct {
	models.Account
	Premises []models.Premises
	Devices  []models.Device
	Links    []models.Link
}

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

// DeviceChange changes what is not nil.
type DeviceChange struct {
	Name    *string
	Trigger *models.Trigger
}

// Service keeps accounts.
type Service struct {
	store *store.Store
	waker Waker
}

// New makes the service; the waker is called after commit only.
func New(st *store.Store, waker Waker) *Service { return &Service{store: st, waker: waker} }

// CreateAccount creates an account.
func (s *Service) CreateAccount(ctx context.Context, name string) (models.Account, error) {
	return models.Account{}, errors.ErrUnsupported
}

// ListAccounts reads a page of accounts, oldest first, and the token of the next page.
func (s *Service) ListAccounts(ctx context.Context, page models.Page) ([]Account, string, error) {
	return nil, "", errors.ErrUnsupported
}

// CreatePremises creates a premises of an account.
func (s *Service) CreatePremises(ctx context.Context, account models.AccountID, name string, allowPublicRange bool) (models.Premises, error) {
	return models.Premises{}, errors.ErrUnsupported
}

// CreateDevice creates or imports a device.
func (s *Service) CreateDevice(ctx context.Context, d NewDevice) (models.Device, error) {
	return models.Device{}, errors.ErrUnsupported
}

// ChangeDevice renames a device or changes its trigger, which raises the revision of the gateways it is a source of.
func (s *Service) ChangeDevice(ctx context.Context, id models.ID, change DeviceChange) (models.Device, error) {
	return models.Device{}, errors.ErrUnsupported
}

// DeleteDevice removes a device; its registrations end, and with a gateway all its groups.
func (s *Service) DeleteDevice(ctx context.Context, id models.ID) error {
	return errors.ErrUnsupported
}

// Device reads a device of any account; it is for operators.
func (s *Service) Device(ctx context.Context, id models.ID) (models.Device, error) {
	return models.Device{}, errors.ErrUnsupported
}

// CreateService creates a service.
func (s *Service) CreateService(ctx context.Context, id models.ServiceID, name string) (models.Service, error) {
	return models.Service{}, errors.ErrUnsupported
}

// Service reads a service.
func (s *Service) Service(ctx context.Context, id models.ServiceID) (models.Service, error) {
	return models.Service{}, errors.ErrUnsupported
}

// CreateLink records an account's consent for a service. The service account id is drawn if it is zero.
func (s *Service) CreateLink(ctx context.Context, service models.ServiceID, account models.AccountID, serviceAccountID models.ID) (models.Link, error) {
	return models.Link{}, errors.ErrUnsupported
}

// DeleteLink ends the consent and with it the service's registrations in the account.
func (s *Service) DeleteLink(ctx context.Context, service models.ServiceID, account models.AccountID) error {
	return errors.ErrUnsupported
}

// LinkByServiceAccountID finds the account that a service means by a service account id.
func (s *Service) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (models.Link, error) {
	return models.Link{}, errors.ErrUnsupported
}

// DevicePrincipal reads the device that a token names, as a caller without scopes. A device that is gone, or of another
// account, is CodeUnauthenticated.
func (s *Service) DevicePrincipal(ctx context.Context, account models.AccountID, device models.ID) (models.Principal, error) {
	return models.Principal{}, errors.ErrUnsupported
}

// ServicePrincipal reads the service that a token names, as a caller without scopes. A service that is gone is
// CodeUnauthenticated.
func (s *Service) ServicePrincipal(ctx context.Context, id models.ServiceID) (models.Principal, error) {
	return models.Principal{}, errors.ErrUnsupported
}
