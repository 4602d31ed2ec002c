package clientauth_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	generated "github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// clock is a local clock that only the test moves; sleeping moves it too.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	slept []time.Duration
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slept = append(c.slept, d)
	c.now = c.now.Add(d)
	return ctx.Err()
}

func (c *clock) options() clientauth.Options {
	return clientauth.Options{Now: c.Now, Sleep: c.Sleep}
}

func enrolment(t *testing.T, s *issuer, c *clock) clientauth.Enrolment {
	t.Helper()
	return clientauth.Enrolment{
		Path: filepath.Join(t.TempDir(), "credential.json"), Server: s.URL, Options: c.options(),
		Device: clientauth.Device{Name: "Porch", Model: "M1", Serial: "S1", Type: "gateway"},
	}
}

func enrolled(t *testing.T, s *issuer, c *clock) (*clientauth.Client, string) {
	t.Helper()
	e := enrolment(t, s, c)
	client, err := e.UseTicket(t.Context(), "ticket")
	require.NoError(t, err)
	return client, e.Path
}

func TestATicketMakesACredentialForBoundTokens(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, path := enrolled(t, s, c)
	assert.Equal(t, "664123086043511412", client.DeviceID())
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	for range 3 {
		status, body := call(t, client, s.URL+"/v1/registrations?x=y", `{"a":1}`)
		assert.Equal(t, 200, status)
		assert.Equal(t, `{"a":1}`, body)
	}
	assert.Equal(t, 1, s.count("POST /oauth/token"), "one token serves many requests")

	// Another process reads the file and gets on with it.
	again, err := clientauth.Open(path, s.URL+"/", c.options())
	require.NoError(t, err)
	assert.Equal(t, client.ClientID(), again.ClientID())
	status, _ := call(t, again, s.URL+"/v1/registrations", `{}`)
	assert.Equal(t, 200, status)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "no temporary file stays")
}

func TestItServesTheGeneratedClient(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	api, err := generated.NewClientWithResponses(client.Server(), generated.WithHTTPClient(&http.Client{Transport: client.Transport()}))
	require.NoError(t, err)
	answer, err := api.ListGroupsWithResponse(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, 200, answer.StatusCode())
}

func TestAServerMayDemandNoncesAndChangeThem(t *testing.T) {
	s, c := newIssuer(t), newClock()
	s.nonce = "n1"
	client, _ := enrolled(t, s, c)
	assert.Equal(t, 2, s.count("POST /oauth/register"), "the first try learns the nonce")
	status, body := call(t, client, s.URL+"/v1/x", "whole body")
	assert.Equal(t, 200, status)
	assert.Equal(t, "whole body", body)
	assert.Equal(t, 1, s.count("POST /oauth/token"), "the nonce is known already")
	assert.Equal(t, 1, s.count("POST /v1/x"))

	s.with(func() { s.nonce = "n2" })
	status, body = call(t, client, s.URL+"/v1/x", "whole body")
	assert.Equal(t, 200, status)
	assert.Equal(t, "whole body", body, "the body is sent again in full")
	assert.Equal(t, 3, s.count("POST /v1/x"))

	// Many at once, all with an old nonce: each gets its own second try.
	s.with(func() { s.nonce = "n3" })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			status, _ := call(t, client, s.URL+"/v1/x", "y")
			assert.Equal(t, 200, status)
		})
	}
	wg.Wait()
}

func TestANonceThatIsNeverGoodEndsTheTries(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	n := 0
	s.with(func() {
		s.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			n++
			w.Header().Set("DPoP-Nonce", fmt.Sprint("never", n))
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				s.refuse(w, 400, "use_dpop_nonce")
				return true
			}
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
	})
	_, _, err := client.Token(t.Context())
	require.ErrorContains(t, err, "another nonce")
	assert.NotErrorIs(t, err, clientauth.ErrRefused, "a later try may succeed")
	assert.LessOrEqual(t, n, 3)
}

func TestAWrongClockIsCorrectedByTheServers(t *testing.T) {
	for _, wrong := range []time.Duration{-50 * 365 * 24 * time.Hour, -2 * time.Minute, 3 * time.Hour} {
		t.Run(wrong.String(), func(t *testing.T) {
			s, c := newIssuer(t), newClock()
			c.Advance(wrong)
			client, _ := enrolled(t, s, c)
			status, _ := call(t, client, s.URL+"/v1/x", "y")
			assert.Equal(t, 200, status)
			assert.LessOrEqual(t, len(s.took()), 2+1+1, "one more request, to learn the time")
		})
	}
}

