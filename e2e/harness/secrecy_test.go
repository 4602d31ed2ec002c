package harness_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// watched is a test whose failures are only noted.
type watched struct {
	testing.TB

	failures []string
	cleanups []func()
}

func (w *watched) Errorf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}
func (w *watched) Cleanup(f func()) { w.cleanups = append(w.cleanups, f) }

// printed gives the failures of a test whose program prints a line.
func printed(t *testing.T, name, line string) []string {
	t.Helper()
	w := &watched{TB: t}
	p := harness.Start(w, nil, name, exec.Command("printf", "%s\n", line))
	<-p.Done()
	for _, f := range w.cleanups {
		f()
	}
	for _, failure := range w.failures {
		assert.NotContains(t, failure, line, "the secret is not repeated")
	}
	return w.failures
}

// TestAttackSecretsInLogs proves that a program which logs a secret fails its test.
func TestAttackSecretsInLogs(t *testing.T) {
	s := harness.StartServer(t, harness.Options{})
	account := s.Account(t, "Smith")
	premises := s.Premises(t, account, "home", false)
	off, kind := false, models.DeviceCamera
	camera := s.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: "porch", Pop: &off})
	token := s.DeviceToken(t, camera)
	ticket, err := s.Admin.CreateTicketWithResponse(t.Context(), nil, adminapi.TicketRequest{PremisesID: premises, DeviceType: &kind})
	require.NoError(t, err)
	require.NotNil(t, ticket.JSON200, "%s", ticket.Body)
	// What only callers send is a secret as well, wherever it stands.
	r, err := http.NewRequest(http.MethodGet, s.URL+"/v1/groups", http.NoBody)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer somebodys-own-token")
	answer, err := s.HTTP.Do(r)
	require.NoError(t, err)
	_ = answer.Body.Close()
	harness.Destination(t, "96.114.14.140")
	send := func(path, media, body string, header ...string) {
		r, err := http.NewRequest(http.MethodPost, s.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", media)
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		answer, err := s.HTTP.Do(r)
		require.NoError(t, err)
		_ = answer.Body.Close()
	}
	send("/v1/login", "application/json", `{"userName":"anna","password":"her own four words"}`)
	send("/v1/login", "application/json", `{"userName":"anna","password":"127.0.0.1"}`)
	send("/v1/logout", "application/json", "", "Cookie", "__Host-groupcast=session-of-somebody")
	send("/oauth/token", "application/x-www-form-urlencoded", "grant_type=client_credentials", "Authorization",
		"Basic "+base64.StdEncoding.EncodeToString([]byte("svc-upload:secret-of-the-service")))
	send("/oauth/token", "application/x-www-form-urlencoded", "grant_type=refresh_token&refresh_token=refreshes-a-camera")

	for what, secret := range map[string]string{
		"a token that was handed out":  token,
		"a token that somebody sent":   "somebodys-own-token",
		"a token that nobody knows":    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJkZXY6MSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
		"a ticket":                     ticket.JSON200.Ticket,
		"a private key":                "-----BEGIN PRIVATE KEY-----",
		"a private key as JSON":        `{"kty":"OKP","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`,
		"a user code":                  "BCDF-GHJK",
		"the address of a destination": "96.114.14.140",
		"a password":                   "her own four words",
		"a session":                    "session-of-somebody",
		"a client secret":              "secret-of-the-service",
		"a refresh token":              "refreshes-a-camera",
	} {
		assert.NotEmpty(t, printed(t, "groupcastd", `level=INFO msg="request" value=`+secret), what)
	}
	assert.Empty(t, printed(t, "groupcastd", `level=INFO msg="listening" address=127.0.0.1:8080 remote=96.114.14.0/24`))
	assert.Empty(t, printed(t, "receive", "receiving at 96.114.14.140"), "a receiver may tell its user their own address")
	assert.NotEmpty(t, printed(t, "receive", "with "+token))
}
