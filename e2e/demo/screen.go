package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
)

const (
	redrawEvery = 500 * time.Millisecond // on a terminal
	lineEvery   = 2 * time.Second        // elsewhere
)

// screen shows the demo to people, on standard error: what happens line by line, and beneath it, on a terminal, a table that is
// drawn again and again. Elsewhere the table is one line now and then.
type screen struct {
	mu       sync.Mutex
	terminal bool
	began    time.Time
	drawn    int // lines of the table that stand on the terminal
}

// row is one receiver in the table.
type row struct {
	name, address string
	copies        int
	bytes         int64
	gone          bool // it has left
}

// view is what the table shows.
type view struct {
	sent  int
	bytes int64
	state int // of the group
	rows  []row
}

func newScreen() *screen {
	return &screen{terminal: isatty.IsTerminal(os.Stderr.Fd()), began: time.Now()}
}

// say adds a line.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(os.Stderr, "%s  %s\n", s.clock(), fmt.Sprintf(format, args...))
}

// show draws the table.
func (s *screen) show(v view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		fmt.Fprintf(os.Stderr, "%s  %s\n", s.clock(), v.line())
		return
	}
	s.erase()
	table := v.table()
	fmt.Fprint(os.Stderr, table)
	s.drawn = strings.Count(table, "\n")
}

func (s *screen) every() time.Duration {
	if s.terminal {
		return redrawEvery
	}
	return lineEvery
}

// summary says the verdict in words.
func (s *screen) summary(v ledger.Verdict) {
	for _, why := range v.Why {
		s.say("%s: %s", v.Result, why)
	}
	if len(v.Destinations) == 0 {
		return
	}
	s.say("The camera sent %d datagrams.", v.Sent)
	t := tabwriter.NewWriter(os.Stderr, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "\n  DESTINATION\tEXPECTED\tRECEIVED\tCORRUPT\tFRAMES\t\n")
	for _, d := range v.Destinations {
		note := ""
		if v.Left != nil && v.Left.Name == d.Name {
			note = fmt.Sprintf("left, and got %d after that", v.Left.AfterLeave)
		}
		fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%d\t%s\n", d.Name, d.Expected, d.Received, d.Corrupt, d.Frames, note)
	}
	_ = t.Flush()
	fmt.Fprintln(os.Stderr)
}

// erase takes the table away; the mutex is held.
func (s *screen) erase() {
	if s.drawn > 0 {
		fmt.Fprintf(os.Stderr, "\x1b[%dA\x1b[J", s.drawn) // up, and clear to the end
		s.drawn = 0
	}
}

func (s *screen) clock() string { return fmt.Sprintf("%6.1f s", time.Since(s.began).Seconds()) }

func (v view) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sent %d (%s), state %d", v.sent, size(v.bytes), v.state)
	for _, r := range v.rows {
		fmt.Fprintf(&b, "; %s %d (%s)%s", r.name, r.copies, size(r.bytes), r.note())
	}
	return b.String()
}

func (v view) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n  the camera sent %d datagrams once, %s; state %d\n", v.sent, size(v.bytes), v.state)
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "  DESTINATION\tADDRESS\tCOPIES\tBYTES\t\n")
	for _, r := range v.rows {
		fmt.Fprintf(t, "  %s\t%s\t%d\t%s\t%s\n", r.name, r.address, r.copies, size(r.bytes), r.note())
	}
	_ = t.Flush()
	return b.String()
}

func (r row) note() string {
	if r.gone {
		return " left"
	}
	return ""
}

func size(n int64) string {
	if n < 100_000 {
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
