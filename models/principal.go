package models

import (
	"slices"
	"time"
)

// Kind says what a caller is (SPEC §8).
type Kind string

// The kinds of principals.
const (
	KindDevice   Kind = "device"
	KindGateway  Kind = "gateway"
	KindRelay    Kind = "relay" // of the operator: it has no account
	KindService  Kind = "service"
	KindUser     Kind = "user"
	KindOperator Kind = "operator"
)

// Machine tells whether a program acts, not a person.
func (k Kind) Machine() bool {
	return k == KindDevice || k == KindGateway || k == KindRelay || k == KindService
}

// Principal is an authenticated caller. Account, premises and device come from the token and from the row it names, never from
// a request body (SPEC §4).
type Principal struct {
	Kind       Kind
	Scopes     []string
	AccountID  AccountID  // empty for a service and a relay
	PremisesID PremisesID // empty for a service and a relay
	Device     Device     // device and gateway
	Service    Service    // service
	Relay      Relay      // relay; its tokens have to be bound to its key
	// UserID is who acts for the account; only a user has one. Fresh says that the user typed the password within the last minutes.
	UserID string
	Fresh  bool
	// Session is the digest of the session's token; nil for an app's access token.
	Session []byte
	// IssuedAt and ExpiresAt are the access token's; zero for a session and an operator.
	IssuedAt, ExpiresAt time.Time
}

// HasScope tells whether the token was granted the scope.
func (p Principal) HasScope(scope string) bool {
	return slices.Contains(p.Scopes, scope)
}
