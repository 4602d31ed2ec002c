package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// pipeline runs the statements of one transaction on Postgres. What nobody needs an answer of yet, the begin and the commit among it,
// waits for the next statement and travels with that: a round trip costs more than most statements do (docs/adr/0018). Postgres runs
// them one after the other, and nothing after one that failed, so only the moment at which an error is heard of differs.
type pipeline struct {
	conn    *pgx.Conn
	waiting pgx.Batch
	// failed is the first error; the transaction can only be rolled back after it.
	failed error
}

// rollbackTimeout bounds a rollback, whose transaction may have used up its own time.
const rollbackTimeout = 2 * time.Second

// pipelined runs f in a transaction on a connection of the pool.
func (s *Store) pipelined(ctx context.Context, f func(tx *Tx) error) error {
	var changed Changed
	err := s.onConnection(ctx, func(conn *pgx.Conn) error {
		p := &pipeline{conn: conn}
		p.waiting.Queue("BEGIN")
		tx := &Tx{ctx: ctx, pipe: p, store: s}
		if err := f(tx); err != nil {
			p.rollback(ctx)
			return err
		}
		if err := p.commit(ctx); err != nil {
			p.rollback(ctx)
			return err
		}
		changed = tx.changed
		return nil
	})
	if err == nil {
		s.committed(changed)
	}
	return err
}

// onConnection lends a connection of the pool.
func (s *Store) onConnection(ctx context.Context, f func(*pgx.Conn) error) error {
	c, err := s.pools[0].Conn(ctx)
	if err != nil {
		return fmt.Errorf("take a connection: %w", err)
	}
	defer func() { _ = c.Close() }() // gives it back
	var failed error
	err = c.Raw(func(lent any) error {
		conn, ok := lent.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("the pool's connections are %T", lent)
		}
		failed = f(conn.Conn())
		if conn.Conn().IsClosed() || conn.Conn().PgConn().TxStatus() != 'I' {
			return driver.ErrBadConn // nobody is to get it again
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	if errors.Is(err, driver.ErrBadConn) {
		return nil // what f did succeeded
	}
	return err
}

// later lets a statement wait. Its rows, if it gives any, go to scan, which is nil if nobody wants them.
func (p *pipeline) later(scan func(row) error, text string, args []any) {
	q := p.waiting.Queue(text, args...)
	if scan != nil {
		q.Query(func(rows pgx.Rows) error { return each(rows, scan) })
	}
}

// flush sends all that waits and hears what became of it.
func (p *pipeline) flush(ctx context.Context) error {
	if p.failed == nil && p.waiting.Len() > 0 {
		sent := p.waiting
		p.waiting = pgx.Batch{}
		p.failed = p.conn.SendBatch(ctx, &sent).Close()
	}
	return p.failed
}

// exec runs a statement and counts the rows it changed.
func (p *pipeline) exec(ctx context.Context, text string, args []any) (n int64, err error) {
	p.waiting.Queue(text, args...).Exec(func(tag pgconn.CommandTag) error { n = tag.RowsAffected(); return nil })
	err = p.flush(ctx)
	return n, err
}

// query runs a statement and scans its rows.
func (p *pipeline) query(ctx context.Context, scan func(row) error, text string, args []any) error {
	p.later(scan, text, args)
	return p.flush(ctx)
}

func (p *pipeline) commit(ctx context.Context) error {
	if p.failed != nil {
		return p.failed // f went on after an error
	}
	p.waiting.Queue("COMMIT")
	if err := p.flush(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// rollback ends a transaction that has begun. A connection that can't even do that isn't used again.
func (p *pipeline) rollback(ctx context.Context) {
	if p.conn.IsClosed() || p.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	_, _ = p.conn.Exec(ctx, "ROLLBACK") // the first error says more
}

func each(rows pgx.Rows, scan func(row) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("read a row: %w", err)
		}
	}
	return rows.Err()
}

// numbered writes the parameters of a statement as Postgres names them. No statement of ours has a question mark of another meaning.
func numbered(text string) string {
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(text, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}
