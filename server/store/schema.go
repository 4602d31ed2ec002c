package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/groupcast/groupcast/migrations"
)

// Migration is one step of the schema's history.
type Migration struct {
	Version int64
	// Name is the file's.
	Name      string
	Applied   bool
	AppliedAt time.Time
}

// Migrate brings the schema to the version of this program. Of several replicas at once one does it and the others wait.
func (s *Store) Migrate(ctx context.Context) error {
	return s.migrating(ctx, func(p *goose.Provider) error {
		done, err := p.Up(ctx)
		for _, m := range done {
			s.log.InfoContext(ctx, "migrated the schema", "version", m.Source.Version, "took", m.Duration)
		}
		if err != nil {
			return fmt.Errorf("migrate the schema: %w", err)
		}
		return nil
	})
}

// MigrationStatus lists the steps of the schema's history that this program knows, oldest first.
func (s *Store) MigrationStatus(ctx context.Context) ([]Migration, error) {
	var all []Migration
	err := s.migrating(ctx, func(p *goose.Provider) error {
		status, err := p.Status(ctx)
		if err != nil {
			return fmt.Errorf("read the schema's history: %w", err)
		}
		for _, m := range status {
			all = append(all, Migration{
				Version: m.Source.Version, Name: path.Base(m.Source.Path),
				Applied: m.State == goose.StateApplied, AppliedAt: m.AppliedAt,
			})
		}
		return nil
	})
	return all, err
}

// CheckSchema refuses a schema that is not exactly the one this program knows.
func (s *Store) CheckSchema(ctx context.Context) error {
	have, want, err := s.schemaVersions(ctx)
	if err != nil {
		return err
	}
	switch {
	case have == want:
		return nil
	case have == 0:
		return errors.New("the database has no schema yet: run `groupcastd migrate up`, or start with --migrate")
	case have < want:
		return fmt.Errorf("the database has schema version %d and this groupcastd needs %d: run `groupcastd migrate up`, or start with --migrate",
			have, want)
	default:
		return fmt.Errorf("the database has schema version %d, made by a newer groupcastd; this one knows %d: install the newer one",
			have, want)
	}
}

// schemaVersions tells which version the database has, 0 if none, and which this program needs.
func (s *Store) schemaVersions(ctx context.Context) (have, want int64, err error) {
	p, err := s.provider(s.pools[0])
	if err != nil {
		return 0, 0, err
	}
	sources := p.ListSources()
	want = sources[len(sources)-1].Version
	err = s.reading(ctx, func(tx *Tx) error {
		var err error
		have, _, err = one(tx, scanInto[int64], "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied")
		return err
	})
	if err != nil && s.dialect.classify(err) == noTable {
		return 0, want, nil
	}
	return have, want, err
}

// migrating calls f with goose's provider, on Postgres with connections that no time limit ends.
func (s *Store) migrating(_ context.Context, f func(*goose.Provider) error) (err error) {
	pool := s.pools[0]
	if s.dialect == postgresDialect {
		if pool, err = s.postgresPool(0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, pool.Close()) }()
	}
	p, err := s.provider(pool)
	if err != nil {
		return err
	}
	return f(p)
}

func (s *Store) provider(pool *sql.DB) (*goose.Provider, error) {
	files, dialect := fs.FS(migrations.SQLite), goose.DialectSQLite3
	var options []goose.ProviderOption
	if s.dialect == postgresDialect {
		files, dialect = migrations.Postgres, goose.DialectPostgres
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 600)) // look every second, for ten minutes
		if err != nil {
			return nil, fmt.Errorf("prepare the migration's lock: %w", err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	files, err := fs.Sub(files, s.dialect.name)
	if err != nil {
		return nil, fmt.Errorf("open the migrations: %w", err)
	}
	options = append(options, goose.WithDisableGlobalRegistry(true))
	p, err := goose.NewProvider(dialect, pool, files, options...)
	if err != nil {
		return nil, fmt.Errorf("open the migrations: %w", err)
	}
	return p, nil
}
