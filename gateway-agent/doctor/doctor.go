// Package doctor tells what a host can do for the agent and what is missing, and changes nothing. It works beside a running agent.
//
// Each check is a function that gives findings; host.go has those about the kernel and this process, network.go those about interfaces and the
// kernel's settings for them, dhcp.go and pool.go who else may hand out addresses of the group range, firewall.go the packet filter, server.go
// the registration service.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/lan"
)

// Level says how bad a finding is.
type Level string

// Levels. With a Fail the agent doesn't do its work; with a Warn it does, but not as well or as safely as it could.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one line: what was looked at, what is so, and what to do about it.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	What  string `json:"what"`
	Do    string `json:"do,omitempty"` // empty for OK
}

// Options says where to look.
type Options struct {
	// Offline leaves the registration service out.
	Offline bool
	// Root is where the configuration of DHCP servers is looked for. Default: /.
	Root string
}

// Examine makes every check that the configuration allows. It never gives an address of a destination.
func Examine(ctx context.Context, c config.Config, o Options) []Finding {
	if o.Root == "" {
		o.Root = "/"
	}
	e := &examination{config: c, root: os.DirFS(o.Root)}
	e.configuration()
	e.kernel()
	e.clock()
	if c.Mode == config.ModeRelay {
		e.uplink()
		e.tunnel() //nolint:contextcheck // nft has a limit of its own
		e.firewall(ctx)
		e.receiveBuffer()
		e.stateDir()
		return e.findings
	}
	e.lanInterface()
	e.uplink()
	e.capabilities()
	e.backends()
	e.receiveBuffer()
	e.stateDir()
	if c.Tunnel && !c.Gateway.LANAddr.IsLoopback() {
		e.tunnel() //nolint:contextcheck // nft has a limit of its own
	}
	if e.iface != "" && c.Gateway.Range.Size() > 0 && !c.Gateway.Range.First.IsLoopback() {
		e.settings()
		e.guard()
		e.dhcp()
		e.neighbours()
		e.firewall(ctx)
	}
	if !o.Offline {
		e.server(ctx)
	}
	return e.findings
}

// Failed tells whether one of the findings is a Fail.
func Failed(findings []Finding) bool {
	for _, f := range findings {
		if f.Level == Fail {
			return true
		}
	}
	return false
}

// Print writes one line for each finding, and one below it with what to do.
func Print(out io.Writer, findings []Finding) {
	for _, f := range findings {
		fmt.Fprintf(out, "%-4s  %-14s  %s\n", f.Level, f.Check, f.What)
		if f.Do != "" {
			fmt.Fprintf(out, "%22s%s\n", "", "→ "+f.Do)
		}
	}
}

// examination is one run of all checks.
type examination struct {
	config   config.Config
	root     rootFS
	iface    string // of the LAN; "" if there is none
	lanMTU   int
	findings []Finding
}

func (e *examination) ok(check, format string, args ...any) {
	e.findings = append(e.findings, Finding{check, OK, fmt.Sprintf(format, args...), ""})
}

func (e *examination) warn(check, do, format string, args ...any) {
	e.findings = append(e.findings, Finding{check, Warn, fmt.Sprintf(format, args...), do})
}

func (e *examination) fail(check, do, format string, args ...any) {
	e.findings = append(e.findings, Finding{check, Fail, fmt.Sprintf(format, args...), do})
}

func (e *examination) configuration() {
	err := e.config.Check()
	if err == nil {
		e.ok("configuration", "it is complete")
		return
	}
	for _, each := range split(err) {
		e.fail("configuration", "docs/gateway-agent.yaml describes every key", "%v", each)
	}
}

func split(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

func (e *examination) lanInterface() {
	iface, err := lan.Find(e.config.LANInterface, e.config.Gateway.LANAddr)
	if err != nil {
		e.fail("lan", "set lan-interface, or give an interface the address lan-address", "%v", err)
		return
	}
	e.checkLAN(iface)
}
