package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mattn/go-sqlite3"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// gormOn opens gorm on a pool.
func (s *Store) gormOn(pool *sql.DB) (*gorm.DB, error) {
	if s.dialect == postgresDialect {
		return gorm.Open(postgres.New(postgres.Config{Conn: pool}), gormConfig())
	}
	return gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), gormConfig())
}

// BackupSQLite copies the database in a data directory to a new file that only its owner can read, as of one instant, while a
// groupcastd may be using it. The file appears whole or not at all.
func BackupSQLite(ctx context.Context, dataDir, to string) (err error) {
	from := filepath.Join(dataDir, sqliteFile)
	if _, err := os.Stat(from); err != nil {
		return fmt.Errorf("data-dir: there is no database to back up: %w", err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), ".groupcast-backup-")
	if err != nil {
		return fmt.Errorf("make a backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	part := filepath.Join(dir, sqliteFile)
	if err := vacuumInto(ctx, from, part); err != nil {
		return fmt.Errorf("back up %s: %w", from, err)
	}
	if err := os.Chmod(part, 0o600); err != nil {
		return fmt.Errorf("make a backup: %w", err)
	}
	if err := syncFile(part); err != nil {
		return err
	}
	// A link, unlike a rename, never replaces a file.
	if err := os.Link(part, to); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists; name a new file for the backup", to)
		}
		return fmt.Errorf("make a backup: %w", err)
	}
	return syncFile(filepath.Dir(to))
}

// vacuumInto reads in one transaction, which with a WAL hinders no writer.
func vacuumInto(ctx context.Context, from, to string) (err error) {
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: from}).EscapedPath(), RawQuery: "mode=rw&_busy_timeout=10000"}
	db, err := sql.Open(sqlite.DriverName, dsn.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", to)
	return err
}

// RestoreSQLite puts a backup in the place of the database in a data directory. It works on a copy, which it checks, brings to the
// schema of this program and hands to prepare; only then the copy becomes the database. A database that is there is replaced only
// with force, and never while a groupcastd uses it.
func RestoreSQLite(ctx context.Context, o Options, from string, force bool, prepare func(*Store) error) (err error) {
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	file := filepath.Join(o.DataDir, sqliteFile)
	place := &Store{opts: o}
	if err := place.lockFile(file + ".lock"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	switch _, err := os.Stat(file); {
	case err == nil && !force:
		return fmt.Errorf("%s exists; --force replaces it, and what it holds is lost", file)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("data-dir: %w", err)
	}
	if info, err := os.Stat(from + "-wal"); err == nil && info.Size() > 0 {
		return fmt.Errorf("%s is the file of a database in use, which is not whole without %[1]s-wal; use a file made by `groupcastd backup`", from)
	}
	dir, err := os.MkdirTemp(o.DataDir, ".restore-")
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	part := filepath.Join(dir, sqliteFile)
	if err := copyFile(from, part); err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	o.DataDir = dir
	if err := checkCopy(ctx, o, prepare); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if err := syncFile(part); err != nil {
		return err
	}
	// The old log must be gone before the new file is there, or SQLite would apply it to that.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("data-dir: %w", err)
		}
	}
	if err := os.Rename(part, file); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	return syncFile(filepath.Dir(file))
}

// checkCopy opens a copy of a backup, refuses it unless it is a sound database of ours, and prepares it.
func checkCopy(ctx context.Context, o Options, prepare func(*Store) error) (err error) {
	st, err := Open(ctx, o)
	if err != nil {
		return notABackup(err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := st.checkIntegrity(ctx); err != nil {
		return notABackup(err)
	}
	have, want, err := st.schemaVersions(ctx)
	switch {
	case err != nil:
		return notABackup(err)
	case have == 0:
		return errors.New("this is a database, but not one of groupcastd")
	case have > want:
		return fmt.Errorf("the backup has schema version %d, made by a newer groupcastd; this one knows %d: install the newer one", have, want)
	}
	if err := st.Migrate(ctx); err != nil {
		return err
	}
	if err := prepare(st); err != nil {
		return err
	}
	return st.writing(ctx, func(tx *Tx) error {
		busy, _, err := one(tx, func(r row) (busy int, err error) {
			var frames, moved int
			return busy, r.Scan(&busy, &frames, &moved)
		}, "PRAGMA wal_checkpoint(TRUNCATE)")
		if err == nil && busy != 0 {
			err = errors.New("the restored database can't be completed: something else has it open")
		}
		return err
	})
}

func notABackup(err error) error {
	var lite sqlite3.Error
	if errors.As(err, &lite) && (lite.Code == sqlite3.ErrNotADB || lite.Code == sqlite3.ErrCorrupt) {
		return fmt.Errorf("the file is damaged or no backup; use another one: %w", err)
	}
	return err
}

// checkIntegrity looks at every page, index and reference of SQLite's file.
func (s *Store) checkIntegrity(ctx context.Context) error {
	tx := &Tx{db: s.writer.WithContext(ctx), store: s} // without the usual limit of time: the file may be large
	found, err := list(tx, scanInto[string], "PRAGMA integrity_check(5)")
	if err != nil {
		return err
	}
	if !slices.Equal(found, []string{"ok"}) {
		return fmt.Errorf("the file is damaged; use another backup: %s", strings.Join(found, "; "))
	}
	dangling, err := list(tx, scanInto[string], `SELECT "table" FROM pragma_foreign_key_check LIMIT 5`)
	if err == nil && len(dangling) > 0 {
		err = fmt.Errorf("the file is damaged; use another backup: rows of %s refer to rows that are missing", strings.Join(dangling, ", "))
	}
	return err
}

// copyFile copies to a new file that only its owner can read.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// syncFile makes a file, or what a directory lists, survive a power cut.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}
