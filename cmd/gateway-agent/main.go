// Command gateway-agent copies what cameras send to group IPs. It runs in a home's gateway; docs/gateway-agent.yaml describes its
// configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/gateway-agent/config"
)

// version is set by the build.
var version = "devel"

// The exit codes. A supervisor should restart after exitFault, and need not after exitUsage.
const (
	exitOK    = 0
	exitFault = 1 // it could not start or go on; status: no agent answers; doctor: something fails
	exitUsage = 2 // the command line or the configuration is wrong
	exitStale = 3 // status: the agent runs, but copies nothing because the server was not heard from
)

const usage = `gateway-agent copies what cameras send to group IPs.

  gateway-agent run     [--config FILE] [flags]            run until SIGTERM
  gateway-agent status  [--config FILE] [--json] [--watch] ask the running agent what it copies
  gateway-agent doctor  [--config FILE] [--json] [--offline]  tell what this host can do and what is missing
  gateway-agent guard   [--config FILE] [--remove]         keep group IPs from the uplink, also before an agent runs
  gateway-agent version

"gateway-agent run -h" lists the flags; docs/gateway-agent.yaml describes them. Exit codes: 0 done; 1 it could not start, no
agent answers, or doctor found what keeps the agent from its work; 2 the command line or the configuration is wrong; 3 (status) the agent copies nothing, because it did not hear
from the server.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	code := command(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "run":
		return run(ctx, args[1:])
	case "status":
		return status(ctx, args[1:])
	case "doctor":
		return examine(ctx, args[1:])
	case "guard":
		return guard(args[1:])
	case "version", "--version":
		fmt.Printf("gateway-agent %s %s/%s %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return exitOK
	case "help", "-h", "--help":
		fmt.Print(usage)
		return exitOK
	default:
		fmt.Fprintf(os.Stderr, "gateway-agent: there is no command %q\n\n%s", args[0], usage)
		return exitUsage
	}
}

// parse reads the flags of a command; done says that there is nothing left to do, with that exit code.
func parse(set *flag.FlagSet, args []string) (code int, done bool) {
	set.SetOutput(io.Discard)
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Printf("flags of gateway-agent %s:\n", set.Name())
		set.SetOutput(os.Stdout)
		set.PrintDefaults()
		return exitOK, true
	case err != nil:
		return refuse(fmt.Errorf("%w; gateway-agent %s -h lists the flags", err, set.Name())), true
	case set.NArg() > 0:
		return refuse(fmt.Errorf("gateway-agent %s takes no argument %q", set.Name(), set.Arg(0))), true
	}
	return exitOK, false
}

func refuse(err error) int {
	fmt.Fprintf(os.Stderr, "gateway-agent: %v\n", err)
	return exitUsage
}

func run(ctx context.Context, args []string) int {
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	source := config.Flags(set)
	if code, done := parse(set, args); done {
		return code
	}
	c, err := source.Load(os.Environ())
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		return refuse(err)
	}
	log := slog.New(handler(c))
	switch err := agent.Run(ctx, c, version, log); {
	case errors.Is(err, agent.ErrConfiguration):
		return refuse(err)
	case err != nil:
		log.Error("gateway-agent ends", "err", err)
		return exitFault
	}
	return exitOK
}

func handler(c config.Config) slog.Handler {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.NewJSONHandler(os.Stderr, o)
	}
	return slog.NewTextHandler(os.Stderr, o)
}
