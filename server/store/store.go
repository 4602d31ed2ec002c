// Package store opens the database, SQLite or Postgres, and holds all SQL: one file per noun, one portable text for both.
//
// It owns transactions, the clock, the schema and the translation of a database's failures. It holds no rules: what may be
// done, and what follows from it, is decided by the packages that call it.
package store

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Options say which database to open.
type Options struct {
	// DatabaseURL is a Postgres URL; empty means SQLite in DataDir.
	DatabaseURL string
	// DataDir is where SQLite's file groupcast.db lies. It is created with mode 0700 if it is missing.
	DataDir string
	Logger  *slog.Logger
	// MaxConns is the size of the Postgres pool; 0 means 12.
	MaxConns int
	// Timeout bounds one transaction, waiting for a connection included; 0 means 10 s.
	Timeout time.Duration
	// OnStatement, if not nil, is called before each statement; tests count with it.
	OnStatement func(sql string)
}

// Store is an open database.
type Store struct{}

// Tx runs statements, in a transaction or alone.
type Tx struct{}

// Migration is one step of the schema's history.
type Migration struct {
	Version   int64
	Name      string
	Applied   bool
	AppliedAt time.Time
}

// SigningKey is a key that signs tokens, sealed at rest.
type SigningKey struct {
	KID           string
	Alg           string
	PrivateSealed []byte
	CreatedAt     time.Time
}

// SealingKey is a key that seals the ids inside tokens, sealed at rest.
type SealingKey struct {
	Version   int
	KeySealed []byte
	CreatedAt time.Time
}

// Open opens the database and checks that it answers. It doesn't look at the schema.
func Open(ctx context.Context, o Options) (*Store, error) { return nil, errors.ErrUnsupported }

// Close closes the database.
func (s *Store) Close() error { return nil }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return errors.ErrUnsupported }

// Migrate brings the schema to the version of this program.
func (s *Store) Migrate(ctx context.Context) error { return errors.ErrUnsupported }

// MigrationStatus lists the steps of the schema's history that this program knows.
func (s *Store) MigrationStatus(ctx context.Context) ([]Migration, error) {
	return nil, errors.ErrUnsupported
}

// CheckSchema refuses a schema that is not exactly the one this program knows.
func (s *Store) CheckSchema(ctx context.Context) error { return errors.ErrUnsupported }

// Write runs f in a transaction; f may run more than once.
func (s *Store) Write(ctx context.Context, f func(tx *Tx) error) error { return errors.ErrUnsupported }

// Read runs f in a read-only transaction that sees one instant.
func (s *Store) Read(ctx context.Context, f func(tx *Tx) error) error { return errors.ErrUnsupported }

// Epoch names this life of the database.
func (s *Store) Epoch(ctx context.Context) (string, error) { return "", errors.ErrUnsupported }

// RevisionsOf reads the revisions of those of the gateways that exist.
func (s *Store) RevisionsOf(ctx context.Context, ids []models.ID) (map[models.ID]int64, error) {
	return nil, errors.ErrUnsupported
}

// RecordPolls records when gateways asked and what they acknowledged.
func (s *Store) RecordPolls(ctx context.Context, polls []models.Poll) error {
	return errors.ErrUnsupported
}

// SigningKeys reads all signing keys, oldest first.
func (s *Store) SigningKeys(ctx context.Context) ([]SigningKey, error) {
	return nil, errors.ErrUnsupported
}

// AddSigningKey adds the key only if there is none yet, and tells whether it did: of several callers at once one wins.
func (s *Store) AddSigningKey(ctx context.Context, k SigningKey) (bool, error) {
	return false, errors.ErrUnsupported
}

// SealingKeys reads all sealing keys, oldest first.
func (s *Store) SealingKeys(ctx context.Context) ([]SealingKey, error) {
	return nil, errors.ErrUnsupported
}

// AddSealingKey adds the key only if there is none yet, and tells whether it did: of several callers at once one wins.
func (s *Store) AddSealingKey(ctx context.Context, k SealingKey) (bool, error) {
	return false, errors.ErrUnsupported
}
