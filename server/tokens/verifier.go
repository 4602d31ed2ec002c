package tokens

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/keys"
)

// Subject is whom a valid token speaks for.
type Subject struct {
	Kind models.Kind
	// Device, Account and Premises are set for devices and gateways.
	Device   models.ID
	Account  models.AccountID
	Premises models.PremisesID
	// Relay is set for relays.
	Relay models.ID
	// Service is set for services.
	Service models.ServiceID
	// UserID, ACR and LoginAt are set for users, and Account too.
	UserID  string
	ACR     string
	LoginAt time.Time
	// Issuer and ExternalID are set instead for users of an external issuer: its iss and sub, which only together name somebody.
	Issuer     string
	ExternalID string
	// JKT is the thumbprint of the key that the token is bound to; empty for a bearer token.
	JKT       string
	Scopes    []string
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// Verifier checks tokens. Every default of the JWT library that is unsafe is closed here and only here (design: identity.md §8).
// It is safe for concurrent use.
type Verifier struct {
	ring      *keys.Ring
	validator *jwt.Validator
	// header is the last one that was found good. All tokens of one key have the same, so it is hardly ever read twice.
	header atomic.Pointer[header]

	// devices are the ids that were opened last. Sealing is deterministic: each token of a device holds the same.
	mu      sync.Mutex
	devices *simplelru.LRU[sealed, opened]
}

type header struct{ segment, alg, kid string }

// sealed are the values of a device's token that hold its ids, and opened is what they hold.
type (
	sealed struct{ subject, device, account string }
	opened struct {
		device  models.ID
		account models.AccountID
	}
)

// maxDevices is how many devices' ids are remembered, about 400 bytes each.
const maxDevices = 10_000

// NewVerifier makes a verifier for the tokens of the issuer with this URL.
func NewVerifier(issuer string, ring *keys.Ring, now func() time.Time) *Verifier {
	devices, err := simplelru.NewLRU[sealed, opened](maxDevices, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &Verifier{ring: ring, devices: devices, validator: jwt.NewValidator(
		jwt.WithIssuer(issuer),
		jwt.WithAudience(Audience),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(now),
	)}
}

// Verify tells whom the token speaks for. Every refusal is CodeUnauthenticated, with the reason as the cause, for the log;
// nothing of the token is in either.
func (v *Verifier) Verify(token string) (Subject, error) {
	s, err := v.verify(token)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, jwt.ErrTokenExpired):
		return Subject{}, models.Errorf(models.CodeUnauthenticated, "The access token has expired: get a new one.").Because(err)
	default:
		return Subject{}, models.Errorf(models.CodeUnauthenticated,
			"The access token is not valid: it is damaged or was not issued by this service. Get one from this service.").Because(err)
	}
}

func (v *Verifier) verify(token string) (Subject, error) {
	if len(token) > MaxSize {
		return Subject{}, fmt.Errorf("longer than %d bytes", MaxSize)
	}
	// Go's base64 skips line breaks even where it is strict, which would give one token several spellings.
	if strings.IndexByte(token, '\r') >= 0 || strings.IndexByte(token, '\n') >= 0 {
		return Subject{}, errors.New("a line break")
	}
	first, rest, _ := strings.Cut(token, ".")
	second, third, ok := strings.Cut(rest, ".")
	if !ok || strings.IndexByte(third, '.') >= 0 {
		return Subject{}, errors.New("not three parts")
	}
	h, err := v.readHeader(first)
	if err != nil {
		return Subject{}, err
	}
	c, err := readPayload(second)
	if err != nil {
		return Subject{}, err
	}
	signature, err := strict.DecodeString(third)
	if err != nil {
		return Subject{}, errors.New("the signature is not base64url without padding")
	}
	// There is one algorithm per key: neither does the token choose it, nor is any but ours known.
	key, ok := v.ring.Public(h.kid)
	if !ok || key.Alg != h.alg {
		return Subject{}, errors.New("unknown kid")
	}
	if err := jwt.GetSigningMethod(key.Alg).Verify(token[:len(first)+1+len(second)], signature, key.Key); err != nil {
		return Subject{}, err
	}
	if err := v.validator.Validate(c); err != nil {
		return Subject{}, err
	}
	s := Subject{Kind: c.Kind, Scopes: strings.Fields(c.Scope), IssuedAt: c.IssuedAt.Time, ExpiresAt: c.ExpiresAt.Time}
	if c.Confirmation != nil {
		s.JKT = c.Confirmation.JKT
	}
	if c.Kind == models.KindService {
		s.Service = models.ServiceID(c.Subject)
		return s, nil
	}
	if c.Kind == models.KindUser {
		return s, v.user(&s, c)
	}
	if c.Kind == models.KindRelay {
		s.Relay, err = v.opened(subjectRelay, c.Subject, c.Device)
		return s, err
	}
	ids, err := v.device(sealed{c.Subject, c.Device, c.Account})
	if err != nil {
		return Subject{}, err
	}
	s.Device, s.Account, s.Premises = ids.device, ids.account, c.Premises
	return s, nil
}

