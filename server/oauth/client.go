package oauth

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/secrets"
)

const (
	// maxAssertion is the longest client assertion that is read, in bytes.
	maxAssertion = 4096
	// assertionLife is the longest life of one.
	assertionLife = 2 * time.Minute
	maxID         = 128
	leeway        = 30 * time.Second
)

// client is who was authenticated: a service, or a device or a relay with its key.
type client struct {
	service    *models.Service
	device     *models.Device
	relay      *models.Relay
	thumbprint string // of a device or a relay
}

// badClient says the same to everybody; the reason is for the log.
func badClient(reason string) error {
	return models.Errorf(models.CodeInvalidClient, "The client is unknown or its credential is not valid. An assertion names the issuer as its only audience, lives "+
		"two minutes at most, and is good once.").Because(errors.New(reason))
}

// public lets only those clients pass that have no credential of their own.
func public(c Credentials) error {
	if c.Basic || c.Assertion != "" || c.AssertionType != "" {
		return models.Errorf(models.CodeUnauthorizedClient, "This grant is for %s, %s and %s, which have no credential of their own; send client_id only.",
			devicegrant.ClientDevice, devicegrant.ClientGateway, devicegrant.ClientApp)
	}
	switch c.ClientID {
	case devicegrant.ClientDevice, devicegrant.ClientGateway, devicegrant.ClientApp:
		return nil
	case "":
		return models.Errorf(models.CodeInvalidClient, "Say who asks in client_id.")
	}
	return models.Errorf(models.CodeUnauthorizedClient, "This grant is for %s, %s and %s.", devicegrant.ClientDevice, devicegrant.ClientGateway, devicegrant.ClientApp)
}

// authenticate tells who a client with a credential of its own is. It uses exactly one way (RFC 6749 §2.3).
func (s *Service) authenticate(ctx context.Context, c Credentials) (client, error) {
	switch {
	case c.Basic && (c.Assertion != "" || c.AssertionType != ""):
		return client{}, models.Errorf(models.CodeBadRequest, "Authenticate in one way only: with a secret or with an assertion.")
	case c.Basic:
		if c.ClientID != "" && c.ClientID != c.BasicID {
			return client{}, badClient("client_id is not that of the Authorization header")
		}
		return s.bySecret(ctx, c.BasicID, c.BasicSecret)
	case c.Assertion == "" || c.AssertionType != AssertionType:
		return client{}, models.Errorf(models.CodeInvalidClient, "Authenticate with client_secret_basic or private_key_jwt.")
	}
	return s.byAssertion(ctx, c)
}

// bySecret compares what is stored with the hash of a secret. Unknown services and wrong secrets take the same two queries.
func (s *Service) bySecret(ctx context.Context, id, secret string) (client, error) {
	if len(id) > maxID || len(secret) > maxID {
		return client{}, badClient("too long")
	}
	credentials, err := s.Store.ServiceCredentials(ctx, models.ServiceID(id))
	if err != nil {
		return client{}, err
	}
	v, found, err := s.Store.Service(ctx, models.ServiceID(id))
	if err != nil {
		return client{}, err
	}
	h := secrets.Hash(secret)
	good := 0
	for _, c := range credentials {
		good |= subtle.ConstantTimeCompare(c.SecretHash, h)
	}
	if !found || good != 1 {
		return client{}, badClient("unknown service or wrong secret")
	}
	return client{service: &v}, nil
}

// byAssertion checks a client assertion (RFC 7523 §3, with the issuer as the only audience: draft-ietf-oauth-rfc7523bis).
func (s *Service) byAssertion(ctx context.Context, c Credentials) (client, error) {
	a, err := s.readAssertion(c.Assertion)
	if err != nil {
		return client{}, badClient(err.Error())
	}
	if c.ClientID != "" && c.ClientID != a.claims.Subject {
		return client{}, badClient("client_id is not the sub of the assertion")
	}
	who, candidates, err := s.keysOf(ctx, a.claims.Subject)
	if err != nil {
		return client{}, err
	}
	for _, k := range candidates {
		if k.Fits(a.alg) && (a.kid == "" || k.kid == "" || a.kid == k.kid) && k.Verify(a.signed, a.signature) == nil {
			// Only now: a stranger must not be able to use up somebody's jti.
			return who, s.use(ctx, "assertion "+a.claims.Subject+" "+a.claims.ID, a.claims.ExpiresAt.Add(leeway))
		}
	}
	return client{}, badClient("unknown client, or none of its keys made the signature")
}

type assertion struct {
	alg, kid  string
	signed    string
	signature []byte
	claims    jwt.RegisteredClaims
}

// readAssertion reads an assertion and checks all but its signature. Its errors hold nothing of it.
func (s *Service) readAssertion(text string) (a assertion, err error) {
	if len(text) > maxAssertion {
		return a, fmt.Errorf("longer than %d bytes", maxAssertion)
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return a, errors.New("not three parts")
	}
	var header, payload map[string]jsontext.Value // refuses members that stand twice
	for i, to := range []*map[string]jsontext.Value{&header, &payload} {
		raw, err := strict.DecodeString(parts[i])
		if err != nil || json.Unmarshal(raw, to) != nil || *to == nil {
			return a, errors.New("header or payload is not an object with each member once in base64url")
		}
	}
	var typ string
	for name, raw := range header {
		to, known := map[string]*string{"alg": &a.alg, "kid": &a.kid, "typ": &typ}[name]
		if !known || len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, to) != nil {
			return a, errors.New("the header has an unknown member, or one that is not a string")
		}
	}
	// Clients in the field send none, or the generic one; RFC 9449's and RFC 9068's would be tokens for something else.
	if typ != "" && !strings.EqualFold(typ, "JWT") && typ != "client-authentication+jwt" {
		return a, errors.New("typ is that of another kind of token")
	}
	seen := map[string]bool{}
	for name := range payload {
		if seen[strings.ToLower(name)] {
			return a, errors.New("a claim stands twice")
		}
		seen[strings.ToLower(name)] = true
	}
	raw, _ := strict.DecodeString(parts[1])
	if json.Unmarshal(raw, &a.claims) != nil {
		return a, errors.New("a claim has the wrong type")
	}
	if a.signature, err = strict.DecodeString(parts[2]); err != nil {
		return a, errors.New("the signature is not base64url")
	}
	a.signed = text[:len(parts[0])+1+len(parts[1])]
	return a, s.checkClaims(a.claims)
}

