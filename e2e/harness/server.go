package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
	"github.com/groupcast/groupcast/openapi/client"
)

// Databases runs the test once on SQLite and once on a real Postgres, beside each other and other parallel tests: when it returns, neither
// has begun.
func Databases(t *testing.T, test func(t *testing.T, databaseURL string)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, "")
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, pgtest.URL(t))
	})
}

// Options says how a server is started.
type Options struct {
	// DatabaseURL is empty for SQLite in the data directory.
	DatabaseURL string
	// Listen is an address and port; empty means a free port on 127.0.0.1.
	Listen string
	// In is the network namespace the server runs in and is reached from; nil means here.
	In *netlab.Namespace
	// Args are further flags, Env is added to the environment, as name=value.
	Args, Env []string
	// Program is run instead of the groupcastd that Bin built.
	Program string
}

// Server is a running groupcastd.
type Server struct {
	URL     string
	DataDir string
	Admin   *adminclient.ClientWithResponses
	HTTP    *http.Client

	options Options
	process *Process
}

// StartServer starts groupcastd and waits until it is ready.
func StartServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Listen == "" {
		o.Listen = FreePort(t)
	}
	host, _, err := net.SplitHostPort(o.Listen)
	require.NoError(t, err)
	ordinary(t, host)
	// Not t.TempDir: the path of a unix socket must stay below 108 bytes.
	dir, err := os.MkdirTemp("", "gc-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{
		URL:     "http://" + o.Listen,
		DataDir: dir,
		HTTP:    &http.Client{Transport: attentive{&http.Transport{DialContext: dialIn(o.In)}, wholeTest(t)}, Timeout: 5 * time.Minute},
		options: o,
	}
	socket := filepath.Join(dir, "admin.sock")
	s.Admin, err = adminclient.NewClientWithResponses("http://groupcastd", adminclient.WithHTTPClient(&http.Client{
		Transport: attentive{&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}, DisableKeepAlives: true}, wholeTest(t)},
		Timeout: 5 * time.Minute,
	}))
	require.NoError(t, err)
	s.Start(t)
	return s
}

// Start starts a server that was stopped or killed, on the same address and data.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	args := []string{"serve", "--listen", s.options.Listen, "--data-dir", s.DataDir, "--metrics-listen", "", "--log-level", "debug"}
	if s.options.DatabaseURL != "" {
		args = append(args, "--database-url", s.options.DatabaseURL, "--migrate")
	}
	args = append(args, s.options.Args...)
	program := s.options.Program
	if program == "" {
		program = Bin(t, "groupcastd")
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), s.options.Env...)
	s.process = Start(t, s.options.In, "groupcastd", cmd)
	s.waitReady(t)
}

func (s *Server) waitReady(t testing.TB) {
	t.Helper()
	ended := false
	require.Eventually(t, func() bool {
		select {
		case <-s.process.Done():
			ended = true
			return true
		default:
		}
		r, err := s.HTTP.Get(s.URL + "/readyz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	}, time.Minute, 20*time.Millisecond, "groupcastd is not ready")
	require.False(t, ended, "groupcastd ended at its start:\n%s", s.process.Log())
}

// Kill ends the server as a power cut of the process would.
func (s *Server) Kill() { s.process.Kill() }

// Stop ends the server gracefully.
func (s *Server) Stop() error { return s.process.Stop() }

// PID is that of the server that was started last.
func (s *Server) PID() int { return s.process.Cmd.Process.Pid }

// Log gives what the server printed since its last start.
func (s *Server) Log() string { return s.process.Log() }

// Client speaks the public contract with the given token.
func (s *Server) Client(t testing.TB, token string) *client.ClientWithResponses {
	t.Helper()
	c, err := client.NewClientWithResponses(s.URL, client.WithHTTPClient(s.HTTP),
		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token)
			return nil
		}))
	require.NoError(t, err)
	return c
}

// Account creates an account.
func (s *Server) Account(t testing.TB, name string) models.AccountID {
	t.Helper()
	r, err := s.Admin.CreateAccountWithResponse(t.Context(), nil, adminapi.AccountRequest{Name: name})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.AccountID
}

