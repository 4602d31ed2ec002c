package main_test

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

// run runs the program to its end.
func run(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(harness.Bin(t, "groupcastd"), args...)
	cmd.Env = append(os.Environ(), environ...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // the code says how it ended
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

func TestWhatIsWrongWithTheSettingsIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "groupcastd.yaml")
	require.NoError(t, os.WriteFile(file, []byte("lissten: 127.0.0.1:0\n"), 0o600))
	for _, c := range []struct {
		environ string
		args    []string
		want    string
	}{
		{"", []string{"serve", "--listen", "0.0.0.0:8080"}, "listen: 0.0.0.0:8080 is not on loopback"},
		{"", []string{"serve", "--config", file}, "lissten ("},
		{"GROUPCAST_LISSTEN=x", []string{"serve"}, "GROUPCAST_LISSTEN is no variable"},
		{"GROUPCAST_MAX_STALE=soon", []string{"serve"}, "max-stale (GROUPCAST_MAX_STALE): "},
		{"", []string{"serve", "--max-stale", "soon"}, "max-stale"},
		{"", []string{"serve", "--nonsense"}, "nonsense"},
		{"", []string{"serve", "nonsense"}, "nonsense"},
		{"GROUPCAST_DATABASE_URL=mysql://u:hunter2@h/d", []string{"migrate", "up"}, "database-url: "},
	} {
		code, stdout, stderr := run(t, []string{c.environ, "GROUPCAST_DATA_DIR=" + dir}, c.args...)
		assert.Equal(t, 2, code, "%v", c.args)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "groupcastd: ")
		assert.Contains(t, stderr, c.want)
		assert.NotContains(t, stderr, "hunter2")
		assert.NotContains(t, stderr, "goroutine")
	}
	code, _, stderr := run(t, nil, "serve", "--data-dir", "/proc/nowhere")
	assert.Equal(t, 1, code, "this may be right another time")
	assert.Contains(t, stderr, "data-dir: ")
}

func TestVersion(t *testing.T) {
	code, stdout, _ := run(t, nil, "version")
	assert.Equal(t, 0, code)
	assert.Equal(t, "devel\n", stdout)
}

func TestMigrating(t *testing.T) {
	for name, args := range map[string][]string{
		"sqlite":   {"--data-dir", t.TempDir()},
		"postgres": {"--data-dir", t.TempDir(), "--database-url", pgtest.URL(t)},
	} {
		t.Run(name, func(t *testing.T) {
			status := func() string {
				code, stdout, stderr := run(t, nil, append([]string{"migrate", "status"}, args...)...)
				require.Equal(t, 0, code, stderr)
				return stdout
			}
			assert.Regexp(t, `(?m)^1 +0001_\w+\.sql +no$`, status())
			code, _, stderr := run(t, nil, append([]string{"migrate", "up"}, args...)...)
			require.Equal(t, 0, code, stderr)
			assert.Regexp(t, `(?m)^1 +0001_\w+\.sql +2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC$`, status())
			assert.NotContains(t, status(), " no\n")
			code, _, stderr = run(t, nil, append([]string{"migrate", "up"}, args...)...)
			require.Equal(t, 0, code, stderr)
		})
	}
}

// serving starts the program and waits until it is alive.
func serving(t *testing.T, dir string) (url string, p *harness.Process) {
	t.Helper()
	address := harness.FreePort(t)
	p = harness.Start(t, nil, "groupcastd", exec.Command(harness.Bin(t, "groupcastd"), "serve", "--data-dir", dir, "--listen", address, "--metrics-listen", ""))
	require.Eventually(t, func() bool {
		r, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	}, time.Minute, 10*time.Millisecond, "groupcastd is not ready:\n%s", p.Log())
	return "http://" + address, p
}

func TestSignalsEndItInGoodOrder(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		dir, err := os.MkdirTemp("", "gc-") // not t.TempDir: the path of a unix socket has to be short
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		_, p := serving(t, dir)
		code, _, stderr := run(t, nil, "serve", "--data-dir", dir, "--listen", "127.0.0.1:0", "--metrics-listen", "")
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, "is in use by another groupcastd", "two processes on one directory")

		require.NoError(t, p.Cmd.Process.Signal(signal))
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatal("it did not stop")
		}
		assert.Equal(t, 0, p.Cmd.ProcessState.ExitCode())
		assert.True(t, strings.HasSuffix(strings.TrimSpace(p.Log()), "msg=stopped"), p.Log())
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			assert.NotEqual(t, "admin.sock", e.Name())
			info, err := e.Info()
			require.NoError(t, err)
			assert.Zero(t, info.Mode().Perm()&0o077, "%s can be read by others", e.Name())
		}
	}
}

// TestKilledAndStartedAgain leaves a dead socket and an open database behind.
func TestKilledAndStartedAgain(t *testing.T) {
	dir, err := os.MkdirTemp("", "gc-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	_, p := serving(t, dir)
	p.Kill()
	_, p = serving(t, dir)
	require.NoError(t, p.Stop())
}

func TestBackupAndRestore(t *testing.T) {
	dir, err := os.MkdirTemp("", "gc-") // not t.TempDir: the path of a unix socket has to be short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(t.TempDir(), "backup")
	_, p := serving(t, dir)
	code, _, stderr := run(t, nil, "backup", file, "--data-dir", dir)
	require.Equal(t, 0, code, stderr)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"backup", file, "--data-dir", dir}, 1, "exists"},
		{[]string{"backup", "--data-dir", dir}, 2, "arg"},
		{[]string{"backup", file, "--data-dir", dir, "--database-url", "postgres://localhost/x"}, 2, "use pg_dump"},
		{[]string{"restore", file, "--data-dir", dir, "--force"}, 1, "in use by another groupcastd"},
	} {
		code, _, stderr := run(t, nil, c.args...)
		assert.Equal(t, c.code, code, "%v", c.args)
		assert.Contains(t, stderr, c.want)
	}
	require.NoError(t, p.Stop())
	code, _, stderr = run(t, nil, "restore", file, "--data-dir", dir)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "--force")
	database, kek := filepath.Join(dir, "groupcast.db"), filepath.Join(dir, "kek")
	before, err := os.ReadFile(database)
	require.NoError(t, err)
	key, err := os.ReadFile(kek)
	require.NoError(t, err)
	another := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	for _, c := range []struct {
		key  func()
		want string
	}{
		{func() { require.NoError(t, os.WriteFile(kek, []byte(another), 0o600)) }, "doesn't open the keys in the database: use the file that belongs to this database"},
		{func() { require.NoError(t, os.Remove(kek)) }, "no such file"},
	} {
		c.key()
		code, _, stderr = run(t, nil, "restore", file, "--data-dir", dir, "--force")
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, "key-encryption-key-file: ")
		assert.Contains(t, stderr, c.want)
		after, err := os.ReadFile(database)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(before, after), "nothing is replaced")
		left, err := filepath.Glob(filepath.Join(dir, ".restore-*"))
		require.NoError(t, err)
		assert.Empty(t, left)
	}
	require.NoFileExists(t, kek, "a restore makes no key")
	require.NoError(t, os.WriteFile(kek, key, 0o600))
	code, _, stderr = run(t, nil, "restore", file, "--data-dir", dir, "--force")
	require.Equal(t, 0, code, stderr)
	assert.Contains(t, stderr, "new life")
	serving(t, dir)
}
