package store_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
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
		before, last := int64(0), int64(0)
		for _, m := range status {
			require.True(t, m.Applied, m.Name)
			require.Greater(t, m.Version, last)
			before, last = last, m.Version
			require.False(t, m.AppliedAt.IsZero())
			require.True(t, strings.HasSuffix(m.Name, ".sql"))
		}
		require.NoError(t, db.Migrate(ctx), "again changes nothing")

		db.Exec(t, fmt.Sprintf("DELETE FROM goose_db_version WHERE version_id = %d", last))
		err = db.CheckSchema(ctx)
		if before == 0 {
			require.ErrorContains(t, err, "no schema yet")
		} else {
			require.ErrorContains(t, err, fmt.Sprintf("has schema version %d and this groupcastd needs %d", before, last))
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

// TestTheDialectsAreAlike: the same tables with the same columns of the same kind, nullable or not, with a default or without, and the
// same keys, references and indexes on both.
func TestTheDialectsAreAlike(t *testing.T) {
	lite, pg := storetest.SQLite(t), storetest.Postgres(t)
	want, got := schemaOf(t, lite), schemaOf(t, pg)
	require.Equal(t, want, got)
	for _, kind := range []string{"column ", "reference ", "index "} {
		require.True(t, slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, kind) }), kind)
	}
}

// schemaOf describes what both dialects can say of the schema in the same words.
func schemaOf(t *testing.T, db *storetest.DB) []string {
	t.Helper()
	query := `
		SELECT 'column ' || m.name || '.' || c.name || CASE lower(c.type) WHEN 'blob' THEN ' bytes' ELSE ' ' || lower(c.type) END
			|| CASE WHEN c."notnull" = 1 OR c.pk > 0 THEN ' not null' ELSE '' END || CASE WHEN c.dflt_value IS NULL THEN '' ELSE ' default' END
		FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE 'goose%'
		UNION ALL SELECT 'reference ' || m.name || '.' || f."from" || ' to ' || f."table" || '.' || f."to" || ' ' || lower(f.on_delete)
		FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table'
		UNION ALL SELECT 'key ' || m.name || ' ' || (SELECT group_concat(i.name) FROM (SELECT name FROM pragma_index_info(k.name) ORDER BY seqno) i)
		FROM sqlite_master m JOIN pragma_index_list(m.name) k WHERE m.type = 'table' AND k.origin = 'u'
		UNION ALL SELECT 'index ' || name || CASE WHEN sql LIKE 'CREATE UNIQUE%' THEN ' unique' ELSE '' END || CASE WHEN sql LIKE '% WHERE %' THEN ' partial' ELSE '' END
		FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL`
	if db.Dialect() == "postgres" {
		query = `
		SELECT 'column ' || table_name || '.' || column_name || CASE data_type WHEN 'bytea' THEN ' bytes' WHEN 'text' THEN ' text' ELSE ' integer' END
			|| CASE WHEN is_nullable = 'NO' THEN ' not null' ELSE '' END || CASE WHEN column_default IS NULL THEN '' ELSE ' default' END
		FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE 'goose%'
		UNION ALL SELECT 'reference ' || c.conrelid::regclass || '.' || a.attname || ' to ' || c.confrelid::regclass || '.' || b.attname
			|| CASE c.confdeltype WHEN 'c' THEN ' cascade' ELSE ' no action' END
		FROM pg_constraint c CROSS JOIN LATERAL unnest(c.conkey, c.confkey) AS k (mine, theirs)
		JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.mine JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = k.theirs
		WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
		UNION ALL SELECT 'key ' || c.conrelid::regclass || ' ' || (SELECT string_agg(a.attname, ',' ORDER BY k.n)
			FROM unnest(c.conkey) WITH ORDINALITY AS k (at, n) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.at)
		FROM pg_constraint c WHERE c.contype = 'u' AND c.connamespace = 'public'::regnamespace
		UNION ALL SELECT 'index ' || c.relname || CASE WHEN i.indisunique THEN ' unique' ELSE '' END || CASE WHEN i.indpred IS NULL THEN '' ELSE ' partial' END
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class r ON r.oid = i.indrelid
		WHERE c.relnamespace = 'public'::regnamespace AND r.relname NOT LIKE 'goose%' AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = c.oid AND contype IN ('p', 'u'))`
	}
	all := db.Texts(t, query)
	slices.Sort(all)
	return all
}

// TestTheCodeAndTheSchemaAgree looks for drift between the SQL of this package and the schema, in both directions: each column is in a
// statement, and each word of a statement is a column, a table, or one of the few others listed here.
func TestTheCodeAndTheSchemaAgree(t *testing.T) {
	db := storetest.Postgres(t)
	known := map[string]bool{}
	const public = "FROM information_schema.columns WHERE table_schema = 'public'"
	columns := db.Texts(t, "SELECT DISTINCT column_name::text "+public+" AND table_name NOT LIKE 'goose%'")
	for _, name := range append(columns, db.Texts(t, "SELECT DISTINCT table_name::text "+public)...) {
		known[name] = true
	}
	for name := range strings.FieldsSeq(`now among bigints texts bigint text lower count sum min max coalesce string_agg row_number over
		json_each value extract epoch statement_timestamp julianday round integer version_id is_applied excluded pragma_foreign_key_check
		poll ago added raised told noted json_object json_group_array json_build_object json_agg pg_notify pg_try_advisory_lock place
		pg_current_snapshot pg_current_xact_id pg_snapshot_xmin unnest asked asked_id asked_account held member_name own
		cc cg cr cs cw sm sn ra rd rl rp true false`) {
		known[name] = true
	}
	used := map[string]bool{}
	for _, statement := range statementsOf(t) {
		statement = regexp.MustCompile(`'[^']*'|"[^"]*"`).ReplaceAllString(statement, " ")
		for _, word := range regexp.MustCompile(`\b[a-z][a-z0-9_]+\b`).FindAllString(statement, -1) {
			used[word] = true
		}
	}
	require.Greater(t, len(used), len(columns)/2)
	used["next_source"], used["next_destination"] = true, true // put together from the member's role
	for _, c := range columns {
		assert.True(t, used[c], "no statement mentions the column %s", c)
	}
	for _, word := range slices.Sorted(maps.Keys(used)) {
		assert.True(t, known[word], "a statement says %s, which is no column and no table", word)
	}
}

// statementsOf gives the string literals of this package's code that are SQL, or a part of it.
func statementsOf(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	sqlWord := regexp.MustCompile(`\b(SELECT|INSERT|UPDATE|DELETE|SET|WHERE|VALUES|FROM|JOIN|AND|ORDER BY|CASE)\b|^\s*[a-z0-9_.]+(,\s+[a-z0-9_.]+)+$|statement_timestamp|clock_offset`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && sqlWord.MatchString(text) {
					all = append(all, text)
				}
			}
			return true
		})
	}
	return all
}
