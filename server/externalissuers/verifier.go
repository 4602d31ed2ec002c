package externalissuers

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/tokens"
)

const (
	leeway = 30 * time.Second
	// lookupTime bounds how long one token may make us wait for its key.
	lookupTime = 3 * time.Second
	// rateWait is how long it may wait for its turn to ask the issuer; keyfunc's own default is a minute.
	rateWait = 2 * time.Second
	jktSize  = 43
	// maxSubject is the length that OpenID Connect Core §2 allows.
	maxSubject = 255
)

// Own verifies the service's own tokens.
type Own interface {
	Verify(token string) (tokens.Subject, error)
}

// Verifier verifies the tokens of all issuers. It is safe for concurrent use.
type Verifier struct {
	own     Own
	trusted map[string]*trusted
	now     func() time.Time
}

type trusted struct {
	Issuer
	keys      jwkset.Storage
	validator *jwt.Validator
}

// New makes a verifier of the service's own tokens and those of the issuers. Keys are fetched now, and anew every hour and for unknown
// names, once in five minutes at most, until the context ends. An issuer that can't be reached is logged and tried again.
func New(ctx context.Context, own Own, issuers []Issuer, client *http.Client, now func() time.Time, log *slog.Logger) (*Verifier, error) {
	v := &Verifier{own: own, trusted: map[string]*trusted{}, now: now}
	later := true // an issuer that is away must not keep our own tokens from being taken
	for _, i := range issuers {
		keys, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{i.JWKSURI}, keyfunc.Override{
			Client: client, HTTPTimeout: lookupTime, RateLimitWaitMax: rateWait, NoErrorReturnFirstHTTPReq: &later,
			RefreshErrorHandlerFunc: func(string) func(context.Context, error) {
				return func(ctx context.Context, err error) {
					log.WarnContext(ctx, "The keys of an external issuer could not be fetched.", "issuer", i.Issuer, "error", err)
				}
			},
		})
		if err != nil {
			return nil, fmt.Errorf("external-issuers: issuer %q: %w", i.Issuer, err)
		}
		v.trusted[i.Issuer] = &trusted{Issuer: i, keys: keys.Storage(), validator: jwt.NewValidator(
			jwt.WithIssuer(i.Issuer), jwt.WithAudience(i.Audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway),
			jwt.WithTimeFunc(now),
		)}
	}
	return v, nil
}

// Verify tells whom a token speaks for, whoever issued it. Refusals are CodeUnauthenticated, like those for our own.
func (v *Verifier) Verify(token string) (tokens.Subject, error) {
	if len(token) > tokens.MaxSize || strings.ContainsAny(token, "\r\n") {
		return v.own.Verify(token)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return v.own.Verify(token)
	}
	payload, err := object(parts[1])
	if err != nil {
		return v.own.Verify(token)
	}
	i := v.trusted[text(payload["iss"])]
	if i == nil {
		return v.own.Verify(token)
	}
	s, err := i.verify(token, parts, payload)
	if err != nil {
		return tokens.Subject{}, models.Errorf(models.CodeUnauthenticated,
			"The access token of the external issuer is not valid here: it is damaged, has ended, or names nobody that this service knows.").Because(err)
	}
	return s, nil
}

