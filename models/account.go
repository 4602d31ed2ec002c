package models

import (
	"slices"
	"time"
)

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
	// Fanout is where the account holder wants copies to be made, OnRelayLoss what happens while no relay can.
	Fanout      Fanout
	OnRelayLoss OnRelayLoss
	// CopiedAt is where they are made now.
	CopiedAt  CopiedAt
	CreatedAt time.Time
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

// The scopes that a service can have, in all and in one account.
const (
	ScopeRegister = "gc:register"
	ScopeEvents   = "gc:events"
	ScopeNotify   = "gc:notify"
)

// ServiceScopes are all scopes that a service can have.
func ServiceScopes() []string { return []string{ScopeRegister, ScopeEvents, ScopeNotify} }

// Consent is what an account lets a service do, where and until when. What a service may do in an account is what both its token and the
// consent grant.
type Consent struct {
	// Scopes are some of ServiceScopes.
	Scopes []string
	// Premises are where; nil is everywhere, premises to come included.
	Premises []PremisesID
	// ExpiresAt is when it ends by itself, by the database's clock; zero is never.
	ExpiresAt time.Time
}

// Grants tells whether a scope is one of the consent's.
func (c Consent) Grants(scope string) bool { return slices.Contains(c.Scopes, scope) }

// Covers tells whether the consent is for a premises.
func (c Consent) Covers(p PremisesID) bool {
	return c.Premises == nil || slices.Contains(c.Premises, p)
}

// Equal tells whether both grant the same.
func (c Consent) Equal(o Consent) bool {
	return slices.Equal(c.Scopes, o.Scopes) && slices.Equal(c.Premises, o.Premises) && (c.Premises == nil) == (o.Premises == nil) &&
		c.ExpiresAt.Equal(o.ExpiresAt)
}

// Link is an account's consent for a service. It carries the service account id, the only name by which the service knows the
// account: random, unlinkable across services, and gone with the consent.
type Link struct {
	ServiceID        ServiceID
	AccountID        AccountID
	ServiceAccountID ID
	Consent
	// GrantedBy is the id of the user who consented, or "operator"; GrantedAt is when.
	GrantedBy string
	GrantedAt time.Time
	// Live is false once ExpiresAt has come, until the link is removed.
	Live bool
}
