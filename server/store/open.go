package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/groupcast/groupcast/models"
)

// sqliteFile is the name of the database in the data directory.
const sqliteFile = "groupcast.db"

// openSQLite opens <data-dir>/groupcast.db for this process alone: one connection that writes, and some that read.
func (s *Store) openSQLite(ctx context.Context) error {
	s.dialect = sqliteDialect
	if s.opts.DataDir == "" {
		return errors.New("data-dir is empty: name the directory where SQLite's file shall lie, or set database-url")
	}
	if err := os.MkdirAll(s.opts.DataDir, 0o700); err != nil {
		return fmt.Errorf("data-dir: create %s: %w", s.opts.DataDir, err)
	}
	file := filepath.Join(s.opts.DataDir, sqliteFile)
	if err := s.lockFile(file + ".lock"); err != nil {
		return err
	}
	// SQLite would create it readable for everybody.
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	s.turns = semaphore.NewWeighted(1)
	if s.writer, err = s.sqlitePool(file, 1, url.Values{
		// A transaction that begins by reading and then writes fails at once when another wrote in between; immediate
		// ones wait for each other.
		"_txlock":       {"immediate"},
		"_journal_mode": {"WAL"},
		// FULL, because an answer of 200 promises that a power cut doesn't undo it (SPEC §11).
		"_synchronous": {"FULL"},
	}); err != nil {
		return err
	}
	s.reader, err = s.sqlitePool(file, max(4, runtime.NumCPU()), url.Values{"_txlock": {"deferred"}, "_query_only": {"1"}})
	if err != nil {
		return err
	}
	return s.Ping(ctx)
}

func (s *Store) sqlitePool(file string, size int, options url.Values) (*gorm.DB, error) {
	options.Set("_busy_timeout", strconv.FormatInt(s.opts.Timeout.Milliseconds(), 10))
	options.Set("_foreign_keys", "on")
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: file}).EscapedPath(), RawQuery: options.Encode()}).String()
	pool, err := sql.Open(sqlite.DriverName, dsn)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	pool.SetMaxOpenConns(size)
	pool.SetMaxIdleConns(size)
	s.pools = append(s.pools, pool)
	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), gormConfig())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return db, nil
}

// lockFile takes an exclusive lock that ends with the process, however it ends. It is a file of its own: closing SQLite's file
// would drop SQLite's own locks.
func (s *Store) lockFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("data-dir: %s is in use by another groupcastd. SQLite serves one process: stop the other one, "+
				"use another data-dir, or run several replicas on Postgres with database-url", s.opts.DataDir)
		}
		return fmt.Errorf("data-dir: lock %s: %w", name, err)
	}
	s.lock = f
	return nil
}

// openPostgres opens a pool of connections.
func (s *Store) openPostgres(ctx context.Context) error {
	s.dialect = postgresDialect
	pool, err := s.postgresPool(s.opts.Timeout)
	if err != nil {
		return err
	}
	pool.SetMaxOpenConns(s.opts.MaxConns)
	pool.SetMaxIdleConns(s.opts.MaxConns)
	// Bounded lives spread the connections anew after a failover.
	pool.SetConnMaxLifetime(time.Hour)
	pool.SetConnMaxIdleTime(10 * time.Minute)
	s.pools = append(s.pools, pool)
	if s.writer, err = gorm.Open(postgres.New(postgres.Config{Conn: pool}), gormConfig()); err != nil {
		return fmt.Errorf("open Postgres: %w", err)
	}
	s.reader = s.writer
	if s.relay, err = s.openRelay(); err != nil {
		return fmt.Errorf("open Postgres: %w", err)
	}
	s.devices = &gather[deviceKey, *models.Device]{max: 256, run: s.devicesByKey}
	s.standings = &gather[models.ID, *models.Standing]{max: 1000, run: s.standingsOfMany}
	s.renewals = &gather[renewal, *Renewed]{max: 64, run: s.renew, same: func(r renewal) any { return r.who() }}
	if err := s.Ping(ctx); err != nil {
		return fmt.Errorf("database-url: Postgres doesn't answer; check the URL and that the server runs: %w", err)
	}
	return nil
}

// postgresPool makes a pool whose statements take no longer than limit; 0 is no limit. What the URL says wins.
func (s *Store) postgresPool(limit time.Duration) (*sql.DB, error) {
	return s.postgresPoolWith(limit, nil)
}

// postgresPoolWith makes one with more parameters, which win.
func (s *Store) postgresPoolWith(limit time.Duration, parameters map[string]string) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(s.opts.DatabaseURL)
	if err != nil { // pgx leaves the password out of its message
		return nil, fmt.Errorf("database-url: not a Postgres URL such as postgres://user@host/database: %w", err)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	defaults := map[string]string{
		"application_name": "groupcastd",
		// Below our own limit, so that Postgres gives up first and the connection survives.
		"statement_timeout":                   milliseconds(limit * 8 / 10),
		"idle_in_transaction_session_timeout": milliseconds(limit * 2),
	}
	for k, v := range defaults {
		if _, set := cfg.RuntimeParams[k]; !set {
			cfg.RuntimeParams[k] = v
		}
	}
	maps.Copy(cfg.RuntimeParams, parameters)
	return stdlib.OpenDB(*cfg), nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
