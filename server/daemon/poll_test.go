package daemon_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// poll asks for the group information as the gateway does.
func (s *service) poll(t testing.TB, h home, query string, header ...string) *http.Response {
	t.Helper()
	return s.do(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups"+query, "", append([]string{"Authorization", "Bearer " + h.gatewayToken}, header...)...)
}

// pollLater does the same in the background.
func (s *service) pollLater(t testing.TB, h home, etag string) <-chan *http.Response {
	t.Helper()
	req := s.request(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups?wait=50", "",
		"Authorization", "Bearer "+h.gatewayToken, "If-None-Match", etag)
	answered := make(chan *http.Response, 1)
	go func() {
		defer close(answered)
		if r, err := s.client.Do(req); assert.NoError(t, err) {
			t.Cleanup(func() { r.Body.Close() })
			answered <- r
		}
	}()
	return answered
}

// metric reads one line of the metrics.
func (s *service) metric(t testing.TB, line string) string {
	t.Helper()
	r, err := http.Get("http://" + s.MetricsAddr().String() + "/metrics")
	require.NoError(t, err)
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), line+" "); ok {
			return value
		}
	}
	return ""
}

func (s *service) waitForWaiters(t testing.TB, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return s.metric(t, "groupcast_longpoll_waiters") == fmt.Sprint(n) }, time.Minute, 5*time.Millisecond,
		"there are not %d waiters", n)
}

func TestPollOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	groupIP := s.source(t, h, "door")

	first := s.poll(t, h, "")
	body := text(t, first)
	require.Equal(t, 200, first.StatusCode, body)
	etag := first.Header.Get("ETag")
	assert.Regexp(t, `^"[0-9a-f]{16}\.[1-9][0-9]*"$`, etag)
	assert.Equal(t, "private, no-cache", first.Header.Get("Cache-Control"))
	assert.Equal(t, "Authorization", first.Header.Get("Vary"))
	assert.Empty(t, first.Header.Get("Groupcast-Resync"))
	assert.Contains(t, body, `"groupIP":"`+groupIP+`"`)
	assert.Contains(t, body, `"maxStaleSeconds":900`)
	cursor := strings.Trim(etag, `"`)
	epoch, _, _ := strings.Cut(cursor, ".")

	for _, c := range []struct {
		name, query string
		header      []string
		status      int
		resync      string
		applied     string
	}{
		{"the same again", "", nil, 200, "", ""},
		{"If-None-Match", "", []string{"If-None-Match", etag}, 304, "", ""},
		{"If-None-Match that a proxy weakened", "", []string{"If-None-Match", "W/" + etag}, 304, "", ""},
		{"If-None-Match and a wait", "?wait=1", []string{"If-None-Match", etag}, 304, "", ""},
		{"If-None-Match and Prefer", "", []string{"If-None-Match", etag, "Prefer", "wait=1"}, 304, "", "wait=1"},
		{"Prefer among others", "", []string{"If-None-Match", etag, "Prefer", `respond-async, Wait="1"; x=y`}, 304, "", "wait=1"},
		{"Prefer without understanding", "", []string{"If-None-Match", etag, "Prefer", "wait=long"}, 304, "", ""},
		{"Prefer that is nothing of ours", "", []string{"If-None-Match", etag, "Prefer", "return=minimal"}, 304, "", ""},
		{"index", "?index=" + cursor, nil, 200, "", ""},
		{"index and a wait", "?wait=1&index=" + cursor, nil, 200, "", ""},
		{"If-None-Match wins over index", "?index=nonsense", []string{"If-None-Match", etag}, 304, "", ""},
		{"a cursor without quotes", "?wait=50", []string{"If-None-Match", cursor}, 200, "malformed", ""},
		{"nonsense", "?wait=50&index=nonsense", nil, 200, "malformed", ""},
		{"two tags", "?wait=50", []string{"If-None-Match", etag + `, "x"`}, 200, "malformed", ""},
		{"a star", "?wait=50", []string{"If-None-Match", "*"}, 200, "malformed", ""},
		{"another epoch", "?wait=50", []string{"If-None-Match", `"0000000000000000.1"`}, 200, "unknown-epoch", ""},
		{"a cursor from the future", "?wait=50", []string{"If-None-Match", `"` + epoch + `.99999"`}, 200, "ahead", ""},
		{"a wait without a cursor", "?wait=50", nil, 200, "", ""},
		{"an older revision", "?wait=50&index=" + epoch + ".1", nil, 200, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := s.poll(t, h, c.query, c.header...)
			got := text(t, r)
			require.Equal(t, c.status, r.StatusCode, got)
			assert.Equal(t, etag, r.Header.Get("ETag"))
			assert.Equal(t, c.resync, r.Header.Get("Groupcast-Resync"))
			assert.Equal(t, c.applied, r.Header.Get("Preference-Applied"))
			assert.Equal(t, "private, no-cache", r.Header.Get("Cache-Control"))
			if c.status == 304 {
				assert.Empty(t, got)
			} else {
				assert.Equal(t, body, got, "the same ETag has the same bytes")
			}
		})
	}
}

