package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// summarise runs the go command's tests over the given packages (name → test file) and returns what people read.
func summarise(t *testing.T, packages map[string]string) (text string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "go.mod"), "module github.com/groupcast/groupcast\n\ngo 1.26.0\n")
	for name, test := range packages {
		write(filepath.Join(dir, name, name+"_test.go"), "package "+name+"\n\nimport \"testing\"\n\n"+test)
	}
	var out bytes.Buffer
	ok = newSummary(&out, time.Now()).goTest(t.Context(), dir, []string{"-buildvcs=false"}, []string{"./..."}, 1)
	return out.String(), ok
}

// failsOnce is the beginning of a package: once fails the first time that it is called in its directory.
const failsOnce = `import "os"

func once(t *testing.T) {
	if os.Mkdir("been-here", 0o700) == nil {
		t.Error("the first time")
	}
}

`

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		name     string
		packages map[string]string
		ok       bool
		last     string
		contains []string
		lacks    []string
	}{
		{
			name: "leaves count, parents do not, skips are named with their reason",
			packages: map[string]string{
				"a": `func TestSubs(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Run("y", func(t *testing.T) {}) }` + "\n" +
					`func TestRoot(t *testing.T) { t.Log("noise"); t.Skip("needs root: a namespace") }`,
				"b": `func TestOne(t *testing.T) { t.Log("silent when passed") }`,
			},
			ok: true, last: "3 passed, 0 failed, 1 skipped",
			contains: []string{"Skipped:\n  a.TestRoot: needs root: a namespace\n"},
			lacks:    []string{"silent when passed"},
		},
		{
			name: "a failure shows its output and its name",
			packages: map[string]string{
				"a": `func TestSubs(t *testing.T) { t.Run("x", func(t *testing.T) { t.Error("the cause") }); t.Run("y", func(t *testing.T) {}) }`,
			},
			last:     "1 passed, 1 failed, 0 skipped",
			contains: []string{"the cause", "Failed:\n  a.TestSubs/x\n"},
		},
		{
			name: "a parent that fails by itself counts",
			packages: map[string]string{
				"a": `func TestSubs(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Error("the parent's own") }`,
			},
			last:     "1 passed, 1 failed, 0 skipped",
			contains: []string{"the parent's own", "Failed:\n  a.TestSubs\n"},
		},
		{
			name: "a panic takes the unfinished with it",
			packages: map[string]string{
				"a": `func TestA(t *testing.T) {}` + "\n" + `func TestB(t *testing.T) { panic("the panic") }`,
			},
			last:     "1 passed, 1 failed, 0 skipped",
			contains: []string{"the panic", "  a.TestB"},
		},
		{
			name:     "what does not build fails",
			packages: map[string]string{"a": `func TestA(t *testing.T) { undefinedName() }`, "b": `func TestB(t *testing.T) {}`},
			last:     "1 passed, 1 failed, 0 skipped",
			contains: []string{"undefinedName", "Failed:\n  a (the package"},
		},
		{
			name:     "an exit in the middle fails",
			packages: map[string]string{"a": `import "os"` + "\n" + `func TestMain(m *testing.M) { m.Run(); os.Exit(3) }` + "\n" + `func TestA(t *testing.T) {}`},
			last:     "1 passed, 1 failed, 0 skipped",
			contains: []string{"Failed:\n  a (the package"},
		},
		{
			name:     "a test that passes once more is flaky",
			packages: map[string]string{"a": failsOnce + `func TestA(t *testing.T) { once(t) }` + "\n" + `func TestB(t *testing.T) {}`},
			ok:       true, last: "1 passed, 0 failed, 0 skipped, 1 flaky",
			contains: []string{"---- a.TestA", "the first time", "once more, alone: TestA in a\n", "alone):\n  a.TestA\n"},
			lacks:    []string{"Failed:"},
		},
		{
			name:     "so is a subtest",
			packages: map[string]string{"a": failsOnce + `func TestA(t *testing.T) { t.Run("x y", once) }`},
			ok:       true, last: "0 passed, 0 failed, 0 skipped, 1 flaky",
			contains: []string{"alone):\n  a.TestA/x_y\n"},
		},
		{
			name:     "more than one isn't tried again",
			packages: map[string]string{"a": failsOnce + `func TestA(t *testing.T) { once(t) }` + "\n" + `func TestB(t *testing.T) { t.Fail() }`},
			last:     "0 passed, 2 failed, 0 skipped",
			lacks:    []string{"once more"},
		},
		{
			name:     "nor is a panic",
			packages: map[string]string{"a": failsOnce + `func TestA(t *testing.T) { defer func() { if t.Failed() { panic("no") } }(); once(t) }`},
			last:     "0 passed, 1 failed, 0 skipped",
			lacks:    []string{"once more"},
		},
		{
			name:     "nor a data race",
			packages: map[string]string{"a": failsOnce + `func TestA(t *testing.T) { t.Log("WARNING: DATA RACE"); once(t) }`},
			last:     "0 passed, 1 failed, 0 skipped",
			lacks:    []string{"once more"},
		},
		{
			name: "nor what the package says after its tests",
			packages: map[string]string{"a": failsOnce + `func TestMain(m *testing.M) { m.Run(); println("a secret in the log"); os.Exit(1) }` + "\n" +
				`func TestA(t *testing.T) { once(t) }`},
			last:  "0 passed, 1 failed, 0 skipped",
			lacks: []string{"once more"},
		},
		{
			name:     "nothing is not success",
			packages: map[string]string{"a": `var _ testing.T`},
			last:     "0 passed, 0 failed, 0 skipped",
			contains: []string{"No test ran."},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			text, ok := summarise(t, c.packages)
			if ok != c.ok {
				t.Errorf("success %v, want %v", ok, c.ok)
			}
			if !strings.HasSuffix(text, "\n"+c.last+"\n") {
				t.Errorf("does not end with %q", c.last)
			}
			for _, want := range c.contains {
				if !strings.Contains(text, want) {
					t.Errorf("lacks %q", want)
				}
			}
			for _, unwanted := range c.lacks {
				if strings.Contains(text, unwanted) {
					t.Errorf("has %q", unwanted)
				}
			}
			if t.Failed() {
				t.Logf("\n%s", text)
			}
		})
	}
}