// device opens what is sealed in a device's token. The signature has been verified, so strangers push nobody out of the memory.
func (v *Verifier) device(from sealed) (opened, error) {
	v.mu.Lock()
	known, ok := v.devices.Get(from)
	v.mu.Unlock()
	if ok {
		return known, nil
	}
	id, err := v.opened(subjectDevice, from.subject, from.device)
	if err != nil {
		return opened{}, err
	}
	account, err := v.ring.Open(claimAccount, Audience, from.account)
	if err != nil {
		return opened{}, fmt.Errorf("%s: %w", claimAccount, err)
	}
	ids := opened{id, models.AccountID(account)}
	v.mu.Lock()
	v.devices.Add(from, ids)
	v.mu.Unlock()
	return ids, nil
}

// opened opens the sealed id of a device or a relay, whose handle the subject has to be.
func (v *Verifier) opened(prefix, subject, sealed string) (models.ID, error) {
	b, err := v.ring.Open(claimDevice, Audience, sealed)
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("%s: %w", claimDevice, keys.ErrSealed)
	}
	id := models.ID(binary.BigEndian.Uint64(b))
	if h, err := handle(v.ring, prefix, id); err != nil || h != subject {
		return 0, errors.New("sub is not that of the id")
	}
	return id, nil
}

// user opens what is sealed in a user's token.
func (v *Verifier) user(s *Subject, c *claims) error {
	account, err := v.ring.Open(claimAccount, Audience, c.Account)
	if err != nil {
		return fmt.Errorf("%s: %w", claimAccount, err)
	}
	sealed, ok := strings.CutPrefix(c.Subject, subjectUser)
	if !ok {
		return errors.New("sub is not a user's")
	}
	user, err := v.ring.Open(claimSubject, Audience, sealed)
	if err != nil {
		return fmt.Errorf("%s: %w", claimSubject, err)
	}
	s.Account, s.UserID, s.ACR, s.LoginAt = models.AccountID(account), string(user), c.ACR, time.Unix(c.AuthTime, 0)
	return nil
}

// strict refuses padding, and trailing bits that would give one token several spellings. Line breaks it skips; there are none left.
var strict = base64.RawURLEncoding.Strict()

// readHeader accepts alg, kid and typ, each once and a string: no crit, b64, jku, jwk or x5u.
func (v *Verifier) readHeader(segment string) (*header, error) {
	if h := v.header.Load(); h != nil && h.segment == segment {
		return h, nil
	}
	raw, err := strict.DecodeString(segment)
	if err != nil {
		return nil, errors.New("header: not base64url without padding")
	}
	members, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	h := &header{segment: strings.Clone(segment)}
	for name, raw := range members {
		var value string
		if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &value) != nil {
			return nil, errors.New("header: a member is not a string")
		}
		switch name {
		case "alg":
			h.alg = value
		case "kid":
			h.kid = value
		case "typ":
			if value != typ {
				return nil, errors.New("header: typ is not " + typ)
			}
		default:
			return nil, errors.New("header: unknown member")
		}
	}
	if len(members) != 3 {
		return nil, errors.New("header: alg, kid or typ is missing")
	}
	if key, ok := v.ring.Public(h.kid); ok && key.Alg == h.alg { // a stranger's must not push ours out
		v.header.Store(h)
	}
	return h, nil
}

// received is the payload as mint writes it: with one list of audiences and whole seconds. The library's types for them take other forms
// too, and decode each a second time for that.
type received struct {
	claims
	Audience  []string `json:"aud"`
	ExpiresAt *int64   `json:"exp"`
	NotBefore *int64   `json:"nbf"`
	IssuedAt  *int64   `json:"iat"`
}

// readPayload reads the claims. The decoder refuses names that stand twice, and is told to refuse what we don't write: a "SCOPE" that another
// decoder takes for scope, or a claim that would limit the token if we knew it.
func readPayload(segment string) (*claims, error) {
	raw, err := strict.DecodeString(segment)
	if err != nil {
		return nil, errors.New("payload: not base64url without padding")
	}
	var r received
	if err := json.Unmarshal(raw, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, errors.New("payload: a claim stands twice, is not ours or has the wrong type")
	}
	c := &r.claims
	c.RegisteredClaims.Audience = r.Audience
	c.RegisteredClaims.ExpiresAt, c.RegisteredClaims.NotBefore, c.RegisteredClaims.IssuedAt = date(r.ExpiresAt), date(r.NotBefore), date(r.IssuedAt)
	return c, nil
}

func date(seconds *int64) *jwt.NumericDate {
	if seconds == nil {
		return nil
	}
	return &jwt.NumericDate{Time: time.Unix(*seconds, 0)}
}

// object reads a JSON object with each member once; the decoder refuses duplicates and matches names exactly.
func object(raw []byte) (map[string]jsontext.Value, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(raw, &members); err != nil || members == nil {
		return nil, errors.New("not a JSON object with each member once")
	}
	return members, nil
}
