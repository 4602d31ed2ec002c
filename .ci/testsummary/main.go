// Testsummary runs `go test -json` and writes for people: one line per package as it ends, the output of what failed, a sign of life while nothing ends, and at
// the end the names of the skipped and failed tests. The last line is "N passed, N failed, N skipped", and ", N flaky" if any. It exits with 1 if anything failed or nothing ran.
//
//	testsummary [-again N] FLAGS OF GO TEST -- PACKAGES
//
// With -again, up to N tests that failed are run once more, alone (docs/adr/0083); what passes then is named as flaky. A data race, a panic, a test that didn't end and
// whatever failed outside a test isn't run again.
//
// A test with subtests isn't counted, its subtests are; it counts only if it failed while all of them passed.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	again, args := 0, os.Args[1:]
	if len(args) > 1 && args[0] == "-again" {
		var err error
		if again, err = strconv.Atoi(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "-again takes how many failed tests may be run once more")
			os.Exit(2)
		}
		args = args[2:]
	}
	split := slices.Index(args, "--")
	if split < 0 {
		fmt.Fprintln(os.Stderr, "usage: testsummary [-again N] FLAGS OF GO TEST -- PACKAGES")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok := newSummary(os.Stdout, time.Now()).goTest(ctx, "", args[:split], args[split+1:], again)
	stop()
	if !ok {
		os.Exit(1)
	}
}

// goTest runs the tests of packages in a directory, and up to again of those that failed once more.
func (s *summary) goTest(ctx context.Context, dir string, flags, packages []string, again int) bool {
	if err := s.run(ctx, dir, flags, packages); err != nil && len(s.failed) == 0 {
		s.broken = true
		s.failed = append(s.failed, "the go command: "+err.Error())
	}
	if len(s.failed) <= again && !s.broken && ctx.Err() == nil {
		s.repeat(ctx, dir, flags)
	}
	return s.close(time.Now())
}

// repeat runs what failed once more, one package at a time, and takes what passes for flaky.
func (s *summary) repeat(ctx context.Context, dir string, flags []string) {
	for _, pkg := range slices.Sorted(maps.Keys(s.repeatable)) {
		names := s.repeatable[pkg]
		fmt.Fprintf(s.out, "…    once more, alone: %s in %s\n", strings.Join(names, ", "), s.short(pkg))
		second := newSummary(s.out, time.Now())
		err := second.run(ctx, dir, append(slices.Clone(flags), "-run", "^("+strings.Join(names, "|")+")$"), []string{pkg})
		if err != nil || len(second.failed) > 0 || second.passed == 0 {
			continue
		}
		s.failed = slices.DeleteFunc(s.failed, func(label string) bool {
			test, of := strings.CutPrefix(label, s.short(pkg)+".")
			if flaky := of && slices.Contains(names, root(test)); !flaky {
				return false
			}
			s.flaky = append(s.flaky, label)
			return true
		})
	}
}

// root is the test of a subtest.
func root(test string) string {
	name, _, _ := strings.Cut(test, "/")
	return name
}

// run runs `go test` and reads what it says. The error is that of the go command, which is there too if a test failed.
func (s *summary) run(ctx context.Context, dir string, flags, packages []string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"test", "-json"}, flags, packages)...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		in := bufio.NewReader(out)
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
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				s.ended(time.Now())
				return cmd.Wait()
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
	// repeatable are, by package, the tests whose failures may be those of a busy host.
	repeatable map[string][]string
	broken     bool // a failure is of another kind
	flaky      []string
}

func newSummary(out io.Writer, now time.Time) *summary {
	return &summary{
		out: out, started: now, prefix: "github.com/groupcast/groupcast/",
		builds: map[string][]string{}, pkgs: map[string]*pkgState{}, tests: map[testKey]*testState{},
		repeatable: map[string][]string{},
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
	once, roots := !slices.ContainsFunc(p.output, outsideTests), []string(nil)
	for _, t := range p.tests {
		once = once && !slices.ContainsFunc(t.output, isBroken)
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
				once = false
			}
			roots = append(roots, root(t.key.test))
			s.failed = append(s.failed, label)
			fmt.Fprintf(s.out, "---- %s\n%s", label, strings.Join(t.output, ""))
		}
		delete(s.tests, t.key)
	}
	if end.Action == "fail" && p.failed == 0 {
		p.failed++
		once = false
		s.failed = append(s.failed, name+" (the package: it did not build, or its process failed outside a test)")
	}
	if p.failed > 0 {
		fmt.Fprint(s.out, strings.Join(p.output, ""))
	}
	if slices.Sort(roots); p.failed > 0 && once {
		s.repeatable[p.name] = slices.Compact(roots)
	} else if p.failed > 0 {
		s.broken = true
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

// outsideTests tells whether a line of a package that failed says anything but that it failed: such a failure isn't a test's.
func outsideTests(line string) bool {
	line = strings.TrimSpace(line)
	return line != "" && line != "PASS" && line != "FAIL" && !strings.HasPrefix(line, "FAIL\t") && line != "exit status 1"
}

// isBroken tells whether a line of a test says what no busy host explains.
func isBroken(line string) bool {
	return slices.ContainsFunc([]string{"DATA RACE", "race detected", "panic: ", "fatal error: "}, func(s string) bool { return strings.Contains(line, s) })
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

// ended ends the packages that the go command said nothing more about, because it was killed.
func (s *summary) ended(now time.Time) {
	for _, name := range slices.Sorted(maps.Keys(s.pkgs)) {
		p := s.pkgs[name]
		if len(p.tests) > 0 || len(p.output) > 0 {
			s.endPackage(p, event{Action: "fail", Elapsed: now.Sub(p.started).Seconds()})
		}
	}
}

// close writes the end and says whether all is well.
func (s *summary) close(now time.Time) bool {
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
	list("Flaky (failed, and passed when run once more, alone)", s.flaky)
	list("Failed", s.failed)
	ran := s.passed+len(s.failed)+len(s.skipped)+len(s.flaky) > 0
	if !ran {
		fmt.Fprintln(s.out, "\nNo test ran.")
	}
	if len(s.flaky) > 0 {
		fmt.Fprintln(s.out, "A flaky test is a bug, of the program or of the test: see its output above.")
	}
	fmt.Fprintf(s.out, "\nin %.0f s\n%d passed, %d failed, %d skipped", now.Sub(s.started).Seconds(), s.passed, len(s.failed), len(s.skipped))
	if len(s.flaky) > 0 {
		fmt.Fprintf(s.out, ", %d flaky", len(s.flaky))
	}
	fmt.Fprintln(s.out)
	return ran && len(s.failed) == 0
}
