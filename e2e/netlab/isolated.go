package netlab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// childEnv names the test that a process was started for by Isolated.
const childEnv = "GROUPCAST_NETLAB_CHILD"

// Require skips the test unless it runs as root. As root it never skips.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: %s builds network namespaces", t.Name())
	}
}

// WaitTogether lets more tests run in parallel than there are processors, unless the command line says how many: those of the lab mostly wait for the
// kernel to make and remove namespaces, and for clocks. Call it in TestMain.
func WaitTogether() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "6") // it is a number
	}
}

// Isolated runs f in a process of its own whose network namespace is new and empty but for loopback. All its goroutines are
// in that namespace; Current gives it. The test passes if f passes there.
func Isolated(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	Require(t)
	if os.Getenv(childEnv) == t.Name() {
		bringUpLoopback(t)
		f(t)
		return
	}
	cmd := exec.Command(os.Args[0], childArgs(t)...)
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	cmd.ExtraFiles = []*os.File{os.Stderr} // Progress
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}

	// The parent-death signal follows the thread that started the child, so that thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s failed in its namespace: %v\n%s", t.Name(), err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("%s did not run in its namespace:\n%s", t.Name(), out)
	}
	t.Logf("in its namespace:\n%s", out)
}

// Progress writes a line at once, also inside Isolated, whose output is otherwise shown at the end.
func Progress(format string, args ...any) {
	to := os.Stderr
	if os.Getenv(childEnv) != "" {
		to = progress()
	}
	fmt.Fprintf(to, format+"\n", args...)
}

// progress is the parent's standard error, the first of ExtraFiles.
var progress = sync.OnceValue(func() *os.File { return os.NewFile(3, "progress") })

// childArgs selects exactly this test, and has the child give up a little before the parent would.
func childArgs(t *testing.T) []string {
	levels := strings.Split(t.Name(), "/")
	for i, level := range levels {
		levels[i] = "^" + regexp.QuoteMeta(level) + "$"
	}
	args := []string{"-test.run=" + strings.Join(levels, "/"), "-test.v", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		left := max(time.Until(deadline)-5*time.Second, time.Second)
		args = append(args, fmt.Sprintf("-test.timeout=%s", left))
	}
	return args
}

func bringUpLoopback(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("bring up loopback: %v", err)
	}
}
