package models

import "time"

// DeviceKey is the one public key of a device. It belongs to no other device of any account until it is released.
type DeviceKey struct {
	// Thumbprint names the key (RFC 7638). It is the device's client id, and the jkt of its tokens.
	Thumbprint string
	DeviceID   ID
	// JWK is the public key as JSON (RFC 7517).
	JWK string
	// Serial is what the device said of itself when it enrolled.
	Serial    string
	CreatedAt time.Time
}

// Ticket lets one device enrol in a premises, once (SPEC §8).
type Ticket struct {
	AccountID  AccountID
	PremisesID PremisesID
	DeviceType DeviceType
	// DeviceID is the device whose lost key is to be replaced; 0 makes a new device.
	DeviceID ID
	// Name is what people call the new device; empty leaves it to the device.
	Name string
	// PoP is false for a device that can't prove possession of a key.
	PoP       bool
	ExpiresAt time.Time
}

// GrantStatus is what became of a device grant.
type GrantStatus string

// The states of a device grant. It is gone once a token was given for it.
const (
	GrantPending  GrantStatus = "pending"
	GrantApproved GrantStatus = "approved"
	GrantRefused  GrantStatus = "refused"
)

// DeviceGrant is a request for access that waits for an account holder (RFC 8628).
type DeviceGrant struct {
	// UserCode is what the account holder types, eight letters without the dash.
	UserCode   string
	ClientID   string
	Scope      string
	DeviceType DeviceType
	Model      string
	Serial     string
	// JKT is the key that the grant is pinned to; empty if the request brought no proof.
	JKT string
	// SourcePrefix is where the request came from: a /24 or a /56.
	SourcePrefix string
	Status       GrantStatus
	// AccountID, PremisesID, UserID and Name are the approver's.
	AccountID  AccountID
	PremisesID PremisesID
	UserID     string
	Name       string
	// Interval is how long the client has to wait between two polls.
	Interval  time.Duration
	PolledAt  time.Time
	CreatedAt time.Time
	ExpiresAt time.Time
}

// RefreshToken is a long-lived right to access tokens, bound to a key and not rotated (SPEC §8). It belongs to a device or to a
// user.
type RefreshToken struct {
	JKT       string
	ClientID  string
	Scope     string
	AccountID AccountID
	DeviceID  ID
	UserID    string
	// ExpiresIn is how long it lives if it isn't used.
	ExpiresIn time.Duration
}

// ServiceCredential is one of the credentials of a service: a secret, of which only the SHA-256 is kept, or public keys.
type ServiceCredential struct {
	ID        string
	ServiceID ServiceID
	// Name is for the operator.
	Name       string
	SecretHash []byte
	// JWKS is a key set as JSON (RFC 7517); empty for a secret.
	JWKS      string
	CreatedAt time.Time
}
