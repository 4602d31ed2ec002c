package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/lan"
)

// guard keeps group IPs from the uplink while no agent runs.
func guard(args []string) int {
	set := flag.NewFlagSet("guard", flag.ContinueOnError)
	source := config.Flags(set)
	remove := set.Bool("remove", false, "remove the guard and all else that the agent installed, before it is uninstalled")
	if code, done := parse(set, args); done {
		return code
	}
	if *remove {
		return report(lan.Unblock())
	}
	c, err := source.Load(os.Environ())
	if err == nil && c.Gateway.Range.Size() == 0 {
		err = errors.New("group-range or lan-address: give one, so that it's known what to guard")
	}
	if err != nil {
		return refuse(err)
	}
	return report(lan.Block(c.Gateway.Range))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintf(os.Stderr, "gateway-agent: %v\n", err)
		return exitFault
	}
	return exitOK
}
