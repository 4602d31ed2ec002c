// Package store opens the database, SQLite or Postgres, and holds all SQL: one file per noun, one portable text for both.
//
// It owns transactions, the clock, the schema and the translation of a database's failures. It holds no rules: what may be
// done, and what follows from it, is decided by the packages that call it.
//
// Methods of [Store] named after a noun run one statement, which is all of what they do. Methods of [Tx] are steps of a
// transaction that [Store.Write] or [Store.Read] began. A writing transaction locks in the order gateway, group, addresses,
// registrations, leases, account (docs/adr/0003).
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/groupcast/groupcast/models"
)

// Options say which database to open.
type Options struct {
	// DatabaseURL is a Postgres URL; empty means SQLite in DataDir.
	DatabaseURL string
	// DataDir is where SQLite's file groupcast.db lies. It is created with mode 0700 if it is missing.
	DataDir string
	Logger  *slog.Logger
	// MaxConns is the size of the Postgres pool; 0 means 12. More than 16 bring nothing.
	MaxConns int
	// Timeout bounds one transaction or statement, waiting for a connection and repetitions included; 0 means 10 s.
	Timeout time.Duration
	// OnStatement, if not nil, is called before each statement with its text; tests count with it.
	OnStatement func(text string)
}

// Store is an open database. It is safe for use by several goroutines.
type Store struct {
	dialect *dialect
	opts    Options
	log     *slog.Logger

	// On SQLite the writer is one connection and the reader a pool; on Postgres both are the same pool.
	writer, reader *gorm.DB
	turns          *semaphore.Weighted // to write on SQLite; nil on Postgres
	relay          *gorm.DB            // see relayed; nil on SQLite
	pools          []*sql.DB
	// What Postgres is asked for several requests at once; nil on SQLite, which has no round trips and one writer.
	devices   *gather[deviceKey, *models.Device]
	renewals  *gather[renewal, *Renewed]
	standings *gather[models.ID, *models.Standing]
	lock      *os.File // keeps a second process off SQLite's file; nil on Postgres
	onCommit  []func(Changed)
}

// Tx runs statements: those of one transaction, or a single one.
type Tx struct {
	db *gorm.DB
	// pipe is what a writing transaction on Postgres runs them with, and ctx its context; else both are nil.
	pipe    *pipeline
	ctx     context.Context //nolint:containedctx // as gorm keeps it in db
	store   *Store
	changed Changed
}

const (
	defaultTimeout  = 10 * time.Second
	defaultMaxConns = 12
	// maxAttempts bounds how often a transaction that lost against another one begins again.
	maxAttempts = 6
	// retryAfter is what a caller is told to wait, in seconds, when the database is away.
	retryAfter = 2
)

// ErrAgain is returned by the function of a transaction to roll back and begin again: what it read at first was outdated by the
// time it had the lock.
var ErrAgain = errors.New("the transaction has to begin again")

