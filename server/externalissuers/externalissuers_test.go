package externalissuers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/externalissuers"
	"github.com/groupcast/groupcast/server/tokens"
)

// nobody is a service without tokens of its own.
type nobody struct{}

func (nobody) Verify(string) (tokens.Subject, error) {
	return tokens.Subject{}, models.Errorf(models.CodeUnauthenticated, "not ours")
}

// provider is an identity provider on a socket, with two keys.
type provider struct {
	*httptest.Server
	ed      ed25519.PrivateKey
	ec      *ecdsa.PrivateKey
	fetched atomic.Int64
	trapped atomic.Int64
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	var err error
	_, p.ed, err = ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	p.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/keys" {
			p.trapped.Add(1)
			return
		}
		p.fetched.Add(1)
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: p.ed.Public(), KeyID: "ed", Algorithm: "EdDSA", Use: "sig"}, {Key: p.ec.Public(), KeyID: "ec", Algorithm: "ES256", Use: "sig"},
		}})
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *provider) config(change func(map[string]any)) string {
	issuer := map[string]any{
		"issuer": "https://idp.example", "jwksUri": p.URL + "/keys", "audience": "groupcast", "algs": []string{"EdDSA", "ES256"},
		"mayIssue": []string{"service"}, "scopeClaim": "capabilities",
		"scopeMap": map[string]any{"x1:register:.*:all": []string{"gc:register"}, "x1:notify": []string{"gc:notify"}},
		"services": map[string]string{"upload-prod": "svc-upload"}, "maxLife": "1h",
	}
	if change != nil {
		change(issuer)
	}
	b, err := json.Marshal(map[string]any{"issuers": []any{issuer}})
	if err != nil {
		panic(err) // texts and lists of texts
	}
	return string(b)
}

func load(t *testing.T, text string) ([]externalissuers.Issuer, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "issuers.json")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return externalissuers.Load(path)
}

