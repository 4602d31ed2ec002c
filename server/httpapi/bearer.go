package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/tokens"
)

// Bearer authenticates by access token: "Authorization: Bearer TOKEN", or the bare token as devices of the source document send it
// (SPEC §8). Whom the token names is read from the database at each request, so a removed device is refused at once.
func Bearer(verifier *tokens.Verifier, accts *accounts.Service) Authenticator {
	return func(r *http.Request) (models.Principal, error) {
		token, err := accessToken(r.Header)
		if err != nil {
			return models.Principal{}, err
		}
		subject, err := verifier.Verify(token)
		if err != nil {
			return models.Principal{}, err
		}
		return principal(r.Context(), accts, subject)
	}
}

// Operator takes everyone for the operator. It belongs on a unix socket whose file mode decides who may connect.
func Operator(*http.Request) (models.Principal, error) {
	return models.Principal{Kind: models.KindOperator}, nil
}

// accessToken reads the Authorization header.
func accessToken(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", unauthenticated("This needs an access token: send it as \"Authorization: Bearer TOKEN\".")
	case 1:
	default:
		return "", unauthenticated("There are several Authorization headers; send exactly one.")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok {
		// The bare form is a token if it has the three parts of one.
		if strings.Count(scheme, ".") != 2 {
			return "", unauthenticated("The Authorization header holds no token: send \"Authorization: Bearer TOKEN\".")
		}
		return scheme, nil
	}
	token = strings.TrimLeft(token, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || strings.ContainsAny(token, " \t,") {
		return "", unauthenticated("This form of Authorization is not understood: send \"Authorization: Bearer TOKEN\".")
	}
	return token, nil
}

func unauthenticated(detail string) *models.Error {
	return models.Errorf(models.CodeUnauthenticated, "%s", detail)
}

// principal reads the caller's row and holds the token against it.
func principal(ctx context.Context, accts *accounts.Service, s tokens.Subject) (p models.Principal, err error) {
	var notBefore time.Time
	if s.Kind == models.KindService {
		p, err = accts.ServicePrincipal(ctx, s.Service)
		notBefore = p.Service.NotBefore
	} else {
		p, err = accts.DevicePrincipal(ctx, s.Account, s.Device)
		notBefore = p.Device.NotBefore
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
