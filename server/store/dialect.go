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
	// consent makes the JSON of how the consent of the registration that an expression names stands, with what its senders follow from: see
	// consentPayload. It is empty for a source.
	consent func(registration string) string
	// share ends a SELECT whose rows nobody may change until commit.
	share string
	// How transactions begin.
	writing, reading *sql.TxOptions
	// classify tells what kind of failure an error of the driver is.
	classify func(err error) failureKind
	// statements remembers the texts that were read, each as a statement; they are as many as the program has.
	statements sync.Map
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
	oneOf: func(of string) string { return "= ANY (CAST(" + arrayOf(of) + " AS " + of + "[]))" },
	list: func(v []string) string {
		if len(v) == 0 {
			return "{}"
		}
		return `{"` + strings.Join(v, `","`) + `"}` // quoted, or an empty text would be no element
	},
	groupState: func(g, more string) string {
		return groupState(g, more, "json_build_object", "coalesce(json_agg(", "), '[]')")
	},
	consent:  func(r string) string { return consent(r, "json_build_object", "coalesce(json_agg(", "), '[]')") },
	share:    " FOR SHARE",
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
	consent:  func(r string) string { return consent(r, "json_object", "json_group_array(", ")") },
	classify: classifySQLite,
}

// arrayOf is a parameter that is an array. It stands behind a SELECT, where the planner doesn't see how long the array is: if it did, it would
// take each length for a case of its own and plan the statement anew every time, which takes longer than most statements do (docs/adr/0038).
func arrayOf(of string) string { return "(SELECT CAST(? AS " + of + "[]))" }

// groupState needs the functions that make an object, and what stands before and after the elements of an array.
func groupState(alias, more, object, array, end string) string {
	return object + "('name', " + alias + ".name, 'ip', " + alias + ".ip, 'generation', " + alias + ".generation, " + more + ", 'members', (SELECT " + array +
		object + "('type', m.member_type, 'id', CAST(m.member_id AS text), 'role', m.role, 'name', m.name, 'consent', " + consentState("m") +
		") ORDER BY m.role DESC, m.number" + end + " FROM registrations m WHERE m.group_id = " + alias + ".id), 'uplink', " +
		"(SELECT w.uplink FROM gateways w WHERE w.id = " + alias + ".gateway_id), 'senders', (SELECT " + array + object + "(" + senderObject +
		") ORDER BY sm.number, sn.relay_id" + end + senderRows + alias + ".id))"
}

// What an object of sendersPayload is made of, and where its rows are of the group that follows.
const (
	senderObject = "'id', CAST(sm.member_id AS text), 'relay', CAST(sn.relay_id AS text), 'at', sn.address, 'port', sn.port, 'mapped', sn.mapped_ipv4, 'mappedPort', sn.mapped_port, 'ipv6', sn.ipv6, 'portIPv6', sn.port_ipv6"
	senderRows   = " FROM senders sn JOIN registrations sm ON sm.id = sn.registration_id WHERE sm.group_id = "
)

// consentState is how the consent of the registration under an alias stands with the node that copies: the worst of its senders, which is the last in the
// order of the alphabet; empty for a source.
func consentState(alias string) string {
	return "CASE " + alias + ".consent_policy WHEN '' THEN '' WHEN 'exempt' THEN 'exempt' ELSE coalesce((SELECT max(cs.state) FROM consents cs WHERE cs.registration_id = " +
		alias + ".id AND cs.counts), 'pending') END"
}

// consent needs the same functions as groupState.
func consent(registration, object, array, end string) string {
	return "coalesce((SELECT CAST(" + object + "('policy', cr.consent_policy, 'state', " + consentState("cr") + `,
		'lan', cw.lan_prefix, 'lanAddr', cw.lan_addr, 'uplink', cw.uplink, 'first', cw.range_first, 'last', cw.range_last,
		'senders', (SELECT ` + array + object + "(" + senderObject + `, 'state', coalesce(cc.state, 'pending'), 'learned', coalesce(cc.address, ''),
			'learnedPort', coalesce(cc.port, 0)) ORDER BY sm.number, sn.relay_id` + end + `
			FROM senders sn JOIN registrations sm ON sm.id = sn.registration_id
			LEFT JOIN consents cc ON cc.sender_id = sm.id AND cc.registration_id = cr.id AND cc.relay_id = sn.relay_id WHERE sm.group_id = cr.group_id)) AS text)
		FROM registrations cr JOIN groups cg ON cg.id = cr.group_id JOIN gateways cw ON cw.id = cg.gateway_id
		WHERE cr.id = ` + registration + ` AND cr.consent_policy <> ''), '')`
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
