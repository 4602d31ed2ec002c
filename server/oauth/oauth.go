// Package oauth is the built-in issuer's token endpoint (RFC 6749) with what belongs to it: who a client is, the grants, revocation
// (RFC 7009) and the description of the issuer (RFC 8414). design/identity.md §4 says which client may do what.
//
// It reads no HTTP: the edge takes requests apart and writes refusals, which are *models.Error with the codes of the catalogue.
package oauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/replay"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/tokens"
)

// The grants (RFC 6749 §4.4, §6, RFC 8628 §3.4).
const (
	GrantClientCredentials = "client_credentials"
	GrantRefreshToken      = "refresh_token"
	GrantDeviceCode        = "urn:ietf:params:oauth:grant-type:device_code"
)

// AssertionType is the only client_assertion_type (RFC 7523 §2.2).
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// How long access tokens live (design: identity.md §4.2).
const (
	DeviceLife  = 60 * time.Minute
	BareLife    = 15 * time.Minute // a device that can't prove possession
	ServiceLife = 10 * time.Minute
	UserLife    = 15 * time.Minute
)

// Users tells whether the user of an app may still log in, and since when its tokens are good. A user that is gone is
// CodeInvalidGrant.
type Users interface {
	Login(ctx context.Context, account models.AccountID, userID string) (tokens.Login, error)
}

// TokenVerifier tells whom a token speaks for.
type TokenVerifier interface {
	Verify(token string) (tokens.Subject, error)
}

// Parts are what the service is made of.
type Parts struct {
	// Issuer is the service's public URL, and the only audience of client assertions.
	Issuer    string
	Store     *store.Store
	Accounts  *accounts.Service
	Enrolment *enrolment.Service
	Grants    *devicegrant.Service
	Tokens    *tokens.Issuer
	Verifier  TokenVerifier
	Proofs    *dpop.Verifier
	// Used remembers client assertions, for all replicas.
	Used dpop.Replays
	// Users is nil in an installation without logins; then no app gets a token.
	Users Users
	Now   func() time.Time
	Log   *slog.Logger
}

// Service answers the OAuth endpoints.
type Service struct{ Parts }

// New makes the service.
func New(p Parts) *Service { return &Service{p} }

// SweepEvery is how often what has ended is removed.
const SweepEvery = time.Minute

// Run removes what has ended by itself, until the context ends. Every replica may run it.
func (s *Service) Run(ctx context.Context) {
	ticker := time.NewTicker(SweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := s.Store.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "What has ended could not be removed; it is tried again.", "error", err)
		}
	}
}

// Credentials are what a client authenticates with.
type Credentials struct {
	// ClientID is the parameter client_id.
	ClientID string
	// BasicID and BasicSecret are of the Authorization header, decoded; Basic tells that there was one.
	Basic                bool
	BasicID, BasicSecret string
	// AssertionType and Assertion are client_assertion_type and client_assertion.
	AssertionType, Assertion string
}

// Request is one request for a token.
type Request struct {
	Credentials
	GrantType    string
	Scope        string
	DeviceCode   string
	RefreshToken string
	// Proofs are all values of the header DPoP.
	Proofs []string
}

// Answer is a token.
type Answer struct {
	AccessToken  string
	Bound        bool
	Life         time.Duration
	RefreshToken string
	Scope        string
}

const tokenPath = "/oauth/token"

// Token answers a request for a token.
func (s *Service) Token(ctx context.Context, r Request) (Answer, error) {
	proof, err := s.proof(ctx, tokenPath, r.Proofs)
	if err != nil {
		return Answer{}, err
	}
	switch r.GrantType {
	case GrantClientCredentials:
		if r.DeviceCode != "" || r.RefreshToken != "" {
			return Answer{}, foreign(r.GrantType)
		}
		return s.clientCredentials(ctx, r, proof)
	case GrantDeviceCode:
		if r.RefreshToken != "" || r.DeviceCode == "" || r.Scope != "" {
			return Answer{}, foreign(r.GrantType)
		}
		return s.deviceCode(ctx, r, proof)
	case GrantRefreshToken:
		if r.DeviceCode != "" || r.RefreshToken == "" {
			return Answer{}, foreign(r.GrantType)
		}
		return s.refresh(ctx, r, proof)
	}
	return Answer{}, models.Errorf(models.CodeUnsupportedGrant, "Use %s, %s or %s.", GrantClientCredentials, GrantRefreshToken, GrantDeviceCode)
}

