package clientauth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/openapi/clientauth"
)

// issuer is a small authorization server with one resource, on a real socket. It checks proofs and assertions with go-jose and
// golang-jwt, so that nothing of the package under test judges itself.
type issuer struct {
	*httptest.Server
	t *testing.T

	mu         sync.Mutex
	now        func() time.Time
	nonce      string            // demanded in every proof if set
	tickets    map[string]bool   // true: not used yet
	clients    map[string]client // by client id
	grants     map[string]*grant // by device code
	refresh    map[string]string // refresh token → thumbprint
	tokens     map[string]string // access token → thumbprint; "" for a bearer token
	jti        map[string]bool
	life       int64
	tokenType  string // overrides the type of the answers
	rotate     bool
	intercept  func(http.ResponseWriter, *http.Request) bool // true: answered
	requests   []string
	lastBody   string
	enrolments []string // thumbprints
}

type client struct {
	secret string
	key    *jose.JSONWebKey
	dpop   bool
}

type grant struct {
	thumbprint string
	answers    []string // one error code for each poll; then a token
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	s := &issuer{
		t: t, now: time.Now, life: 3600,
		tickets: map[string]bool{"ticket": true}, clients: map[string]client{}, grants: map[string]*grant{},
		refresh: map[string]string{}, tokens: map[string]string{}, jti: map[string]bool{},
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	if s.nonce != "" {
		w.Header().Set("DPoP-Nonce", s.nonce)
	}
	if s.intercept != nil && s.intercept(w, r) {
		return
	}
	switch r.URL.Path {
	case "/oauth/register":
		s.register(w, r)
	case "/oauth/device_authorization":
		s.authorizeDevice(w, r)
	case "/oauth/token":
		s.token(w, r)
	default:
		s.resource(w, r)
	}
}

func (s *issuer) refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	s.answer(w, map[string]string{"error": code, "error_description": "Because of " + code + "."})
}

func (s *issuer) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.t.Error(err)
	}
}

