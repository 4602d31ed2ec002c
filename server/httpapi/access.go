package httpapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

// TokenVerifier tells whom a token speaks for.
type TokenVerifier interface {
	Verify(token string) (tokens.Subject, error)
}

// Access authenticates by access token: "Authorization: DPoP TOKEN" with a proof of possession for a token that is bound to a key, "Bearer
// TOKEN", or the bare token as devices of the source document send it (SPEC §8); without that header by the cookie of a session. Whom the token names is read from the database at each
// request, so a removed device is refused at once.
type Access struct {
	Tokens   TokenVerifier
	Proofs   *dpop.Verifier
	Accounts *accounts.Service
	Users    *users.Service
	Relays   *relays.Service
}

// The schemes of the Authorization header; bare is none.
const (
	schemeBare   = ""
	schemeBearer = "bearer"
	schemeDPoP   = "dpop"
)

// Authenticate tells who sends a request.
func (a Access) Authenticate(r *http.Request) (models.Principal, error) {
	if session := sessionToken(r); session != "" && len(r.Header.Values("Authorization")) == 0 {
		return a.Users.Principal(r.Context(), session)
	}
	scheme, token, err := accessToken(r.Header)
	if err != nil {
		return models.Principal{}, err
	}
	p, _, nonce, err := a.verify(r.Context(), scheme, dpop.Request{
		Proofs: r.Header.Values("DPoP"), Method: r.Method, Path: r.URL.EscapedPath(), Token: token,
	})
	if err == nil {
		callOf(r.Context()).nonce = nonce
	}
	return p, err
}

// Protocol is one over which events are heard besides HTTP. A proof of possession for a connection names it as the method, and where it would be
// below the service's URL.
type Protocol struct {
	method, path string
	kind         models.Kind
	scopes       []string // one of them is needed
	refusal      string
}

// The protocols.
var (
	MQTT = Protocol{"MQTT", "/mqtt", models.KindDevice, []string{models.ScopeNotify}, "MQTT is for devices whose token has the scope gc:notify."}
	NATS = Protocol{
		"NATS", "/nats", models.KindService, []string{models.ScopeNotify, models.ScopeEvents}, "The queue is for services whose token has the scope gc:events or gc:notify.",
	}
)

// AuthenticateConnection tells who connects with a token under a user name. That is a proof of possession if it has the three parts of one, and else
// any word.
func (a Access) AuthenticateConnection(ctx context.Context, to Protocol, token, user string) (models.Principal, tokens.Subject, error) {
	scheme, proofs := schemeBare, []string(nil)
	if strings.Count(user, ".") == 2 {
		scheme, proofs = schemeDPoP, []string{user}
	}
	p, subject, _, err := a.verify(ctx, scheme, dpop.Request{Proofs: proofs, Method: to.method, Path: to.path, Token: token})
	if err == nil && (p.Kind != to.kind || !slices.ContainsFunc(to.scopes, p.HasScope)) {
		err = models.Errorf(models.CodeForbidden, "%s", to.refusal)
	}
	return p, subject, err
}

// verify tells who presents a token, and what the token says. A proof in the request is looked at only if the token is bound to a key; the
// nonce is for the next one, if it should have another.
func (a Access) verify(ctx context.Context, scheme string, r dpop.Request) (p models.Principal, s tokens.Subject, nonce string, err error) {
	if s, err = a.Tokens.Verify(r.Token); err != nil {
		return p, s, "", err
	}
	if nonce, err = a.possession(ctx, scheme, r, s); err != nil {
		return p, s, "", err
	}
	if p, err = a.principal(ctx, s); err != nil {
		return p, s, "", err
	}
	if s.JKT == "" && p.Device.PoP {
		err = unproven(dpop.InvalidToken, "The token of this device has to be bound to its key: get one with a proof of possession (RFC 9449).")
		return models.Principal{}, s, "", err
	}
	return p, s, nonce, nil
}

