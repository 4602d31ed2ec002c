package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func TestSchemaIsChecked(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		require.NoError(t, db.CheckSchema(ctx))
		status, err := db.MigrationStatus(ctx)
		require.NoError(t, err)
		require.NotEmpty(t, status)
		for i, m := range status {
			require.True(t, m.Applied, m.Name)
			require.EqualValues(t, i+1, m.Version)
			require.False(t, m.AppliedAt.IsZero())
			require.True(t, strings.HasSuffix(m.Name, ".sql"))
		}
		require.NoError(t, db.Migrate(ctx), "again changes nothing")
		last := len(status)

		db.Exec(t, fmt.Sprintf("DELETE FROM goose_db_version WHERE version_id = %d", last))
		err = db.CheckSchema(ctx)
		if last == 1 {
			require.ErrorContains(t, err, "no schema yet")
		} else {
			require.ErrorContains(t, err, fmt.Sprintf("has schema version %d and this groupcastd needs %d", last-1, last))
		}
		require.ErrorContains(t, err, "groupcastd migrate up")
		insert := "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)"
		db.Exec(t, insert)
		require.ErrorContains(t, db.CheckSchema(ctx), "made by a newer groupcastd")
		db.Exec(t, "DROP TABLE goose_db_version")
		require.ErrorContains(t, db.CheckSchema(ctx), "no schema yet")
	})
}

// TestReplicasMigrateAtOnce: one does it, the others wait for it.
func TestReplicasMigrateAtOnce(t *testing.T) {
	url := pgtest.URL(t)
	var all errgroup.Group
	for range 4 {
		st, err := store.Open(ctx, store.Options{DatabaseURL: url})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, st.Close()) })
		all.Go(func() error {
			if err := st.Migrate(ctx); err != nil {
				return err
			}
			return st.CheckSchema(ctx)
		})
	}
	require.NoError(t, all.Wait())
}

// TestTheDialectsAreAlike: the same tables with the same columns, nullable or not, on both.
func TestTheDialectsAreAlike(t *testing.T) {
	lite, pg := storetest.SQLite(t), storetest.Postgres(t)
	const ours = "NOT LIKE 'goose%'"
	want := lite.Texts(t, `
		SELECT m.name || '.' || c.name || CASE WHEN c."notnull" = 1 OR c.pk > 0 THEN ' not null' ELSE '' END
		FROM sqlite_master m JOIN pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name `+ours)
	got := pg.Texts(t, `
		SELECT table_name || '.' || column_name || CASE WHEN is_nullable = 'NO' THEN ' not null' ELSE '' END
		FROM information_schema.columns WHERE table_schema = 'public' AND table_name `+ours)
	slices.Sort(want)
	slices.Sort(got)
	require.Equal(t, want, got)
	require.NotEmpty(t, got)
}