func TestAChangeEndsTheWait(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	other := s.home(t, "Jones")
	groupIP := s.source(t, h, "door")
	etag := s.poll(t, h, "").Header.Get("ETag")

	answered := s.pollLater(t, h, etag)
	s.waitForWaiters(t, 1)
	s.source(t, other, "door") // somebody else's change
	s.source(t, h, "door")     // a renewal
	assert.Empty(t, answered)
	s.waitForWaiters(t, 1)

	registration := s.join(t, h, "door", groupIP, "")
	r := <-answered
	require.Equal(t, 200, r.StatusCode)
	assert.NotEqual(t, etag, r.Header.Get("ETag"))
	body := text(t, r)
	assert.Contains(t, body, `"state":1`)
	assert.Contains(t, body, `"destinationIPv4":"96.114.14.140"`)
	s.waitForWaiters(t, 0)

	etag = r.Header.Get("ETag")
	answered = s.pollLater(t, h, etag)
	s.waitForWaiters(t, 1)
	left := s.do(t, http.MethodDelete, "/v1/registrations/"+registration, "", "Authorization", h.uploadToken)
	require.Equal(t, 200, left.StatusCode, "%s", text(t, left))
	r = <-answered
	assert.Contains(t, text(t, r), `"state":0`)
}

// TestAClientThatGoesAwayIsNoWaiter closes the connection under a long poll. Without the engine's fallback to the request's
// context the waiter would stay until its time is over.
func TestAClientThatGoesAwayIsNoWaiter(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	etag := s.poll(t, h, "").Header.Get("ETag")
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	_, err = fmt.Fprintf(conn, "GET /v1/gateways/%s/groups?wait=50 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nIf-None-Match: %s\r\n\r\n", h.gateway, h.gatewayToken, etag)
	require.NoError(t, err)
	s.waitForWaiters(t, 1)
	require.NoError(t, conn.Close())
	s.waitForWaiters(t, 0)
	assert.Equal(t, "1", s.metric(t, `groupcast_longpoll_answers_total{reason="client_gone"}`))
}

func TestARemovedGatewayIsToldSo(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	etag := s.poll(t, h, "").Header.Get("ETag")
	answered := s.pollLater(t, h, etag)
	s.waitForWaiters(t, 1)
	d, err := s.admin.DeleteDeviceWithResponse(t.Context(), h.gateway)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, d.StatusCode(), "%s", d.Body)
	r := <-answered
	assert.Equal(t, 401, r.StatusCode, "an empty snapshot would be wrong")
	assert.Equal(t, "unauthenticated", code(t, r))
	assert.Equal(t, 401, s.poll(t, h, "").StatusCode)
}

// TestTheCursorIsTheAcknowledgement lets an address rest until its gateway has said that it no longer forwards for the old group,
// as far as HTTP shows it: what the gateway sent is in the database, also after a stop.
func TestTheCursorIsTheAcknowledgement(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	h := s.home(t, "Smith")
	s.source(t, h, "door")
	etag := s.poll(t, h, "").Header.Get("ETag")
	s.poll(t, h, "", "If-None-Match", etag)
	require.NoError(t, s.Stop(context.Background()))

	st := open(t, dir)
	acked := polls(t, st, dir)
	require.Len(t, acked, 1)
	assert.Equal(t, strings.Trim(etag, `"`), fmt.Sprintf("%s.%d", acked[0].epoch, acked[0].revision))
	assert.InDelta(t, time.Now().UnixMilli(), acked[0].at, 60_000)
}

func TestStopping(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	etag := s.poll(t, h, "").Header.Get("ETag")
	answers := []<-chan *http.Response{s.pollLater(t, h, etag), s.pollLater(t, h, etag)}
	s.waitForWaiters(t, 2)
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop(context.Background()) }()
	for _, answered := range answers {
		r := <-answered
		assert.Equal(t, 304, r.StatusCode, "whoever waited is told to come back, not cut off")
		assert.True(t, r.Close, "and to come back elsewhere")
	}
	require.NoError(t, <-stopped)
	_, err := net.Dial("tcp", s.Addr().String())
	assert.Error(t, err)
}

func TestWhileStoppingTheServiceIsNotReadyButAlive(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--drain-time", "30s"))
	// Those that wait hold the stop up, until they leave.
	waiting, leave := context.WithCancel(t.Context())
	defer leave()
	for _, name := range []string{"Smith", "Jones", "Brown"} {
		h := s.home(t, name)
		etag := s.poll(t, h, "").Header.Get("ETag")
		for range 2 {
			req := s.request(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups?wait=50", "", "Authorization", "Bearer "+h.gatewayToken, "If-None-Match", etag)
			go func() {
				if r, err := s.client.Do(req.WithContext(waiting)); err == nil {
					_ = r.Body.Close()
				}
			}()
		}
	}
	s.waitForWaiters(t, 6)
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop(context.Background()) }()
	var seen int
	require.Eventually(t, func() bool {
		r, err := http.Get(s.base() + "/readyz")
		if err != nil {
			return true // it has stopped; the test below says whether we saw it
		}
		defer r.Body.Close()
		seen = r.StatusCode
		if seen == 503 {
			assert.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
			assert.NotEmpty(t, r.Header.Get("Retry-After"))
		}
		return seen == 503
	}, time.Minute, time.Millisecond)
	assert.Equal(t, 503, seen)
	leave()
	require.NoError(t, <-stopped)
}

