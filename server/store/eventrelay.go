package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// relayed runs one statement of what publishes. On Postgres it has connections of its own, so requests that wait for one don't hold events up; and
// their commits don't wait for the disk, as a mark that is lost does no harm. SQLite has the one that it is given.
func (s *Store) relayed(ctx context.Context, lite *gorm.DB, f func(tx *Tx) error) error {
	db := s.relay
	if db == nil {
		db = lite
	}
	return s.attempt(ctx, func(ctx context.Context) error { return f(&Tx{db: db.WithContext(ctx), store: s}) })
}

// openRelay opens those: one to read and one to mark.
func (s *Store) openRelay() (*gorm.DB, error) {
	pool, err := s.postgresPoolWith(s.opts.Timeout, map[string]string{"synchronous_commit": "off"})
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(2)
	s.pools = append(s.pools, pool)
	return s.gormOn(pool)
}

// WaitingEvent is an event that the queue hasn't acknowledged, with the links whose services hear it: of a link only by what names it.
type WaitingEvent struct {
	StoredEvent
	Hearers []models.Link
}

// UnpublishedEvents reads up to limit events that the queue has not acknowledged, but for those that the caller knows it has. Those of one stream
// come in its order. Who hears them is as of the same instant: an event that comes after the end of a link never names it.
func (s *Store) UnpublishedEvents(ctx context.Context, limit int, but []int64) (all []WaitingEvent, err error) {
	err = s.relayed(ctx, s.reader, func(tx *Tx) error {
		all, err = list(tx, func(r row) (e WaitingEvent, err error) {
			e.StoredEvent, err = scanEvent(scanAlso{r, []any{hearersColumn{&e.Hearers}}})
			return e, err
		}, "SELECT "+eventColumns+`, (SELECT string_agg(l.service_id || ' ' || CAST(l.service_account_id AS text), ' ') FROM service_links l
				WHERE l.account_id = e.account_id AND `+linkHears+`)
			FROM events e WHERE e.published_at = 0 AND NOT e.id {among bigints} ORDER BY e.id LIMIT ?`, tx.numbers(but), limit)
		return err
	})
	return all, err
}

// hearersColumn scans names of links: each a service's id and a service account id.
type hearersColumn struct{ to *[]models.Link }

func (c hearersColumn) Scan(src any) error {
	var words []string
	if err := (wordsColumn{&words}).Scan(src); err != nil {
		return err
	}
	for pair := range slices.Chunk(words, 2) {
		id, err := models.ParseID(pair[len(pair)-1])
		if err != nil {
			return err
		}
		*c.to = append(*c.to, models.Link{ServiceID: models.ServiceID(pair[0]), ServiceAccountID: id})
	}
	return nil
}

// MarkPublished records that the queue has events, by their ids. A crash may undo it; then they are published again.
func (s *Store) MarkPublished(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.relayed(ctx, s.writer, func(tx *Tx) error {
		_, err := tx.exec("UPDATE events SET published_at = {now} WHERE id {among bigints}", tx.numbers(ids))
		return err
	})
}

// HeardGroups gives those of the groups whose newest event the service of a link hears now.
func (s *Store) HeardGroups(ctx context.Context, of models.Link, groups []models.GroupID) (heard []models.GroupID, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		heard, err = list(tx, scanInto[models.GroupID], `
			SELECT e.group_id FROM service_links l JOIN events e ON e.account_id = l.account_id WHERE l.service_id = ? AND l.service_account_id = ?
			AND e.group_id {among texts} AND e.rev = (SELECT max(n.rev) FROM events n WHERE n.account_id = e.account_id AND n.group_id = e.group_id)
			AND `+linkHears, string(of.ServiceID), int64(of.ServiceAccountID), texts(tx, groups))
		return err
	})
	return heard, err
}
