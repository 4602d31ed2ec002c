package models

import "time"

// Account is the tenant: everything else belongs to exactly one.
type Account struct {
	ID   AccountID
	Name string
	// JoinPolicy is who joins every new group.
	JoinPolicy JoinPolicy
	CreatedAt  time.Time
}

// Premises is a home or building of an account.
type Premises struct {
	ID        PremisesID
	AccountID AccountID
	Name      string
	// AllowPublicRange lets its gateways declare a group range outside private space (SPEC §5); only an operator sets it.
	AllowPublicRange bool
	CreatedAt        time.Time
}

// DeviceType says what kind of device it is.
type DeviceType string

// The device types of the contract.
const (
	DeviceCamera   DeviceType = "camera"
	DeviceReceiver DeviceType = "receiver"
	DevicePhone    DeviceType = "phone"
	DeviceTablet   DeviceType = "tablet"
	DeviceLaptop   DeviceType = "laptop"
	DeviceGateway  DeviceType = "gateway"
	DeviceOther    DeviceType = "other"
)

// RunsApps tells whether a live stream service can be an app on this device, so that the device may register with type
// Service under its own device id (SPEC §4).
func (t DeviceType) RunsApps() bool {
	return t == DevicePhone || t == DeviceTablet || t == DeviceLaptop
}

// Trigger says what makes a datagram of a source eligible for copying (SPEC §9).
type Trigger string

// The triggers of SPEC §9.
const (
	TriggerOption Trigger = "option"
	TriggerSource Trigger = "source"
)

// Device is a camera, a gateway or a receiver of an account.
type Device struct {
	ID         ID
	AccountID  AccountID
	PremisesID PremisesID
	Type       DeviceType
	Name       string
	Model      string
	// PoP is false for devices that can't prove possession of a key; their tokens are bare (SPEC §8).
	PoP     bool
	Trigger Trigger
	// NotBefore ends every token issued earlier.
	NotBefore time.Time
	CreatedAt time.Time
}

// Service is a partner that receives streams of the accounts that link it.
type Service struct {
	ID        ServiceID
	Name      string
	NotBefore time.Time
	CreatedAt time.Time
}

// Link is an account's consent for a service. It carries the service account id, the only name by which the service knows the
// account: random, unlinkable across services, and gone with the consent.
type Link struct {
	ServiceID        ServiceID
	AccountID        AccountID
	ServiceAccountID ID
	CreatedAt        time.Time
}
