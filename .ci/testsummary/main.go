// Testsummary reads `go test -json` on standard input and writes for people: one line per package as it ends, the
// output of what failed, a sign of life while nothing ends, and at the end the names of the skipped and failed tests.
// The last line is "N passed, N failed, N skipped". It exits with 1 if anything failed or nothing ran.
//
// A test with subtests isn't counted, its subtests are; it counts only if it failed while all of them passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// quiet is how long nothing may be written before a sign of life.
const quiet = 15 * time.Second

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

func main() {
	lines := make(chan string)
	go func() {
		defer close(lines)
		in := bufio.NewReader(os.Stdin)
		for {
			line, err := in.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	s := newSummary(os.Stdout, time.Now())
	tick := time.NewTicker(quiet)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				if !s.close(time.Now()) {
					os.Exit(1)
				}
				return
			}
			if s.line(line) {
				tick.Reset(quiet)
			}
		case now := <-tick.C:
			s.signOfLife(now)
		}
	}
}

type testKey struct{ pkg, test string }

type testState struct {
	key    testKey
	result string // "" while it runs
	hasSub bool
	output []string
}

type pkgState struct {
	name                    string
	started                 time.Time
	tests                   []*testState
	output                  []string // of no test
	passed, failed, skipped int
}

type summary struct {
	out     io.Writer
	started time.Time
	prefix  string // of all import paths, left out in what people read
	builds  map[string][]string
	pkgs    map[string]*pkgState
	tests   map[testKey]*testState

	passed  int
	failed  []string
	skipped []string
}

func newSummary(out io.Writer, now time.Time) *summary {
	return &summary{
		out: out, started: now, prefix: "github.com/groupcast/groupcast/",
		builds: map[string][]string{}, pkgs: map[string]*pkgState{}, tests: map[testKey]*testState{},
	}
}

func (s *summary) short(pkg string) string { return strings.TrimPrefix(pkg, s.prefix) }

// line takes one line of input and says whether it wrote anything.
func (s *summary) line(line string) bool {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Action == "" {
		fmt.Fprint(s.out, line) // the go command itself has something to say
		return true
	}
	switch {
	case e.Action == "build-output":
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
		fmt.Fprint(s.out, e.Output)
		return true
	case e.Package == "":
		return false
	case e.Test != "":
		s.testEvent(e)
		return false
	}
	p := s.pkg(e.Package)
	switch e.Action {
	case "output":
		p.output = append(p.output, e.Output)
	case "pass", "fail", "skip":
		s.endPackage(p, e)
		return true
	}
	return false
}

func (s *summary) pkg(name string) *pkgState {
	p := s.pkgs[name]
	if p == nil {
		p = &pkgState{name: name, started: time.Now()}
		s.pkgs[name] = p
	}
	return p
}

func (s *summary) testEvent(e event) {
	key := testKey{e.Package, e.Test}
	t := s.tests[key]
	if t == nil {
		t = &testState{key: key}
		s.tests[key] = t
		p := s.pkg(e.Package)
		p.tests = append(p.tests, t)
		for i := range e.Test {
			if e.Test[i] == '/' {
				if parent := s.tests[testKey{e.Package, e.Test[:i]}]; parent != nil {
					parent.hasSub = true
				}
			}
		}
	}
	switch e.Action {
	case "output":
		t.output = append(t.output, e.Output)
	case "pass", "fail", "skip":
		t.result = e.Action
		if e.Action == "pass" {
			t.output = nil
		}
	}
}

// endPackage counts a package's tests, which only now are complete, and writes its line.
func (s *summary) endPackage(p *pkgState, end event) {
	name := s.short(p.name)
	failedBelow := func(t *testState) bool {
		return slices.ContainsFunc(p.tests, func(sub *testState) bool {
			return sub.result != "pass" && sub.result != "skip" && strings.HasPrefix(sub.key.test, t.key.test+"/")
		})
	}
	for _, t := range p.tests {
		label := name + "." + t.key.test
		switch {
		case t.result == "pass" && !t.hasSub:
			p.passed++
		case t.result == "skip" && !t.hasSub:
			p.skipped++
			s.skipped = append(s.skipped, label+": "+reason(t.output))
		case t.result == "pass" || t.result == "skip":
		case t.hasSub && failedBelow(t):
			fmt.Fprint(s.out, strings.Join(t.output, ""))
		default:
			p.failed++
			if t.result == "" {
				label += " (did not finish)"
			}
			s.failed = append(s.failed, label)
			fmt.Fprintf(s.out, "---- %s\n%s", label, strings.Join(t.output, ""))
		}
		delete(s.tests, t.key)
	}
	if end.Action == "fail" && p.failed == 0 {
		p.failed++
		s.failed = append(s.failed, name+" (the package: it did not build, or its process failed outside a test)")
	}
	if p.failed > 0 {
		fmt.Fprint(s.out, strings.Join(p.output, ""))
	}
	s.passed += p.passed
	p.tests = nil
	delete(s.pkgs, p.name)
	if end.Action == "skip" || p.passed+p.failed+p.skipped == 0 {
		return // no tests
	}
	word := "ok  "
	if p.failed > 0 {
		word = "FAIL"
	}
	fmt.Fprintf(s.out, "%s %-44s %4d passed", word, name, p.passed)
	if p.failed > 0 {
		fmt.Fprintf(s.out, ", %d failed", p.failed)
	}
	if p.skipped > 0 {
		fmt.Fprintf(s.out, ", %d skipped", p.skipped)
	}
	fmt.Fprintf(s.out, "  %.1fs\n", end.Elapsed)
}

// reason is what t.Skip was told, which stands before the line "--- SKIP".
func reason(output []string) string {
	var lines []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		if file, text, ok := strings.Cut(line, ": "); ok && strings.Contains(file, ".go:") {
			line = text
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return "no reason given"
	}
	return lines[len(lines)-1]
}

func (s *summary) signOfLife(now time.Time) {
	var running []string
	for name, p := range s.pkgs {
		newest := ""
		for _, t := range slices.Backward(p.tests) {
			if t.result == "" {
				newest = " " + t.key.test
				break
			}
		}
		running = append(running, s.short(name)+newest)
	}
	slices.Sort(running)
	if len(running) == 0 {
		running = []string{"compiling"}
	}
	fmt.Fprintf(s.out, "…    %3.0fs  %s\n", now.Sub(s.started).Seconds(), strings.Join(running, ", "))
}

// close writes the end and says whether all is well.
func (s *summary) close(now time.Time) bool {
	for _, name := range sortedKeys(s.pkgs) {
		p := s.pkgs[name]
		if len(p.tests) > 0 || len(p.output) > 0 { // the go command was killed
			s.endPackage(p, event{Action: "fail", Elapsed: now.Sub(p.started).Seconds()})
		}
	}
	list := func(title string, names []string) {
		if len(names) == 0 {
			return
		}
		fmt.Fprintf(s.out, "\n%s:\n", title)
		for _, name := range names {
			fmt.Fprintf(s.out, "  %s\n", name)
		}
	}
	list("Skipped", s.skipped)
	list("Failed", s.failed)
	ran := s.passed+len(s.failed)+len(s.skipped) > 0
	if !ran {
		fmt.Fprintln(s.out, "\nNo test ran.")
	}
	fmt.Fprintf(s.out, "\nin %.0f s\n%d passed, %d failed, %d skipped\n", now.Sub(s.started).Seconds(), s.passed, len(s.failed), len(s.skipped))
	return ran && len(s.failed) == 0
}

func sortedKeys(m map[string]*pkgState) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
