package tokens

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
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

// Device makes a token for a device or, if that is its type, a gateway. It lives for life, at most MaxLife.
func (i *Issuer) Device(d models.Device, life time.Duration) (string, error) {
	handle, err := deviceHandle(i.ring, d.ID)
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
	return i.mint(c, life)
}

// Service makes a token for a service (SAT). It names no account: those the service may serve are its links.
func (i *Issuer) Service(s models.Service, life time.Duration) (string, error) {
	return i.mint(claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: string(s.ID)},
		ClientID:         string(s.ID),
		Kind:             models.KindService,
	}, life)
}

func (i *Issuer) mint(c claims, life time.Duration) (string, error) {
	if life <= 0 || life > MaxLife {
		return "", fmt.Errorf("a token can't live for %s: at most %s", life, MaxLife)
	}
	now := i.now()
	c.Issuer = i.issuer
	c.Audience = jwt.ClaimStrings{Audience}
	c.ID = rand.Text()
	c.IssuedAt = jwt.NewNumericDate(now)
	c.NotBefore = c.IssuedAt
	c.ExpiresAt = jwt.NewNumericDate(now.Add(life))
	c.Scope = scopes[c.Kind]
	signer := i.ring.Signer()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	token.Header["typ"] = typ
	token.Header["kid"] = signer.KID
	text, err := token.SignedString(signer.Private)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return text, nil
}

// deviceHandle is the sub of a device: 128 bits that stay the same for a device and tell nothing about it. They are the synthetic
// IV of its sealed id, so nothing has to be stored for them.
func deviceHandle(ring *keys.Ring, id models.ID) (string, error) {
	sealed, err := ring.Seal(claimSubject, Audience, idBytes(id))
	if err != nil {
		return "", err
	}
	b, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", fmt.Errorf("handle of a device: %w", err)
	}
	iv := b[1:17] // after the version of the key
	return "dev:" + base64.RawURLEncoding.EncodeToString(iv), nil
}

func idBytes(id models.ID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }
