package daemon_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
)

// TestWhatIsNotEvenHTTP writes bytes that no handler ever sees.
func TestWhatIsNotEvenHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	for name, c := range map[string]struct {
		request string
		status  int
		kind    string
	}{
		"bad escape in the path":   {"GET /v1/groups/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-request"},
		"no Host":                  {"GET /healthz HTTP/1.1\r\n\r\n", 400, "bad-request"},
		"two Hosts":                {"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "bad-request"},
		"bad Host":                 {"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad-request"},
		"a header without colon":   {"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", 400, "bad-request"},
		"a name with a space":      {"GET /healthz HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400, "bad-request"},
		"a control character":      {"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", 400, "bad-request"},
		"not HTTP":                 {"hello\r\n\r\n", 400, "bad-request"},
		"another version":          {"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", 400, "bad-request"},
		"two lengths":              {"POST /v1/registrations HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "bad-request"},
		"a length that is none":    {"POST /v1/registrations HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad-request"},
		"an unknown encoding":      {"POST /v1/registrations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br\r\n\r\n", 400, "bad-request"},
		"a header that is too big": {"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", 413, "too-large"},
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(conn, c.request)
		require.NoError(t, err)
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		assert.Equal(t, c.status, r.StatusCode, name)
		assert.Equal(t, "application/problem+json", r.Header.Get("Content-Type"), name)
		assert.True(t, r.Close, name)
		d := object(t, r)
		assert.Equal(t, "/problems/"+c.kind, d["type"], name)
		assert.Equal(t, r.Header.Get("X-Request-Id"), d["instance"], name)
		require.NoError(t, conn.Close())
	}
	// A header just below the limit is read: the token in it is refused as such.
	r := s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+strings.Repeat("x", 12<<10))
	assert.Equal(t, 401, r.StatusCode)
}

// TestWithoutItsDatabase takes the database away from a running service: it says so, comes to no harm, and claims nothing.
func TestWithoutItsDatabase(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.URL(t)
	s := start(t, settings(t, dataDir(t), "--database-url", databaseURL, "--migrate"))
	h := s.home(t, "Smith")
	etag := s.poll(t, h, "").Header.Get("ETag")
	short := s.request(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups?wait=3", "", "Authorization", h.gatewayToken, "If-None-Match", etag)
	answered := make(chan *http.Response, 1)
	go func() {
		if r, err := s.client.Do(short); assert.NoError(t, err) {
			t.Cleanup(func() { r.Body.Close() })
			answered <- r
		}
	}()
	s.waitForWaiters(t, 1)

	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	name := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	server, err := pgx.Connect(t.Context(), u.String())
	require.NoError(t, err)
	defer func() { _ = server.Close(t.Context()) }()
	_, err = server.Exec(t.Context(), "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH ALLOW_CONNECTIONS false")
	require.NoError(t, err)
	_, err = server.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
	require.NoError(t, err)

	for _, path := range []string{"/readyz", "/v1/groups", "/v1/gateways/" + h.gateway.String() + "/groups"} {
		token := h.cameraToken
		if strings.Contains(path, "gateways") {
			token = h.gatewayToken
		}
		r := s.do(t, http.MethodGet, path, "", "Authorization", token)
		d := object(t, r)
		assert.Equal(t, 503, r.StatusCode, "%s %v", path, d)
		assert.Equal(t, "/problems/unavailable", d["type"], path)
		assert.NotEmpty(t, r.Header.Get("Retry-After"), path)
	}
	assert.Equal(t, 200, s.do(t, http.MethodGet, "/healthz", "").StatusCode)
	r := <-answered
	assert.Equal(t, 503, r.StatusCode, "304 would claim that nothing changed")

	_, err = server.Exec(t.Context(), "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH ALLOW_CONNECTIONS true")
	require.NoError(t, err)
	assert.Equal(t, 200, s.do(t, http.MethodGet, "/readyz", "").StatusCode)
	assert.Equal(t, 304, s.poll(t, h, "", "If-None-Match", etag).StatusCode)
}

func TestAFullReplicaSaysSo(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--long-poll-max-waiters", "1"))
	h, other := s.home(t, "Smith"), s.home(t, "Jones")
	etag, otherTag := s.poll(t, h, "").Header.Get("ETag"), s.poll(t, other, "").Header.Get("ETag")
	first := s.pollLater(t, h, etag)
	s.waitForWaiters(t, 1)
	r := s.poll(t, other, "?wait=50", "If-None-Match", otherTag)
	assert.Equal(t, 503, r.StatusCode)
	assert.NotEmpty(t, r.Header.Get("Retry-After"))
	assert.Equal(t, "/problems/overloaded", object(t, r)["type"])
	s.source(t, h, "door")
	assert.Equal(t, 200, (<-first).StatusCode)
}
