package store

import (
	"context"
	"time"
)

// Epoch names this life of the database; it changes when a backup is restored (SPEC §6).
func (s *Store) Epoch(ctx context.Context) (epoch string, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		epoch, _, err = one(tx, scanInto[string], "SELECT epoch FROM installation")
		return err
	})
	return epoch, err
}

// Now is the time that everything in the database goes by.
func (s *Store) Now(ctx context.Context) (time.Time, error) { return s.time(ctx, "SELECT {now}") }

// Clock is the database's clock as it is outside of it, too: without the offset by which tests move the time inside.
func (s *Store) Clock(ctx context.Context) (time.Time, error) { return s.time(ctx, "SELECT {clock}") }

func (s *Store) time(ctx context.Context, query string) (at time.Time, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		at, _, err = one(tx, scanTime, query)
		return err
	})
	return at, err
}

// Watch is how far the replicas are with ending leases.
type Watch struct {
	Now time.Time
	// RanAt is when a replica last said that leases are being looked at; zero if none ever did.
	RanAt time.Time
	// Amnesty is how much every lease is being extended by; 0 if none is. AmnestyAfter is the last registration that was.
	Amnesty      time.Duration
	AmnestyAfter string
	// MaxStale is how long a gateway may copy without hearing from the service; for a while after a change the longer of two settings.
	MaxStale time.Duration
}

const watchColumns = "{now}, expiry_ran_at, amnesty_ms, amnesty_after, " + maxStaleInForce

func scanWatch(r row) (w Watch, err error) {
	var ms int64
	err = r.Scan(timeColumn{&w.Now}, timeColumn{&w.RanAt}, &ms, &w.AmnestyAfter, secsColumn{&w.MaxStale})
	w.Amnesty = time.Duration(ms) * time.Millisecond
	return w, err
}

// Watch reads how far the replicas are with ending leases.
func (s *Store) Watch(ctx context.Context) (w Watch, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		w, _, err = one(tx, scanWatch, "SELECT "+watchColumns+" FROM installation")
		return err
	})
	return w, err
}

// LockWatch reads the same and keeps other replicas from changing it until commit.
func (tx *Tx) LockWatch() (Watch, error) {
	w, _, err := one(tx, scanWatch, "UPDATE installation SET one = one RETURNING "+watchColumns)
	return w, err
}

// SetWatch records RanAt and the amnesty.
func (tx *Tx) SetWatch(w Watch) error {
	_, err := tx.exec("UPDATE installation SET expiry_ran_at = ?, amnesty_ms = ?, amnesty_after = ?",
		w.RanAt.UnixMilli(), w.Amnesty.Milliseconds(), w.AmnestyAfter)
	return err
}
