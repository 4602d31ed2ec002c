package harness

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/models"
)

// AgentOptions says how a gateway agent is started. Empty fields are left to the agent's defaults.
type AgentOptions struct {
	Server    *Server
	GatewayID models.ID
	Token     string
	// In is the network namespace of the gateway; nil means here, on loopback.
	In *netlab.Namespace

	LANInterface, LANPrefix, LANAddress, Uplink, GroupRange, CopyOptions string
	// Backend copies; empty means socket, whatever the host could run. BPFDir is for ebpf.
	Backend, BPFDir string
	// PlainHTTP lets the agent speak to a server of its network without TLS.
	PlainHTTP bool
	// Metrics is where Prometheus may look; empty: nowhere.
	Metrics string
	// AllowLoopback lets the agent copy to 127/8.
	AllowLoopback bool
	// Unasked lets the agent copy without consent, for tests of something else.
	Unasked bool
}

// Agent is a running gateway agent with its state on disk.
type Agent struct {
	Dir string

	options AgentOptions
	process *Process
}

// StartAgent writes the agent's configuration and credential as a gateway engineer would, and starts it.
func StartAgent(t testing.TB, o AgentOptions) *Agent {
	t.Helper()
	Secret("the credential of a gateway", o.Token)
	ordinary(t, o.LANAddress, o.Uplink)
	a := &Agent{Dir: t.TempDir(), options: o}
	require.NoError(t, os.WriteFile(a.credential(), []byte(o.Token), 0o600))
	a.Configure(t, func(*AgentOptions) {})
	a.Start(t)
	return a
}

// Configure writes the configuration that the agent is started with the next time.
func (a *Agent) Configure(t testing.TB, change func(*AgentOptions)) {
	t.Helper()
	change(&a.options)
	o := a.options
	var b strings.Builder
	for _, kv := range [][2]string{
		{"server", o.Server.URL},
		{"credential", a.credential()},
		{"gateway-id", o.GatewayID.String()},
		{"lan-interface", o.LANInterface},
		{"lan-prefix", o.LANPrefix},
		{"lan-address", o.LANAddress},
		{"uplink-address", o.Uplink},
		{"group-range", o.GroupRange},
		{"copy-options", o.CopyOptions},
		{"backend", cmp.Or(o.Backend, "socket")},
		{"bpf-dir", o.BPFDir},
		{"state-dir", a.StateDir()},
		{"log-level", "debug"},
	} {
		if kv[1] != "" {
			fmt.Fprintf(&b, "%s: %q\n", kv[0], kv[1])
		}
	}
	fmt.Fprintf(&b, "metrics-listen: %q\nallow-loopback: %t\nallow-without-consent: %t\nallow-plain-http: %t\n", o.Metrics, o.AllowLoopback, o.Unasked, o.PlainHTTP)
	require.NoError(t, os.WriteFile(a.config(), []byte(b.String()), 0o600))
}

func (a *Agent) credential() string { return filepath.Join(a.Dir, "credential") }

func (a *Agent) config() string { return filepath.Join(a.Dir, "agent.yaml") }

// Start starts an agent that was stopped or killed, with the state it left.
func (a *Agent) Start(t testing.TB) {
	t.Helper()
	a.process = Start(t, a.options.In, "gateway-agent", exec.Command(Bin(t, "gateway-agent"), "run", "--config", a.config()))
}

// Kill ends the agent as a power cut of the process would.
func (a *Agent) Kill() { a.process.Kill() }

// Stop ends the agent gracefully.
func (a *Agent) Stop() error { return a.process.Stop() }

// StateDir is where the running agent answers agent.Ask.
func (a *Agent) StateDir() string { return filepath.Join(a.Dir, "state") }

// PID is that of the agent that was started last.
func (a *Agent) PID() int { return a.process.Cmd.Process.Pid }

// Log gives what the agent printed since its last start.
func (a *Agent) Log() string { return a.process.Log() }
