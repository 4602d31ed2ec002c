package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
)

// TestReadmeTour runs the README's tour as it is printed, but for the port, the directory and the build.
func TestReadmeTour(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl: apt-get install curl")
	}
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, tour, found := strings.Cut(string(readme), "## A five-minute tour")
	require.True(t, found)
	tour, _, found = strings.Cut(tour, "\n## ")
	require.True(t, found)

	var script strings.Builder
	script.WriteString("set -m\n") // jobs, as in the reader's shell
	var expected []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(tour, -1) {
		for line := range strings.Lines(block[1]) {
			if want, ok := strings.CutPrefix(line, "# → "); ok {
				expected = append(expected, strings.TrimSpace(want))
				continue
			}
			script.WriteString(line)
		}
	}
	require.Greater(t, len(expected), 5, "the tour says what one sees")

	address := harness.FreePort(t)
	dir, err := os.MkdirTemp("", "gc-tour-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	text := strings.NewReplacer(
		"make build\n", "",
		"bin/groupcastd serve", harness.Bin(t, "groupcastd")+" serve --metrics-listen '' --listen "+address,
		"bin/groupcastctl", harness.Bin(t, "groupcastctl"),
		"127.0.0.1:8080", address,
		"/tmp/groupcast", filepath.Join(dir, "tour"),
	).Replace(script.String())

	cmd := exec.CommandContext(t.Context(), "bash", "-c", text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, want := range expected {
		assert.Contains(t, string(out), want)
	}
}
