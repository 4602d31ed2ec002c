package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/daemon"
	"github.com/groupcast/groupcast/server/store"
)

func open(t testing.TB, dir string) *store.Store {
	t.Helper()
	st, err := daemon.Open(t.Context(), settings(t, dir), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Close() })
	return st
}

type recordedPoll struct {
	epoch        string
	revision, at int64
}

// polls looks into the database behind the store's back.
func polls(t testing.TB, _ *store.Store, dir string) (all []recordedPoll) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "groupcast.db"))
	require.NoError(t, err)
	defer db.Close()
	rows, err := db.Query("SELECT epoch, acked_revision, polled_at FROM gateway_polls")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var p recordedPoll
		require.NoError(t, rows.Scan(&p.epoch, &p.revision, &p.at))
		all = append(all, p)
	}
	require.NoError(t, rows.Err())
	return all
}

func failing(t *testing.T, dir string, args ...string) error {
	t.Helper()
	d, err := daemon.Start(t.Context(), settings(t, dir, args...), "v", slog.New(slog.DiscardHandler))
	if err == nil {
		_ = d.Stop(context.Background())
	}
	require.Error(t, err)
	return err
}

func TestPagesAndHealth(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	for path, want := range map[string]struct{ media, text string }{
		"/healthz":              {"application/json", `{"status":"ok","version":"v1.2.3"}`},
		"/readyz":               {"application/json", `{"status":"ok","version":"v1.2.3"}`},
		"/openapi.yaml":         {"application/yaml", "openapi: 3.0.3"},
		"/docs":                 {"text/html", "<html"},
		"/problems/bad-request": {"text/markdown", "# bad-request"},
	} {
		r := s.do(t, http.MethodGet, path, "")
		assert.Equal(t, 200, r.StatusCode, path)
		assert.Contains(t, r.Header.Get("Content-Type"), want.media, path)
		body := text(t, r)
		assert.Contains(t, body, want.text, path)
		if path == "/openapi.yaml" {
			assert.NotContains(t, body, "x-go-")
		}
	}
	for _, path := range []string{"/problems/nonsense", "/problems/", "/problems/..%2f..%2fREADME", "/metrics"} {
		assert.Equal(t, 404, s.do(t, http.MethodGet, path, "").StatusCode, path)
	}
	assert.NotEmpty(t, s.metric(t, `groupcast_build_info{goversion="go`+strings.TrimPrefix(goVersion(), "go")+`",version="v1.2.3"}`))
	assert.NotEmpty(t, s.metric(t, `groupcast_http_requests_total{operation="getHealth",status="200"}`))
}

func TestFormsOfTheToken(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	for _, value := range []string{"Bearer " + h.cameraToken, "bearer " + h.cameraToken, "BEARER  " + h.cameraToken, h.cameraToken} {
		assert.Equal(t, 200, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", value).StatusCode)
	}
	for _, value := range []string{"Bearer", "Bearer a b", "DPoP " + h.cameraToken, "Bearer " + h.cameraToken + ",", "Bearer\t" + h.cameraToken, h.cameraToken + ".x"} {
		assert.Equal(t, 401, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", value).StatusCode, strings.ReplaceAll(value, h.cameraToken, "TOKEN"))
	}
}

// TestATokenEndsWithWhatItStandsFor withdraws tokens in every way there is.
func TestATokenEndsWithWhatItStandsFor(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	h := s.home(t, "Smith")
	groups := func(token string) int {
		return s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", token).StatusCode
	}
	require.Equal(t, 200, groups(h.cameraToken))
	require.Equal(t, 200, groups(h.uploadToken))
	db, err := sql.Open("sqlite3", filepath.Join(dir, "groupcast.db")+"?_busy_timeout=10000")
	require.NoError(t, err)
	defer db.Close()
	later := time.Now().Add(time.Minute).UnixMilli()
	for _, statement := range []string{"UPDATE devices SET not_before = ? WHERE id = ?", "UPDATE services SET not_before = ? WHERE id <> ?"} {
		_, err = db.Exec(statement, later, int64(h.camera))
		require.NoError(t, err)
	}
	assert.Equal(t, 401, groups(h.cameraToken), "a token that is older than not_before")
	assert.Equal(t, 401, groups(h.uploadToken))
	assert.Equal(t, 200, groups(h.phoneToken), "that of another device lives")
	_, err = db.Exec("UPDATE devices SET type = 'gateway' WHERE id = ?", int64(h.phone))
	require.NoError(t, err)
	assert.Equal(t, 401, groups(h.phoneToken), "a device that became another kind of caller")
	d, err := s.admin.DeleteDeviceWithResponse(t.Context(), h.camera2)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, d.StatusCode())
	assert.Equal(t, 401, groups(h.camera2Token))
}

func TestARestartKeepsTokensAndRegistrations(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	h := s.home(t, "Smith")
	groupIP := s.source(t, h, "door")
	etag := s.poll(t, h, "").Header.Get("ETag")
	require.NoError(t, s.Stop(context.Background()))

	s = start(t, settings(t, dir))
	assert.Equal(t, groupIP, s.source(t, h, "door"))
	assert.Equal(t, 304, s.poll(t, h, "", "If-None-Match", etag).StatusCode, "the cursor means the same")
}

func TestTheSocketIsTheOperatorsAlone(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	path := filepath.Join(dir, daemon.SocketName)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	assert.Equal(t, os.ModeSocket, info.Mode().Type())
	require.NoError(t, s.Stop(context.Background()))
	_, err = os.Stat(path)
	assert.ErrorIs(t, err, os.ErrNotExist)

	// One that a killed process left behind is replaced.
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	s = start(t, settings(t, dir))
	s.home(t, "Smith")

	// What is no socket is not.
	other := dataDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(other, daemon.SocketName), []byte("precious"), 0o600))
	assert.Contains(t, failing(t, other).Error(), "data-dir: ")
	left, err := os.ReadFile(filepath.Join(other, daemon.SocketName))
	require.NoError(t, err)
	assert.Equal(t, "precious", string(left))
	assert.Contains(t, failing(t, filepath.Join(other, strings.Repeat("long", 30))).Error(), "shorter path")
}

