package openapi_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/openapi"
)

// repository is a repository of its own with the project's gate (`make api-breaking`) and its contract.
type repository struct{ dir string }

func newRepository(t *testing.T) repository {
	t.Helper()
	r := repository{t.TempDir()}
	for _, name := range []string{".ci/breaking", ".ci/tools/go.mod", ".ci/tools/go.sum", "go.mod"} {
		content, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(r.dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(r.dir, name), content, 0o755))
	}
	require.NoError(t, os.Mkdir(filepath.Join(r.dir, "openapi"), 0o755))
	r.git(t, "init", "-q")
	return r
}

func (r repository) git(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{
		"-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false",
		"-c", "tag.gpgsign=false",
	}, args...)...)
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %s: %s", args, out)
}

func (r repository) write(t *testing.T, contract string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "openapi", "openapi.yaml"), []byte(contract), 0o644))
}

func (r repository) release(t *testing.T, tag, contract string) {
	t.Helper()
	r.write(t, contract)
	r.git(t, "add", "-A")
	r.git(t, "commit", "-q", "-m", tag)
	r.git(t, "tag", tag)
}

// gate runs the check on the contract as it stands in the working tree.
func (r repository) gate(t *testing.T, contract string) (string, bool) {
	t.Helper()
	r.write(t, contract)
	cmd := exec.Command(filepath.Join(r.dir, ".ci", "breaking"))
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// TestBreakingChangesAreFound proves that `make api-breaking` bites, and on what it doesn't.
func TestBreakingChangesAreFound(t *testing.T) {
	r := newRepository(t)
	now := string(openapi.Public)
	edit := func(pairs ...string) string {
		for i := 0; i < len(pairs); i += 2 {
			require.True(t, strings.Contains(now, pairs[i]), "openapi.yaml no longer has the text that this test changes: %q", pairs[i]) //nolint:testifylint // not the whole document
		}
		return strings.NewReplacer(pairs...).Replace(now)
	}
	day := func(days int) string { return time.Now().AddDate(0, 0, days).Format(time.DateOnly) }
	const leave = "      operationId: leave\n"
	deprecated := func(sunset string) string {
		return edit(leave, leave+"      deprecated: true\n      x-sunset: \""+sunset+"\"\n")
	}
	begin, end := strings.Index(now, "    delete:\n"+leave), strings.Index(now, "  /v1/groups:\n")
	require.Positive(t, begin)
	require.Less(t, begin, end)
	removed := now[:begin] + now[end:]

	r.release(t, "v0.9.0", removed)
	r.git(t, "tag", "-d", "v0.9.0")
	out, ok := r.gate(t, removed)
	assert.True(t, ok, "%s", out)
	assert.Contains(t, out, "no release yet")

	// v0.10.0 is newer than v0.9.0, whatever the alphabet says.
	r.git(t, "tag", "v0.9.0")
	r.release(t, "v0.10.0", now)
	for _, c := range []struct{ name, contract, want string }{
		{"an operation is removed", removed, "api-removed-without-deprecation"},
		{"it is deprecated without a day", edit(leave, leave+"      deprecated: true\n"), "sunset-missing"},
		{"the day is too near", deprecated(day(30)), "sunset-date-too-small"},
		{"a member becomes required", edit("required: [type, id, destination, groupName]", "required: [type, id, destination, groupName, TTLs]"), "TTLs"},
		{"a member may no longer be sent", edit("        model:\n          type: string\n          maxLength: 64\n", "        other:\n          type: string\n          maxLength: 64\n"), "model"},
		{"a bound is narrower", edit("maximum: 50\n", "maximum: 20\n"), "wait"},
		{"a value may no longer be sent", edit("enum: [Device, Service]", "enum: [Device]"), "Service"},
		{"a member of an answer may be absent", edit("required: [groupIP, state]", "required: [groupIP]"), "state"},
		{"a member of an answer has another type", edit("        generation:\n          type: integer\n          format: int32\n", "        generation:\n          type: string\n"), "generation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, ok := r.gate(t, c.contract)
			assert.False(t, ok, "the gate let it pass: %s", out)
			assert.Contains(t, out, "against v0.10.0")
			assert.Contains(t, out, c.want)
		})
	}
	for _, c := range []struct{ name, contract string }{
		{"additions", edit(
			"    RegistrationAnswer:\n      type: object\n      required: [groupIP, state]\n      properties:\n",
			"    RegistrationAnswer:\n      type: object\n      required: [groupIP, state]\n      properties:\n        added:\n          type: string\n",
			"        model:\n          type: string\n          maxLength: 64\n", "        added:\n          type: string\n          maxLength: 64\n        model:\n          type: string\n          maxLength: 65\n",
			"  /healthz:\n", "  /added:\n    get:\n      responses:\n        \"200\":\n          description: added\n  /healthz:\n")},
		{"a deprecation as promised", deprecated(day(200))},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, ok := r.gate(t, c.contract)
			assert.True(t, ok, "%s", out)
		})
	}
	r.release(t, "v0.11.0", deprecated(day(-1)))
	out, ok = r.gate(t, removed)
	assert.True(t, ok, "after its day it may go: %s", out)
}
