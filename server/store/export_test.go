package store

import (
	"context"
	"testing"
)

// Pragma reads one of SQLite's settings of the connection that writes.
func (tx *Tx) Pragma(name string) (string, error) {
	value, _, err := one(tx, scanInto[string], "PRAGMA "+name)
	return value, err
}

// CloseIdle closes the connections that nobody uses now, as an idle time would.
func (s *Store) CloseIdle() {
	for _, p := range s.pools {
		p.SetMaxIdleConns(0)
		p.SetMaxIdleConns(s.opts.MaxConns)
	}
}

// TakeConnection takes a connection out of the pool until the function it returns is called.
func (s *Store) TakeConnection(t testing.TB) (release func()) {
	t.Helper()
	c, err := s.pools[0].Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = c.Close() }
}

// Renewing counts the renewals that are not answered yet, and Reading the reads of callers.
func (s *Store) Renewing() int { return s.renewals.open() }

// Reading: see Renewing.
func (s *Store) Reading() int { return s.devices.open() }

func (g *gather[Q, A]) open() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) + g.asked
}

// Prepared is a statement that the only connection of the pool keeps, with how often Postgres planned it for its parameters.
type Prepared struct {
	Text                   string
	CustomPlans, OtherRuns int64
}

// Prepared reads what Postgres says of the prepared statements of a pool with one connection.
func (s *Store) Prepared(t testing.TB) (all []Prepared) {
	t.Helper()
	rows, err := s.pools[0].QueryContext(context.Background(), "SELECT statement, custom_plans, generic_plans FROM pg_prepared_statements")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var p Prepared
		if err := rows.Scan(&p.Text, &p.CustomPlans, &p.OtherRuns); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return all
}
