// Package edgetest puts the public interface of the service in front of the domain services of servertest, within the test's process and on a real
// socket. Unlike a whole service it lets a test move the database's clock, count statements and password hashes, and mint tokens of
// any scope.
package edgetest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/longpoll"
	"github.com/groupcast/groupcast/server/oauth"
	"github.com/groupcast/groupcast/server/passwords"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/replay"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

// Password is that of every user that a lab makes.
const Password = "four words are enough"

// Lab is one replica.
type Lab struct {
	*servertest.Services

	URL       string
	Hasher    *passwords.Hasher
	Users     *users.Service
	Relays    *relays.Service
	Enrolment *enrolment.Service
	Grants    *devicegrant.Service
	OAuth     *oauth.Service
	Issuer    *tokens.Issuer
	Client    *http.Client

	kek string
}

// New makes a lab on a database.
func New(t testing.TB, db *storetest.DB) *Lab {
	t.Helper()
	return newLab(t, db, db.Store, filepath.Join(t.TempDir(), "kek"), "")
}

// Replica makes another one on the same Postgres, with the same keys and the same public URL.
func (l *Lab) Replica(t testing.TB) *Lab {
	t.Helper()
	return newLab(t, l.DB, l.DB.Replica(t), l.kek, l.URL)
}

func newLab(t testing.TB, db *storetest.DB, st *store.Store, kekFile, issuer string) *Lab {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	printed := &logtest.Log{}
	log := slog.New(slog.NewJSONHandler(printed, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server := httptest.NewUnstartedServer(nil)
	l := &Lab{Services: servertest.On(db, st), URL: "http://" + server.Listener.Addr().String(), kek: kekFile}
	if issuer == "" {
		issuer = l.URL
	}
	kek, err := keys.LoadOrCreateKEK(kekFile)
	require.NoError(t, err)
	ring, err := keys.Load(ctx, st, kek, keys.Options{})
	require.NoError(t, err)
	l.Issuer = tokens.NewIssuer(issuer, ring, time.Now)
	verifier := tokens.NewCache(tokens.NewVerifier(issuer, ring, time.Now), time.Now)
	secret, err := kek.Derive("dpop nonces")
	require.NoError(t, err)
	nonces, err := dpop.NewNonces(secret, time.Now)
	require.NoError(t, err)
	used := replay.NewTable(st, log)
	proofs, err := dpop.NewVerifier(issuer, nonces, used, time.Now)
	require.NoError(t, err)
	l.Hasher, err = passwords.NewHasher(passwords.Cost{MemoryKiB: 64, Iterations: 1, Parallelism: 1}, 0)
	require.NoError(t, err)
	l.Users = users.New(st, l.Accounts, l.Hasher, passwords.NewDelays(time.Now), users.SignUpOpen)
	l.Relays = relays.New(st, relays.Options{})
	l.Enrolment = enrolment.New(st, l.Accounts, l.Relays)
	l.Grants = devicegrant.New(st, l.Enrolment)
	l.OAuth = oauth.New(oauth.Parts{
		Issuer: issuer, Store: st, Accounts: l.Accounts, Enrolment: l.Enrolment, Grants: l.Grants, Tokens: l.Issuer, Verifier: verifier, Proofs: proofs,
		Used: used, Users: l.Users, Now: time.Now, Log: log,
	})
	registry := prometheus.NewRegistry()
	hub := longpoll.New(longpoll.Options{
		Epoch: st.Epoch, Standings: st.StandingsOf, Information: l.Groups.Information, Render: httpapi.RenderInformation,
		Record: st.RecordPolls, Now: time.Now, MaxWaiters: 10, Log: log, Metrics: registry,
	})
	edge, err := httpapi.New(ctx, httpapi.Options{
		Document: openapi.Public, Nonce: nonces.Current, CrossOrigin: http.NewCrossOriginProtection(), Log: log, Metrics: httpapi.NewMetrics(registry),
		Authenticate: httpapi.Access{Tokens: verifier, Proofs: proofs, Accounts: l.Accounts, Users: l.Users, Relays: l.Relays}.Authenticate,
	})
	require.NoError(t, err)
	httpapi.Mount(edge, httpapi.Services{
		Registrations: l.Registrations, Accounts: l.Accounts, Users: l.Users, Enrolment: l.Enrolment, Groups: l.Groups, Gateways: l.Gateways, Relays: l.Relays, Polls: hub,
		OAuth: l.OAuth, Keys: ring, Ready: st.Ping, Version: "test",
	})
	server.Config.Handler, err = edge.Handler()
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { hub.Run(ctx) })
	server.Start()
	l.Client = &http.Client{Transport: harness.Attentive(t, &http.Transport{MaxIdleConnsPerHost: 64}), Timeout: 5 * time.Minute}
	l.URL = issuer
	if addr := "http://" + server.Listener.Addr().String(); addr != issuer {
		l.Client.Transport = rerouted{l.Client.Transport, strings.TrimPrefix(addr, "http://")}
	}
	t.Cleanup(func() {
		l.Client.CloseIdleConnections()
		server.Close()
		end()
		running.Wait()
		harness.NoLeaks(t, "the service", printed.String())
		if t.Failed() {
			t.Logf("--- log ---\n%s", printed)
		}
	})
	return l
}

// rerouted brings requests for the public URL to one replica, as a load balancer does.
type rerouted struct {
	http.RoundTripper
	host string
}

func (r rerouted) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	q.URL.Host = r.host
	return r.RoundTripper.RoundTrip(q)
}

