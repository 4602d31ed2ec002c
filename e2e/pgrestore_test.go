package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
)

// TestPostgresIsRestored is the operator's way back: pg_dump, work that gets lost, pg_restore, `admin epoch rotate`. The gateway and the
// cameras live through it, and no group IP comes to two groups in one generation.
func TestPostgresIsRestored(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	tool := func(name string, args ...string) {
		t.Helper()
		program, err := pgtest.Tool(name)
		require.NoError(t, err)
		out, err := exec.CommandContext(t.Context(), program, append(args, "--dbname", url)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	s := harness.StartServer(t, replica(url, nil))
	db := openRaw(t, "", url)
	h := newHistoryHome(t, s, 1)
	lives := map[string]string{} // address and generation → group
	join := func(camera int, group string) (int, answer) {
		t.Helper()
		m := h.members[camera]
		status, body := call(t.Context(), s, http.MethodPost, "/v1/registrations", m.token, "", fmt.Sprintf(
			`{"type":"Device","id":"%s","destination":false,"groupName":%q,"privateIPv4":%q,"publicIPv4":"198.51.99.9"}`, m.id, group, m.ip), nil)
		var a answer
		require.NoError(t, json.Unmarshal(body, &a), "%s", body)
		if status == http.StatusOK {
			life := fmt.Sprint(a.GroupIP, " ", a.Generation)
			require.Empty(t, lives[life], "%s was another group's", life)
			lives[life] = group
		}
		return status, a
	}
	etag := ""
	poll := func() answer {
		t.Helper()
		var header http.Header
		status, body := call(t.Context(), s, http.MethodGet, fmt.Sprintf("/v1/gateways/%s/groups", h.gateway), h.token, etag, "", &header)
		var a answer
		if a.Status = status; status != http.StatusNotModified {
			require.NoError(t, json.Unmarshal(body, &a), "%s", body)
		}
		etag, a.Cursor = header.Get("ETag"), header.Get("Groupcast-Resync")
		return a
	}
	status, kept := join(0, "kept")
	require.Equal(t, http.StatusOK, status)
	require.Len(t, poll().Groups, 1)

	file := filepath.Join(t.TempDir(), "dump")
	tool("pg_dump", "--format=custom", "--file", file)

	// What gets lost: the address that the dump calls kept's goes on to be ended's second life, others are handed out.
	status, _ = call(t.Context(), s, http.MethodDelete, "/v1/registrations/"+kept.RegistrationID, h.members[0].token, "", "", nil)
	require.Equal(t, http.StatusOK, status)
	for i, group := range []string{"kept", "lost", "lost-too"} {
		status, _ = join(i, group)
		require.Equal(t, http.StatusOK, status)
	}
	require.Len(t, poll().Groups, 3)

	require.NoError(t, s.Stop())
	tool("pg_restore", "--clean", "--if-exists", "--single-transaction", file)
	s.Start(t)
	before := poll()
	require.Equal(t, http.StatusOK, before.Status)
	assert.Equal(t, "ahead", before.Cursor, "a gateway knows more than the database")
	assert.Contains(t, s.Log(), "groupcastctl admin epoch rotate", "the operator is told what to do")

	out, err := exec.CommandContext(t.Context(), harness.Bin(t, "groupcastctl"), "admin", "epoch", "rotate", "--data-dir", s.DataDir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	old := etag
	after := poll()
	require.Equal(t, http.StatusOK, after.Status)
	require.NotEqual(t, strings.Split(old, ".")[0], strings.Split(etag, ".")[0], "it is another life")
	require.Empty(t, after.Groups, "all groups have ended")
	for i, group := range []string{"kept", "lost", "lost-too"} {
		status, _ = join(i, group)
		require.Equal(t, http.StatusConflict, status, "every address is in quarantine, for every group")
	}
	require.Eventually(t, func() bool { return poll().Status == http.StatusNotModified }, time.Minute, 50*time.Millisecond, "it has acknowledged")
	_, err = db.Exec(fmt.Sprintf(`UPDATE installation SET clock_offset_ms = clock_offset_ms + %[1]d, expiry_ran_at = expiry_ran_at + %[1]d`, historyCooldown.Milliseconds()))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotModified, poll().Status)
	for i, group := range []string{"other", "kept", "lost"} {
		status, _ = join(i, group)
		require.Equal(t, http.StatusOK, status)
	}
	require.Len(t, poll().Groups, 3)
}