// Premises creates a premises of the account.
func (s *Server) Premises(t testing.TB, account models.AccountID, name string, allowPublicRange bool) models.PremisesID {
	t.Helper()
	r, err := s.Admin.CreatePremisesWithResponse(t.Context(), nil, adminapi.PremisesRequest{
		AccountID: account, Name: name, AllowPublicRange: &allowPublicRange,
	})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.PremisesID
}

// Device creates a device and gives its id; the request's premises is filled in.
func (s *Server) Device(t testing.TB, premises models.PremisesID, d adminapi.DeviceRequest) models.ID {
	t.Helper()
	d.PremisesID = premises
	r, err := s.Admin.CreateDeviceWithResponse(t.Context(), nil, d)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.DeviceID
}

// Service creates a service.
func (s *Server) Service(t testing.TB, id models.ServiceID, name string) {
	t.Helper()
	r, err := s.Admin.CreateServiceWithResponse(t.Context(), nil, adminapi.ServiceRequest{ServiceID: id, Name: name})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
}

// Exempt lets a service receive at these addresses or prefixes without being asked by the gateway, and elsewhere as before.
func (s *Server) Exempt(t testing.TB, id models.ServiceID, addresses ...string) {
	t.Helper()
	exempt := adminapi.Exempt
	allowed := adminapi.AllowedCIDRs{{Cidr: "0.0.0.0/0"}, {Cidr: "::/0"}}
	for _, a := range addresses {
		if !strings.Contains(a, "/") {
			a += "/32"
		}
		allowed = append(allowed, adminapi.AllowedCIDR{Cidr: a, Consent: &exempt})
	}
	s.Allow(t, id, allowed...)
}

// Allow replaces where a service may receive, and how; without any prefixes that is anywhere, with consent.
func (s *Server) Allow(t testing.TB, id models.ServiceID, allowed ...adminapi.AllowedCIDR) {
	t.Helper()
	if allowed == nil {
		allowed = adminapi.AllowedCIDRs{}
	}
	r, err := s.Admin.ChangeServiceWithResponse(t.Context(), id, adminapi.ServiceChange{Name: string(id), AllowedCIDRs: allowed})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
}

// Link records the account's consent for the service and gives the service account id; a zero id draws one.
func (s *Server) Link(t testing.TB, service models.ServiceID, account models.AccountID, id models.ID) models.ID {
	t.Helper()
	req := adminapi.LinkRequest{ServiceID: service, AccountID: account}
	if id.Valid() {
		req.ServiceAccountID = &id
	}
	r, err := s.Admin.CreateLinkWithResponse(t.Context(), nil, req)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.ServiceAccountID
}

// DeviceToken mints a token for the device.
func (s *Server) DeviceToken(t testing.TB, device models.ID) string {
	t.Helper()
	return s.token(t, adminapi.TokenRequest{DeviceID: &device})
}

// ServiceToken mints a token (SAT) for the service.
func (s *Server) ServiceToken(t testing.TB, service models.ServiceID) string {
	t.Helper()
	return s.token(t, adminapi.TokenRequest{ServiceID: &service})
}

func (s *Server) token(t testing.TB, req adminapi.TokenRequest) string {
	t.Helper()
	r, err := s.Admin.CreateTokenWithResponse(t.Context(), req)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.AccessToken
}

// Post sends a body as it stands, with the token in the given form of the header, and gives status and body.
func (s *Server) Post(t testing.TB, path, authorization, body string) (int, string) {
	t.Helper()
	return s.Send(t, http.MethodPost, path, authorization, body)
}

// Send does the same with any method.
func (s *Server) Send(t testing.TB, method, path, authorization, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", authorization)
	r, err := s.HTTP.Do(req)
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	require.NoError(t, err)
	return r.StatusCode, string(b)
}

// dialIn connects from inside the namespace: a socket belongs to the namespace of the thread that opens it.
func dialIn(in *netlab.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if in == nil {
		return d.DialContext
	}
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		in.Do(func() { conn, err = d.DialContext(ctx, network, address) })
		return conn, err
	}
}

// PeakMemory is the most memory that the server has had resident since its start, in bytes.
func (s *Server) PeakMemory(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(status), "VmHWM:")
	require.True(t, ok)
	var kib int64
	_, err = fmt.Sscan(rest, &kib)
	require.NoError(t, err)
	return kib << 10
}