func (i *trusted) verify(token string, parts []string, payload map[string]jsontext.Value) (tokens.Subject, error) {
	lower := map[string]bool{}
	for name := range payload {
		if lower[strings.ToLower(name)] {
			return tokens.Subject{}, errors.New("a claim stands twice")
		}
		lower[strings.ToLower(name)] = true
	}
	alg, kid, err := readHeader(parts[0])
	if err != nil {
		return tokens.Subject{}, err
	}
	if !slices.Contains(i.Algs, alg) {
		return tokens.Subject{}, errors.New("alg is not one of the issuer's")
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	key, err := i.keys.KeyRead(ctx, kid)
	if err != nil {
		return tokens.Subject{}, fmt.Errorf("the issuer has no such key: %w", err)
	}
	if own := key.Marshal().ALG.String(); own != "" && own != alg {
		return tokens.Subject{}, errors.New("alg is not that of the key")
	}
	signature, err := strict.DecodeString(parts[2])
	if err != nil {
		return tokens.Subject{}, errors.New("the signature is not base64url")
	}
	// The method refuses a key of another type, so the public key can't become the secret of an HMAC.
	if err := jwt.GetSigningMethod(alg).Verify(token[:len(parts[0])+1+len(parts[1])], signature, key.Key()); err != nil {
		return tokens.Subject{}, err
	}
	var c jwt.RegisteredClaims
	raw, _ := strict.DecodeString(parts[1])
	if err := json.Unmarshal(raw, &c); err != nil {
		return tokens.Subject{}, errors.New("a registered claim has the wrong type")
	}
	if err := i.validator.Validate(c); err != nil {
		return tokens.Subject{}, err
	}
	if c.IssuedAt == nil || c.ExpiresAt.Sub(c.IssuedAt.Time) <= 0 || c.ExpiresAt.Sub(c.IssuedAt.Time) > i.life {
		return tokens.Subject{}, errors.New("iat is missing, or the life is longer than allowed")
	}
	return i.subject(payload, c)
}

func (i *trusted) subject(payload map[string]jsontext.Value, c jwt.RegisteredClaims) (tokens.Subject, error) {
	s := tokens.Subject{Kind: i.MayIssue[0], IssuedAt: c.IssuedAt.Time, ExpiresAt: c.ExpiresAt.Time}
	if kind, ok := payload["gc_kind"]; ok && text(kind) != string(s.Kind) {
		return tokens.Subject{}, errors.New("the token is for another kind than the issuer may issue")
	}
	if s.Kind == models.KindUser {
		s.Issuer, s.ExternalID = i.Issuer.Issuer, text(payload["sub"])
		if s.ExternalID == "" || len(s.ExternalID) > maxSubject {
			return tokens.Subject{}, errors.New("sub is missing or too long")
		}
	} else {
		var known bool
		if s.Service, known = i.Services[text(payload[i.ClientIDClaim])]; !known {
			return tokens.Subject{}, errors.New("the client is none of those that are configured")
		}
	}
	for _, value := range words(payload[i.ScopeClaim]) {
		for _, scope := range i.ScopeMap[value] {
			if !slices.Contains(s.Scopes, scope) {
				s.Scopes = append(s.Scopes, scope)
			}
		}
	}
	if cnf, ok := payload["cnf"]; ok {
		var bound map[string]jsontext.Value
		if json.Unmarshal(cnf, &bound) != nil || len(bound) != 1 || len(text(bound["jkt"])) != jktSize {
			return tokens.Subject{}, errors.New("the token is bound in a way that can't be checked")
		}
		s.JKT = text(bound["jkt"])
	}
	if i.PoP != "" && s.JKT == "" {
		return tokens.Subject{}, errors.New("the token has to be bound to a key")
	}
	return s, nil
}

// readHeader accepts alg, kid and typ as texts, kid always, and nothing that changes what is signed or where a key comes from.
func readHeader(segment string) (alg, kid string, err error) {
	members, err := object(segment)
	if err != nil {
		return "", "", err
	}
	for name, raw := range members {
		value := text(raw)
		switch {
		case value == "":
			return "", "", errors.New("a member of the header is not a text")
		case name == "alg":
			alg = value
		case name == "kid":
			kid = value
		case name == "typ" && (strings.EqualFold(value, "JWT") || strings.EqualFold(value, "at+jwt")):
		default:
			return "", "", errors.New("the header has a member that is not alg, kid or the typ of an access token")
		}
	}
	if alg == "" || kid == "" {
		return "", "", errors.New("alg or kid is missing")
	}
	return alg, kid, nil
}

var strict = base64.RawURLEncoding.Strict()

func object(segment string) (map[string]jsontext.Value, error) {
	raw, err := strict.DecodeString(segment)
	if err != nil {
		return nil, errors.New("not base64url without padding")
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(raw, &members); err != nil || members == nil {
		return nil, errors.New("not a JSON object with each member once")
	}
	return members, nil
}

func text(raw jsontext.Value) (s string) {
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// words reads a text of words or a list of texts.
func words(raw jsontext.Value) []string {
	if s := text(raw); s != "" {
		return strings.Fields(s)
	}
	var list []string
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	return list
}
