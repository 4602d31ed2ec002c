package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/gateway-agent/config"
)

func status(ctx context.Context, args []string) int {
	set := flag.NewFlagSet("status", flag.ContinueOnError)
	source := config.Flags(set)
	asJSON := set.Bool("json", false, "print JSON, one object per look")
	watch := set.Bool("watch", false, "look every second until interrupted")
	if code, done := parse(set, args); done {
		return code
	}
	c, err := source.Load(os.Environ())
	if err != nil {
		return refuse(err)
	}
	for {
		s, err := agent.Ask(ctx, c.StateDir)
		switch {
		case err != nil && !*watch:
			fmt.Fprintf(os.Stderr, "gateway-agent: %v\n", err)
			return exitFault
		case err != nil:
			fmt.Fprintf(os.Stderr, "%v\n", err)
		case *asJSON:
			if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
				return exitFault // nobody reads any more
			}
		default:
			if *watch && terminal(os.Stdout) {
				fmt.Print("\x1b[H\x1b[2J")
			}
			show(os.Stdout, s)
		}
		if !*watch {
			if !s.Forwarding {
				return exitStale
			}
			return exitOK
		}
		select {
		case <-ctx.Done():
			return exitOK
		case <-time.After(time.Second):
		}
	}
}

func show(out io.Writer, s agent.Status) {
	state := "copies"
	if !s.Forwarding {
		state = "COPIES NOTHING: the server was not heard from"
	}
	heard := "never"
	if s.LastSuccessSeconds >= 0 {
		heard = fmt.Sprintf("%.0f s ago", s.LastSuccessSeconds)
	}
	fmt.Fprintf(out, "%s %s  %s\nserver %s  heard %s, valid for %.0f s  cursor %s\n",
		printable(s.Mode), s.GatewayID, state, printable(s.Server), heard, s.ValidForSeconds, printable(s.Cursor))
	if s.RefusedCount > 0 {
		fmt.Fprintf(out, "%d destinations get nothing, because their address may not be sent to; the log says which\n", s.RefusedCount)
	}
	if s.Uplink != nil {
		fmt.Fprintf(out, "uplink %.1f Mbit/s for copies, %.1f wanted, %d destinations left out for now\n", float64(s.Uplink.Rate)/1e6, float64(s.Uplink.Wanted)/1e6, s.Uplink.LeftOut)
	}
	if s.Fault != "" {
		fmt.Fprintf(out, "fault: %s\n", printable(s.Fault))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, g := range s.Groups {
		fmt.Fprintf(w, "\n%s\t%s\tgeneration %d\treceived %d\t%s\n", printable(g.Name), g.IP, g.Generation, g.Received, drops(g.Drops))
		for _, d := range g.Destinations {
			leftOut := ""
			if d.LeftOut {
				leftOut = "LEFT OUT "
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\tcopies %d\tbytes %d\t%s%s\n", printable(d.Name), d.ID, d.Consent, d.Packets, d.Bytes, leftOut, drops(d.Drops))
		}
	}
	_ = w.Flush()
}

func drops(m map[string]uint64) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", reason, m[reason]))
	}
	if len(out) == 0 {
		return ""
	}
	return "dropped: " + strings.Join(out, ", ")
}

// printable keeps names that somebody else chose from steering the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, s)
}

func terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
