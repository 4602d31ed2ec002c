package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// TestUI is somebody with a real browser (e2e/ui/ui.mjs) in the home of the worked example. The test is the operator, the gateway, and the
// devices that want to be let in, which are real ones: groupcastctl enrol.
func TestUI(t *testing.T) {
	t.Parallel()
	if os.Getenv("UI_TEST") == "" {
		t.Skip("needs node, its packages and Chromium: make ui-test")
	}
	e := newExample(t, harness.Options{})
	e.declare(t)
	e.postCamera(t)
	e.postUpload(t)
	e.postThumbnail(t)
	e.postPhone(t)
	w := &uiWorld{example: e}

	cmd := exec.Command("node", "ui.mjs", e.URL)
	cmd.Dir = "ui"
	answers, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	var passed []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if done, ok := strings.CutPrefix(line, "ok "); ok {
			passed = append(passed, done)
			continue
		}
		rest, ok := strings.CutPrefix(line, "ASK ")
		require.True(t, ok, line)
		name, value, _ := strings.Cut(rest, " ")
		_, err := io.WriteString(answers, w.answer(t, name, value)+"\n")
		require.NoError(t, err)
	}
	require.NoError(t, cmd.Wait(), "%s", faults.String())
	assert.Equal(t, []string{
		"sign-up", "log-in", "approval by keyboard", "refusal", "end", "account", "old session", "phone and dark", "EventSource", "another site",
	}, passed)
	for _, secret := range append(w.secrets, "four words are enough", "not the right words") {
		assert.NotContains(t, e.Log(), secret)
	}
}

// uiWorld is everybody but the person with the browser.
type uiWorld struct {
	*example

	// ended gives what the device that asks printed in the end, and deviceFile is where it keeps its credential.
	ended      <-chan outcome
	deviceFile string
	// registration is the camera's of the group that the browser hears of.
	registration string
	// secrets are what must not stand in the service's log.
	secrets []string
}

func (w *uiWorld) answer(t *testing.T, name, value string) string {
	t.Helper()
	switch name {
	case "invitation":
		r, err := w.Admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: &w.account})
		require.NoError(t, err)
		require.NotNil(t, r.JSON200, "%s", r.Body)
		w.secrets = append(w.secrets, r.JSON200.Invitation)
		return r.JSON200.Invitation
	case "enrol":
		w.deviceFile = filepath.Join(t.TempDir(), "credential")
		// It isn't a process of the harness, which takes everything printed for a log: this one has to show its code.
		cmd := exec.Command(harness.Bin(t, "groupcastctl"), "--server", w.URL, "enrol", "--out", w.deviceFile,
			"--device-type", value, "--model", "M1", "--serial", "0042")
		read, write, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { _ = read.Close() })
		cmd.Stdout, cmd.Stderr = write, write
		require.NoError(t, cmd.Start())
		require.NoError(t, write.Close())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		shown := bufio.NewReader(read)
		first, err := shown.ReadString('\n')
		require.NoError(t, err)
		m := regexp.MustCompile(`^open ` + regexp.QuoteMeta(w.URL) + `/device and type ([A-Z]{4}-[A-Z]{4})\n$`).FindStringSubmatch(first)
		require.NotNil(t, m, first)
		w.secrets = append(w.secrets, m[1], strings.ReplaceAll(m[1], "-", ""))
		ended := make(chan outcome, 1)
		w.ended = ended
		go func() {
			rest, _ := io.ReadAll(shown)
			ended <- outcome{cmd.Wait(), string(rest)}
		}()
		return m[1]
	case "enrolled":
		return w.told(t, <-w.ended, w.deviceFile)
	case "ticket":
		w.secrets = append(w.secrets, value)
		file := filepath.Join(t.TempDir(), "credential")
		cmd := exec.Command(harness.Bin(t, "groupcastctl"), "--server", w.URL, "enrol", "--out", file, "--ticket-file", "-")
		cmd.Stdin = strings.NewReader(value)
		log, err := cmd.CombinedOutput()
		return w.told(t, outcome{err, string(log)}, file)
	case "information":
		r, err := w.Client(t, w.gatewayToken).GetGroupInformationWithResponse(t.Context(), w.gateway, &api.GetGroupInformationParams{})
		require.NoError(t, err)
		require.NotNil(t, r.JSON200, "%s", r.Body)
		all := map[string][]string{}
		for _, g := range r.JSON200.Groups {
			var sources, destinations []string
			for _, s := range g.GroupSources {
				sources = append(sources, s.SourceIPv4.String())
			}
			for _, d := range g.GroupDestinations {
				destinations = append(destinations, d.DestinationIPv4.MustGet().String())
			}
			slices.Sort(destinations)
			all[g.GroupName] = append(sources, destinations...)
			slices.Sort(all[g.GroupName])
		}
		text, err := json.Marshal(all)
		require.NoError(t, err)
		return string(text)
	case "later":
		seconds, err := strconv.Atoi(value)
		require.NoError(t, err)
		_, err = openRaw(t, w.DataDir, "").ExecContext(t.Context(), fmt.Sprintf(
			`UPDATE installation SET clock_offset_ms = clock_offset_ms + %[1]d, expiry_ran_at = expiry_ran_at + %[1]d`, seconds*1000))
		require.NoError(t, err)
		return "done"
	case "start":
		w.registration = w.postCamera(t)
		return "done"
	case "end":
		require.Equal(t, 0, w.leave(t, w.cameraToken, w.registration))
		return "done"
	case "restart":
		require.NoError(t, w.Stop())
		w.Start(t)
		return "done"
	case "phone":
		r, err := w.Client(t, w.phoneToken).ListGroupsWithResponse(t.Context(), nil)
		require.NoError(t, err)
		return strconv.Itoa(r.StatusCode())
	}
	t.Fatalf("the browser's side asks for %q", name)
	return ""
}

// outcome is how a device ended, and what it printed.
type outcome struct {
	err error
	log string
}

// told says whether a device has a credential, having used it; or what it was told.
func (w *uiWorld) told(t *testing.T, o outcome, file string) string {
	t.Helper()
	if o.err != nil {
		return "failed " + strings.ReplaceAll(o.log, "\n", " ")
	}
	out, err := exec.Command(harness.Bin(t, "groupcastctl"), "--server", w.URL, "--token-file", file, "groups").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return "enrolled"
}
