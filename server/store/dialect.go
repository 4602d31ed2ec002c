package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mattn/go-sqlite3"
)

// dialect is all that differs between the two databases once they are open.
type dialect struct {
	name string
	// now is the clock in milliseconds since 1970 (SPEC §5): the database's, plus an offset that only tests set. Within a
	// statement it stands still, so that an index can be searched by it.
	now string
	// oneOf follows a column and takes all the values of a list as one parameter, so that a statement has one text whatever the
	// list's length; of is the type of the column. list makes that parameter.
	oneOf func(of string) string
	list  func(values []string) string
	// groupState makes the JSON of a group's row under an alias, as an event holds it, with one more member: see groupPayload.
	groupState func(alias, more string) string
	// How transactions begin.
	writing, reading *sql.TxOptions
	// classify tells what kind of failure an error of the driver is.
	classify func(err error) failureKind
	// written are the statements by their texts, see text.
	written sync.Map
}

type failureKind int

const (
	unknown   failureKind = iota
	conflict              // another transaction was in the way: the same again may succeed
	away                  // the database can't be reached, or has no room for us
	duplicate             // a row with this key exists
	reference             // the row refers to one that doesn't exist, or is still referred to
	noTable               // the schema isn't there
)

const clockOffset = " + (SELECT clock_offset_ms FROM installation))"

var postgresDialect = &dialect{
	name:  "postgres",
	now:   "(CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)" + clockOffset,
	oneOf: func(of string) string { return "= ANY (CAST(? AS " + of + "[]))" },
	list: func(v []string) string {
		if len(v) == 0 {
			return "{}"
		}
		return `{"` + strings.Join(v, `","`) + `"}` // quoted, or an empty text would be no element
	},
	groupState: func(g, more string) string {
		return groupState(g, more, "json_build_object", "coalesce(json_agg(", "), '[]')")
	},
	writing:  &sql.TxOptions{Isolation: sql.LevelReadCommitted},
	reading:  &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
	classify: classifyPostgres,
}

var sqliteDialect = &dialect{
	name:  "sqlite",
	now:   "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS integer)" + clockOffset,
	oneOf: func(string) string { return "IN (SELECT value FROM json_each(?))" },
	list:  func(v []string) string { return `["` + strings.Join(v, `","`) + `"]` },
	groupState: func(g, more string) string {
		return groupState(g, more, "json_object", "json_group_array(", ")")
	},
	classify: classifySQLite,
}

// groupState needs the functions that make an object, and what stands before and after the elements of an array.
func groupState(alias, more, object, array, end string) string {
	return object + "('name', " + alias + ".name, 'ip', " + alias + ".ip, 'generation', " + alias + ".generation, " + more + ", 'members', (SELECT " + array +
		object + "('type', m.member_type, 'id', CAST(m.member_id AS text), 'role', m.role, 'name', m.name) ORDER BY m.role DESC, m.number" +
		end + " FROM registrations m WHERE m.group_id = " + alias + ".id))"
}

func classifyPostgres(err error) failureKind {
	// Whoever can't connect has no database, whatever the reason that the server gives.
	if connect := (*pgconn.ConnectError)(nil); errors.As(err, &connect) {
		return away
	}
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		switch pg.Code {
		case "40001", "40P01", "55P03": // no serial order, a deadlock, a lock that is taken
			return conflict
		case "23505":
			return duplicate
		case "23503":
			return reference
		case "42P01":
			return noTable
		case "25006", "57014": // a standby after a failover; a statement that ran into our time limit
			return away
		}
		switch pg.Code[:2] {
		case "08", "53", "57", "58": // connection, resources, operator's intervention, the system below
			return away
		}
		return unknown
	}
	var network net.Error
	switch {
	case errors.As(err, &network), errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), pgconn.Timeout(err),
		pgconn.SafeToRetry(err): // such as a connection that died between its check and its use
		return away
	}
	return unknown
}

func classifySQLite(err error) failureKind {
	var lite sqlite3.Error
	if !errors.As(err, &lite) {
		return unknown
	}
	switch lite.ExtendedCode {
	case sqlite3.ErrConstraintUnique, sqlite3.ErrConstraintPrimaryKey, sqlite3.ErrConstraintRowID:
		return duplicate
	case sqlite3.ErrConstraintForeignKey:
		return reference
	}
	switch lite.Code {
	case sqlite3.ErrError:
		if strings.HasPrefix(lite.Error(), "no such table") {
			return noTable
		}
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return conflict
	case sqlite3.ErrFull, sqlite3.ErrIoErr, sqlite3.ErrCantOpen, sqlite3.ErrReadonly, sqlite3.ErrNomem, sqlite3.ErrInterrupt:
		return away
	}
	return unknown
}

// IsDuplicate tells whether a row with this key exists.
func (s *Store) IsDuplicate(err error) bool {
	return err != nil && s.dialect.classify(err) == duplicate
}

// IsReference tells whether a row refers to one that doesn't exist, or is still referred to.
func (s *Store) IsReference(err error) bool {
	return err != nil && s.dialect.classify(err) == reference
}