func (s *issuer) register(w http.ResponseWriter, r *http.Request) {
	thumbprint, code := s.proof(r, "")
	if code != "" {
		s.refuse(w, 400, code)
		return
	}
	var body struct {
		Ticket string             `json:"ticket"`
		JWKS   jose.JSONWebKeySet `json:"jwks"`
		Name   string             `json:"client_name"`
		Model  string             `json:"model"`
		Serial string             `json:"serial"`
		Method string             `json:"token_endpoint_auth_method"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if d.Decode(&body) != nil || len(body.JWKS.Keys) != 1 || body.Method != "private_key_jwt" {
		s.refuse(w, 400, "invalid_client_metadata")
		return
	}
	s.enrolments = append(s.enrolments, thumbprint)
	if !s.tickets[body.Ticket] {
		s.refuse(w, 400, "invalid_grant")
		return
	}
	s.tickets[body.Ticket] = false
	id := "device-" + thumbprint[:8]
	s.clients[id] = client{key: &body.JWKS.Keys[0], dpop: true}
	w.WriteHeader(http.StatusCreated)
	s.answer(w, map[string]string{"client_id": id, "deviceId": "664123086043511412", "premisesId": "p_1", "deviceType": "camera"})
}

func (s *issuer) authorizeDevice(w http.ResponseWriter, r *http.Request) {
	thumbprint, code := s.proof(r, "")
	if code != "" || r.PostFormValue("client_id") == "" {
		s.refuse(w, 400, code)
		return
	}
	g := s.grants["next"]
	delete(s.grants, "next")
	g.thumbprint = thumbprint
	s.grants["device-code"] = g
	s.answer(w, map[string]any{
		"device_code": "device-code", "user_code": "BCDF-GHJK", "verification_uri": s.URL + "/device",
		"verification_uri_complete": s.URL + "/device?user_code=BCDF-GHJK", "expires_in": 600, "interval": 7,
	})
}

func (s *issuer) token(w http.ResponseWriter, r *http.Request) {
	thumbprint := ""
	if r.Header.Get("DPoP") != "" {
		var code string
		if thumbprint, code = s.proof(r, ""); code != "" {
			s.refuse(w, 400, code)
			return
		}
	}
	more := map[string]any{}
	switch r.PostFormValue("grant_type") {
	case "client_credentials":
		c, ok := s.authenticate(r)
		if !ok {
			s.refuse(w, 401, "invalid_client")
			return
		}
		if c.dpop && thumbprint == "" {
			s.refuse(w, 400, "invalid_dpop_proof")
			return
		}
	case "refresh_token":
		old := r.PostFormValue("refresh_token")
		if want, ok := s.refresh[old]; !ok || want != thumbprint || r.PostFormValue("client_id") != clientauth.ClientGateway {
			s.refuse(w, 400, "invalid_grant")
			return
		}
		if s.rotate {
			delete(s.refresh, old)
			fresh := "refresh-" + rand.Text()
			s.refresh[fresh] = thumbprint
			more["refresh_token"] = fresh
		}
	case "urn:ietf:params:oauth:grant-type:device_code":
		g := s.grants[r.PostFormValue("device_code")]
		if g == nil || g.thumbprint != thumbprint {
			s.refuse(w, 400, "invalid_grant")
			return
		}
		if len(g.answers) > 0 {
			code := g.answers[0]
			g.answers = g.answers[1:]
			if code == "drop" {
				panic(http.ErrAbortHandler) // the connection ends without an answer
			}
			status := 400
			if code == "temporarily_unavailable" {
				status = 503
			}
			s.refuse(w, status, code)
			return
		}
		delete(s.grants, r.PostFormValue("device_code"))
		s.refresh["refresh-first"] = thumbprint
		more["refresh_token"] = "refresh-first"
	default:
		s.refuse(w, 400, "unsupported_grant_type")
		return
	}
	token := "token-" + rand.Text()
	s.tokens[token] = thumbprint
	more["access_token"], more["expires_in"], more["token_type"] = token, s.life, "Bearer"
	if thumbprint != "" {
		more["token_type"] = "DPoP"
	}
	if s.tokenType != "" {
		more["token_type"] = s.tokenType
	}
	s.answer(w, more)
}

// authenticate checks a client secret or a client assertion (RFC 7523 with the issuer as the only audience).
func (s *issuer) authenticate(r *http.Request) (client, bool) {
	if id, secret, ok := r.BasicAuth(); ok {
		id, err1 := url.QueryUnescape(id)
		secret, err2 := url.QueryUnescape(secret)
		c, known := s.clients[id]
		return c, known && err1 == nil && err2 == nil && c.secret != "" && c.secret == secret
	}
	if r.PostFormValue("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return client{}, false
	}
	var claims jwt.RegisteredClaims
	var c client
	p := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA", "ES256"}), jwt.WithTimeFunc(s.now), jwt.WithIssuedAt(), jwt.WithLeeway(5*time.Second),
		jwt.WithExpirationRequired(), jwt.WithAudience(s.URL), jwt.WithStrictDecoding())
	_, err := p.ParseWithClaims(r.PostFormValue("client_assertion"), &claims, func(*jwt.Token) (any, error) {
		var known bool
		if c, known = s.clients[claims.Issuer]; !known || c.key == nil {
			return nil, errors.New("unknown client")
		}
		return c.key.Key, nil
	})
	good := err == nil && claims.Subject == claims.Issuer && len(claims.Audience) == 1 && claims.ExpiresAt.Sub(claims.IssuedAt.Time) <= 2*time.Minute &&
		claims.ID != "" && !s.jti[claims.ID]
	s.jti[claims.ID] = true
	return c, good
}

// proof checks a DPoP proof and returns the thumbprint of its key, or an error code.
func (s *issuer) proof(r *http.Request, token string) (thumbprint, code string) {
	if len(r.Header.Values("DPoP")) != 1 {
		return "", "invalid_dpop_proof"
	}
	var claims struct {
		jwt.RegisteredClaims
		Method string `json:"htm"`
		URI    string `json:"htu"`
		Hash   string `json:"ath"`
		Nonce  string `json:"nonce"`
	}
	p := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA", "ES256"}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	parsed, err := p.ParseWithClaims(r.Header.Get("DPoP"), &claims, func(t *jwt.Token) (any, error) {
		raw, _ := json.Marshal(t.Header["jwk"])
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil || !k.IsPublic() {
			return nil, errors.New("jwk")
		}
		sum, err := k.Thumbprint(crypto.SHA256)
		thumbprint = base64.RawURLEncoding.EncodeToString(sum)
		return k.Key, err
	})
	if err != nil || parsed.Header["typ"] != "dpop+jwt" || claims.Method != r.Method || claims.URI != s.URL+r.URL.EscapedPath() || claims.ID == "" || s.jti[claims.ID] {
		return "", "invalid_dpop_proof"
	}
	s.jti[claims.ID] = true
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		if claims.Hash != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return "", "invalid_dpop_proof"
		}
	}
	if s.nonce != "" && claims.Nonce != s.nonce {
		return "", "use_dpop_nonce"
	}
	if s.nonce == "" && s.now().Sub(claims.IssuedAt.Time).Abs() > time.Minute {
		return "", "invalid_dpop_proof"
	}
	return thumbprint, ""
}

// resource answers any other path with the request's body, if the token is good and its proof too.
func (s *issuer) resource(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	s.lastBody = string(body)
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	bound, known := s.tokens[token]
	code := ""
	switch {
	case !known || (scheme == "DPoP") != (bound != ""):
		code = "invalid_token"
	case bound != "":
		var thumbprint string
		if thumbprint, code = s.proof(r, token); code == "" && thumbprint != bound {
			code = "invalid_token"
		}
	}
	if code != "" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`DPoP error="%s", algs="EdDSA ES256"`, code))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if len(body) == 0 {
		body = []byte("{}")
	}
	_, _ = w.Write(body)
}

// with changes the issuer while requests may be under way.
func (s *issuer) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *issuer) count(request string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if r == request {
			n++
		}
	}
	return n
}

func (s *issuer) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// call posts a body through the client's transport and returns status and answer.
func call(t *testing.T, c *clientauth.Client, target, body string) (int, string) {
	t.Helper()
	resp, err := (&http.Client{Transport: c.Transport()}).Post(target, "application/json", strings.NewReader(body))
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}