func TestOneProcessPerDataDirectory(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	assert.Contains(t, failing(t, dir).Error(), "in use by another groupcastd")
	s.home(t, "Smith") // the first goes on

	dir = dataDir(t)
	url := pgtest.URL(t)
	s = start(t, settings(t, dir, "--database-url", url, "--migrate"))
	assert.Contains(t, failing(t, dir, "--database-url", url).Error(), "in use by another groupcastd")
	assert.Contains(t, failing(t, dir, "--database-url", url, "--nats-url", "nats://127.0.0.1:1").Error(), "another groupcastd answers on")
	s.home(t, "Smith")
}

func TestReplicasOnPostgres(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	dir := dataDir(t)
	err := failing(t, dir, "--database-url", url)
	assert.Contains(t, err.Error(), "run `groupcastd migrate up`")
	a := start(t, settings(t, dir, "--database-url", url, "--migrate"))
	h := a.home(t, "Smith")
	groupIP := a.source(t, h, "door")

	// A replica without the key-encryption key can't open the keys, and says what to do.
	second := dataDir(t)
	err = failing(t, second, "--database-url", url)
	assert.Contains(t, err.Error(), filepath.Join(second, "kek"))
	assert.Contains(t, err.Error(), "the same for every replica")
	assert.NotContains(t, err.Error(), url)

	b := start(t, settings(t, second, "--database-url", url, "--key-encryption-key-file", filepath.Join(dir, "kek")))
	etag := b.poll(t, h, "").Header.Get("ETag")
	assert.Equal(t, etag, a.poll(t, h, "").Header.Get("ETag"))

	// A change at one replica reaches a gateway that waits at the other, though nobody tells it.
	answered := b.pollLater(t, h, etag)
	b.waitForWaiters(t, 1)
	a.join(t, h, "door", groupIP, "")
	r := <-answered
	assert.Equal(t, 200, r.StatusCode)
	assert.Contains(t, text(t, r), `"state":1`)
}

func TestAStartThatFailsLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	dir := dataDir(t)
	for _, key := range []string{"listen", "metrics-listen", "mqtt-listen"} {
		err := failing(t, dir, "--"+key, taken.Addr().String(), "--allow-loopback")
		assert.ErrorContains(t, err, key+": ")
		assert.ErrorContains(t, err, "another program listens there; stop it, or give another port")
	}
	assert.ErrorContains(t, failing(t, dir, "--metrics-listen", "192.0.2.1:9"), "this host doesn't have the address; give one that it has")
	assert.Contains(t, failing(t, dir, "--tls-cert", "/does/not/exist", "--tls-key", "/does/not/exist").Error(), "tls-cert: ")
	kek := filepath.Join(dir, "bad-kek")
	require.NoError(t, os.WriteFile(kek, []byte("short"), 0o600))
	assert.Contains(t, failing(t, dir, "--key-encryption-key-file", kek).Error(), "key-encryption-key-file: ")
	assert.Contains(t, failing(t, dir, "--listen", "0.0.0.0:0").Error(), "listen: ")
	start(t, settings(t, dir)).home(t, "Smith")
}

// certify writes a certificate for localhost with the given name in it.
func certify(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return cert, key
}

func TestARenewedCertificateIsInUseWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	cert, key := certify(t, dir, "first")
	s := start(t, settings(t, dir, "--tls-cert", cert, "--tls-key", key))
	presented := func() string {
		conn, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its name is what is asked for
		require.NoError(t, err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	assert.Equal(t, "first", presented())
	assert.Equal(t, 200, s.do(t, http.MethodGet, "/healthz", "").StatusCode)

	// One that can't be used doesn't take the service away.
	require.NoError(t, os.WriteFile(cert, []byte("half a file"), 0o600))
	require.Eventually(t, func() bool {
		assert.Equal(t, "first", presented())
		return strings.Contains(s.log.String(), "can't be used")
	}, time.Minute, 50*time.Millisecond)

	certify(t, dir, "second")
	require.Eventually(t, func() bool { return presented() == "second" }, time.Minute, 50*time.Millisecond)
	assert.Contains(t, s.log.String(), "the TLS certificate was renewed")

	old, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}) //nolint:gosec // must be refused
	if err == nil {
		old.Close()
	}
	assert.Error(t, err)
}

// TestLongPollsOverHTTP2 waits over TLS, where one connection carries many requests and ends none of them by a deadline of another.
func TestLongPollsOverHTTP2(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	cert, key := certify(t, dir, "groupcast")
	s := start(t, settings(t, dir, "--tls-cert", cert, "--tls-key", key, "--public-url", "https://localhost:8443"))
	s.transport.ForceAttemptHTTP2 = true
	h := s.home(t, "Smith")
	groupIP := s.source(t, h, "door")
	first := s.poll(t, h, "")
	assert.Equal(t, 2, first.ProtoMajor)
	answered := s.pollLater(t, h, first.Header.Get("ETag"))
	s.waitForWaiters(t, 1)
	s.join(t, h, "door", groupIP, "")
	r := <-answered
	assert.Equal(t, 200, r.StatusCode)
	assert.Contains(t, text(t, r), `"state":1`)
}
