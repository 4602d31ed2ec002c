package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/dpop"
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
	subject, err := a.Tokens.Verify(token)
	if err != nil {
		return models.Principal{}, err
	}
	if err := a.possession(r, scheme, token, subject); err != nil {
		return models.Principal{}, err
	}
	p, err := a.principal(r.Context(), subject)
	if err != nil {
		return models.Principal{}, err
	}
	c := callOf(r.Context())
	c.issued, c.expires = subject.IssuedAt, subject.ExpiresAt
	if subject.JKT == "" && p.Device.PoP {
		return models.Principal{}, unproven(dpop.InvalidToken, "The token of this device has to be bound to its key: get one with a proof of possession (RFC 9449).")
	}
	return p, nil
}

// possession checks the proof for a token that is bound to a key. Such a token must not be taken as a bearer token (RFC 9449 §7.2).
func (a Access) possession(r *http.Request, scheme, token string, s tokens.Subject) error {
	switch {
	case s.JKT == "" && scheme == schemeDPoP:
		return unproven(dpop.InvalidToken, "The access token isn't bound to a key: send it as \"Authorization: Bearer TOKEN\".")
	case s.JKT == "":
		return nil
	case scheme == schemeBearer:
		return unproven(dpop.InvalidToken, "The access token is bound to a key: send it as \"Authorization: DPoP TOKEN\" with a proof in the header DPoP.")
	}
	result, err := a.Proofs.Verify(r.Context(), dpop.Request{
		Proofs: r.Header.Values("DPoP"), Method: r.Method, Path: r.URL.EscapedPath(), Token: token, BoundTo: s.JKT,
	})
	if refusal, ok := errors.AsType[*dpop.Error](err); ok {
		return unauthenticated(refusal.Detail).Because(refusal)
	}
	if err == nil {
		callOf(r.Context()).nonce = result.Nonce
	}
	return err
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
	case models.KindUser:
		p, err = a.Users.AppPrincipal(ctx, s)
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
	p.Scopes = s.Scopes
	return p, nil
}