func (p *provider) verifier(t *testing.T, change ...func(map[string]any)) *externalissuers.Verifier {
	t.Helper()
	issuers, err := load(t, p.config(append(change, nil)[0]))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	v, err := externalissuers.New(ctx, nobody{}, issuers, p.Client(), time.Now, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return v
}

func (p *provider) token(t *testing.T, header, claims map[string]any) string {
	t.Helper()
	all := jwt.MapClaims{
		"iss": "https://idp.example", "sub": "upload-prod", "aud": "groupcast", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		"capabilities": []string{"x1:register:.*:all", "x1:other"},
	}
	for k, v := range claims {
		all[k] = v
		if v == nil {
			delete(all, k)
		}
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, all)
	token.Header["kid"] = "ed"
	for k, v := range header {
		token.Header[k] = v
		if v == nil {
			delete(token.Header, k)
		}
	}
	text, err := token.SignedString(p.ed)
	require.NoError(t, err)
	return text
}

func TestATokenOfATrustedIssuerStandsForAService(t *testing.T) {
	p := newProvider(t)
	v := p.verifier(t)
	s, err := v.Verify(p.token(t, nil, nil))
	require.NoError(t, err)
	assert.Equal(t, models.KindService, s.Kind)
	assert.EqualValues(t, "svc-upload", s.Service)
	assert.Equal(t, []string{"gc:register"}, s.Scopes, "exactly what the map gives, without patterns")
	assert.Empty(t, s.Account)

	s, err = v.Verify(p.token(t, nil, map[string]any{"capabilities": "x1:notify", "cnf": map[string]string{"jkt": strings.Repeat("a", 43)}}))
	require.NoError(t, err)
	assert.Equal(t, []string{"gc:notify"}, s.Scopes)
	assert.Equal(t, strings.Repeat("a", 43), s.JKT)
	s, err = v.Verify(p.token(t, nil, map[string]any{"capabilities": "x1:register:whatever:all"}))
	require.NoError(t, err)
	assert.Empty(t, s.Scopes)
}

func TestAttackTokensOfTrustedIssuers(t *testing.T) {
	p := newProvider(t)
	v := p.verifier(t)
	now := time.Now()
	for name, c := range map[string]struct{ header, claims map[string]any }{
		"no kid":               {map[string]any{"kid": nil}, nil},
		"unknown kid":          {map[string]any{"kid": "other"}, nil},
		"kid of another key":   {map[string]any{"kid": "ec"}, nil},
		"jku":                  {map[string]any{"jku": p.URL + "/trap"}, nil},
		"jwk":                  {map[string]any{"jwk": map[string]string{"kty": "OKP"}}, nil},
		"x5u":                  {map[string]any{"x5u": p.URL + "/trap"}, nil},
		"crit":                 {map[string]any{"crit": []string{"b64"}, "b64": false}, nil},
		"a proof":              {map[string]any{"typ": "dpop+jwt"}, nil},
		"another issuer":       {nil, map[string]any{"iss": "https://idp.example/"}},
		"another audience":     {nil, map[string]any{"aud": "other"}},
		"no exp":               {nil, map[string]any{"exp": nil}},
		"expired":              {nil, map[string]any{"exp": now.Add(-time.Minute).Unix()}},
		"no iat":               {nil, map[string]any{"iat": nil}},
		"lives too long":       {nil, map[string]any{"exp": now.Add(2 * time.Hour).Unix()}},
		"an unknown client":    {nil, map[string]any{"sub": "somebody"}},
		"no client":            {nil, map[string]any{"sub": nil}},
		"a device":             {nil, map[string]any{"gc_kind": "device", "edid": "x", "eacc": "x", "prem": "p_x"}},
		"a gateway":            {nil, map[string]any{"gc_kind": "gateway"}},
		"a claim in two cases": {nil, map[string]any{"SUB": "upload-prod"}},
		"bound by certificate": {nil, map[string]any{"cnf": map[string]string{"x5t#S256": "x"}}},
	} {
		_, err := v.Verify(p.token(t, c.header, c.claims))
		assert.Error(t, err, name)
	}
	// The public key as an HMAC secret, none, and a damaged signature.
	good := p.token(t, nil, nil)
	parts := strings.Split(good, ".")
	for _, alg := range []string{"none", "HS256", "PS256"} {
		h := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"ed"}`))
		_, err := v.Verify(h + "." + parts[1] + "." + parts[2])
		assert.Error(t, err, alg)
	}
	_, err := v.Verify(parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)))
	assert.Error(t, err)
	assert.Zero(t, p.trapped.Load(), "no header makes us fetch anything")
}

// ofUsers makes the issuer one of users.
func ofUsers(m map[string]any) {
	m["mayIssue"] = []string{"user"}
	m["scopeMap"] = map[string]any{"account": []string{"gc:account", "gc:notify"}}
	delete(m, "services")
}

func TestATokenOfATrustedIssuerStandsForAUser(t *testing.T) {
	p := newProvider(t)
	v := p.verifier(t, ofUsers)
	s, err := v.Verify(p.token(t, nil, map[string]any{"sub": "9f3c", "capabilities": []string{"account", "gc:devices"}, "email": "anna@example.net"}))
	require.NoError(t, err)
	assert.Equal(t, models.KindUser, s.Kind)
	assert.Equal(t, "https://idp.example", s.Issuer)
	assert.Equal(t, "9f3c", s.ExternalID)
	assert.Equal(t, []string{"gc:account", "gc:notify"}, s.Scopes, "what the map gives")
	assert.Empty(t, s.Account, "whose account it is no token says")
	assert.Empty(t, s.UserID)
	assert.Empty(t, s.Service)
	for name, claims := range map[string]map[string]any{
		"no sub":            {"sub": nil},
		"an empty sub":      {"sub": ""},
		"a number as sub":   {"sub": 7},
		"a long sub":        {"sub": strings.Repeat("x", 256)},
		"a device":          {"gc_kind": "device", "edid": "x", "eacc": "x", "prem": "p_x"},
		"a gateway":         {"gc_kind": "gateway"},
		"a service":         {"gc_kind": "service"},
		"an operator":       {"gc_kind": "operator"},
		"a kind of no type": {"gc_kind": 7},
	} {
		_, err := v.Verify(p.token(t, nil, claims))
		assert.Error(t, err, name)
	}
	bound := p.verifier(t, func(m map[string]any) { ofUsers(m); m["pop"] = "dpop" })
	_, err = bound.Verify(p.token(t, nil, nil))
	assert.Error(t, err, "a bearer token where only bound ones are taken")
	s, err = bound.Verify(p.token(t, nil, map[string]any{"cnf": map[string]string{"jkt": strings.Repeat("a", 43)}}))
	require.NoError(t, err)
	assert.Equal(t, strings.Repeat("a", 43), s.JKT)
	// The other way round: an issuer of services makes no users.
	_, err = p.verifier(t).Verify(p.token(t, nil, map[string]any{"gc_kind": "user"}))
	assert.Error(t, err)
}

func TestHostileFloodOfUnknownKeys(t *testing.T) {
	p := newProvider(t)
	v := p.verifier(t)
	began := p.fetched.Load()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for i := 0; i < 20 && ctx.Err() == nil; i++ {
		_, err := v.Verify(p.token(t, map[string]any{"kid": rand.Text()}, nil))
		require.Error(t, err)
	}
	assert.LessOrEqual(t, p.fetched.Load()-began, int64(1), "one fetch in five minutes")
	_, err := v.Verify(p.token(t, nil, nil))
	assert.NoError(t, err, "known keys go on working")
}

func TestFaultsOfTheFileStopTheStart(t *testing.T) {
	p := newProvider(t)
	for name, change := range map[string]func(map[string]any){
		"plain HTTP":        func(m map[string]any) { m["jwksUri"] = "http://idp.example/keys" },
		"a user in the URL": func(m map[string]any) { m["jwksUri"] = "https://u:p@idp.example/keys" },
		"a device":          func(m map[string]any) { m["mayIssue"] = []string{"service", "device"} },
		"a gateway":         func(m map[string]any) { m["mayIssue"] = []string{"gateway"} },
		"HMAC":              func(m map[string]any) { m["algs"] = []string{"HS256"} },
		"none":              func(m map[string]any) { m["algs"] = []string{"none"} },
		"no algorithm":      func(m map[string]any) { m["algs"] = []string{} },
		"two kinds":         func(m map[string]any) { m["mayIssue"] = []string{"service", "user"} },
		"an operator":       func(m map[string]any) { m["mayIssue"] = []string{"operator"} },
		"users as services": func(m map[string]any) { m["mayIssue"] = []string{"user"} },
		"a pop unknown":     func(m map[string]any) { m["pop"] = "mtls" },
		"a user's scope":    func(m map[string]any) { m["scopeMap"] = map[string]any{"x": []string{"gc:account"}} },
		"a service's scope": func(m map[string]any) { ofUsers(m); m["scopeMap"] = map[string]any{"x": []string{"gc:events"}} },
		"a gateway's scope": func(m map[string]any) { m["scopeMap"] = map[string]any{"x": []string{"gc:groups.read"}} },
		"too long a life":   func(m map[string]any) { m["maxLife"] = "48h" },
		"no life":           func(m map[string]any) { delete(m, "maxLife") },
		"no audience":       func(m map[string]any) { delete(m, "audience") },
		"a member mistyped": func(m map[string]any) { m["jwks_uri"] = "x" },
		"no service":        func(m map[string]any) { m["services"] = map[string]string{} },
	} {
		_, err := load(t, p.config(change))
		assert.ErrorContains(t, err, "external-issuers", name)
	}
}
