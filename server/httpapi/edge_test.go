package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/httpapi"
)

// small is a contract with one operation of each sort, so that a test may put any handler behind the edge.
const small = `
openapi: 3.0.3
info: {title: small, version: "1"}
paths:
  /open:
    get:
      operationId: open
      security: []
      x-gc-authz: {kinds: [anyone], rule: r}
      responses: {"200": {description: d}}
  /things/{name}:
    parameters:
      - {name: name, in: path, required: true, schema: {type: string, maxLength: 8, pattern: "^[a-z]+$"}}
    post:
      operationId: post
      security: [{token: ["gc:a"]}]
      x-gc-authz: {kinds: [device], scope: "gc:a", rule: r}
      parameters:
        - {name: n, in: query, schema: {type: integer, format: int32, minimum: 1, maximum: 9}}
      requestBody:
        required: true
        content:
          application/json:
            schema:
              type: object
              additionalProperties: false
              required: [id]
              properties:
                id: {type: string, format: decimal-id, pattern: "^[1-9][0-9]{0,18}$", maxLength: 19, x-gc-accept: integer}
                kind: {type: string, enum: [Device, Service], x-gc-accept: any-case}
                size: {type: integer, format: int32, minimum: 0, maximum: 100, nullable: true}
                v4: {type: string, format: ipv4, maxLength: 15}
                v6: {type: string, format: ipv6, maxLength: 45}
                list: {type: array, maxItems: 3, items: {type: string, format: decimal-id, x-gc-accept: integer, maxLength: 19}}
                text: {type: string, maxLength: 8}
      responses: {"200": {description: d}}
components:
  securitySchemes:
    token: {type: oauth2, flows: {clientCredentials: {tokenUrl: /t, scopes: {"gc:a": a}}}}
`

// smallEdge serves the small contract. open and post may be nil.
type smallEdge struct {
	*httptest.Server
	log *logtest.Log
	reg *prometheus.Registry
}

// token "device a" is a device with the scope gc:a, and so on.
func byWords(r *http.Request) (models.Principal, error) {
	words := strings.Fields(r.Header.Get("Authorization"))
	if len(words) != 2 {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "Who are you?")
	}
	return models.Principal{Kind: models.Kind(words[0]), Scopes: []string{"gc:" + words[1]}}, nil
}

func newSmallEdge(t *testing.T, proxies []netip.Prefix, open, post gin.HandlerFunc) *smallEdge {
	t.Helper()
	s := &smallEdge{log: &logtest.Log{}, reg: prometheus.NewRegistry()}
	e, err := httpapi.New(t.Context(), httpapi.Options{
		Document: []byte(small), Authenticate: byWords, TrustedProxies: proxies,
		Log:     slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: httpapi.NewMetrics(s.reg),
	})
	require.NoError(t, err)
	ok := func(c *gin.Context) { c.Status(http.StatusOK) }
	if open == nil {
		open = ok
	}
	if post == nil {
		post = ok
	}
	e.Contract().GET("/open", open)
	e.Contract().POST("/things/:name", post)
	h, err := e.Handler()
	require.NoError(t, err)
	s.Server = httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

type document struct {
	Type, Title, Detail, Instance string
	Status                        int
	Errors                        []struct{ Pointer, Detail string }
}

// problemOf reads an answer that has to be a problem document.
func problemOf(t testing.TB, r *http.Response) document {
	t.Helper()
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"), "%d %s", r.StatusCode, body)
	var d document
	require.NoError(t, json.Unmarshal(body, &d), "%s", body)
	assert.Equal(t, r.StatusCode, d.Status)
	assert.Equal(t, r.Header.Get("X-Request-Id"), d.Instance)
	assert.NotEmpty(t, d.Instance)
	assert.NotEmpty(t, d.Title)
	assert.NotEmpty(t, d.Detail)
	assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	return d
}

func (s *smallEdge) do(t testing.TB, method, path, authorization, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	r, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { r.Body.Close() })
	return r
}

func TestAPanicIsAProblem(t *testing.T) {
	s := newSmallEdge(t, nil, func(*gin.Context) { panic("secret state of the process") }, nil)
	d := problemOf(t, s.do(t, "GET", "/open", "", ""))
	assert.Equal(t, "/problems/internal", d.Type)
	assert.NotContains(t, d.Detail, "secret")
	assert.Contains(t, s.log.String(), "secret state of the process")
	assert.Contains(t, s.log.String(), d.Instance)
	assert.Contains(t, s.log.String(), "status=500")
	// The connection and the process live on.
	assert.Equal(t, "/problems/internal", problemOf(t, s.do(t, "GET", "/open", "", "")).Type)
}

