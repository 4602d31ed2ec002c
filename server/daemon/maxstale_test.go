package daemon_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
)

// TestGatewaysHearOfAnotherMaxStale: it is a part of the group information, so a change of the setting is a change of that.
func TestGatewaysHearOfAnotherMaxStale(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"sqlite": nil, "postgres": {"--migrate", "--database-url", pgtest.URL(t)}} {
		t.Run(name, func(t *testing.T) {
			dir := dataDir(t)
			s := start(t, settings(t, dir, more...))
			h := s.home(t, "Smith")
			s.source(t, h, "door")
			r := s.poll(t, h, "")
			etag, body := r.Header.Get("ETag"), text(t, r)
			assert.Contains(t, body, `"maxStaleSeconds":900`)
			for _, c := range []struct{ setting, want string }{{"5m", `"maxStaleSeconds":300,`}, {"20m", `"maxStaleSeconds":1200,`}} {
				require.NoError(t, s.Stop(context.Background()))
				s = start(t, settings(t, dir, append(more, "--max-stale", c.setting)...))
				r = s.poll(t, h, "", "If-None-Match", etag)
				body = text(t, r)
				require.Equal(t, 200, r.StatusCode, body)
				assert.Contains(t, body, c.want)
				assert.Empty(t, r.Header.Get("Groupcast-Resync"))
				etag = r.Header.Get("ETag")
				r = s.poll(t, h, "", "If-None-Match", etag)
				assert.Equal(t, 304, r.StatusCode, text(t, r))
			}
			require.NoError(t, s.Stop(context.Background()))
			s = start(t, settings(t, dir, append(more, "--max-stale", "20m")...))
			r = s.poll(t, h, "", "If-None-Match", etag)
			assert.Equal(t, 304, r.StatusCode, "an ordinary restart is no change: %s", text(t, r))
		})
	}
}
