// Package backup makes and restores backups of SQLite, and says what has to happen to a database, either one, that was restored:
// a camera that still uses a group IP it got after the backup was made must never feed another group (SPEC §5, docs/adr/0011).
//
// It holds that rule only. How files are copied and what is written is server/store's; Postgres has tools of its own.
package backup

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store"
)

// Make copies the database in a data directory to a new file, while the service runs.
func Make(ctx context.Context, dataDir, file string) error {
	return store.BackupSQLite(ctx, dataDir, file)
}

// Options say what is restored.
type Options struct {
	DataDir string
	File    string
	// Force replaces the database that is there.
	Force bool
	// KEKFile holds the key-encryption key. It has to be the one that the keys in the backup are sealed with.
	KEKFile string
	Log     *slog.Logger
}

// Restore puts a backup in the place of the database in a data directory, which no groupcastd may be using, and makes a new life
// of it.
//
// Groups go on if the backup is younger than the cooldown: none of their addresses can have come to another group since. Else
// they end, and their members come back with their next renewals.
func Restore(ctx context.Context, o Options) error {
	return store.RestoreSQLite(ctx, store.Options{DataDir: o.DataDir, Logger: o.Log}, o.File, o.Force, func(st *store.Store) error {
		if err := keys.Check(ctx, st, o.KEKFile); err != nil {
			return fmt.Errorf("key-encryption-key-file: %w", err)
		}
		_, err := begin(ctx, st, o.Log, func(w store.Watch) bool { return fresh(w, addresspool.Cooldown(w.MaxStale)) })
		return err
	})
}

// fresh tells whether a database was in use less than d ago. Replicas record every few seconds that they look at the leases, so a
// backup says by itself when it was made, or something earlier.
func fresh(w store.Watch, d time.Duration) bool {
	age := w.Now.Sub(w.RanAt)
	return !w.RanAt.IsZero() && age >= 0 && age < d
}

// Rotator begins new lives of a database that the service is running on.
type Rotator struct {
	store *store.Store
	log   *slog.Logger
}

// NewRotator makes one.
func NewRotator(st *store.Store, log *slog.Logger) *Rotator { return &Rotator{store: st, log: log} }

// Rotate is for a database that was restored by other means, such as pg_restore. By now the service itself has recorded that it
// looks at leases, so nothing tells how old the backup was: all groups end. Every gateway hears of it within two seconds, from
// every replica.
func (r *Rotator) Rotate(ctx context.Context) (store.Life, error) {
	return begin(ctx, r.store, r.log, func(store.Watch) bool { return false })
}

func begin(ctx context.Context, st *store.Store, log *slog.Logger, keep func(store.Watch) bool) (store.Life, error) {
	life, err := st.BeginLife(ctx, keep, func(tx *store.Tx, life store.Life) error {
		return audit.Note(ctx, tx, audit.Entry{Action: audit.LifeBegin, Object: audit.OfEpoch(life.Epoch)})
	})
	if err == nil {
		log.WarnContext(ctx, "the database begins a new life: all group IPs without a group are in quarantine", "epoch", life.Epoch, "ended_groups", life.Groups)
	}
	return life, err
}