// possession checks the proof for a token that is bound to a key. Such a token must not be taken as a bearer token (RFC 9449 §7.2).
func (a Access) possession(ctx context.Context, scheme string, r dpop.Request, s tokens.Subject) (nonce string, err error) {
	switch {
	case s.JKT == "" && scheme == schemeDPoP:
		return "", unproven(dpop.InvalidToken, "The access token isn't bound to a key: send it as \"Authorization: Bearer TOKEN\".")
	case s.JKT == "":
		return "", nil
	case scheme == schemeBearer:
		return "", unproven(dpop.InvalidToken, "The access token is bound to a key: send it as \"Authorization: DPoP TOKEN\" with a proof in the header DPoP.")
	}
	r.BoundTo = s.JKT
	result, err := a.Proofs.Verify(ctx, r)
	if refusal, ok := errors.AsType[*dpop.Error](err); ok {
		return "", unauthenticated(refusal.Detail).Because(refusal)
	}
	return result.Nonce, err
}

// Operator takes everyone for the operator. It belongs on a unix socket whose file mode decides who may connect.
func Operator(*http.Request) (models.Principal, error) {
	return models.Principal{Kind: models.KindOperator}, nil
}

// accessToken reads the Authorization header.
func accessToken(h http.Header) (scheme, token string, err error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", "", unauthenticated("This needs an access token: send it as \"Authorization: Bearer TOKEN\" or \"Authorization: DPoP TOKEN\".")
	case 1:
	default:
		return "", "", unauthenticated("There are several Authorization headers; send exactly one.")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok {
		// The bare form is a token if it has the three parts of one.
		if strings.Count(scheme, ".") != 2 {
			return "", "", unauthenticated("The Authorization header holds no token: send \"Authorization: Bearer TOKEN\".")
		}
		return schemeBare, scheme, nil
	}
	scheme, token = strings.ToLower(scheme), strings.TrimLeft(token, " ")
	if scheme != schemeBearer && scheme != schemeDPoP || token == "" || strings.ContainsAny(token, " \t,") {
		return "", "", unauthenticated("This form of Authorization is not understood: send \"Authorization: Bearer TOKEN\" or \"Authorization: DPoP TOKEN\".")
	}
	return scheme, token, nil
}

func unauthenticated(detail string) *models.Error {
	return models.Errorf(models.CodeUnauthenticated, "%s", detail)
}

func unproven(code dpop.Code, detail string) *models.Error {
	return unauthenticated(detail).Because(&dpop.Error{Code: code, Detail: detail})
}

// principal reads the caller's row and holds the token against it.
func (a Access) principal(ctx context.Context, s tokens.Subject) (p models.Principal, err error) {
	var notBefore time.Time
	switch s.Kind {
	case models.KindService:
		p, err = a.Accounts.ServicePrincipal(ctx, s.Service)
		notBefore = p.Service.NotBefore
	case models.KindDevice, models.KindGateway:
		p, err = a.Accounts.DevicePrincipal(ctx, s.Account, s.Device)
		notBefore = p.Device.NotBefore
	case models.KindRelay:
		p, err = a.Relays.Principal(ctx, s.Relay)
		notBefore = p.Relay.NotBefore
	case models.KindUser:
		if s.Issuer != "" {
			p, err = a.Users.ExternalPrincipal(ctx, s)
		} else {
			p, err = a.Users.AppPrincipal(ctx, s)
		}
	default:
		return p, unauthenticated("Tokens of this kind are not taken here.")
	}
	if err != nil {
		return models.Principal{}, err
	}
	if p.Kind != s.Kind || p.PremisesID != s.Premises || s.IssuedAt.Before(notBefore) {
		return models.Principal{}, unauthenticated("The access token has been withdrawn or is outdated: get a new one.").
			Because(errors.New("the row has another kind or premises, or is younger than the token"))
	}
	p.Scopes, p.IssuedAt, p.ExpiresAt = s.Scopes, s.IssuedAt, s.ExpiresAt
	return p, nil
}