func TestTheKeyOutlivesAnEnrolmentThatFails(t *testing.T) {
	s, c := newIssuer(t), newClock()
	e := enrolment(t, s, c)
	_, err := e.UseTicket(t.Context(), "used ticket")
	require.ErrorIs(t, err, clientauth.ErrRefused)
	require.ErrorContains(t, err, "good once")
	assert.NotContains(t, err.Error(), "used ticket")

	_, err = clientauth.Open(e.Path, s.URL, c.options())
	require.ErrorContains(t, err, "enrol again, the key is kept")

	_, err = e.UseTicket(t.Context(), "ticket")
	require.NoError(t, err)
	require.Len(t, s.enrolments, 2)
	assert.Equal(t, s.enrolments[0], s.enrolments[1], "the second try has the first one's key")

	_, err = e.UseTicket(t.Context(), "ticket")
	require.ErrorContains(t, err, "holds the credential of", "a complete credential is not replaced")
	require.NoError(t, os.WriteFile(e.Path, []byte("bare.token.here"), 0o600))
	_, err = e.UseTicket(t.Context(), "ticket")
	require.ErrorContains(t, err, "holds something already")
}

func TestTheKeyIsOnTheDiskBeforeTheServerIsAsked(t *testing.T) {
	s, c := newIssuer(t), newClock()
	e := enrolment(t, s, c)
	s.intercept = func(http.ResponseWriter, *http.Request) bool {
		b, err := os.ReadFile(e.Path)
		assert.NoError(t, err)
		assert.Contains(t, string(b), "PRIVATE KEY")
		panic(http.ErrAbortHandler)
	}
	_, err := e.UseTicket(t.Context(), "ticket")
	require.Error(t, err)
	assert.NotErrorIs(t, err, clientauth.ErrRefused)
}

