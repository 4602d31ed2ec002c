// Package storetest opens databases for tests: a fresh SQLite file and a fresh database of a real Postgres, both with the
// schema of this program. What it adds to a store is what only tests may do: move the clock, look behind the store's back, count
// statements.
package storetest

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // raw connections to Postgres
	_ "github.com/mattn/go-sqlite3"    // and to SQLite
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/store"
)

// DB is a store for one test.
type DB struct {
	*store.Store
	// Options open another store on the same database, which only Postgres allows.
	Options store.Options

	raw *sql.DB

	mu         sync.Mutex
	statements []string
}

// Each runs a test on both databases. Without an installed Postgres that half is skipped by name.
func Each(t *testing.T, test func(t *testing.T, db *DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, Postgres(t)) })
}

// SQLite opens a fresh SQLite database.
func SQLite(t testing.TB) *DB {
	t.Helper()
	return SQLiteWith(t, store.Options{})
}

// SQLiteWith does so with options.
func SQLiteWith(t testing.TB, o store.Options) *DB {
	t.Helper()
	o.DataDir = t.TempDir()
	db := sqliteIn(t, o)
	require.NoError(t, db.Migrate(context.Background()))
	return db
}

// SQLiteAt opens the database in a data directory, such as one that was restored.
func SQLiteAt(t testing.TB, dir string) *DB {
	t.Helper()
	return sqliteIn(t, store.Options{DataDir: dir})
}

func sqliteIn(t testing.TB, o store.Options) *DB {
	t.Helper()
	db := open(t, o)
	// This connection bypasses the lock that keeps other processes out.
	db.rawOpen(t, "sqlite3", "file:"+filepath.Join(o.DataDir, "groupcast.db")+"?_txlock=immediate&_busy_timeout=10000")
	return db
}

var template = pgtest.NewTemplate(func(ctx context.Context, url string) error {
	st, err := store.Open(ctx, store.Options{DatabaseURL: url})
	if err != nil {
		return err
	}
	if err := st.Migrate(ctx); err != nil {
		return err
	}
	return st.Close()
})

// Postgres opens a fresh Postgres database.
func Postgres(t testing.TB) *DB {
	t.Helper()
	return postgres(t, template.URL(t), store.Options{})
}

// PostgresAt opens and migrates an empty Postgres database of a cluster that the test has for itself.
func PostgresAt(t testing.TB, url string, o store.Options) *DB {
	t.Helper()
	db := postgres(t, url, o)
	db.raw.SetMaxIdleConns(-1) // the test may kill the cluster, and what is left of a connection then can't be told from one
	require.NoError(t, db.Migrate(context.Background()))
	return db
}

func postgres(t testing.TB, url string, o store.Options) *DB {
	t.Helper()
	o.DatabaseURL = url
	db := open(t, o)
	db.rawOpen(t, "pgx", url)
	return db
}

// HoldConnections takes all the connections that Postgres gives to an ordinary user, until the function it returns is called.
func HoldConnections(t testing.TB, url string) (release func()) {
	t.Helper()
	var held []*pgx.Conn
	release = func() {
		for _, c := range held {
			_ = c.Close(context.Background())
		}
		held = nil
	}
	t.Cleanup(release)
	for range 1000 {
		c, err := pgx.Connect(context.Background(), url)
		if err != nil {
			return release
		}
		held = append(held, c)
	}
	t.Fatal("Postgres gave a thousand connections")
	return release
}

func open(t testing.TB, o store.Options) *DB {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = time.Minute // on a busy machine, what takes the default's ten seconds is no error of ours
	}
	db := &DB{Options: o}
	o.OnStatement = func(text string) {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.statements = append(db.statements, text)
	}
	st, err := store.Open(context.Background(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	db.Store = st
	return db
}

func (db *DB) rawOpen(t testing.TB, driver, dsn string) {
	t.Helper()
	var err error
	db.raw, err = sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.raw.Close() })
}

// Replica opens another store on the same Postgres, as a second replica would.
func (db *DB) Replica(t testing.TB) *store.Store {
	t.Helper()
	st, err := store.Open(context.Background(), db.Options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	return st
}

// Exec runs a statement of the test's own.
func (db *DB) Exec(t testing.TB, statement string) {
	t.Helper()
	_, err := db.raw.ExecContext(context.Background(), statement)
	require.NoError(t, err)
}

// Ints runs a query of the test's own that gives one column of numbers.
func (db *DB) Ints(t testing.TB, query string) []int64 { return column[int64](t, db, query) }

// Texts runs a query of the test's own that gives one column of texts.
func (db *DB) Texts(t testing.TB, query string) []string { return column[string](t, db, query) }

func column[T any](t testing.TB, db *DB, query string) (all []T) {
	t.Helper()
	rows, err := db.raw.QueryContext(context.Background(), query)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var v T
		require.NoError(t, rows.Scan(&v))
		all = append(all, v)
	}
	require.NoError(t, rows.Err())
	return all
}

// Deadlocks counts the deadlocks that the database broke; SQLite has none by construction.
func (db *DB) Deadlocks(t testing.TB) int64 {
	t.Helper()
	if db.Dialect() == "sqlite" {
		return 0
	}
	return db.Ints(t, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0]
}

// Advance moves the database's clock and keeps the leases looked at, as if the service had run all the time.
func (db *DB) Advance(t testing.TB, d time.Duration) {
	t.Helper()
	db.Exec(t, fmt.Sprintf(`UPDATE installation SET clock_offset_ms = clock_offset_ms + %[1]d,
		expiry_ran_at = CASE expiry_ran_at WHEN 0 THEN 0 ELSE expiry_ran_at + %[1]d END`, d.Milliseconds()))
}

// Outage moves the database's clock while nobody looks at the leases.
func (db *DB) Outage(t testing.TB, d time.Duration) {
	t.Helper()
	db.Exec(t, fmt.Sprintf("UPDATE installation SET clock_offset_ms = clock_offset_ms + %d", d.Milliseconds()))
}

// Statements runs f and gives the statements that the store ran meanwhile.
func (db *DB) Statements(f func()) []string {
	db.mu.Lock()
	db.statements = nil
	db.mu.Unlock()
	f()
	db.mu.Lock()
	defer db.mu.Unlock()
	all := make([]string, len(db.statements))
	for i, s := range db.statements {
		all[i] = strings.Join(strings.Fields(s), " ")
	}
	return all
}
