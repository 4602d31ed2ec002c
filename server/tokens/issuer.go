package tokens

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/keys"
)

// Issuer makes tokens. It is safe for concurrent use.
type Issuer struct {
	issuer string
	ring   *keys.Ring
	now    func() time.Time
}

// NewIssuer makes an issuer; issuer is the service's public URL.
func NewIssuer(issuer string, ring *keys.Ring, now func() time.Time) *Issuer {
	return &Issuer{issuer: issuer, ring: ring, now: now}
}

// Grant says how a token is made.
type Grant struct {
	// Life is at most MaxLife.
	Life time.Duration
	// JKT is the thumbprint of the key that the token is bound to; empty makes a bearer token.
	JKT string
	// Scope is what was asked for and allowed; empty means all that the kind may have.
	Scope []string
}

// Device makes a token for a device or, if that is its type, a gateway.
func (i *Issuer) Device(d models.Device, g Grant) (string, error) {
	handle, err := handle(i.ring, subjectDevice, d.ID)
	if err != nil {
		return "", err
	}
	device, err := i.ring.Seal(claimDevice, Audience, idBytes(d.ID))
	if err != nil {
		return "", err
	}
	account, err := i.ring.Seal(claimAccount, Audience, []byte(d.AccountID))
	if err != nil {
		return "", err
	}
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: handle},
		ClientID:         clientDevice,
		Kind:             models.KindDevice,
		DeviceType:       d.Type,
		Device:           device,
		Account:          account,
		Premises:         d.PremisesID,
	}
	if d.Type == models.DeviceGateway {
		c.ClientID, c.Kind, c.DeviceType = clientGateway, models.KindGateway, ""
	}
	return i.mint(c, g, d.NotBefore)
}

// Relay makes a token for a relay. It has to be bound to a key.
func (i *Issuer) Relay(r models.Relay, g Grant) (string, error) {
	subject, err := handle(i.ring, subjectRelay, r.ID)
	if err != nil {
		return "", err
	}
	sealed, err := i.ring.Seal(claimDevice, Audience, idBytes(r.ID))
	if err != nil {
		return "", err
	}
	return i.mint(claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: subject}, ClientID: clientRelay, Kind: models.KindRelay, Device: sealed,
	}, g, r.NotBefore)
}

// Service makes a token for a service (SAT). It names no account: those the service may serve are its links.
func (i *Issuer) Service(s models.Service, g Grant) (string, error) {
	return i.mint(claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: string(s.ID)},
		ClientID:         string(s.ID),
		Kind:             models.KindService,
	}, g, s.NotBefore)
}

// Login is how and when a user proved who they are.
type Login struct {
	UserID    string
	AccountID models.AccountID
	ACR       string
	At        time.Time
	// NotBefore is the user's: nothing that was issued earlier is good.
	NotBefore time.Time
}

// User makes a token for an app of an account holder. It has to be bound to a key.
func (i *Issuer) User(u Login, g Grant) (string, error) {
	subject, err := i.ring.Seal(claimSubject, Audience, []byte(u.UserID))
	if err != nil {
		return "", err
	}
	account, err := i.ring.Seal(claimAccount, Audience, []byte(u.AccountID))
	if err != nil {
		return "", err
	}
	return i.mint(claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: subjectUser + subject},
		ClientID:         clientApp,
		Kind:             models.KindUser,
		Account:          account,
		ACR:              u.ACR,
		AuthTime:         u.At.Unix(),
	}, g, u.NotBefore)
}

func (i *Issuer) mint(c claims, g Grant, notBefore time.Time) (string, error) {
	if g.Life <= 0 || g.Life > MaxLife {
		return "", fmt.Errorf("a token can't live for %s: at most %s", g.Life, MaxLife)
	}
	now := i.now()
	c.Issuer = i.issuer
	c.Audience = jwt.ClaimStrings{Audience}
	c.ID = rand.Text()
	c.NotBefore = jwt.NewNumericDate(now)
	c.ExpiresAt = jwt.NewNumericDate(now.Add(g.Life))
	// What ends a principal's tokens ends those of the running second, since iat counts seconds. A token that is issued after that, but
	// within the same second, has to outlive it.
	if notBefore.After(now) && notBefore.Sub(now) <= leeway {
		now = notBefore
	}
	c.IssuedAt = jwt.NewNumericDate(now)
	c.Scope = scopes[c.Kind]
	if len(g.Scope) > 0 {
		c.Scope = strings.Join(g.Scope, " ")
	}
	if g.JKT != "" {
		c.Confirmation = &confirmation{g.JKT}
	}
	signer := i.ring.Signer()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(signer.Alg), c)
	token.Header["typ"] = typ
	token.Header["kid"] = signer.KID
	text, err := token.SignedString(signer.Private)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return text, nil
}

// handle is the sub of a device or a relay: 128 bits that stay the same for it and tell nothing about it. They are the synthetic
// IV of its sealed id, so nothing has to be stored for them.
func handle(ring *keys.Ring, prefix string, id models.ID) (string, error) {
	sealed, err := ring.Seal(claimSubject, Audience, idBytes(id))
	if err != nil {
		return "", err
	}
	b, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", fmt.Errorf("handle of a device: %w", err)
	}
	iv := b[1:17] // after the version of the key
	return prefix + base64.RawURLEncoding.EncodeToString(iv), nil
}

func idBytes(id models.ID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }
