package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/gateway-agent/doctor"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/openapi/api"
)

// The test binary is the program when it is asked to: so the exit codes and the streams are real.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_PROGRAM") != "" {
		main()
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), "BE_THE_PROGRAM=yes")
	return c
}

// finish runs the program to its end.
func finish(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	c := program(t, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError))
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// configured writes a configuration for an agent on loopback whose server has no groups.
func configured(t *testing.T) (file, stateDir string) {
	t.Helper()
	file, stateDir, _ = configuredWith(t)
	return file, stateDir
}

// configuredWith gives the server too.
func configuredWith(t *testing.T) (file, stateDir string, service *scripted.Service) {
	t.Helper()
	dir, err := os.MkdirTemp("", "gca-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	service = scripted.New(revision(1), "the-token")
	server := httptest.NewServer(service.Handler())
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte("the-token"), 0o600))
	file, stateDir = filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
server: %s
credential: %s
gateway-id: 812345678901234567
lan-prefix: 127.33.0.0/24
lan-address: 127.33.0.1
uplink-address: 127.0.0.1
allow-loopback: true
state-dir: %s
metrics-listen: ""
`, server.URL, token, stateDir), 0o600))
	return file, stateDir, service
}

func revision(n int) api.GroupInformation {
	return api.GroupInformation{GatewayID: 812345678901234567, Epoch: "e1", Revision: fmt.Sprint(n), MaxStaleSeconds: 900, Groups: []api.GatewayGroup{}}
}

// start runs an agent until it copies.
func start(t *testing.T, file, stateDir string) *exec.Cmd {
	t.Helper()
	c := program(t, "run", "--config", file)
	log := &logtest.Log{}
	c.Stderr = log
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		if c.ProcessState == nil {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
		if t.Failed() {
			t.Log(log)
		}
	})
	require.Eventually(t, func() bool {
		s, err := agent.Ask(t.Context(), stateDir)
		return err == nil && s.Forwarding && s.PID == c.Process.Pid
	}, time.Minute, 10*time.Millisecond)
	return c
}

func TestTheCommandLine(t *testing.T) {
	for name, test := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"nothing":          {nil, exitUsage, "", "gateway-agent run "},
		"unknown command":  {[]string{"fly"}, exitUsage, "", `there is no command "fly"`},
		"help":             {[]string{"--help"}, exitOK, "gateway-agent run ", ""},
		"help of run":      {[]string{"run", "-h"}, exitOK, "-lan-prefix PREFIX", ""},
		"version":          {[]string{"version"}, exitOK, "gateway-agent devel linux/", ""},
		"unknown flag":     {[]string{"run", "--lan-adress", "x"}, exitUsage, "", "-lan-adress"},
		"argument":         {[]string{"run", "now"}, exitUsage, "", `no argument "now"`},
		"bad value":        {[]string{"run", "--lan-prefix", "x"}, exitUsage, "", "lan-prefix (--lan-prefix)"},
		"what is missing":  {[]string{"run"}, exitUsage, "", "uplink-address: give"},
		"no agent":         {[]string{"status", "--state-dir", "/does/not/exist"}, exitFault, "", "is it running"},
		"guard of nothing": {[]string{"guard"}, exitUsage, "", "group-range or lan-address: give one"},
		"bad watch":        {[]string{"status", "--watch=maybe"}, exitUsage, "", "watch"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := finish(t, test.args...)
			assert.Equal(t, test.code, code)
			assert.Contains(t, stdout, test.stdout)
			assert.Contains(t, stderr, test.stderr)
		})
	}
}

func TestRunStatusAndStop(t *testing.T) {
	file, stateDir := configured(t)
	running := start(t, file, stateDir)

	code, stdout, stderr := finish(t, "status", "--config", file)
	assert.Equal(t, exitOK, code, stderr)
	assert.Regexp(t, `(?m)^gateway 812345678901234567  copies$`, stdout)
	assert.Contains(t, stdout, "cursor e1.1")

	code, stdout, _ = finish(t, "status", "--config", file, "--json")
	assert.Equal(t, exitOK, code)
	var s agent.Status
	require.NoError(t, json.Unmarshal([]byte(stdout), &s))
	assert.Equal(t, "e1.1", s.Cursor)

	watch := program(t, "status", "--config", file, "--json", "--watch")
	looks := &logtest.Log{}
	watch.Stdout = looks
	require.NoError(t, watch.Start())
	require.Eventually(t, func() bool { return strings.Count(looks.String(), "\n") >= 2 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, watch.Process.Signal(os.Interrupt))
	require.NoError(t, watch.Wait(), "an interrupted watch has done what it should")

	code, _, stderr = finish(t, "run", "--config", file)
	assert.Equal(t, exitFault, code)
	assert.Contains(t, stderr, "another gateway-agent")

	require.NoError(t, running.Process.Signal(syscall.SIGTERM))
	require.NoError(t, running.Wait(), "SIGTERM is a clean end")
	code, _, _ = finish(t, "status", "--config", file)
	assert.Equal(t, exitFault, code)
}

func TestAKilledAgentLeavesNothingInTheWay(t *testing.T) {
	file, stateDir := configured(t)
	killed := start(t, file, stateDir)
	require.NoError(t, killed.Process.Kill())
	require.Error(t, killed.Wait())
	start(t, file, stateDir)
}

// An agent that is killed never comes back with an older table than it copied by, whatever it was about to write.
func TestAKilledAgentNeverComesBackWithAnOlderTable(t *testing.T) {
	file, stateDir, service := configuredWith(t)
	kill := func(c *exec.Cmd) {
		t.Helper()
		require.NoError(t, c.Process.Kill())
		require.Error(t, c.Wait())
	}
	cursor := func() string {
		s, _ := agent.Ask(t.Context(), stateDir)
		return s.Cursor
	}
	noServer := func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	for n := 1; n <= 5; n++ {
		service.SetFault(nil)
		running := start(t, file, stateDir)
		service.Set(revision(2 * n))
		inForce := fmt.Sprint("e1.", 2*n)
		require.Eventually(t, func() bool { return cursor() == inForce }, time.Minute, time.Microsecond)
		kill(running)
		service.SetFault(noServer)
		again := start(t, file, stateDir)
		assert.Equal(t, inForce, cursor())
		kill(again)
	}

	// A disk that hangs: opening a pipe waits for somebody who reads.
	service.SetFault(nil)
	running := start(t, file, stateDir)
	require.Equal(t, "e1.10", cursor())
	pipe := filepath.Join(stateDir, "snapshot.json.new")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	service.Set(revision(11))
	time.Sleep(500 * time.Millisecond)
	inForce := cursor()
	kill(running)
	require.NoError(t, os.Remove(pipe))
	service.SetFault(noServer)
	start(t, file, stateDir)
	assert.Equal(t, inForce, cursor())
}

func TestATokenForEverybodyIsAnErrorOfTheConfiguration(t *testing.T) {
	file, _ := configured(t)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	token := string(regexp.MustCompile(`credential: (\S+)`).FindSubmatch(b)[1])
	require.NoError(t, os.Chmod(token, 0o640))
	code, _, stderr := finish(t, "run", "--config", file)
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stderr, "chmod 600")
	assert.NotContains(t, stderr, "the-token")
}

func TestNamesDoNotSteerTheTerminal(t *testing.T) {
	var b bytes.Buffer
	show(&b, agent.Status{Groups: []agent.GroupStatus{{
		Name: "g\x1b[2J", Drops: map[string]uint64{"spoof": 2, "unflagged": 1},
		Destinations: []agent.DestinationStatus{{Name: "é\x07", Packets: 7}},
	}}})
	assert.NotContains(t, b.String(), "\x1b")
	assert.NotContains(t, b.String(), "\x07")
	assert.Contains(t, b.String(), "é?")
	assert.Contains(t, b.String(), "COPIES NOTHING")
	assert.Contains(t, b.String(), "dropped: spoof 2, unflagged 1")
}

func TestDoctor(t *testing.T) {
	file, _ := configured(t)
	code, stdout, stderr := finish(t, "doctor", "--config", file)
	assert.Equal(t, exitOK, code, stdout+stderr)
	assert.Regexp(t, `(?m)^ok    server          http://127.0.0.1:\d+ answers$`, stdout)

	code, stdout, _ = finish(t, "doctor", "--config", file, "--json", "--server", "http://127.0.0.1:9")
	assert.Equal(t, exitFault, code)
	var findings []doctor.Finding
	require.NoError(t, json.Unmarshal([]byte(stdout), &findings))
	require.NotEmpty(t, findings)
	for _, f := range findings {
		assert.Equal(t, f.Check == "server", f.Level == doctor.Fail, "%+v", f)
	}

	code, stdout, _ = finish(t, "doctor", "--config", file, "--offline", "--server", "http://127.0.0.1:9")
	assert.Equal(t, exitOK, code)
	assert.NotContains(t, stdout, "127.0.0.1:9")

	code, stdout, _ = finish(t, "doctor", "--offline")
	assert.Equal(t, exitFault, code)
	assert.Contains(t, stdout, "uplink-address: give")
}
