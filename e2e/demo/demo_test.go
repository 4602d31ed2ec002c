package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
	"github.com/groupcast/groupcast/e2e/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

func needFFmpeg(t *testing.T) {
	t.Helper()
	for _, program := range []string{"ffmpeg", "ffprobe"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing: run .ci/install test", program)
			}
			t.Skipf("needs %s: install ffmpeg", program)
		}
	}
}

// performance is a running demo.
type performance struct {
	t         *testing.T
	cmd       *exec.Cmd
	out       bytes.Buffer
	screen    *bufio.Scanner
	seen      strings.Builder
	temporary string
	// logs is how many logs of its programs were read.
	logs int
}

func start(t *testing.T, args ...string) *performance {
	t.Helper()
	needFFmpeg(t)
	program := harness.Bin(t, "demo")
	p := &performance{t: t}
	var err error
	p.temporary, err = os.MkdirTemp("", "gcd-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(p.temporary) })
	p.cmd = exec.Command(program, append([]string{"-bin", filepath.Dir(program)}, args...)...)
	// Settings for a service of somebody's own must not lead the demo there.
	p.cmd.Env = append(os.Environ(), "TMPDIR="+p.temporary, "GROUPCASTCTL_SERVER=http://127.0.0.1:1", "GROUPCAST_LISTEN=127.0.0.1:1")
	p.cmd.Stdout = &p.out
	r, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	p.screen = bufio.NewScanner(io.TeeReader(r, &p.seen))
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("the demo said:\n%s\n%s", p.seen.String(), p.out.String())
		}
	})
	return p
}

// until reads what the demo shows until a line has the text.
func (p *performance) until(text string) {
	p.t.Helper()
	for p.screen.Scan() {
		if strings.Contains(p.screen.Text(), text) {
			return
		}
	}
	p.t.Fatalf("the demo ended without saying %q", text)
}

// children gives the processes that the demo started, by program.
func (p *performance) children() map[string]int {
	p.t.Helper()
	children := map[string]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(p.t, err)
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid …, and the name may hold anything (proc(5)).
		begin, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
		fields := strings.Fields(string(b[end+1:]))
		if parent, err := strconv.Atoi(fields[1]); err != nil || parent != p.cmd.Process.Pid {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b[:begin])))
		require.NoError(p.t, err)
		children[string(b[begin+1:end])] = pid
	}
	return children
}

// secrets looks for such in what the demo's programs have logged so far; the logs go with the demo.
func (p *performance) secrets() {
	p.t.Helper()
	logs, err := filepath.Glob(filepath.Join(p.temporary, "*", "*.log"))
	require.NoError(p.t, err)
	for _, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			continue // the demo has tidied up
		}
		p.logs++
		for _, leak := range harness.Leaks(p.t.Name(), string(log), false) {
			assert.Fail(p.t, "a secret in a log", "the demo's %s holds %s", filepath.Base(path), leak)
		}
		for _, bypass := range []string{"allow-without-consent is set", "a destination gets copies unasked"} {
			assert.NotContains(p.t, string(log), bypass, "everybody consents in the demo")
		}
	}
}

// end waits for the demo and gives its exit code and verdict, the last line of standard output. Nothing may be left behind.
func (p *performance) end(children map[string]int) (int, ledger.Verdict) {
	p.t.Helper()
	for p.screen.Scan() {
		p.secrets()
	}
	_ = p.cmd.Wait()
	lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
	var v ledger.Verdict
	d := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	d.DisallowUnknownFields()
	require.NoError(p.t, d.Decode(&v))
	for name, pid := range children {
		assert.ErrorIs(p.t, syscall.Kill(pid, 0), syscall.ESRCH, "%s is left behind", name)
	}
	left, err := os.ReadDir(p.temporary)
	require.NoError(p.t, err)
	assert.Empty(p.t, left)
	return p.cmd.ProcessState.ExitCode(), v
}

func requireOK(t *testing.T, v ledger.Verdict) {
	t.Helper()
	require.Equal(t, ledger.OK, v.Result, "%v", v.Why)
	assert.Empty(t, v.Why)
	groupIP, err := netip.ParseAddr(v.GroupIP)
	require.NoError(t, err)
	assert.True(t, groupIP.IsLoopback())
	require.Len(t, v.Destinations, 3)
	for i, name := range []string{"upload", "phone", "thumbnail"} {
		d := v.Destinations[i]
		assert.Equal(t, name, d.Name)
		assert.Positive(t, d.Expected)
		if name == "thumbnail" {
			assert.Less(t, d.Expected, v.Sent, "it was there from the beginning")
		} else {
			assert.Equal(t, d.Expected, v.Sent, "the camera began before %s was there", name)
		}
		assert.Equal(t, d.Expected, d.Received)
		assert.Zero(t, d.Corrupt)
		assert.Positive(t, d.Frames)
	}
	assert.Equal(t, &ledger.Left{Name: "thumbnail"}, v.Left)
}

// The main job, on real video, for a set time. It runs beside the other two demos of this file.
func TestDemo(t *testing.T) {
	t.Parallel()
	p := start(t, "-duration", "5s")
	p.until("thumbnail has joined")
	children := p.children()
	assert.Subset(t, []string{"groupcastd", "gateway-agent", "groupcastctl", "ffmpeg"}, keys(children))
	assert.Len(t, children, 4)
	code, v := p.end(children)
	requireOK(t, v)
	assert.Positive(t, p.logs, "no log was looked into")
	assert.Zero(t, code)
}

func keys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// Ctrl-C ends a demo without a set time, with the whole programme and its verdict.
func TestDemoEndsAtCtrlC(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.until("thumbnail has joined")
	children := p.children()
	time.Sleep(2 * time.Second) // for a key frame
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	code, v := p.end(children)
	requireOK(t, v)
	assert.Zero(t, code)
}

// A program that dies ends the demo at once, with a sentence, the end of its log, and nothing left behind.
func TestDemoFailsIfAProgramDies(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.until("upload has joined")
	children := p.children()
	require.Contains(t, children, "gateway-agent")
	require.NoError(t, syscall.Kill(children["gateway-agent"], syscall.SIGKILL))
	code, v := p.end(children)
	assert.Equal(t, 1, code)
	assert.Equal(t, ledger.Failed, v.Result)
	assert.Equal(t, []string{"gateway-agent ended although it should go on (signal: killed)"}, v.Why)
	assert.Contains(t, p.seen.String(), "The last lines of gateway-agent.log:")
}
