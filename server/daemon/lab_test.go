package daemon_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
	"github.com/groupcast/groupcast/server/config"
	"github.com/groupcast/groupcast/server/daemon"
	"github.com/groupcast/groupcast/server/telemetry"
)

// service is a whole service in this process, on SQLite, with real sockets.
type service struct {
	*daemon.Daemon
	cfg       config.Config
	log       *logtest.Log
	transport *http.Transport
	client    *http.Client // what passes through it must not be logged
	admin     *adminclient.ClientWithResponses
}

// dataDir gives a directory whose path is short enough for a unix socket.
func dataDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gc-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func settings(t testing.TB, dir string, args ...string) config.Config {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	source := config.Flags(fs)
	require.NoError(t, fs.Parse(append([]string{
		"--data-dir", dir, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--drain-time", "200ms", "--log-level", "debug",
		"--public-url", "http://127.0.0.1:8080", // so that tokens survive a restart on another port
	}, args...)))
	cfg, err := source.Load(nil)
	require.NoError(t, err)
	return cfg
}

// start starts a service; it is stopped at the end of the test if the test didn't.
func start(t testing.TB, cfg config.Config) *service {
	t.Helper()
	return startOn(t, cfg, time.Now, nil)
}

// startOn starts one on a host with that clock, which trusts those.
func startOn(t testing.TB, cfg config.Config, now func() time.Time, roots *x509.CertPool) *service {
	t.Helper()
	s := &service{cfg: cfg, log: &logtest.Log{}, transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the certificate is the test's own
	}}
	s.client = &http.Client{Transport: harness.Attentive(t, s.transport), Timeout: 5 * time.Minute}
	var err error
	s.Daemon, err = daemon.StartOn(t.Context(), now, roots, cfg, "v1.2.3", telemetry.NewLogger(s.log, cfg.LogLevel, cfg.LogFormat))
	require.NoError(t, err)
	t.Cleanup(func() {
		s.transport.CloseIdleConnections()
		_ = s.Stop(context.Background()) // once more, if the test did
		harness.NoLeaks(t, "groupcastd", s.log.String())
		if t.Failed() {
			t.Logf("--- log ---\n%s", s.log)
		}
	})
	s.admin, err = adminclient.NewClientWithResponses("http://groupcastd", adminclient.WithHTTPClient(&http.Client{
		Transport: harness.Attentive(t, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(cfg.DataDir, daemon.SocketName))
		}, DisableKeepAlives: true}),
		Timeout: 5 * time.Minute,
	}))
	require.NoError(t, err)
	return s
}

func (s *service) base() string {
	scheme := "http://"
	if s.cfg.TLSCert != "" {
		scheme = "https://"
	}
	return scheme + s.Addr().String()
}