// Open opens the database and checks that it answers. It doesn't look at the schema: see [Store.Migrate] and [Store.CheckSchema].
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.MaxConns <= 0 {
		o.MaxConns = defaultMaxConns
	}
	s := &Store{opts: o, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	open := s.openSQLite
	if o.DatabaseURL != "" {
		open = s.openPostgres
	}
	if err := open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the database. Closing it twice is allowed.
func (s *Store) Close() error {
	var errs []error
	for _, p := range s.pools {
		errs = append(errs, p.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

// Dialect names the database, "sqlite" or "postgres", for logs and metrics.
func (s *Store) Dialect() string { return s.dialect.name }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.reading(ctx, func(tx *Tx) error {
		_, _, err := one(tx, scanInto[int], "SELECT 1")
		return err
	})
}

// Write runs f in a transaction and commits it if f returns nil. f may run more than once, so it must not keep anything from
// a run before. The errors that f returns come back as they are; failures of the database become CodeUnavailable. Within a
// transaction of [Store.Around] it is a part of that.
func (s *Store) Write(ctx context.Context, f func(tx *Tx) error) error {
	if tx := s.around(ctx); tx != nil {
		return f(tx)
	}
	return s.attempt(ctx, func(ctx context.Context) error {
		if s.dialect == postgresDialect {
			return s.pipelined(ctx, f)
		}
		return s.transaction(ctx, s.writer, s.dialect.writing, f)
	})
}

// Read runs f in a read-only transaction that sees one instant.
func (s *Store) Read(ctx context.Context, f func(tx *Tx) error) error {
	if tx := s.around(ctx); tx != nil {
		return f(tx)
	}
	return s.attempt(ctx, func(ctx context.Context) error {
		return s.transaction(ctx, s.reader, s.dialect.reading, f)
	})
}

// Around runs f in one transaction, of which everything is a part that is asked of this store with f's context: all of it is
// committed if f returns nil, and nothing else. f may run more than once. It is for what has to be recorded together with a change that
// another package makes; that package must not tell anybody of the change before f has returned.
func (s *Store) Around(ctx context.Context, f func(ctx context.Context, tx *Tx) error) error {
	return s.attempt(ctx, func(ctx context.Context) error {
		return s.transaction(ctx, s.writer, s.dialect.writing, func(tx *Tx) error {
			return f(context.WithValue(ctx, aroundKey{}, tx), tx)
		})
	})
}

type aroundKey struct{}

// around is the transaction that a context is within; nil if it is within none of this store.
func (s *Store) around(ctx context.Context) *Tx {
	if tx, ok := ctx.Value(aroundKey{}).(*Tx); ok && tx.store == s {
		return tx
	}
	return nil
}

// reading runs one reading statement without a transaction.
func (s *Store) reading(ctx context.Context, f func(tx *Tx) error) error {
	if tx := s.around(ctx); tx != nil {
		return f(tx)
	}
	return s.attempt(ctx, func(ctx context.Context) error { return f(&Tx{db: s.reader.WithContext(ctx), store: s}) })
}

// writing runs one writing statement, which is a transaction by itself.
func (s *Store) writing(ctx context.Context, f func(tx *Tx) error) error {
	if tx := s.around(ctx); tx != nil {
		return f(tx)
	}
	return s.attempt(ctx, func(ctx context.Context) error {
		done, err := s.turn(ctx, s.writer)
		if err != nil {
			return err
		}
		defer done()
		return f(&Tx{db: s.writer.WithContext(ctx), store: s})
	})
}

// turn waits until it is this one's turn to write, in the order in which they came: database/sql gives SQLite's one writing connection to any of those who wait,
// so under load some would wait until their time is over while others write again and again.
func (s *Store) turn(ctx context.Context, db *gorm.DB) (done func(), err error) {
	if s.turns == nil || db != s.writer {
		return func() {}, nil
	}
	if err := s.turns.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the turn to write: %w", err)
	}
	return func() { s.turns.Release(1) }, nil
}

func (s *Store) transaction(ctx context.Context, db *gorm.DB, opts *sql.TxOptions, f func(tx *Tx) error) (err error) {
	done, err := s.turn(ctx, db)
	if err != nil {
		return err
	}
	t := db.WithContext(ctx).Begin(opts)
	if t.Error != nil {
		done()
		return fmt.Errorf("begin a transaction: %w", t.Error)
	}
	committed := false
	defer func() {
		if !committed { // f failed or panicked; the error of a rollback says nothing that the first one doesn't
			t.Rollback()
			done()
		}
	}()
	tx := &Tx{db: t, store: s}
	if err := f(tx); err != nil {
		return err
	}
	if err := t.Commit().Error; err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	committed = true
	done() // whoever hears of it may write
	s.committed(tx.changed)
	return nil
}

// gathered runs one statement on Postgres for several requests.
func (s *Store) gathered(ctx context.Context, f func(tx *Tx) error) error {
	return s.attempt(ctx, func(ctx context.Context) error {
		return s.onConnection(ctx, func(conn *pgx.Conn) error { return f(&Tx{ctx: ctx, pipe: &pipeline{conn: conn}, store: s}) })
	})
}

// attempt runs f until it succeeds, fails for good, or lost against others too often.
func (s *Store) attempt(ctx context.Context, f func(ctx context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	for n := 1; ; n++ {
		err := f(bounded)
		if err == nil {
			return nil
		}
		again := errors.Is(err, ErrAgain) || s.dialect.classify(err) == conflict
		if !again || n == maxAttempts || bounded.Err() != nil {
			return s.failure(ctx, err, again || bounded.Err() != nil)
		}
		select {
		case <-bounded.Done():
		case <-time.After(rand.N(time.Duration(n) * 10 * time.Millisecond)):
		}
	}
}

// failure decides what the caller sees of an error: refusals as they are, a caller that went away as that, a database that is
// away or overrun as CodeUnavailable.
func (s *Store) failure(ctx context.Context, err error, gaveUp bool) error {
	var refusal *models.Error
	switch {
	case errors.As(err, &refusal):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("the caller went away: %w", errors.Join(ctx.Err(), err))
	case gaveUp, errors.Is(err, context.DeadlineExceeded), s.dialect.classify(err) == away:
		return models.Errorf(models.CodeUnavailable, "The database can't be reached or is overloaded. Try again in a few seconds.").
			With("retryAfter", retryAfter).Because(err)
	}
	return err
}

// gormConfig: hand SQL in explicit transactions, errors classified by the dialect, statements cached by the driver and not by
// gorm, which would prepare each anew in every transaction.
func gormConfig() *gorm.Config {
	return &gorm.Config{
		Logger:                 logger.Discard,
		SkipDefaultTransaction: true,
		PrepareStmt:            false,
		DisableAutomaticPing:   true,
	}
}