var strict = base64.RawURLEncoding.Strict()

func (s *Service) checkClaims(c jwt.RegisteredClaims) error {
	now := s.Now()
	switch {
	case c.Issuer == "" || c.Issuer != c.Subject || len(c.Subject) > maxID:
		return errors.New("iss and sub are not both the client id")
	case !slices.Equal(c.Audience, jwt.ClaimStrings{s.Issuer}):
		return errors.New("aud is not the issuer alone")
	case c.ID == "" || len(c.ID) > maxID:
		return errors.New("jti is missing or too long")
	case c.ExpiresAt == nil || !now.Before(c.ExpiresAt.Add(leeway)):
		return errors.New("exp is missing or past")
	case c.ExpiresAt.Sub(now) > assertionLife+leeway:
		return errors.New("exp is too far away")
	case c.IssuedAt != nil && (c.ExpiresAt.Sub(c.IssuedAt.Time) > assertionLife || c.IssuedAt.Sub(now) > leeway):
		return errors.New("iat is too early or in the future")
	case c.NotBefore != nil && c.NotBefore.Sub(now) > leeway:
		return errors.New("nbf is in the future")
	}
	return nil
}

// named is a key with the kid that its owner gave it.
type named struct {
	dpop.Key
	kid string
}

// keysOf gives the client with this id and its public keys; none if it is unknown.
func (s *Service) keysOf(ctx context.Context, id string) (client, []named, error) {
	if thumbprint, ok := strings.CutPrefix(id, enrolment.ClientPrefix); ok {
		return s.deviceKeys(ctx, thumbprint)
	}
	if thumbprint, ok := strings.CutPrefix(id, enrolment.RelayClientPrefix); ok {
		return s.relayKeys(ctx, thumbprint)
	}
	v, found, err := s.Store.Service(ctx, models.ServiceID(id))
	if err != nil || !found {
		return client{}, nil, err
	}
	credentials, err := s.Store.ServiceCredentials(ctx, v.ID)
	if err != nil {
		return client{}, nil, err
	}
	var all []named
	for _, c := range credentials {
		if c.JWKS == "" {
			continue
		}
		keys, err := parseKeySet([]byte(c.JWKS))
		if err != nil {
			return client{}, nil, fmt.Errorf("credential %s of service %s in the database: %w", c.ID, v.ID, err)
		}
		all = append(all, keys...)
	}
	return client{service: &v}, all, nil
}

func (s *Service) deviceKeys(ctx context.Context, thumbprint string) (client, []named, error) {
	k, found, err := s.Store.DeviceKey(ctx, thumbprint)
	if err != nil || !found {
		return client{}, nil, err
	}
	d, found, err := s.Store.Device(ctx, k.DeviceID)
	if err != nil || !found {
		return client{}, nil, err
	}
	key, err := dpop.ParseKey([]byte(k.JWK))
	if err != nil {
		return client{}, nil, fmt.Errorf("key of device %s in the database: %w", d.ID, err)
	}
	return client{device: &d, thumbprint: thumbprint}, []named{{Key: key}}, nil
}

func (s *Service) relayKeys(ctx context.Context, thumbprint string) (client, []named, error) {
	r, jwk, found, err := s.Store.RelayByKey(ctx, thumbprint)
	if err != nil || !found {
		return client{}, nil, err
	}
	key, err := dpop.ParseKey([]byte(jwk))
	if err != nil {
		return client{}, nil, fmt.Errorf("key of relay %s in the database: %w", r.ID, err)
	}
	return client{relay: &r, thumbprint: thumbprint}, []named{{Key: key}}, nil
}

// MaxKeys is the most keys that a key set of a service may hold.
const MaxKeys = 8

// CheckKeySet tells whether a key set (RFC 7517 §5) can be a service's: 1 to MaxKeys public keys, Ed25519 or P-256. Its error is for
// whoever wrote the set.
func CheckKeySet(text []byte) error {
	_, err := parseKeySet(text)
	return err
}

func parseKeySet(text []byte) ([]named, error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) == 0 || len(set.Keys) > MaxKeys {
		return nil, fmt.Errorf("it is not a JSON object whose member keys holds 1 to %d keys", MaxKeys)
	}
	all := make([]named, 0, len(set.Keys))
	for _, raw := range set.Keys {
		k, err := dpop.ParseKey(raw)
		if err != nil {
			return nil, err
		}
		var about struct {
			KID string `json:"kid"`
		}
		if json.Unmarshal(raw, &about) != nil {
			return nil, errors.New("kid is not a string")
		}
		all = append(all, named{Key: k, kid: about.KID})
	}
	return all, nil
}