// request makes a request as it stands. header is a list of names and values.
func (s *service) request(t testing.TB, method, path, body string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.base()+path, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	if body != "" && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

// do sends a request and waits for the answer.
func (s *service) do(t testing.TB, method, path, body string, header ...string) *http.Response {
	t.Helper()
	r, err := s.client.Do(s.request(t, method, path, body, header...))
	require.NoError(t, err)
	t.Cleanup(func() { r.Body.Close() })
	return r
}

// post registers somebody and gives status and body.
func (s *service) post(t testing.TB, token, format string, args ...any) (int, map[string]any) {
	t.Helper()
	r := s.do(t, http.MethodPost, "/v1/registrations", fmt.Sprintf(format, args...), "Authorization", "Bearer "+token)
	return r.StatusCode, object(t, r)
}

func text(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

func object(t testing.TB, r *http.Response) map[string]any {
	t.Helper()
	var m map[string]any
	body := text(t, r)
	require.NoError(t, json.Unmarshal([]byte(body), &m), "%s", body)
	return m
}

// home is an account with a premises, a gateway that declared two group IPs, and devices.
type home struct {
	account                               models.AccountID
	premises                              models.PremisesID
	gateway, camera, camera2, phone       models.ID
	gatewayToken, cameraToken, phoneToken string
	camera2Token                          string
	upload                                models.ID
	uploadToken                           string
}

const (
	declaration = `{"lanPrefix":"192.168.1.0/24","gatewayIPv4":"192.168.1.1","uplinkIPv4":"203.0.113.1","groupRange":"192.168.1.230-192.168.1.231"}`
	cameraAddr  = "192.168.1.5"
)

func (s *service) home(t testing.TB, name string) home {
	t.Helper()
	var h home
	a, err := s.admin.CreateAccountWithResponse(t.Context(), nil, adminapi.AccountRequest{Name: name})
	require.NoError(t, err)
	require.NotNil(t, a.JSON200, "%s", a.Body)
	h.account = a.JSON200.AccountID
	p, err := s.admin.CreatePremisesWithResponse(t.Context(), nil, adminapi.PremisesRequest{AccountID: h.account, Name: "home"})
	require.NoError(t, err)
	require.NotNil(t, p.JSON200, "%s", p.Body)
	h.premises = p.JSON200.PremisesID
	bare := false // these tests send plain tokens
	device := func(kind models.DeviceType, name string) (models.ID, string) {
		d, err := s.admin.CreateDeviceWithResponse(t.Context(), nil, adminapi.DeviceRequest{PremisesID: h.premises, Type: kind, Name: name, Pop: &bare})
		require.NoError(t, err)
		require.NotNil(t, d.JSON200, "%s", d.Body)
		return d.JSON200.DeviceID, s.token(t, adminapi.TokenRequest{DeviceID: &d.JSON200.DeviceID})
	}
	h.gateway, h.gatewayToken = device(models.DeviceGateway, "gateway")
	h.camera, h.cameraToken = device(models.DeviceCamera, "camera1")
	h.camera2, h.camera2Token = device(models.DeviceCamera, "camera2")
	h.phone, h.phoneToken = device(models.DevicePhone, "phone")
	service := models.ServiceID("svc-" + strings.ToLower(name))
	sv, err := s.admin.CreateServiceWithResponse(t.Context(), nil, adminapi.ServiceRequest{ServiceID: service, Name: name})
	require.NoError(t, err)
	require.NotNil(t, sv.JSON200, "%s", sv.Body)
	l, err := s.admin.CreateLinkWithResponse(t.Context(), nil, adminapi.LinkRequest{ServiceID: service, AccountID: h.account})
	require.NoError(t, err)
	require.NotNil(t, l.JSON200, "%s", l.Body)
	h.upload, h.uploadToken = l.JSON200.ServiceAccountID, s.token(t, adminapi.TokenRequest{ServiceID: &service})

	r := s.do(t, http.MethodPut, "/v1/gateways/"+h.gateway.String(), declaration, "Authorization", "Bearer "+h.gatewayToken)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
	return h
}

func (s *service) token(t testing.TB, req adminapi.TokenRequest) string {
	t.Helper()
	r, err := s.admin.CreateTokenWithResponse(t.Context(), req)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	assert.EqualValues(t, 86400, r.JSON200.ExpiresIn)
	return r.JSON200.AccessToken
}

// source registers the first camera and gives the group IP.
func (s *service) source(t testing.TB, h home, group string) string {
	t.Helper()
	status, body := s.post(t, h.cameraToken, `{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"publicIPv4":"203.0.113.1","groupName":%q}`,
		h.camera, cameraAddr, group)
	require.Equal(t, http.StatusOK, status, "%v", body)
	return body["groupIP"].(string)
}

// join registers the upload service as a destination and gives the registration.
func (s *service) join(t testing.TB, h home, group, groupIP, instance string) string {
	t.Helper()
	status, body := s.post(t, h.uploadToken, `{"type":"Service","id":"%s","destination":true,"instance":%q,"publicIPv4":"96.114.14.140","groupName":%q,"groupIP":%q}`,
		h.upload, instance, group, groupIP)
	require.Equal(t, http.StatusOK, status, "%v", body)
	return body["registrationId"].(string)
}

func goVersion() string { return runtime.Version() }