func TestAPanicWithinAnAnswerEndsTheConnection(t *testing.T) {
	s := newSmallEdge(t, nil, func(c *gin.Context) {
		c.Header("Content-Length", "100")
		_, _ = c.Writer.WriteString("the first half")
		c.Writer.Flush()
		panic("now")
	}, nil)
	r := s.do(t, "GET", "/open", "", "")
	_, err := io.ReadAll(r.Body)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "half an answer looked like a whole one")
}

func TestWhatIsNoRefusalIsNotShown(t *testing.T) {
	var s *smallEdge
	var fail func(c *gin.Context, err error)
	s = newSmallEdge(t, nil, func(c *gin.Context) { fail(c, fmt.Errorf("dial 10.0.0.1: %w", io.ErrUnexpectedEOF)) }, nil)
	e, err := httpapi.New(t.Context(), httpapi.Options{
		Document: []byte(small), Log: slog.New(slog.NewTextHandler(s.log, nil)), Metrics: httpapi.NewMetrics(prometheus.NewRegistry()),
	})
	require.NoError(t, err)
	fail = e.HandlerError
	d := problemOf(t, s.do(t, "GET", "/open", "", ""))
	assert.Equal(t, "/problems/internal", d.Type)
	assert.NotContains(t, d.Detail, "10.0.0.1")
	assert.Contains(t, s.log.String(), "dial 10.0.0.1")

	fail = func(c *gin.Context, _ error) {
		e.HandlerError(c, fmt.Errorf("wrapped: %w", models.Errorf(models.CodeWrongLAN, "Another LAN.").Because(errors.New("inside knowledge"))))
	}
	d = problemOf(t, s.do(t, "GET", "/open", "", ""))
	assert.Equal(t, "/problems/wrong-lan", d.Type)
	assert.Equal(t, 409, d.Status)
	assert.Equal(t, "Another LAN.", d.Detail)
}

func TestNobodyIsAnsweredWhoIsGone(t *testing.T) {
	reached, gone := make(chan struct{}), make(chan struct{})
	var e *httpapi.Edge
	s := newSmallEdge(t, nil, func(c *gin.Context) {
		close(reached)
		<-c.Done() // ends with the request only because the engine falls back to its context
		e.HandlerError(c, c.Err())
		close(gone)
	}, nil)
	var err error
	e, err = httpapi.New(t.Context(), httpapi.Options{Document: []byte(small), Log: slog.New(slog.DiscardHandler), Metrics: httpapi.NewMetrics(prometheus.NewRegistry())})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/open", nil)
	require.NoError(t, err)
	go func() {
		<-reached
		cancel()
	}()
	r, err := http.DefaultClient.Do(req)
	if err == nil {
		r.Body.Close()
	}
	assert.ErrorIs(t, err, context.Canceled)
	<-gone
	require.Eventually(t, func() bool { return strings.Contains(s.log.String(), "status=499") }, time.Minute, 5*time.Millisecond)
	assert.NotContains(t, s.log.String(), "level=ERROR")
}

func TestRoutes(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	for _, path := range []string{"/", "/nothing", "/open/", "/OPEN", "//open", "/open/x", "/things/a/b", "/things/", "/things/%2fopen/x"} {
		d := problemOf(t, s.do(t, "GET", path, "", ""))
		assert.Equal(t, "/problems/unknown-route", d.Type, path)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
		r := s.do(t, method, "/open", "", "")
		assert.Equal(t, "GET", r.Header.Get("Allow"), method)
		d := problemOf(t, r)
		assert.Equal(t, "/problems/method-not-allowed", d.Type, method)
		assert.Contains(t, d.Detail, "GET")
	}
	r := s.do(t, "HEAD", "/open", "", "")
	assert.Equal(t, 405, r.StatusCode)
}

func TestTheOrderOfTheGates(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	for _, c := range []struct {
		why, authorization, path, body string
		status                         int
		want                           string
	}{
		{"no token, and everything else wrong too", "", "/things/NO?x=1", "{", 401, "unauthenticated"},
		{"another kind, and everything else wrong too", "service a", "/things/NO?x=1", "{", 403, "forbidden"},
		{"no scope, and everything else wrong too", "device b", "/things/NO?x=1", "{", 403, "forbidden"},
		{"the query before the path", "device a", "/things/NO?x=1", "{", 400, "bad-request"},
		{"all well", "device a", "/things/yes?n=1", `{"id":"1"}`, 200, ""},
	} {
		r := s.do(t, "POST", c.path, c.authorization, c.body)
		require.Equal(t, c.status, r.StatusCode, c.why)
		if c.want != "" {
			assert.Equal(t, "/problems/"+c.want, problemOf(t, r).Type, c.why)
		}
	}
	assert.Equal(t, `Bearer realm="groupcast"`, s.do(t, "POST", "/things/a", "", "{}").Header.Get("WWW-Authenticate"))
	assert.Equal(t, `Bearer realm="groupcast", error="invalid_token"`, s.do(t, "POST", "/things/a", "nonsense", "{}").Header.Get("WWW-Authenticate"))
	assert.Equal(t, `Bearer realm="groupcast", error="insufficient_scope", scope="gc:a"`, s.do(t, "POST", "/things/a", "device b", "{}").Header.Get("WWW-Authenticate"))
	assert.Empty(t, s.do(t, "POST", "/things/a", "service a", "{}").Header.Get("WWW-Authenticate"))
}

