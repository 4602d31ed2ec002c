package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/internal/logtest"
)

var build struct {
	sync.Once
	dir string
	err error
}

// programsVariable names a directory that is empty at first and the same for all packages of a run of tests, which `make test` makes and
// removes: there each program is linked once, by the package that needs one first.
const programsVariable = "TEST_PROGRAMS"

// Bin gives the path of one of the project's programs, the demo among them. They are built once per run or, without the directory of a run,
// once per test process, with the race detector's setting of the test left out: they are the programs that users run.
func Bin(t testing.TB, name string) string {
	t.Helper()
	build.Do(func() {
		if build.dir = os.Getenv(programsVariable); build.dir == "" {
			if build.dir, build.err = os.MkdirTemp("", "groupcast-bin-"); build.err != nil {
				return
			}
		}
		// Programs that run in namespaces or as another user must be able to reach it.
		_ = os.Chmod(build.dir, 0o755)
		build.err = buildIn(build.dir)
	})
	require.NoError(t, build.err)
	return filepath.Join(build.dir, name)
}

func buildIn(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, "built"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and with it the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("wait for another package's build: %w", err)
	}
	if info, err := lock.Stat(); err != nil || info.Size() > 0 {
		return err
	}
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+string(filepath.Separator), "./cmd/...", "./e2e/demo")
	cmd.Dir = filepath.Join(filepath.Dir(file), "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	_, err = lock.WriteString("yes\n")
	return err
}

// RemoveBuilt deletes what Bin built for this process alone; call it from TestMain after the tests.
func RemoveBuilt() {
	if build.dir != "" && build.dir != os.Getenv(programsVariable) {
		_ = os.RemoveAll(build.dir)
	}
}

// Process is one running program with what it has printed.
type Process struct {
	Cmd  *exec.Cmd
	Name string

	log  logtest.Log
	done chan struct{}
	err  error
}

// Start runs the program, inside the namespace if there is one. It is killed at the end of the test if it still runs; the test
// fails if its log holds a secret or the address of a destination, and shows the log if it failed.
func Start(t testing.TB, in *netlab.Namespace, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	return StartInto(t, in, name, cmd, nil)
}

// StartInto does the same with another standard output, such as the standard input of the next program, which is no part of the log then.
func StartInto(t testing.TB, in *netlab.Namespace, name string, cmd *exec.Cmd, out *os.File) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Name: name, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if out != nil {
		cmd.Stdout = out
	}
	if in != nil {
		in.Start(cmd)
	} else {
		require.NoError(t, cmd.Start(), "start %s", name)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		for _, leak := range Leaks(wholeTest(t), p.Log(), name == "groupcastd" || name == "gateway-agent") {
			t.Errorf("the log of %s holds %s", name, leak)
		}
		if t.Failed() {
			t.Logf("--- log of %s ---\n%s", name, p.Log())
		}
	})
	return p
}

// Log gives everything the program printed so far.
func (p *Process) Log() string { return p.log.String() }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the program the hard way, as a power cut would, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.done
}

// Stop asks the program to end and gives its error, or says that it didn't end within a minute.
func (p *Process) Stop() error {
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ask %s to stop: %w", p.Name, err)
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(time.Minute):
		p.Kill()
		return fmt.Errorf("%s did not stop within a minute", p.Name)
	}
}
