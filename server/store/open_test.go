package store_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

func TestSQLiteServesOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data dir?#%")
	first, err := store.Open(ctx, store.Options{DataDir: dir})
	require.NoError(t, err)
	require.NoError(t, first.Migrate(ctx))
	_, err = store.Open(ctx, store.Options{DataDir: dir})
	require.ErrorContains(t, err, "is in use by another groupcastd")
	require.ErrorContains(t, err, "database-url", "it says what to do instead")
	for name, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "groupcast.db"): 0o600} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
	require.NoError(t, first.Close())
	second, err := store.Open(ctx, store.Options{DataDir: dir})
	require.NoError(t, err, "closing gives the directory back")
	require.NoError(t, second.CheckSchema(ctx), "and what was written is there")
	require.NoError(t, second.Close())
	require.NoError(t, second.Close())
}

// TestSQLiteIsDurable: the settings that the promise of a 200 depends on.
func TestSQLiteIsDurable(t *testing.T) {
	db := storetest.SQLite(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
		require.NoError(t, db.Write(ctx, func(tx *store.Tx) error {
			got, err := tx.Pragma(pragma)
			require.Equal(t, want, got, pragma)
			return err
		}))
	}
	require.Error(t, db.Read(ctx, func(tx *store.Tx) error { return tx.DeleteDevice(1) }), "readers can't write")
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		o    store.Options
		want string
	}{
		{store.Options{}, "data-dir is empty"},
		{store.Options{DataDir: "/dev/null/x"}, "data-dir: create"},
		{store.Options{DatabaseURL: "postgres://user:secret@[broken"}, "database-url: not a Postgres URL"},
		{store.Options{DatabaseURL: "postgres://user:secret@127.0.0.1:1/x?connect_timeout=1", Timeout: 2 * time.Second}, "Postgres doesn't answer"},
	} {
		_, err := store.Open(ctx, c.o)
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "secret")
	}
}
