// Groupcastctl is what an operator or integrator does by hand: bootstrap accounts and mint tokens on the host of the service,
// register, watch, and play the part of a camera or a receiver. This package only wires; what it does lives in internal/.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/refusal"
)

// version is set by the build.
var version = "devel"

const (
	exitFailed = 1
	exitForced = 130 // as a shell says of a program that Ctrl-C ended
)

func main() { os.Exit(run()) }

func run() int {
	p := &program{out: os.Stdout, err: os.Stderr}
	ctx, end := p.obeySignals()
	defer end()
	root := p.root()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if refused, ok := errors.AsType[*refusal.Error](err); ok && p.json {
		_ = report.JSON(p.err, refused.Problem)
	} else {
		fmt.Fprintf(p.err, "groupcastctl: %s\n", err)
	}
	return exitFailed
}

// obeySignals makes the first signal end what runs in good order, the second end what that still waits for (p.leaveBy), and the
// third end the program. A closed standard output is an error of the write and no signal.
func (p *program) obeySignals() (context.Context, func()) {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup wants it ignored
		signal.Notify(signals, syscall.SIGHUP)
	}
	ctx, stop := context.WithCancel(context.Background())
	leaveBy, abandon := context.WithCancel(context.Background())
	p.leaveBy = leaveBy
	go func() {
		<-signals
		stop()
		<-signals
		abandon()
		<-signals
		os.Exit(exitForced)
	}()
	return ctx, func() { stop(); abandon() }
}
