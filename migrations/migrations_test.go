package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/migrations"
)

var ctx = context.Background()

// database is an empty database with goose on it.
type database struct {
	*sql.DB
	*goose.Provider
	name string
	// dump is a query for everything in the schema.
	dump string
}

// each runs a test on both databases.
func each(t *testing.T, test func(t *testing.T, db database)) {
	t.Run("sqlite", func(t *testing.T) {
		test(t, open(t, "sqlite3", filepath.Join(t.TempDir(), "x.db")+"?_foreign_keys=on", goose.DialectSQLite3, migrations.SQLite, "sqlite",
			`SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master WHERE name NOT LIKE 'goose%' AND name NOT LIKE 'sqlite_seq%'`))
	})
	t.Run("postgres", func(t *testing.T) {
		test(t, open(t, "pgx", pgtest.URL(t), goose.DialectPostgres, migrations.Postgres, "postgres", `
			SELECT format('column %s.%s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
			FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
			WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND c.relname NOT LIKE 'goose%'
			UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
			FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE 'goose%'
			UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE 'goose%'
			UNION ALL SELECT 'function ' || pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
			UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal`))
	})
}

func open(t *testing.T, driver, dsn string, dialect goose.Dialect, files fs.FS, dir, dump string) database {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	files, err = fs.Sub(files, dir)
	require.NoError(t, err)
	p, err := goose.NewProvider(dialect, db, files, goose.WithDisableGlobalRegistry(true))
	require.NoError(t, err)
	return database{DB: db, Provider: p, name: dir, dump: dump}
}

func (db database) texts(t *testing.T, query string) (all []string) {
	t.Helper()
	rows, err := db.QueryContext(ctx, query)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var s string
		require.NoError(t, rows.Scan(&s))
		all = append(all, s)
	}
	require.NoError(t, rows.Err())
	slices.Sort(all)
	return all
}

func (db database) schema(t *testing.T) []string { return db.texts(t, db.dump) }

// TestUpDownUp: each step down gives exactly the schema that was there before the step up, and up again the one after it.
func TestUpDownUp(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		before := db.schema(t)
		require.Empty(t, before)
		for _, s := range db.ListSources() {
			_, err := db.UpByOne(ctx)
			require.NoError(t, err)
			after := db.schema(t)
			require.NotEqual(t, before, after, "version %d changes nothing", s.Version)
			_, err = db.Down(ctx)
			require.NoError(t, err)
			require.Equal(t, before, db.schema(t), "version %d down", s.Version)
			_, err = db.UpByOne(ctx)
			require.NoError(t, err)
			require.Equal(t, after, db.schema(t), "version %d up again", s.Version)
			before = after
		}
		_, err := db.DownTo(ctx, 0)
		require.NoError(t, err)
		require.Empty(t, db.schema(t))
		_, err = db.Up(ctx)
		require.NoError(t, err)
		require.Equal(t, before, db.schema(t))
	})
}

// TestUpgradeOfTheFirstSchema: a database that the first version left behind becomes one of today with all that was in it, and has
// the very schema of a new one.
func TestUpgradeOfTheFirstSchema(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		dump, err := os.ReadFile(filepath.Join("testdata", db.name+"-0001.sql"))
		require.NoError(t, err)
		_, err = db.ExecContext(ctx, string(dump))
		require.NoError(t, err)
		version, err := db.GetDBVersion(ctx)
		require.NoError(t, err)
		require.EqualValues(t, 1, version)
		before := db.contents(t)
		require.NotEmpty(t, before)

		_, err = db.Up(ctx)
		require.NoError(t, err)
		after := db.contents(t)
		for table, rows := range before {
			require.Equal(t, rows, after[table], table)
		}
		upgraded := db.schema(t)
		_, err = db.DownTo(ctx, 0)
		require.NoError(t, err, "down with data in it")
		_, err = db.Up(ctx)
		require.NoError(t, err)
		require.Equal(t, db.schema(t), upgraded)
	})
}

// TestGatewaysLearnTheirRelay: gateways of premises that a relay served before the step have it after, and others have none.
func TestGatewaysLearnTheirRelay(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		const step = 18
		_, err := db.UpTo(ctx, step-1)
		require.NoError(t, err)
		for _, s := range []string{
			"INSERT INTO accounts (id, name, created_at) VALUES ('a', 'a', 1)",
			"INSERT INTO relays (id, name, tunnel_address, created_at) VALUES (7, 'r', 'fd00::7', 1)",
			"INSERT INTO premises (id, account_id, name, created_at) VALUES ('p1', 'a', 'p', 1), ('p2', 'a', 'p', 1), ('p3', 'a', 'p', 1)",
			"INSERT INTO relay_assignments (premises_id, relay_id, forwarding) VALUES ('p1', 7, true), ('p2', NULL, false)",
			"INSERT INTO devices (id, account_id, premises_id, type, name, created_at) VALUES " +
				"(1, 'a', 'p1', 'gateway', 'g', 1), (2, 'a', 'p2', 'gateway', 'g', 1), (3, 'a', 'p3', 'gateway', 'g', 1)",
			"INSERT INTO gateways (id, account_id, premises_id) VALUES (1, 'a', 'p1'), (2, 'a', 'p2'), (3, 'a', 'p3')",
		} {
			_, err = db.ExecContext(ctx, s)
			require.NoError(t, err, s)
		}
		_, err = db.UpTo(ctx, step)
		require.NoError(t, err)
		require.Equal(t, []string{"1 7 1", "2 0 0", "3 0 0"}, db.texts(t, "SELECT id || ' ' || relay_id || ' ' || CASE WHEN forwarding THEN 1 ELSE 0 END FROM gateways"))
	})
}

// contents gives the rows of the first schema's tables; a step that changes what they hold has to say so here.
func (db database) contents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, q := range []struct{ table, columns string }{
		{"installation", "epoch, expiry_ran_at, amnesty_ms"},
		{"accounts", "id, name"},
		{"premises", "id, account_id, name"},
		{"devices", "id, account_id, premises_id, type, name, model, trigger"},
		{"services", "id, name"},
		{"service_links", "service_id, account_id, service_account_id"},
		{"gateways", "id, account_id, premises_id, lan_prefix, lan_addr, uplink, range_first, range_last, revision"},
		{"gateway_polls", "gateway_id, epoch, acked_revision, polled_at"},
		{"groups", "id, account_id, premises_id, gateway_id, name, ip, generation, next_source, next_destination"},
		{"addresses", "gateway_id, ip, state, coalesce(group_id,''), last_group_name, generation, released_at, released_revision"},
		{"registrations", "id, group_id, member_type, member_id, role, coalesce(owner_service,''), number, private_ipv4, public_ipv4, ipv6"},
		{"leases", "registration_id, ttl_seconds, expires_at, removable_at"},
	} {
		rows := db.texts(t, fmt.Sprintf("SELECT %s FROM %s", strings.ReplaceAll(q.columns, ", ", " || '|' || "), q.table))
		require.NotEmpty(t, rows, "the dump has a row in each table")
		all[q.table] = strings.Join(rows, "\n")
	}
	return all
}
