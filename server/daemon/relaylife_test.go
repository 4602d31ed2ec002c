package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/server/backup"
)

// life is a service whose database can be taken back to how it was.
type life struct {
	keep, bringBack func(t *testing.T)
	restart         func() *service
}

func sqliteLife(t *testing.T) (*service, life) {
	dir, file := dataDir(t), filepath.Join(t.TempDir(), "backup")
	cfg := settings(t, dir, "--public-url", "", "--listen", harness.FreePort(t))
	return start(t, cfg), life{
		keep: func(t *testing.T) { require.NoError(t, backup.Make(t.Context(), dir, file)) },
		bringBack: func(t *testing.T) {
			require.NoError(t, backup.Restore(t.Context(), backup.Options{DataDir: dir, File: file, Force: true, KEKFile: filepath.Join(dir, "kek"), Log: slog.New(slog.DiscardHandler)}))
		},
		restart: func() *service { return start(t, cfg) },
	}
}

func postgresLife(t *testing.T) (*service, life) {
	url, file := pgtest.URL(t), filepath.Join(t.TempDir(), "dump")
	cfg := settings(t, dataDir(t), "--public-url", "", "--listen", harness.FreePort(t), "--migrate", "--database-url", url)
	tool := func(t *testing.T, name string, args ...string) {
		path, err := pgtest.Tool(name)
		require.NoError(t, err)
		out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return start(t, cfg), life{
		keep: func(t *testing.T) { tool(t, "pg_dump", "--format=custom", "--no-owner", "--file="+file, url) },
		bringBack: func(t *testing.T) {
			tool(t, "pg_restore", "--clean", "--if-exists", "--no-owner", "--dbname="+url, file)
		},
		restart: func() *service {
			s := start(t, cfg)
			r, err := s.admin.RotateEpochWithResponse(t.Context())
			require.NoError(t, err)
			require.NotNil(t, r.JSON200, "%s", r.Body)
			return s
		},
	}
}

// TestRelaysAcrossARestore: premises moved from one relay to the other after the backup was made. Once it is restored, the other hears that it has it no more, the
// first that it has, and copies only after it said so in the new life; meanwhile the gateway copies, and goes by nothing that the lost life said.
func TestRelaysAcrossARestore(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*testing.T) (*service, life){"sqlite": sqliteLife, "postgres": postgresLife} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := begin(t)
			h := s.house(t, "Relayed")
			first, second := s.relayNode(t, "first"), s.relayNode(t, "second")
			for i, r := range []relayNode{first, second} {
				status, answer, _ := r.do(t, http.MethodPut, r.path(""), fmt.Sprintf(
					`{"tunnelKey":%q,"endpointIPv4":"96.114.20.%d","endpointPort":51820,"uplinkIPv4":"96.114.20.%[2]d"}`, tunnelKey(byte('a'+i)), i+1))
				require.Equal(t, http.StatusOK, status, "%s", answer)
			}
			may := func(r relayNode, premises ...models.PremisesID) {
				premises = append([]models.PremisesID{}, premises...) // none is an empty list
				set, err := s.admin.SetRelayPremisesWithResponse(t.Context(), r.id, adminapi.RelayPremisesRequest{Premises: &premises})
				require.NoError(t, err)
				require.NotNil(t, set.JSON200, "%s", set.Body)
			}
			gateway := func() string {
				return text(t, s.do(t, http.MethodGet, "/v1/gateways/"+h.home.gateway.String()+"/groups", "", "Authorization", "Bearer "+h.gatewayToken))
			}
			tags := map[models.ID]string{}
			// ask polls as a relay that acknowledges what it was answered last.
			ask := func(r relayNode) (body, resync string) {
				var header []string
				if tag := tags[r.id]; tag != "" {
					header = []string{"If-None-Match", tag}
				}
				_, body, answered := r.do(t, http.MethodGet, r.path("/groups"), "", header...)
				tags[r.id] = answered.Get("ETag")
				return body, answered.Get("Groupcast-Resync")
			}
			forwardsTo := func(r relayNode) {
				require.Eventually(t, func() bool {
					ask(first)
					ask(second)
					said := gateway()
					return strings.Contains(said, `"forwarding":true`) && strings.Contains(said, r.id.String())
				}, time.Minute, 50*time.Millisecond)
			}

			may(first, h.home.premises)
			declared := s.do(t, http.MethodPut, "/v1/gateways/"+h.home.gateway.String(), strings.TrimSuffix(declaration, "}")+fmt.Sprintf(`,"tunnelKey":%q}`, tunnelKey('g')),
				"Authorization", "Bearer "+h.gatewayToken)
			require.Equal(t, http.StatusOK, declared.StatusCode, "%s", text(t, declared))
			changed := s.do(t, http.MethodPatch, "/v1/premises/"+string(h.home.premises), `{"fanout":"network"}`, "Cookie", h.cookie)
			require.Equal(t, http.StatusOK, changed.StatusCode, "%s", text(t, changed))
			forwardsTo(first)
			l.keep(t)

			may(second, h.home.premises)
			may(first)
			forwardsTo(second)
			s.source(t, h.home, "garden")
			body, _ := ask(second)
			require.Contains(t, body, "garden")
			require.NoError(t, s.Stop(context.Background()))
			l.bringBack(t)
			s = l.restart()
			first.s, second.s = s, s

			said := gateway()
			require.Contains(t, said, first.id.String())
			require.Contains(t, said, `"forwarding":false`, "the relay doesn't know of this life yet")
			body, resync := ask(second)
			require.Equal(t, "unknown-epoch", resync)
			require.NotContains(t, body, string(h.home.premises), "what the lost life gave it is over")
			body, resync = ask(first)
			require.Equal(t, "unknown-epoch", resync)
			require.Contains(t, body, string(h.home.premises))
			require.NotContains(t, body, "garden")
			forwardsTo(first)
		})
	}
}
