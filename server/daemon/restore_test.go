package daemon_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/backup"
)

// TestAGatewayPollsAcrossARestore: the restored state is older than what the gateway has, and yet it is taken, as a whole and as a
// life of its own; from then on the gateway goes on as ever.
func TestAGatewayPollsAcrossARestore(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := start(t, settings(t, dir))
	h := s.home(t, "Smith")
	s.source(t, h, "door")
	file := filepath.Join(t.TempDir(), "backup")
	require.NoError(t, backup.Make(t.Context(), dir, file))
	s.source(t, h, "garden")
	lost := s.poll(t, h, "")
	etag := lost.Header.Get("ETag")
	assert.Contains(t, text(t, lost), `"garden"`)
	require.NoError(t, s.Stop(context.Background()))
	require.NoError(t, backup.Restore(t.Context(), backup.Options{
		DataDir: dir, File: file, Force: true, KEKFile: filepath.Join(dir, "kek"), Log: slog.New(slog.DiscardHandler),
	}))

	s = start(t, settings(t, dir))
	r := s.poll(t, h, "?wait=50", "If-None-Match", etag)
	body := text(t, r)
	require.Equal(t, 200, r.StatusCode, body)
	assert.Equal(t, "unknown-epoch", r.Header.Get("Groupcast-Resync"))
	assert.NotContains(t, body, `"garden"`)
	assert.Contains(t, body, `"door"`, "the backup is young, so the group goes on")
	now := r.Header.Get("ETag")
	assert.NotEqual(t, etag, now)
	r = s.poll(t, h, "", "If-None-Match", now)
	assert.Equal(t, 304, r.StatusCode, text(t, r))
}

// TestRotationReachesWaitingGateways: after pg_restore and `admin epoch rotate` a gateway that waits hears of it without a hint, and
// doesn't take the empty state for an older one.
func TestRotationReachesWaitingGateways(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"sqlite": nil, "postgres": {"--migrate", "--database-url", pgtest.URL(t)}} {
		t.Run(name, func(t *testing.T) {
			s := start(t, settings(t, dataDir(t), more...))
			h := s.home(t, "Smith")
			s.source(t, h, "door")
			etag := s.poll(t, h, "").Header.Get("ETag")
			answered := s.pollLater(t, h, etag)
			s.waitForWaiters(t, 1)
			e, err := s.admin.RotateEpochWithResponse(t.Context())
			require.NoError(t, err)
			require.NotNil(t, e.JSON200, "%s", e.Body)
			assert.EqualValues(t, 1, e.JSON200.EndedGroups)
			r := <-answered
			require.Equal(t, 200, r.StatusCode)
			assert.Contains(t, r.Header.Get("ETag"), e.JSON200.Epoch)
			assert.Contains(t, text(t, r), `"groups":[]`)
			r = s.poll(t, h, "?wait=50", "If-None-Match", etag)
			assert.Equal(t, "unknown-epoch", r.Header.Get("Groupcast-Resync"), "the old cursor is of another life")
			assert.Equal(t, 200, r.StatusCode, text(t, r))
		})
	}
}