// Answer is an answer that was read whole.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Code is the end of a problem's type.
func (a Answer) Code() string {
	_, rest, _ := strings.Cut(a.Body, `"type":"/problems/`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// Do sends a request. header is a list of names and values.
func (l *Lab) Do(t testing.TB, method, path, body string, header ...string) Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, l.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := l.Client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return Answer{resp.StatusCode, resp.Header, string(b)}
}

// User makes a user of an account and logs them in; it gives the Cookie header.
func (l *Lab) User(t testing.TB, account models.AccountID, name string) (cookie string) {
	t.Helper()
	invitation, err := l.Users.Invite(context.Background(), account)
	require.NoError(t, err)
	_, err = l.Users.Create(context.Background(), users.NewUser{Name: name, Password: Password, Invitation: invitation})
	require.NoError(t, err)
	return l.LogIn(t, name)
}

// LogIn begins a session and gives its Cookie header.
func (l *Lab) LogIn(t testing.TB, name string) (cookie string) {
	t.Helper()
	a := l.Do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":%q}`, name, Password))
	require.Equal(t, http.StatusOK, a.Status, a.Body)
	cookie, _, _ = strings.Cut(a.Header.Get("Set-Cookie"), ";")
	return cookie
}

// Key is a client's own.
type Key struct {
	Private ed25519.PrivateKey
	dpop.Key
}

// NewKey draws one.
func NewKey(t testing.TB) Key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	k, err := dpop.ParseKey(fmt.Appendf(nil, `{"kty":"OKP","crv":"Ed25519","x":%q}`, base64.RawURLEncoding.EncodeToString(public)))
	require.NoError(t, err)
	return Key{private, k}
}

// Public is the key as its owner sends it.
func (k Key) Public(t testing.TB) []byte {
	t.Helper()
	jwk, err := k.JWK()
	require.NoError(t, err)
	return []byte(jwk)
}

// Sign makes a JWT with further header members.
func (k Key) Sign(t testing.TB, header map[string]any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(k.Private)
	require.NoError(t, err)
	return text
}

// Proof makes a proof of possession (RFC 9449) for a request, bound to a token if there is one.
func (k Key) Proof(t testing.TB, l *Lab, method, path, token string) string {
	t.Helper()
	claims := jwt.MapClaims{"jti": rand.Text(), "htm": method, "htu": l.URL + path, "iat": time.Now().Unix()}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return k.Sign(t, map[string]any{"typ": "dpop+jwt", "jwk": map[string]any{
		"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(k.Private.Public().(ed25519.PublicKey)),
	}}, claims)
}

// Assertion makes the claims with which an enrolled device authenticates (RFC 7523).
func (k Key) Assertion(t testing.TB, l *Lab) string {
	t.Helper()
	id := enrolment.ClientPrefix + k.Thumbprint
	return k.Sign(t, nil, jwt.MapClaims{
		"iss": id, "sub": id, "aud": l.URL, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	})
}

// Caller is somebody with an access token that is bound to a key.
type Caller struct {
	lab   *Lab
	key   Key
	token string
}

// As makes a caller of any kind, with all scopes that the kind may have if none is named.
func (l *Lab) As(t testing.TB, p models.Principal, scopes ...string) Caller {
	t.Helper()
	c := Caller{lab: l, key: NewKey(t)}
	g := tokens.Grant{Life: time.Hour, JKT: c.key.Thumbprint, Scope: scopes}
	var err error
	switch p.Kind {
	case models.KindService:
		c.token, err = l.Issuer.Service(p.Service, g)
	case models.KindRelay:
		c.token, err = l.Issuer.Relay(p.Relay, g)
	case models.KindUser:
		c.token, err = l.Issuer.User(tokens.Login{UserID: p.UserID, AccountID: p.AccountID, ACR: "pwd", At: time.Now()}, g)
	default:
		c.token, err = l.Issuer.Device(p.Device, g)
	}
	require.NoError(t, err)
	return c
}

// Do sends a request with a proof of possession.
func (c Caller) Do(t testing.TB, method, path, body string) Answer {
	t.Helper()
	plain, _, _ := strings.Cut(path, "?")
	return c.lab.Do(t, method, path, body, "Authorization", "DPoP "+c.token, "DPoP", c.key.Proof(t, c.lab, method, plain, c.token))
}