// A poll that waited is answered as one that didn't: nothing but its time and its name differ. Its connection serves what comes after it.
func TestAWaitIsAnsweredLikeAnyPoll(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	groupIP := s.source(t, h, "door")
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	from := bufio.NewReader(conn)
	ask := func(etag string) {
		_, err := fmt.Fprintf(conn, "GET /v1/gateways/%s/groups?wait=50 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nIf-None-Match: %s\r\n\r\n",
			h.gateway, h.gatewayToken, etag)
		require.NoError(t, err)
	}
	read := func() (*http.Response, string) {
		r, err := http.ReadResponse(from, nil)
		require.NoError(t, err)
		defer r.Body.Close()
		return r, text(t, r)
	}
	etag := s.poll(t, h, "").Header.Get("ETag")
	for n := range 3 {
		ask(etag)
		s.waitForWaiters(t, 1)
		s.join(t, h, "door", groupIP, fmt.Sprint("phone-", n))
		waited, body := read()
		plain := s.poll(t, h, "")
		assert.Equal(t, 200, waited.StatusCode)
		assert.Equal(t, text(t, plain), body, "the same ETag has the same bytes")
		assert.NotEqual(t, waited.Header.Get("X-Request-Id"), plain.Header.Get("X-Request-Id"))
		for _, r := range []*http.Response{waited, plain} {
			assert.NotEmpty(t, r.Header.Get("Date"))
			r.Header.Del("Date")
			r.Header.Del("X-Request-Id")
		}
		assert.Equal(t, plain.Header, waited.Header)
		etag = waited.Header.Get("ETag")
	}

	ask(etag)
	s.waitForWaiters(t, 1)
	d, err := s.admin.DeleteDeviceWithResponse(t.Context(), h.gateway)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, d.StatusCode(), "%s", d.Body)
	refused, body := read()
	assert.Equal(t, 401, refused.StatusCode)
	assert.Equal(t, "application/problem+json", refused.Header.Get("Content-Type"))
	assert.Equal(t, `Bearer realm="groupcast", error="invalid_token"`, refused.Header.Get("WWW-Authenticate"))
	assert.Contains(t, body, refused.Header.Get("X-Request-Id"))
	ask(etag)
	again, _ := read()
	assert.Equal(t, 401, again.StatusCode)
	assert.Equal(t, "2", s.metric(t, `groupcast_http_requests_total{operation="getGroupInformation",status="401"}`))
}

// TestAnErrorIsNeverAnEmptySnapshot takes away each table that the group information is read from, together with news: a gateway that asks, or
// waits, is told that there was an error, never that there are no groups.
func TestAnErrorIsNeverAnEmptySnapshot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.home(t, "Smith")
		s.source(t, h, "door")
		driver, dsn := "pgx", s.cfg.DatabaseURL
		if dsn == "" {
			driver, dsn = "sqlite3", "file:"+filepath.Join(s.cfg.DataDir, "groupcast.db")+"?_txlock=immediate&_busy_timeout=10000"
		}
		db, err := sql.Open(driver, dsn)
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		etag := s.poll(t, h, "").Header.Get("ETag")
		for _, table := range []string{"groups", "registrations", "gateways", "installation"} {
			tx, err := db.Begin()
			require.NoError(t, err)
			for _, statement := range []string{
				fmt.Sprint("UPDATE gateways SET revision = revision + 1 WHERE id = ", h.gateway), "ALTER TABLE " + table + " RENAME TO away",
			} {
				_, err = tx.Exec(statement)
				require.NoError(t, err)
			}
			require.NoError(t, tx.Commit())
			for _, query := range []string{"", "?wait=3"} {
				r := s.poll(t, h, query, "If-None-Match", etag)
				body := text(t, r)
				assert.GreaterOrEqual(t, r.StatusCode, 500, "%s is away: %s", table, body)
				assert.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
				assert.Empty(t, r.Header.Get("ETag"), "a cursor would be an acknowledgement later")
			}
			_, err = db.Exec("ALTER TABLE away RENAME TO " + table)
			require.NoError(t, err)
			r := s.poll(t, h, "", "If-None-Match", etag)
			body := text(t, r)
			require.Equal(t, 200, r.StatusCode, body)
			assert.Contains(t, body, `"groupName":"door"`)
			etag = r.Header.Get("ETag")
		}
	})
}
