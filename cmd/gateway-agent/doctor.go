package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/doctor"
)

// examine tells what this host can do and what is missing.
func examine(ctx context.Context, args []string) int {
	set := flag.NewFlagSet("doctor", flag.ContinueOnError)
	source := config.Flags(set)
	asJSON := set.Bool("json", false, "print a JSON array of findings")
	offline := set.Bool("offline", false, "don't ask the registration service")
	if code, done := parse(set, args); done {
		return code
	}
	c, err := source.Load(os.Environ())
	if err != nil {
		return refuse(err)
	}
	findings := doctor.Examine(ctx, c, doctor.Options{Offline: *offline})
	if *asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(findings); err != nil {
			return exitFault // nobody reads any more
		}
	} else {
		doctor.Print(os.Stdout, findings)
	}
	if doctor.Failed(findings) {
		return exitFault
	}
	return exitOK
}
