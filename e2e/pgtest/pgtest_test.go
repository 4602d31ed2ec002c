package pgtest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/e2e/pgtest"
)

var prepared atomic.Int32

var template = pgtest.NewTemplate(func(ctx context.Context, url string) error {
	prepared.Add(1)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE TABLE thing (id int PRIMARY KEY); INSERT INTO thing SELECT generate_series(1, 1000)")
	return errors.Join(err, conn.Close(ctx))
})

// TestMain is also the program that TestKilledOwner kills.
func TestMain(m *testing.M) {
	if os.Getenv("PGTEST_VICTIM") != "" {
		victim()
		return
	}
	os.Exit(m.Run())
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, query string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func number(t *testing.T, conn *pgx.Conn, query string) int {
	t.Helper()
	var n int
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestDatabasesArePrivate(t *testing.T) {
	began := time.Now()
	pgtest.URL(t)
	t.Logf("cluster and first database: %v", time.Since(began).Round(time.Millisecond))
	for range 2 {
		t.Run("empty", func(t *testing.T) {
			t.Parallel()
			conn := connect(t, pgtest.URL(t))
			execute(t, conn, "CREATE TABLE thing (id int)") // fails unless the database is empty
		})
	}
	for range 6 {
		t.Run("copy", func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			conn := connect(t, template.URL(t))
			t.Logf("copy: %v", time.Since(began).Round(time.Millisecond))
			execute(t, conn, "INSERT INTO thing VALUES (5000)") // fails if another test's row is there
			if n := number(t, conn, "SELECT count(*) FROM thing"); n != 1001 {
				t.Errorf("%d rows, want 1001", n)
			}
		})
	}
	t.Cleanup(func() {
		if n := prepared.Load(); n != 1 {
			t.Errorf("the template was prepared %d times, want once", n)
		}
	})
}

func TestUserIsNoSuperuser(t *testing.T) {
	conn := connect(t, pgtest.URL(t))
	if n := number(t, conn, "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND rolsuper"); n != 0 && os.Getenv("TEST_DATABASE_URL") == "" {
		t.Error("the test's user is a superuser: a missing grant would go unnoticed")
	}
	execute(t, conn, "CREATE TABLE thing (id int)")
}

func TestLifecycle(t *testing.T) {
	for _, fsync := range []bool{false, true} {
		t.Run(fmt.Sprintf("fsync=%t", fsync), func(t *testing.T) {
			c := pgtest.New(t, pgtest.Options{Fsync: fsync})
			url := c.URL(t)
			conn := connect(t, url)
			if on := number(t, conn, "SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'on'") == 1; on != fsync {
				t.Errorf("fsync is on: %t, want %t", on, fsync)
			}
			execute(t, conn, "CREATE TABLE thing (id int)")
			for i, step := range []struct {
				name string
				end  func() error
			}{{"kill", c.Kill}, {"stop", c.Stop}, {"kill", c.Kill}} {
				execute(t, conn, "INSERT INTO thing VALUES (1)") // the last thing before the end
				if err := step.end(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if err := conn.Ping(t.Context()); err == nil {
					t.Fatalf("%s: the session still answers", step.name)
				}
				if other, err := pgx.Connect(t.Context(), url); err == nil {
					_ = other.Close(t.Context())
					t.Fatalf("%s: a new session was accepted", step.name)
				}
				if err := c.Start(); err != nil {
					t.Fatalf("start after %s: %v", step.name, err)
				}
				conn = connect(t, url)
				if n := number(t, conn, "SELECT count(*) FROM thing"); n != i+1 {
					t.Fatalf("%d rows after %s, want %d: a commit that was answered is gone", n, step.name, i+1)
				}
			}
			if err := c.Restart(); err != nil {
				t.Fatal(err)
			}
			if err := c.Kill(); err != nil { // and Close copes with a killed cluster
				t.Fatal(err)
			}
		})
	}
}

func TestSettingsAndLog(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{Settings: map[string]string{"max_connections": "20", "log_statement": "ddl"}})
	conn := connect(t, c.URL(t))
	if n := number(t, conn, "SELECT setting::int FROM pg_settings WHERE name = 'max_connections'"); n != 20 {
		t.Errorf("max_connections %d, want 20", n)
	}
	execute(t, conn, "CREATE TABLE thing (id int)")
	log, err := c.Log()
	if err != nil || !strings.Contains(string(log), "CREATE TABLE thing") {
		t.Errorf("the log lacks the logged statement (%v):\n%s", err, log)
	}
}

func TestStartWithBadSettingSaysWhy(t *testing.T) {
	_, err := pgtest.Start(pgtest.Options{Settings: map[string]string{"no_such_setting": "1"}})
	if errors.Is(err, pgtest.ErrMissing) {
		t.Skip(err)
	}
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("error %v, want one that names the setting", err)
	}
}

func TestNothingStaysBehind(t *testing.T) {
	before := goleak.IgnoreCurrent()
	c := pgtest.New(t, pgtest.Options{})
	home := homeOf(t, c.AdminURL())
	if err := goleak.Find(before); err != nil {
		t.Errorf("while a cluster runs: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(home); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", home, err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// homeOf finds the folder that holds the cluster's socket.
func homeOf(t *testing.T, url string) string {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(config.Host)
}

// victim starts a cluster, prints its URL and waits to be killed.
func victim() {
	c, err := pgtest.Start(pgtest.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(c.AdminURL())
	time.Sleep(time.Minute)
}

func TestKilledOwner(t *testing.T) {
	neighbour := pgtest.New(t, pgtest.Options{})
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), "PGTEST_VICTIM=1")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			url := strings.TrimSpace(line)
			home := homeOf(t, url)
			conn := connect(t, url) // a session in use does not keep the server alive
			pid := number(t, conn, "SELECT pg_backend_pid()")
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				_, err := os.Stat(home)
				if errors.Is(err, os.ErrNotExist) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s is still there 30 s after its owner died", home)
				}
			}
			if err := syscall.Kill(pid, 0); err == nil {
				if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); strings.HasPrefix(cwd, home) {
					t.Errorf("process %d of the dead owner's Postgres still runs", pid)
				}
			}
			connect(t, neighbour.AdminURL()) // somebody else's cluster lives on
		})
	}
}

func TestWrongFolderIsAnErrorNotASkip(t *testing.T) {
	t.Setenv("PG_BIN", t.TempDir())
	_, err := pgtest.Start(pgtest.Options{})
	if err == nil || errors.Is(err, pgtest.ErrMissing) || !strings.Contains(err.Error(), "PG_BIN") {
		t.Errorf("error %v, want one about PG_BIN that is not ErrMissing", err)
	}
}

func TestLinkInPath(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{}) // skips where there is no Postgres
	conn := connect(t, c.AdminURL())
	var bin string
	if err := conn.QueryRow(t.Context(), "SELECT setting FROM pg_config WHERE name = 'BINDIR'").Scan(&bin); err != nil {
		t.Fatal(err)
	}
	links := t.TempDir()
	if err := os.Symlink(filepath.Join(bin, "initdb"), filepath.Join(links, "initdb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PG_BIN", "")
	t.Setenv("PATH", links+":"+os.Getenv("PATH"))
	pgtest.New(t, pgtest.Options{})
}