func TestTheAccountHolderApproves(t *testing.T) {
	s, c := newIssuer(t), newClock()
	s.grants["next"] = &grant{answers: []string{"authorization_pending", "slow_down", "authorization_pending", "drop", "temporarily_unavailable", "authorization_pending"}}
	e := enrolment(t, s, c)
	g, err := e.AskApproval(t.Context(), clientauth.ClientGateway, "gc:groups.read")
	require.NoError(t, err)
	assert.Equal(t, "BCDF-GHJK", g.UserCode)
	assert.Equal(t, s.URL+"/device", g.VerificationURI)
	assert.WithinDuration(t, c.Now().Add(10*time.Minute), g.ExpiresAt, time.Second)

	client, err := g.Wait(t.Context())
	require.NoError(t, err)
	// 7 s as the server said, 5 s more after slow_down (RFC 8628 §3.5), doubled when the server could not be reached.
	assert.Equal(t, []time.Duration{7 * time.Second, 7 * time.Second, 12 * time.Second, 12 * time.Second, 24 * time.Second, 48 * time.Second, 48 * time.Second}, c.slept)
	before := s.count("POST /oauth/token")
	status, _ := call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
	assert.Equal(t, before, s.count("POST /oauth/token"), "the grant's own token is used")

	again, err := clientauth.Open(e.Path, "", c.options())
	require.NoError(t, err)
	status, _ = call(t, again, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status, "the refresh token is in the file")

	// A server that rotates is followed.
	s.with(func() { s.rotate = true })
	c.Advance(time.Hour)
	status, _ = call(t, again, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
	third, err := clientauth.Open(e.Path, "", c.options())
	require.NoError(t, err)
	status, _ = call(t, third, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status, "the new refresh token is in the file")
}

func TestTheAccountHolderRefusesOrDoesNothing(t *testing.T) {
	for code, want := range map[string]string{"access_denied": "the account holder refused", "expired_token": "not approved in time", "never": "not approved in time"} {
		t.Run(code, func(t *testing.T) {
			s, c := newIssuer(t), newClock()
			s.grants["next"] = &grant{answers: []string{"authorization_pending", code}}
			if code == "never" {
				s.grants["next"].answers = strings.Split(strings.Repeat("authorization_pending ", 200), " ")
			}
			g, err := enrolment(t, s, c).AskApproval(t.Context(), clientauth.ClientGateway, "")
			require.NoError(t, err)
			_, err = g.Wait(t.Context())
			require.ErrorContains(t, err, want)
			require.ErrorIs(t, err, clientauth.ErrRefused)
			assert.LessOrEqual(t, s.count("POST /oauth/token"), 86, "ten minutes, seven seconds each")
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	s, c := newIssuer(t), newClock()
	s.grants["next"] = &grant{}
	o := c.options()
	o.Sleep = nil // the real one
	e := enrolment(t, s, c)
	e.Options = o
	g, err := e.AskApproval(t.Context(), clientauth.ClientGateway, "")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = g.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAServiceWithASecret(t *testing.T) {
	s, c := newIssuer(t), newClock()
	const secret = "p+q/r=:&% ü"
	s.clients["svc-upload"] = client{secret: secret}
	path := filepath.Join(t.TempDir(), "svc.json")
	client, err := clientauth.CreateService(path, clientauth.Service{Server: s.URL, ClientID: "svc-upload", Secret: secret}, c.options())
	require.NoError(t, err)
	status, _ := call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
	assert.Nil(t, client.PublicKey())

	_, err = clientauth.CreateService(path, clientauth.Service{Server: s.URL, ClientID: "svc-upload", Secret: secret}, c.options())
	require.ErrorContains(t, err, "exists already")
	_, err = clientauth.CreateService(path+"2", clientauth.Service{Server: s.URL, ClientID: "svc-upload", Secret: secret, DPoP: true}, c.options())
	require.ErrorContains(t, err, "privateKey")
	_, err = clientauth.CreateService(path+"2", clientauth.Service{Server: s.URL, Secret: secret}, c.options())
	require.ErrorContains(t, err, "client id")
}

func TestAServiceWithAKey(t *testing.T) {
	for _, dpop := range []bool{false, true} {
		s, c := newIssuer(t), newClock()
		client0, err := clientauth.CreateService(filepath.Join(t.TempDir(), "svc.json"), clientauth.Service{Server: s.URL, ClientID: "svc", DPoP: dpop}, c.options())
		require.NoError(t, err)
		var k jose.JSONWebKey
		require.NoError(t, k.UnmarshalJSON(client0.PublicKey()))
		s.clients["svc"] = client{key: &k, dpop: dpop}
		status, _ := call(t, client0, s.URL+"/v1/x", "y")
		assert.Equal(t, 200, status)
	}
}

func TestAServiceWithAKeyFromOpenSSL(t *testing.T) {
	s, c := newIssuer(t), newClock()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	s.clients["svc"] = client{key: &jose.JSONWebKey{Key: private.Public()}, dpop: true}
	path := filepath.Join(t.TempDir(), "svc.json")
	b, err := json.Marshal(map[string]any{
		"version": 1, "server": s.URL, "clientId": "svc", "dpop": true,
		"privateKey": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	client, err := clientauth.Open(path, "", c.options())
	require.NoError(t, err)
	status, _ := call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
}

func TestABareTokenIsReadAtEachCall(t *testing.T) {
	s, c := newIssuer(t), newClock()
	s.tokens["aaa.bbb.ccc"], s.tokens["aaa.bbb.ddd"] = "", ""
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte("aaa.bbb.ccc\n"), 0o600))
	_, err := clientauth.Open(path, "", c.options())
	require.ErrorContains(t, err, "give the server's URL")
	client, err := clientauth.Open(path, s.URL, c.options())
	require.NoError(t, err)
	status, _ := call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)

	s.with(func() { delete(s.tokens, "aaa.bbb.ccc") })
	before := len(s.took())
	status, _ = call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 401, status)
	assert.Len(t, s.took(), before+1, "nothing can be done about it")
	require.NoError(t, os.WriteFile(path, []byte("aaa.bbb.ddd\n"), 0o600))
	status, _ = call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)

	// The device learns to do better: a credential file takes the token's place.
	_, fresh := enrolled(t, s, c)
	require.NoError(t, os.Rename(fresh, path))
	status, _ = call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
	assert.NotEmpty(t, client.ClientID())
}

func TestATokenIsRenewedBeforeItEnds(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	token := func() string {
		_, v, err := client.Token(t.Context())
		require.NoError(t, err)
		return v
	}
	first := token()
	c.Advance(44 * time.Minute)
	assert.Equal(t, first, token())
	c.Advance(2 * time.Minute)
	second := token()
	assert.NotEqual(t, first, second)

	// The server is away: the token is used to its end, and the server is not asked at each call.
	s.with(func() { s.intercept = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) } })
	c.Advance(50 * time.Minute)
	before := s.count("POST /oauth/token")
	for range 5 {
		assert.Equal(t, second, token())
	}
	assert.Equal(t, before+1, s.count("POST /oauth/token"))
	c.Advance(11 * time.Minute)
	_, _, err := client.Token(t.Context())
	require.Error(t, err, "the token has ended")
	s.with(func() { s.intercept = nil })
	assert.NotEqual(t, second, token())
}

