package e2e

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// The operator lists and verifies the log by hand; old rows go, and what somebody did to the database is found.
func TestGroupcastctlAudit(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--audit-retention", "720h"}})
		c := ctl{t: t, server: s}
		// away changes the database as whoever can write to it, while the service is stopped.
		away := func(statements ...string) {
			t.Helper()
			require.NoError(t, s.Stop())
			driver, dsn := "sqlite3", filepath.Join(s.DataDir, "groupcast.db")
			if databaseURL != "" {
				driver, dsn = "pgx", databaseURL
			}
			db, err := sql.Open(driver, dsn)
			require.NoError(t, err)
			defer db.Close()
			for _, statement := range statements {
				_, err := db.ExecContext(context.Background(), statement)
				require.NoError(t, err)
			}
			s.Start(t)
		}
		var report adminapi.AuditReport
		verified := func() {
			t.Helper()
			require.Eventually(t, func() bool {
				c.json(&report, "audit", "verify")
				return report.Unsealed == 0
			}, time.Minute, 100*time.Millisecond)
		}
		list := func(args ...string) []adminapi.AuditRow {
			t.Helper()
			var page adminapi.AuditPage
			c.json(&page, append([]string{"audit", "list", "--page-size", "500"}, args...)...)
			return page.Rows
		}

		account := s.Account(t, "Smith")
		other := s.Account(t, "Jones")
		s.Premises(t, account, "home", false)
		assert.Len(t, list("--account", string(account)), 2)
		assert.Len(t, list("--account", string(account), "--action", "premises.create"), 1)
		assert.Len(t, list("--actor", "operator"), 3)
		assert.Len(t, list("--action", "account.create", "--since", "1h"), 2)
		assert.Empty(t, list("--until", "1h"))
		assert.Empty(t, list("--since", "2100-01-01T00:00:00Z"))
		_, errs, code := c.run("audit", "list", "--since", "yesterday")
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, "--since")
		_, errs, code = c.run("audit", "list", "--actor", "Robert'); --")
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, "actor")
		out, _, code := c.run("audit", "list", "--account", string(other))
		assert.Zero(t, code)
		assert.Contains(t, out, "account.create")
		verified()
		head := report.Head
		assert.Equal(t, "0.", report.Base)

		// Two months later: the old rows are gone, and the rest is whole.
		const months = "UPDATE installation SET clock_offset_ms = clock_offset_ms + 5184000000"
		away(months)
		require.Eventually(t, func() bool { return len(list("--action", "account.create")) == 0 }, time.Minute, 100*time.Millisecond)
		require.Len(t, list("--action", "audit.prune", "--actor", "system"), 1)
		verified()
		assert.False(t, report.Broken)
		assert.Equal(t, head, report.Base)
		_, errs, code = c.run("audit", "verify", "--anchor", head)
		assert.Zero(t, code, errs)

		s.Account(t, "Miller")
		s.Account(t, "Cooper")
		verified()
		away("UPDATE audit_rows SET actor = 'device/1' WHERE action = 'account.create'")
		out, errs, code = c.run("audit", "verify")
		assert.Equal(t, 1, code)
		assert.Contains(t, out, "it was changed")
		assert.Contains(t, errs, "not what was sealed")
		away("UPDATE audit_rows SET actor = 'operator' WHERE action = 'account.create'")
		verified()
		away("DELETE FROM audit_rows WHERE seq = (SELECT min(seq) FROM audit_rows WHERE action = 'account.create')")
		out, _, code = c.run("audit", "verify")
		assert.Equal(t, 1, code)
		assert.Contains(t, out, "missing")
	})
}
