package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"

	"github.com/groupcast/groupcast/models"
)

const (
	// relayLock is the advisory lock of the one replica that publishes events.
	relayLock = 0x67636576 // gcev
	// eventsChannel is what replicas notify it on.
	eventsChannel = "groupcast_events"
	// leadEvery is how often a replica asks whether it may publish.
	leadEvery = 500 * time.Millisecond
)

// Leadership is the right to publish events, which one replica has at a time. On Postgres it is a lock that a connection holds, and ends with
// it; then another replica may hold it before this one has noticed.
type Leadership struct {
	// Woken gets something when another replica recorded events.
	Woken <-chan struct{}
	// Lost is closed when the leadership has ended.
	Lost <-chan struct{}
	end  func()
}

// Close gives the leadership up.
func (l *Leadership) Close() { l.end() }

// LeadEvents waits until this process may publish events. On SQLite it may at once.
func (s *Store) LeadEvents(ctx context.Context) (*Leadership, error) {
	if s.dialect == sqliteDialect {
		return &Leadership{end: func() {}}, nil
	}
	c, err := pgx.Connect(ctx, s.opts.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("connect for the events' lock: %w", err)
	}
	l, err := lead(ctx, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the events' lock: %w", err), c.Close(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func lead(ctx context.Context, c *pgx.Conn) (*Leadership, error) {
	for leads := false; !leads; {
		if err := c.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", relayLock).Scan(&leads); err != nil {
			return nil, err
		}
		if !leads {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(leadEvery):
			}
		}
	}
	if _, err := c.Exec(ctx, "LISTEN "+eventsChannel); err != nil {
		return nil, err
	}
	listening, stop := context.WithCancel(ctx)
	woken, lost := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(lost)
		for {
			if _, err := c.WaitForNotification(listening); err != nil {
				_ = c.Close(context.WithoutCancel(ctx)) // which gives the lock back
				return
			}
			select {
			case woken <- struct{}{}:
			default:
			}
		}
	}()
	return &Leadership{Woken: woken, Lost: lost, end: func() { stop(); <-lost }}, nil
}

// NotifyEvents wakes the replica that publishes. It is never a part of a transaction: there it would make all commits wait for each other.
func (s *Store) NotifyEvents(ctx context.Context) error {
	if s.dialect == sqliteDialect {
		return nil
	}
	return s.reading(ctx, func(tx *Tx) error {
		_, err := tx.exec("SELECT pg_notify('" + eventsChannel + "', '')")
		return err
	})
}

// LinksOf reads the links of several accounts as of now.
func (s *Store) LinksOf(ctx context.Context, accounts []models.AccountID) (all []models.Link, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = tx.LinksOf(accounts)
		return err
	})
	return all, err
}

// PublishTo records which stream of the queue events are published to. If it is another one than before, that has none of the events that are
// still here: they count as unpublished again.
func (s *Store) PublishTo(ctx context.Context, stream string) (again int64, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		again = 0
		n, err := tx.exec("UPDATE installation SET event_queue = ? WHERE event_queue <> ?", stream, stream)
		if err != nil || n == 0 {
			return err
		}
		again, err = tx.exec("UPDATE events SET published_at = 0 WHERE published_at <> 0")
		return err
	})
	return again, err
}

// marking runs a statement whose loss does no harm: on Postgres the commit doesn't wait for the disk.
func (s *Store) marking(ctx context.Context, f func(tx *Tx) error) error {
	if s.dialect == sqliteDialect {
		return s.writing(ctx, f)
	}
	return s.attempt(ctx, func(ctx context.Context) error {
		return f(&Tx{db: s.marks.WithContext(ctx), store: s})
	})
}

// openMarks opens the small pool for that.
func (s *Store) openMarks() (*gorm.DB, error) {
	pool, err := s.postgresPoolWith(s.opts.Timeout, map[string]string{"synchronous_commit": "off"})
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(2)
	s.pools = append(s.pools, pool)
	return s.gormOn(pool)
}