func TestManyAtOnceGetOneToken(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			_, _, err := client.Token(t.Context())
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	assert.Equal(t, 1, s.count("POST /oauth/token"))
}

func TestWhoeverWaitsForAnothersRenewalMayGiveUp(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	began, release := make(chan struct{}), make(chan struct{})
	s.intercept = func(http.ResponseWriter, *http.Request) bool {
		close(began)
		<-release
		s.intercept = nil
		return false
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := client.Token(t.Context())
		assert.NoError(t, err)
	})
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := client.Token(ctx)
	require.ErrorIs(t, err, context.Canceled)
	close(release)
	wg.Wait()
}

func TestARefusedTokenIsReplacedOnce(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	call(t, client, s.URL+"/v1/x", "y")
	s.with(func() { clear(s.tokens) }) // as after a change of the server's keys
	status, body := call(t, client, s.URL+"/v1/x", "whole body")
	assert.Equal(t, 200, status)
	assert.Equal(t, "whole body", body)

	// A server that refuses every token gets two requests, not a storm.
	s.with(func() {
		s.requests = nil
		s.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/x" {
				return false
			}
			w.Header().Set("WWW-Authenticate", `DPoP error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
	})
	status, _ = call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 401, status)
	assert.Equal(t, 2, s.count("POST /v1/x"))

	// A body that can't be read again is not sent again.
	s.with(func() { s.requests = nil })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/x", struct{ *strings.Reader }{strings.NewReader("once")})
	require.NoError(t, err)
	resp, err := client.Transport().RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 1, s.count("POST /v1/x"))
}

func TestARemovedDeviceSaysWhatToDo(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, path := enrolled(t, s, c)
	s.with(func() { clear(s.clients) })
	_, _, err := client.Token(t.Context())
	require.ErrorIs(t, err, clientauth.ErrRefused)
	require.ErrorContains(t, err, "Enrol anew")

	// Somebody enrols it anew while the program runs: no restart is needed.
	s.with(func() { s.tickets["second"] = true })
	e := enrolment(t, s, c)
	_, err = e.UseTicket(t.Context(), "second")
	require.NoError(t, err)
	require.NoError(t, os.Rename(e.Path, path))
	status, _ := call(t, client, s.URL+"/v1/x", "y")
	assert.Equal(t, 200, status)
}

func TestAttackRedirect(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	var stolen []string
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stolen = append(stolen, r.URL.Path)
	}))
	t.Cleanup(thief.Close)
	s.with(func() {
		s.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
	})
	_, _, err := client.Token(t.Context())
	require.ErrorContains(t, err, "redirects elsewhere")
	s.with(func() {
		inner := s.intercept
		s.intercept = func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path == "/v1/x" && inner(w, r) }
	})
	for what, target := range map[string]string{
		"a redirection": s.URL + "/v1/x", "another server": thief.URL, "another scheme": "https" + strings.TrimPrefix(s.URL, "http"),
	} {
		resp, err := (&http.Client{Transport: client.Transport()}).Get(target)
		if err == nil {
			_ = resp.Body.Close()
		}
		require.ErrorContains(t, err, "it is not sent to", what)
	}
	assert.Empty(t, stolen)
}

func TestAttackDowngradeToABearerToken(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	s.with(func() { s.tokenType = "Bearer" })
	_, _, err := client.Token(t.Context())
	require.ErrorContains(t, err, "and not DPoP")
	s.with(func() { s.tokenType = "N_A\n" })
	_, _, err = client.Token(t.Context())
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "\n")
}

func TestAttackPlainHTTP(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.json")
	for _, server := range []string{"http://192.0.2.1", "http://groupcast.example", "http://127.0.0.1.example", "http://localhost.example:80"} {
		_, err := clientauth.CreateService(path, clientauth.Service{Server: server, ClientID: "a", Secret: "b"}, clientauth.Options{})
		assert.ErrorContains(t, err, "readably", server)
		_, err = clientauth.CreateService(filepath.Join(t.TempDir(), "c.json"), clientauth.Service{Server: server, ClientID: "a", Secret: "b"}, clientauth.Options{AllowPlainHTTP: true})
		assert.NoError(t, err, server)
	}
	for _, server := range []string{"", "groupcast.example", "ftp://a", "https://", "https://u:p@a", "https://a?b", "https://a#b", "https:a"} {
		_, err := clientauth.CreateService(path, clientauth.Service{Server: server, ClientID: "a", Secret: "b"}, clientauth.Options{AllowPlainHTTP: true})
		assert.ErrorContains(t, err, "must be like", server)
	}
	for server, want := range map[string]string{
		"https://Groupcast.Example:443/": "https://groupcast.example", "http://[::1]:8080/base/": "http://[::1]:8080/base", "http://127.9.9.9:80": "http://127.9.9.9",
	} {
		client, err := clientauth.CreateService(filepath.Join(t.TempDir(), "c.json"), clientauth.Service{Server: server, ClientID: "a", Secret: "b"}, clientauth.Options{})
		require.NoError(t, err)
		assert.Equal(t, want, client.Server())
	}
}

func TestAttackSecretsInPrint(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, path := enrolled(t, s, c)
	s.grants["next"] = &grant{}
	g, err := enrolment(t, s, c).AskApproval(t.Context(), clientauth.ClientGateway, "")
	require.NoError(t, err)
	_, token, err := client.Token(t.Context())
	require.NoError(t, err)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var f struct{ PrivateKey string }
	require.NoError(t, json.Unmarshal(b, &f))
	block, _ := pem.Decode([]byte(f.PrivateKey))
	seed := block.Bytes[len(block.Bytes)-32:]

	var out bytes.Buffer
	for _, logger := range []*slog.Logger{slog.New(slog.NewJSONHandler(&out, nil)), slog.New(slog.NewTextHandler(&out, nil))} {
		logger.Info("x", "client", client, "grant", g, "transport", client.Transport())
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&out, verb+"\n"+verb+"\n"+verb+"\n", client, g, client.Transport())
	}
	j, err := json.Marshal([]any{client})
	require.NoError(t, err)
	out.Write(j)
	s.with(func() { clear(s.clients); clear(s.tickets) })
	c.Advance(2 * time.Hour)
	_, _, err = client.Token(t.Context())
	require.Error(t, err)
	fmt.Fprintf(&out, "%v %+v %#v", err, err, err)

	assert.Contains(t, out.String(), client.ClientID(), "who it is may be said")
	for what, secret := range map[string]string{
		"token": token, "pem": block.Type, "device code": "device-code", "user code": "BCDF-GHJK", "seed as decimal": strings.Trim(fmt.Sprint(seed[:6]), "[]"),
		"seed as hex": fmt.Sprintf("%x", seed[:6]), "seed as Go": strings.Trim(fmt.Sprintf("%#v", seed[:3]), "[]byte{}"),
	} {
		assert.NotContains(t, out.String(), secret, what)
	}
}

func TestAttackFileThatOthersCanRead(t *testing.T) {
	s, c := newIssuer(t), newClock()
	_, path := enrolled(t, s, c)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610} {
		require.NoError(t, os.Chmod(path, mode))
		_, err := clientauth.Open(path, s.URL, c.options())
		assert.ErrorContains(t, err, "chmod 600 "+path)
	}
	// A umask that gives everything away doesn't matter, nor does what lay there before.
	require.NoError(t, os.Chmod(path, 0o400))
	_, err := clientauth.Open(path, s.URL, c.options())
	require.NoError(t, err)
}

func TestFilesThatAreNoCredential(t *testing.T) {
	s, c := newIssuer(t), newClock()
	_, good := enrolled(t, s, c)
	b, err := os.ReadFile(good)
	require.NoError(t, err)
	dir := t.TempDir()
	for name, tc := range map[string]struct{ content, want string }{
		"empty":            {" \n", "is empty"},
		"two tokens":       {"secret-a secret-b", "more than a token"},
		"not ASCII":        {"secret-ü", "more than a token"},
		"too large":        {strings.Repeat("secret", 20_000), "larger than"},
		"cut":              {string(b[:len(b)/2]), "damaged"},
		"unknown member":   {`{"version":1,"secret-x":"y"}`, "damaged"},
		"newer":            {strings.Replace(string(b), `"version": 1`, `"version": 2`, 1), "version 2"},
		"no secret":        {`{"version":1,"server":"https://a","clientId":"b"}`, "neither"},
		"no client":        {`{"version":1,"server":"https://a","clientSecret":"secret"}`, "clientId"},
		"dpop, no key":     {`{"version":1,"server":"https://a","clientId":"b","clientSecret":"secret","dpop":true}`, "privateKey"},
		"no server":        {`{"version":1,"clientId":"b","clientSecret":"secret"}`, "must be like"},
		"key is not PEM":   {`{"version":1,"server":"https://a","clientId":"b","privateKey":"secret"}`, "not PEM"},
		"key is not a key": {`{"version":1,"server":"https://a","clientId":"b","privateKey":"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"}`, "can't be read"},
		"another server":   {strings.Replace(string(b), s.URL, "https://other.example", 1), "is for https://other.example"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "credential")
			require.NoError(t, os.WriteFile(path, []byte(tc.content), 0o600))
			_, err := clientauth.Open(path, s.URL, c.options())
			require.ErrorContains(t, err, tc.want)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
	_, err = clientauth.Open(filepath.Join(dir, "none"), s.URL, c.options())
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = clientauth.Open(dir, s.URL, c.options())
	require.ErrorContains(t, err, "not a regular file")
}

func TestHostileAnswers(t *testing.T) {
	s, c := newIssuer(t), newClock()
	client, _ := enrolled(t, s, c)
	for name, tc := range map[string]struct {
		status int
		body   string
	}{
		"a page":             {200, "<html>log in</html>"},
		"nothing":            {200, ""},
		"no token":           {200, `{"token_type":"DPoP","expires_in":60}`},
		"no lifetime":        {200, `{"access_token":"a","token_type":"DPoP"}`},
		"negative lifetime":  {200, `{"access_token":"a","token_type":"DPoP","expires_in":-1}`},
		"lifetime too large": {200, `{"access_token":"a","token_type":"DPoP","expires_in":1e30}`},
		"a header in it":     {200, `{"access_token":"a\r\nX: y","token_type":"DPoP","expires_in":60}`},
		"endless":            {200, `{"access_token":"` + strings.Repeat("a", 1<<20)},
		"terminal codes":     {400, `{"error":"invalid\u001b[2J","error_description":"\u001b[31mred\u0007"}`},
		"a long story":       {400, `{"error":"x","error_description":"` + strings.Repeat("ü", 50_000/2) + `"}`},
		"a wrong type":       {400, `{"error":["x"]}`},
		"a proxy's page":     {502, "<html>bad gateway</html>"},
	} {
		t.Run(name, func(t *testing.T) {
			s.with(func() {
				s.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(tc.status)
					_, _ = w.Write([]byte(tc.body))
					return true
				}
			})
			_, _, err := client.Token(t.Context())
			require.Error(t, err)
			assert.Less(t, len(err.Error()), 1500)
			assert.NotContains(t, err.Error(), "\x1b")
			assert.Equal(t, tc.status/100 == 4, errors.Is(err, clientauth.ErrRefused))
		})
	}
	// A lifetime of ages is not believed.
	s.with(func() { s.intercept = nil; s.life = 1 << 60 })
	_, first, err := client.Token(t.Context())
	require.NoError(t, err)
	c.Advance(24 * time.Hour)
	_, second, err := client.Token(t.Context())
	require.NoError(t, err)
	assert.NotEqual(t, first, second)
}

// FuzzOpen looks for a file that makes the reader panic, or repeat the file's content in an error.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("aaa.bbb.ccc"))
	f.Add([]byte(`{"version":1,"server":"https://a","clientId":"b","clientSecret":"c"}`))
	f.Add([]byte(`{"version":1,"server":"https://a","privateKey":"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----\n"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		client, err := clientauth.Open(path, "https://groupcast.example", clientauth.Options{})
		if (client == nil) == (err == nil) {
			t.Fatalf("client %v, error %v", client, err)
		}
	})
}