func TestAContractWithoutRulesOrHandlersDoesNotStart(t *testing.T) {
	o := httpapi.Options{Log: slog.New(slog.DiscardHandler), Metrics: httpapi.NewMetrics(prometheus.NewRegistry())}
	o.Document = []byte(strings.Replace(small, "x-gc-authz: {kinds: [device], scope: \"gc:a\", rule: r}", "tags: [a]", 1))
	_, err := httpapi.New(t.Context(), o)
	assert.ErrorContains(t, err, "POST /things/{name}: x-gc-authz is missing")
	o.Document = []byte("openapi: 3.0.3")
	_, err = httpapi.New(t.Context(), o)
	assert.Error(t, err)
	o.Document = []byte(small)
	e, err := httpapi.New(t.Context(), o)
	require.NoError(t, err)
	e.Contract().GET("/open", func(*gin.Context) {})
	_, err = e.Handler()
	assert.ErrorContains(t, err, "operation post of the contract has no handler")
}

func TestARouteThatIsNotInTheContractIsNotServedAsPartOfIt(t *testing.T) {
	e, err := httpapi.New(t.Context(), httpapi.Options{
		Document: []byte(small), Authenticate: byWords, Log: slog.New(slog.DiscardHandler), Metrics: httpapi.NewMetrics(prometheus.NewRegistry()),
	})
	require.NoError(t, err)
	e.Contract().GET("/open", func(*gin.Context) {})
	e.Contract().POST("/things/:name", func(*gin.Context) {})
	e.Contract().GET("/backdoor", func(c *gin.Context) { c.String(http.StatusOK, "open") })
	h, err := e.Handler()
	require.NoError(t, err)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/backdoor", nil))
	assert.Equal(t, 500, w.Code)
}

func TestWhereARequestComesFrom(t *testing.T) {
	proxy := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct {
		proxies   []netip.Prefix
		forwarded []string
		want      string
	}{
		{nil, nil, "127.0.0.1"},
		{nil, []string{"203.0.113.9"}, "127.0.0.1"}, // nobody is trusted
		{proxy, nil, "127.0.0.1"},
		{proxy, []string{"203.0.113.9"}, "203.0.113.9"},
		{proxy, []string{"198.51.100.1, 203.0.113.9"}, "203.0.113.9"}, // what the client made up stands left
		{proxy, []string{"198.51.100.1", "203.0.113.9"}, "203.0.113.9"},
		{proxy, []string{"203.0.113.9, 10.0.0.7"}, "203.0.113.9"},
		{proxy, []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{proxy, []string{"2001:db8::1"}, "2001:db8::1"},
		{proxy, []string{"nonsense"}, "127.0.0.1"},
	} {
		var got netip.Addr
		s := newSmallEdge(t, c.proxies, func(ctx *gin.Context) { got = httpapi.RemoteOf(ctx) }, nil)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/open", nil)
		require.NoError(t, err)
		req.Header["X-Forwarded-For"] = c.forwarded
		req.Header.Set("X-Real-Ip", "192.0.2.77")
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		r.Body.Close()
		assert.Equal(t, c.want, got.String(), "%v %v", c.proxies, c.forwarded)
	}
}

func TestNeitherQueryNorAddressIsLoggedOrCounted(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	s.do(t, "POST", "/things/abc?n=1&secretquery=1", "device a", `{"id":"1"}`)
	s.do(t, "GET", "/somewhere/secretpath", "", "")
	assert.NotContains(t, s.log.String(), "secret")
	assert.NotContains(t, s.log.String(), "127.0.0.1")
	assert.Contains(t, s.log.String(), "route=/things/:name")
	families, err := s.reg.Gather()
	require.NoError(t, err)
	text := fmt.Sprint(families)
	assert.NotContains(t, text, "secret")
	assert.Contains(t, text, `value:"post"`)
	assert.Contains(t, text, `value:"other"`)
}

// TestABodyThatDoesNotArriveIsAProblem sends half a body and then no more.
func TestABodyThatDoesNotArriveIsAProblem(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /things/a HTTP/1.1\r\nHost: x\r\nAuthorization: device a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"id\":")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(answer), "HTTP/1.1 400"), "%s", answer)
	assert.Contains(t, string(answer), "/problems/bad-request")
	assert.Contains(t, string(answer), "did not arrive whole")
}
