// Package tokens issues and verifies groupcast's own access tokens: a device's and a gateway's JWT, and a service's SAT (RFC 9068,
// design: identity.md §5.1). Account and device ids are sealed inside them: who reads a token learns neither.
//
// It never reads a request, and never asks whether the principal still exists: that is server/accounts, at every request.
package tokens

import (
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/groupcast/groupcast/models"
)

const (
	// Audience is the aud of every token.
	Audience = "groupcast"
	// MaxLife is the longest life of a token.
	MaxLife = 24 * time.Hour
	// MaxSize is the longest token that is read, in bytes.
	MaxSize = 4096

	typ    = "at+jwt" // RFC 9068 §2.1
	leeway = 30 * time.Second
)

// The claims whose values are sealed.
const (
	claimSubject = "sub"
	claimDevice  = "edid"
	claimAccount = "eacc"
)

// claims is the payload of a token. Numbers that are ids never stand in it.
type claims struct {
	jwt.RegisteredClaims
	ClientID   string            `json:"client_id"`
	Kind       models.Kind       `json:"gc_kind"`
	DeviceType models.DeviceType `json:"dtype,omitempty"`
	Device     string            `json:"edid,omitempty"`
	Account    string            `json:"eacc,omitempty"`
	Premises   models.PremisesID `json:"prem,omitempty"`
	Scope      string            `json:"scope"`
	// How and when a user logged in (OpenID Connect Core §2).
	ACR      string `json:"acr,omitempty"`
	AuthTime int64  `json:"auth_time,omitempty"`
	// Confirmation names the key that the token is bound to (RFC 7800, RFC 9449 §6.1).
	Confirmation *confirmation `json:"cnf,omitempty"`
}

type confirmation struct {
	JKT string `json:"jkt"`
}

// jktSize is the length of a thumbprint in base64url.
const jktSize = 43

// The client_id of devices, which are no clients of their own (RFC 9068 §2.2).
const (
	clientDevice  = "gc-device"
	clientGateway = "gc-gateway"
	clientRelay   = "gc-relay"
	clientApp     = "gc-app"
)

// scopes is what each kind of principal is granted at most.
var scopes = map[models.Kind]string{
	models.KindDevice:  "gc:register gc:notify",
	models.KindGateway: "gc:groups.read gc:notify gc:consent.report",
	models.KindRelay:   "gc:groups.read gc:consent.report",
	models.KindService: strings.Join(models.ServiceScopes(), " "),
	models.KindUser:    "gc:account gc:devices gc:links gc:groups gc:register gc:notify",
}

// Scopes are what a kind of principal is granted at most.
func Scopes(k models.Kind) []string { return strings.Fields(scopes[k]) }

// The prefixes of the sub of devices and users.
const (
	subjectDevice = "dev:"
	subjectRelay  = "rel:"
	subjectUser   = "usr:"
)

// Validate is called by the parser after its own checks: it closes what the library leaves open.
func (c *claims) Validate() error {
	switch {
	case c.IssuedAt == nil || c.ExpiresAt == nil:
		return errors.New("iat or exp is missing")
	case !c.ExpiresAt.After(c.IssuedAt.Time):
		return errors.New("exp is not after iat")
	case c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxLife+leeway:
		return errors.New("the lifetime is longer than allowed")
	case c.ID == "" || c.Subject == "" || c.ClientID == "":
		return errors.New("jti, sub or client_id is missing")
	case len(c.Audience) != 1:
		return errors.New("aud is not a single audience")
	}
	if c.Confirmation != nil && len(c.Confirmation.JKT) != jktSize {
		return errors.New("cnf has no jkt")
	}
	if c.Kind != models.KindUser && (c.ACR != "" || c.AuthTime != 0) {
		return errors.New("claims of a user in another's token")
	}
	device := c.Device != "" && c.Account != "" && c.Premises != ""
	none := c.Device == "" && c.Account == "" && c.Premises == "" && c.DeviceType == ""
	switch c.Kind {
	case models.KindDevice:
		if !device || c.DeviceType == "" || c.ClientID != clientDevice {
			return errors.New("claims of a device are missing")
		}
	case models.KindGateway:
		if !device || c.DeviceType != "" || c.ClientID != clientGateway {
			return errors.New("claims of a gateway are missing")
		}
	case models.KindRelay:
		// It has no account, and its token is always bound to its key.
		if c.Device == "" || c.Account != "" || c.Premises != "" || c.DeviceType != "" || c.ClientID != clientRelay || c.Confirmation == nil {
			return errors.New("claims of a relay are wrong")
		}
	case models.KindService:
		if !none || c.Subject != c.ClientID {
			return errors.New("claims of a service are wrong")
		}
	case models.KindUser:
		// A user's token is always bound to a key of the app.
		if c.Device != "" || c.Account == "" || c.Premises != "" || c.DeviceType != "" || c.ClientID != clientApp || c.Confirmation == nil {
			return errors.New("claims of a user are wrong")
		}
	default:
		return errors.New("gc_kind is unknown")
	}
	return nil
}
