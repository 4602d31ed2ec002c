package figures

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

// program is a server in a process of its own.
type program struct {
	addr string
	// controlled is where the servers that clients wait at are told what to do.
	controlled string
	cmd        *exec.Cmd
	dir        string
	ended      sync.Once
}

// end ends the program in good order; ending it twice is allowed.
func (p *program) end() {
	p.ended.Do(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = p.cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			_ = p.cmd.Process.Kill()
			<-done
		}
	})
}

// run starts a program; it is ended with the test. Its log goes to a file, as an operator's would.
func run(t testing.TB, addr, dir string, cmd *exec.Cmd) *program {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	p := &program{addr: addr, cmd: cmd, dir: dir}
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("--- end of the log of %s ---\n%s", cmd.Path, text[max(0, len(text)-600):])
		}
	})
	require.Eventually(t, func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	}, time.Minute, 10*time.Millisecond, "%s doesn't listen", cmd.Path)
	return p
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gc-") // the path of a unix socket must be short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// poolSize is how many connections to Postgres each server has: groupcastd's default.
const poolSize = 12

// groupcastd starts the service on a database, with the settings that an operator gets who sets nothing, but for the limits: all
// clients here come from one address, and more of them join a group than a home has.
func groupcastd(t testing.TB, databaseURL string, args ...string) *program {
	t.Helper()
	addr, dir := harness.FreePort(t), shortDir(t)
	args = append([]string{
		"serve", "--listen", addr, "--data-dir", dir, "--database-url", databaseURL, "--metrics-listen", "", "--drain-time", "1s",
		"--rate-limit-source", "0", "--rate-limit-principal", "0", "--quota-destinations", "0",
	}, args...)
	return run(t, addr, dir, exec.Command(harness.Bin(t, "groupcastd"), args...))
}

// bareServer starts this program again as the bare server of a kind, which is told the rest as JSON.
func bareServer(t testing.TB, kind string, settings any) *program {
	t.Helper()
	p := bareServerIn(t, kind, shortDir(t), func(string, string) any { return settings })
	p.controlled = p.addr
	return p
}

func bareServerIn(t testing.TB, kind, dir string, settings func(addr, control string) any) *program {
	t.Helper()
	addr, control := harness.FreePort(t), harness.FreePort(t)
	text, err := json.Marshal(settings(addr, control))
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bareVariable+"="+kind, bareVariable+"_ADDR="+addr)
	cmd.Stdin = bytes.NewReader(text)
	p := run(t, addr, dir, cmd)
	p.controlled = control
	return p
}

// tokens asks for access tokens of devices.
func (p *program) tokens(t testing.TB, devices []int64) []string {
	t.Helper()
	socket := filepath.Join(p.dir, "admin.sock")
	require.Eventually(t, func() bool { // it is opened a moment after the public interface
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	admin, err := adminclient.NewClientWithResponses("http://groupcastd", adminclient.WithHTTPClient(&http.Client{
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}, MaxIdleConnsPerHost: 4},
		Timeout: 30 * time.Second,
	}))
	require.NoError(t, err)
	all := make([]string, len(devices))
	var group errgroup.Group
	group.SetLimit(4)
	for i, id := range devices {
		group.Go(func() error {
			device := models.ID(id)
			r, err := admin.CreateTokenWithResponse(context.Background(), adminapi.TokenRequest{DeviceID: &device})
			if err != nil {
				return err
			}
			if r.JSON200 == nil {
				return fmt.Errorf("%s: %s", r.Status(), r.Body)
			}
			all[i] = r.JSON200.AccessToken
			return nil
		})
	}
	require.NoError(t, group.Wait())
	return all
}