func foreign(grant string) error {
	return models.Errorf(models.CodeBadRequest, "A parameter is missing or doesn't belong to the grant %s.", grant)
}

// proof checks the proof of possession of a request that has one; without one it gives nil.
func (s *Service) proof(ctx context.Context, path string, proofs []string) (*dpop.Result, error) {
	if len(proofs) == 0 {
		return nil, nil
	}
	r, err := s.Proofs.Verify(ctx, dpop.Request{Proofs: proofs, Method: "POST", Path: path})
	if refusal, ok := errors.AsType[*dpop.Error](err); ok {
		code := models.CodeInvalidDPoPProof
		if refusal.Code == dpop.UseNonce {
			code = models.CodeUseDPoPNonce
		}
		return nil, models.Errorf(code, "%s", refusal.Detail)
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}

func noProof() error {
	return models.Errorf(models.CodeInvalidDPoPProof, "Send a proof of possession in the header DPoP (RFC 9449): this token will be bound to the key.")
}

func (s *Service) clientCredentials(ctx context.Context, r Request, proof *dpop.Result) (Answer, error) {
	c, err := s.authenticate(ctx, r.Credentials)
	if err != nil {
		return Answer{}, err
	}
	g := tokens.Grant{Life: ServiceLife}
	kind := models.KindService
	if c.relay != nil {
		kind, g.Life = models.KindRelay, DeviceLife
		switch {
		case proof == nil:
			return Answer{}, noProof()
		case proof.Thumbprint != c.thumbprint:
			return Answer{}, models.Errorf(models.CodeInvalidDPoPProof, "The proof is of another key than the relay's own.")
		}
	}
	if c.device != nil {
		kind = models.KindDevice
		if c.device.Type == models.DeviceGateway {
			kind = models.KindGateway
		}
		g.Life = DeviceLife
		switch {
		case proof == nil && c.device.PoP:
			return Answer{}, noProof()
		case proof == nil:
			g.Life = BareLife
		case proof.Thumbprint != c.thumbprint:
			return Answer{}, models.Errorf(models.CodeInvalidDPoPProof, "The proof is of another key than the device's own.")
		}
	}
	if proof != nil {
		g.JKT = proof.Thumbprint
	}
	if g.Scope, err = granted(r.Scope, kind); err != nil {
		return Answer{}, err
	}
	var token string
	switch {
	case c.device != nil:
		token, err = s.Tokens.Device(*c.device, g)
	case c.relay != nil:
		token, err = s.Tokens.Relay(*c.relay, g)
	default:
		token, err = s.Tokens.Service(*c.service, g)
	}
	return answer(token, g, ""), err
}

func (s *Service) deviceCode(ctx context.Context, r Request, proof *dpop.Result) (Answer, error) {
	if err := public(r.Credentials); err != nil {
		return Answer{}, err
	}
	if r.ClientID == devicegrant.ClientApp && s.Users == nil {
		return Answer{}, noUsers()
	}
	if proof == nil {
		return Answer{}, noProof()
	}
	d, err := s.Grants.Redeem(ctx, r.DeviceCode, r.ClientID, proof.Key)
	if err != nil {
		return Answer{}, err
	}
	t := models.RefreshToken{JKT: proof.Thumbprint, ClientID: r.ClientID, Scope: d.Scope, AccountID: d.AccountID, UserID: d.UserID, DeviceID: d.Device.ID}
	if d.Device.ID.Valid() {
		t.AccountID = d.Device.AccountID
	}
	a, err := s.issue(ctx, t, "")
	a.RefreshToken = d.RefreshToken
	return a, err
}

// refresh gives a new access token for a refresh token, which stays as it is: a power cut between a rotation and the writing of the new
// token would lock a camera out (RFC 9700 §4.14.2 allows that for tokens that are bound to a key).
func (s *Service) refresh(ctx context.Context, r Request, proof *dpop.Result) (Answer, error) {
	if err := public(r.Credentials); err != nil {
		return Answer{}, err
	}
	if proof == nil {
		return Answer{}, noProof()
	}
	h := secrets.Hash(r.RefreshToken)
	t, found, err := s.Store.RefreshToken(ctx, h)
	if err != nil {
		return Answer{}, err
	}
	if !found || t.JKT != proof.Thumbprint || t.ClientID != r.ClientID {
		return Answer{}, models.Errorf(models.CodeInvalidGrant, "The refresh token is unknown, has ended, or belongs to another client or key.")
	}
	a, err := s.issue(ctx, t, r.Scope)
	if err != nil {
		return Answer{}, err
	}
	life := devicegrant.DeviceRefresh
	if t.UserID != "" {
		life = devicegrant.AppRefresh
	}
	// The end moves on in steps of an hour, so that a client that asks often doesn't make the database write each time.
	if t.ExpiresIn < life-time.Hour {
		if err := s.Store.ExtendRefreshToken(ctx, h, life); err != nil {
			return Answer{}, err
		}
	}
	return a, nil
}

// issue makes the access token that a refresh token stands for.
func (s *Service) issue(ctx context.Context, t models.RefreshToken, asked string) (Answer, error) {
	g := tokens.Grant{JKT: t.JKT, Life: DeviceLife}
	var err error
	if t.UserID != "" {
		if s.Users == nil {
			return Answer{}, noUsers()
		}
		g.Life = UserLife
		if g.Scope, err = within(asked, t.Scope, models.KindUser); err != nil {
			return Answer{}, err
		}
		login, err := s.Users.Login(ctx, t.AccountID, t.UserID)
		if err != nil {
			return Answer{}, err
		}
		token, err := s.Tokens.User(login, g)
		return answer(token, g, ""), err
	}
	d, found, err := s.Store.DeviceOf(ctx, t.AccountID, t.DeviceID)
	if err != nil {
		return Answer{}, err
	}
	if !found {
		return Answer{}, models.Errorf(models.CodeInvalidGrant, "The device was removed. Enrol it again.")
	}
	kind := models.KindDevice
	if d.Type == models.DeviceGateway {
		kind = models.KindGateway
	}
	if g.Scope, err = within(asked, t.Scope, kind); err != nil {
		return Answer{}, err
	}
	token, err := s.Tokens.Device(d, g)
	return answer(token, g, ""), err
}

func noUsers() error {
	return models.Errorf(models.CodeUnauthorizedClient, "Nobody can log in to this installation, so apps get no tokens.")
}

func answer(token string, g tokens.Grant, refresh string) Answer {
	return Answer{AccessToken: token, Bound: g.JKT != "", Life: g.Life, RefreshToken: refresh, Scope: strings.Join(g.Scope, " ")}
}

// granted reads a scope: all that the kind may have if none is asked for.
func granted(asked string, kind models.Kind) ([]string, error) { return within(asked, "", kind) }

// within is granted with a further bound.
func within(asked, bound string, kind models.Kind) ([]string, error) {
	most := tokens.Scopes(kind)
	if bound != "" {
		list := strings.Fields(bound)
		most = slices.DeleteFunc(most, func(s string) bool { return !slices.Contains(list, s) })
	}
	if asked == "" {
		if len(most) == 0 {
			return nil, models.Errorf(models.CodeInvalidScope, "None of the scopes that were asked for is for a %s.", kind)
		}
		return most, nil
	}
	var all []string
	for s := range strings.FieldsSeq(asked) {
		if !slices.Contains(most, s) {
			return nil, models.Errorf(models.CodeInvalidScope, "A scope was asked for that this client is not granted; it may have: %s.", strings.Join(most, " "))
		}
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, models.Errorf(models.CodeInvalidScope, "The scope is empty; leave it out to get all that the client may have.")
	}
	return all, nil
}

// ScopesOf tells whether a scope can be asked for by a device grant, so that a mistake shows at its beginning.
func ScopesOf(clientID, scope string) error {
	kind := map[string]models.Kind{
		devicegrant.ClientDevice: models.KindDevice, devicegrant.ClientGateway: models.KindGateway, devicegrant.ClientApp: models.KindUser,
	}[clientID]
	_, err := granted(scope, kind)
	return err
}

// DeviceAuthorization is a request for a device code.
type DeviceAuthorization struct {
	devicegrant.Request
	Proofs []string
}

// Authorize begins a device grant, pinned to the key of the proof if there is one.
func (s *Service) Authorize(ctx context.Context, r DeviceAuthorization) (devicegrant.Begun, error) {
	if r.ClientID == devicegrant.ClientApp && s.Users == nil {
		return devicegrant.Begun{}, noUsers()
	}
	if err := ScopesOf(r.ClientID, r.Scope); err != nil {
		return devicegrant.Begun{}, err
	}
	proof, err := s.proof(ctx, "/oauth/device_authorization", r.Proofs)
	if err != nil {
		return devicegrant.Begun{}, err
	}
	if proof != nil {
		r.JKT = proof.Thumbprint
	}
	return s.Grants.Begin(ctx, r.Request)
}

// Registration is a device that enrols with a ticket.
type Registration struct {
	enrolment.Request
	// JWK is the only key of the device's key set.
	JWK    []byte
	Proofs []string
}

// Register enrols a device. It has to prove that it holds the key that it brings: else anyone could take a key from its owner by
// enrolling it first.
func (s *Service) Register(ctx context.Context, r Registration) (enrolment.Enrolled, error) {
	key, err := dpop.ParseKey(r.JWK)
	if err != nil {
		return enrolment.Enrolled{}, models.Errorf(models.CodeInvalidClientMetadata, "The device's key can't be taken: %s.", err.Error())
	}
	proof, err := s.proof(ctx, "/oauth/register", r.Proofs)
	switch {
	case err != nil:
		return enrolment.Enrolled{}, err
	case proof == nil:
		return enrolment.Enrolled{}, models.Errorf(models.CodeInvalidDPoPProof, "Send a proof of possession of the device's key in the header DPoP (RFC 9449).")
	case proof.Thumbprint != key.Thumbprint:
		return enrolment.Enrolled{}, models.Errorf(models.CodeInvalidDPoPProof, "The proof is of another key than the one in jwks.")
	}
	r.Key = key
	if r.Request.JWK, err = key.JWK(); err != nil {
		return enrolment.Enrolled{}, err
	}
	return s.Enrolment.Enrol(ctx, r.Request)
}

// Revocation is a request to end a token.
type Revocation struct {
	Credentials
	Token  string
	Proofs []string
}

// Revoke ends a token of the client that asks, and does nothing about any other, or about one that is unknown (RFC 7009 §2.2). An
// access token can't be ended alone: all of the device's, user's or service's that were issued until now end with it.
func (s *Service) Revoke(ctx context.Context, r Revocation) error {
	proof, err := s.proof(ctx, "/oauth/revoke", r.Proofs)
	if err != nil {
		return err
	}
	subject, tokenErr := s.Verifier.Verify(r.Token)
	if r.Basic || r.Assertion != "" {
		c, err := s.authenticate(ctx, r.Credentials)
		if err != nil || tokenErr != nil {
			return err
		}
		switch {
		case c.service != nil && subject.Kind == models.KindService && subject.Service == c.service.ID:
			return s.endService(ctx, c.service.ID)
		case c.device != nil && subject.Device == c.device.ID:
			return s.Accounts.EndDeviceTokens(ctx, c.device.ID)
		case c.relay != nil && subject.Relay == c.relay.ID:
			return s.endRelay(ctx, c.relay.ID)
		}
		return nil
	}
	if err := public(r.Credentials); err != nil {
		return err
	}
	if proof == nil {
		return models.Errorf(models.CodeInvalidClient, "Prove possession of the key that the token is bound to, in the header DPoP.")
	}
	if tokenErr == nil && subject.JKT == proof.Thumbprint && subject.Device.Valid() {
		return s.Accounts.EndDeviceTokens(ctx, subject.Device)
	}
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		t, found, err := tx.DeleteRefreshToken(secrets.Hash(r.Token), proof.Thumbprint)
		if err != nil || !found {
			return err
		}
		e := audit.Entry{Account: t.AccountID, Action: audit.TokenRevoke, Object: audit.OfDevice(t.DeviceID)}
		if t.UserID != "" {
			e.Object = audit.OfUser(t.UserID)
		}
		return audit.Note(ctx, tx, e)
	})
}

func (s *Service) endService(ctx context.Context, id models.ServiceID) error {
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.EndServiceTokens(id); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.TokenRevoke, Object: audit.OfService(id)})
	})
}

func (s *Service) endRelay(ctx context.Context, id models.ID) error {
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.EndRelayTokens(id); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.TokenRevoke, Object: audit.OfRelay(id)})
	})
}

// use marks a jti as used.
func (s *Service) use(ctx context.Context, key string, until time.Time) error {
	err := s.Used.Use(ctx, key, until)
	if errors.Is(err, replay.ErrUsed) {
		return badClient("the assertion was used before")
	}
	if err != nil {
		return fmt.Errorf("remember an assertion: %w", err)
	}
	return nil
}
