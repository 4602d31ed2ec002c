// Package consents decides what a destination proves its consent with, where copies for it may go, and takes what gateways report of it (SPEC §10).
//
// It never asks a destination itself: the node that sends does. It changes neither a group's state nor a gateway's revision.
package consents

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/groupcast/groupcast/models"
)

// How much of the derived bytes a credential is made of; together they are no more than a SHA-256.
const (
	passwordBytes = 16
	ufragBytes    = 9
)

// Credentials derives the credential of each registration from its id, so that it is nowhere at rest, and is the same on every replica and at every renewal
// (docs/adr/0049).
type Credentials struct{ key []byte }

// NewCredentials makes them from a secret of the installation.
func NewCredentials(key []byte) *Credentials { return &Credentials{key: key} }

// Format keeps the key out of whatever prints the value.
func (c *Credentials) Format(s fmt.State, _ rune) { fmt.Fprint(s, "credentials of destinations") }

// Of gives the credential of a registration. Its texts are made of ice-chars (RFC 8445 §5.3).
func (c *Credentials) Of(id models.RegistrationID) models.ConsentCredential {
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(id))
	sum := mac.Sum(nil)
	text := base64.RawStdEncoding.EncodeToString
	return models.ConsentCredential{Password: text(sum[:passwordBytes]), Ufrag: text(sum[passwordBytes : passwordBytes+ufragBytes])}
}
