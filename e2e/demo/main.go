package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
)

// shortest leaves every receiver time for a key frame, which comes once a second.
const shortest = 4 * time.Second

func main() { os.Exit(run()) }

func run() int {
	var o options
	flag.Func("duration", "how long the stream runs, for example 10s (default: until Ctrl-C)", func(s string) (err error) {
		o.duration, err = parseDuration(s)
		return err
	})
	flag.StringVar(&o.bin, "bin", "", "directory with groupcastd, gateway-agent and groupcastctl (default: that of this program)")
	flag.BoolVar(&o.keep, "keep", false, "keep the directory with all logs and recordings")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: what does %q mean? See -help.\n", flag.Arg(0))
		return 2
	}
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			return 1
		}
		o.bin = filepath.Dir(self)
	}

	ctx, end := obeySignals(&o)
	defer end(nil)
	v := perform(ctx, o)
	line, err := json.Marshal(v)
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return 1
	}
	fmt.Println(string(line))
	if v.Result != ledger.OK {
		return 1
	}
	return 0
}

var errAborted = errors.New("ended by a second signal")

// sameSignal is how soon after the first a signal is taken for the same one: a terminal or "timeout" signals the whole process
// group, and make hands on what it gets.
const sameSignal = time.Second

// obeySignals makes the first signal end the stream and give the verdict, and the second end everything at once.
func obeySignals(o *options) (context.Context, context.CancelCauseFunc) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup wants it ignored
		signal.Notify(signals, syscall.SIGHUP)
	}
	finish := make(chan struct{})
	o.finish = finish
	ctx, abort := context.WithCancelCause(context.Background())
	go func() {
		<-signals
		close(finish)
		for first := time.Now(); time.Since(first) < sameSignal; {
			<-signals
		}
		abort(errAborted)
	}()
	return ctx, abort
}

// parseDuration takes a bare number as seconds.
func parseDuration(s string) (time.Duration, error) {
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("give a duration like 10s or 2m")
	}
	if d < shortest {
		return 0, fmt.Errorf("the shortest demo takes %v", shortest)
	}
	return d, nil
}
