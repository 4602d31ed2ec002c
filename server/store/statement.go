package store

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
)

// A statement's text is the same for both databases but for these marks:
//
//	{now}            the clock, in milliseconds since 1970
//	{among bigints}  after a column: one of the values of a parameter made by ids or numbers
//	{among texts}
func (tx *Tx) text(t string) string {
	known := tx.store.dialect.statement(t)
	if tx.store.opts.OnStatement != nil {
		tx.store.opts.OnStatement(known.text)
	}
	if tx.pipe != nil {
		return known.numbered
	}
	return known.text
}

// statement is a text as its database takes it.
type statement struct {
	text     string
	numbered string // the same with parameters as Postgres names them
}

// longText is too long to be remembered: there may be such a text for every number of rows.
const longText = 8 << 10

// statement reads the marks of a text, once for each.
func (d *dialect) statement(t string) statement {
	if known, ok := d.statements.Load(t); ok {
		return known.(statement) //nolint:forcetypeassert // nothing else is stored
	}
	s := statement{text: strings.NewReplacer("{now}", d.now, "{among bigints}", d.oneOf("bigint"), "{among texts}", d.oneOf("text")).Replace(t)}
	s.numbered = numbered(s.text)
	if len(t) < longText {
		d.statements.Store(t, s)
	}
	return s
}

// exec runs a statement and counts the rows it changed.
func (tx *Tx) exec(text string, args ...any) (int64, error) {
	if tx.pipe != nil {
		return tx.pipe.exec(tx.ctx, tx.text(text), args)
	}
	r := tx.db.Exec(tx.text(text), args...)
	return r.RowsAffected, r.Error
}

// later runs a statement whose answer the caller doesn't need before the next statement or the commit, whichever comes first: its error
// may come from there. Its row goes to scan, which may be nil.
func (tx *Tx) later(scan func(row) error, text string, args ...any) error {
	if tx.pipe != nil {
		tx.pipe.later(scan, tx.text(text), args)
		return nil
	}
	if scan == nil {
		_, err := tx.exec(text, args...)
		return err
	}
	_, err := list(tx, func(r row) (struct{}, error) { return struct{}{}, scan(r) }, text, args...)
	return err
}

// row is what a scan function reads from.
type row interface{ Scan(dest ...any) error }

// list runs a statement and scans all its rows.
func list[T any](tx *Tx, scan func(row) (T, error), text string, args ...any) ([]T, error) {
	if tx.pipe != nil {
		var all []T
		err := tx.pipe.query(tx.ctx, func(r row) error {
			v, err := scan(r)
			all = append(all, v)
			return err
		}, tx.text(text), args)
		return all, err
	}
	rows, err := tx.db.Raw(tx.text(text), args...).Rows()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what matters is rows.Err
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("read a row: %w", err)
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// one runs a statement that gives at most one row, and tells whether it did. It reads to the end, because SQLite commits a single
// statement only then.
func one[T any](tx *Tx, scan func(row) (T, error), text string, args ...any) (T, bool, error) {
	all, err := list(tx, scan, text, args...)
	if err != nil || len(all) == 0 {
		var none T
		return none, false, err
	}
	return all[0], true, nil
}

// scanInto scans a row of one column.
func scanInto[T any](r row) (T, error) {
	var v T
	err := r.Scan(&v)
	return v, err
}

// ids makes the parameter of {among bigints}.
func (tx *Tx) ids(ids []models.ID) string {
	all := make([]string, len(ids))
	for i, id := range ids {
		all[i] = id.String()
	}
	return tx.store.dialect.list(all)
}

// numbers makes the parameter of {among bigints} of any numbers.
func (tx *Tx) numbers(values []int64) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = strconv.FormatInt(v, 10)
	}
	return tx.store.dialect.list(all)
}

// texts makes the parameter of {among texts}. The values are our own identifiers, which need no quoting.
func texts[T ~string](tx *Tx, values []T) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = string(v)
	}
	return tx.store.dialect.list(all)
}

// tuples repeats the parameters of one row of a VALUES list.
func tuples(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+", ", n), ", ") }

// addrColumn, prefixColumn and timeColumn scan a text or a number into what it means; empty and 0 are the zero value.
type (
	addrColumn   struct{ to *netip.Addr }
	prefixColumn struct{ to *netip.Prefix }
	timeColumn   struct{ to *time.Time }
	secsColumn   struct{ to *time.Duration }

	tunnelKeyColumn struct{ to *models.TunnelKey }
)

func (c tunnelKeyColumn) Scan(src any) error {
	var s sql.NullString
	if err := s.Scan(src); err != nil || s.String == "" {
		return err
	}
	return c.to.UnmarshalText([]byte(s.String))
}

func (c addrColumn) Scan(src any) error {
	var s sql.NullString
	if err := s.Scan(src); err != nil || s.String == "" {
		return err
	}
	a, err := netip.ParseAddr(s.String)
	*c.to = a
	return err
}

func (c prefixColumn) Scan(src any) error {
	var s sql.NullString
	if err := s.Scan(src); err != nil || s.String == "" {
		return err
	}
	p, err := netip.ParsePrefix(s.String)
	*c.to = p
	return err
}

func (c timeColumn) Scan(src any) error {
	var ms sql.NullInt64
	if err := ms.Scan(src); err != nil || ms.Int64 == 0 {
		return err
	}
	*c.to = time.UnixMilli(ms.Int64).UTC()
	return nil
}

func (c secsColumn) Scan(src any) error {
	var s sql.NullInt64
	err := s.Scan(src)
	*c.to = time.Duration(s.Int64) * time.Second
	return err
}

// addrText is the canonical text of an address, empty for the zero one.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// orNull makes NULL of a zero value.
func orNull[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

// timeArg is a time in milliseconds, 0 for the zero one.
func timeArg(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// scanTime scans a row of one time.
func scanTime(r row) (t time.Time, err error) { err = r.Scan(timeColumn{&t}); return t, err }

// blob is a parameter of bytes. Right after a parenthesis the query builder would take a []byte for a list.
type blob []byte

// Value implements driver.Valuer.
func (b blob) Value() (driver.Value, error) { return []byte(b), nil }

// columns are rows of parameters turned into one array for each column, which is how Postgres takes them: a statement has one text then,
// whatever their number.
type columns struct {
	texts   [][]string
	numbers [][]int64
	isText  []bool
	rows    int
	at      int
}

func newColumns(rows int) *columns { return &columns{rows: rows} }

// add appends values to the row; each is a string or an int64, and of the same type in every row.
func (c *columns) add(values ...any) {
	for _, v := range values {
		text, isText := v.(string)
		if c.at == len(c.isText) {
			c.isText = append(c.isText, isText)
			c.texts = append(c.texts, make([]string, 0, c.rows))
			c.numbers = append(c.numbers, make([]int64, 0, c.rows))
		}
		if isText {
			c.texts[c.at] = append(c.texts[c.at], text)
		} else {
			c.numbers[c.at] = append(c.numbers[c.at], v.(int64)) //nolint:forcetypeassert // a mistake of ours, which every test would find
		}
		c.at++
	}
}

// end ends the row.
func (c *columns) end() { c.at = 0 }

// casts are the parameters as unnest takes them.
func (c *columns) casts() string {
	all := make([]string, len(c.isText))
	for i, isText := range c.isText {
		if all[i] = arrayOf("bigint"); isText {
			all[i] = arrayOf("text")
		}
	}
	return strings.Join(all, ", ")
}

// table is a query that gives the rows, for WITH, and its parameters. SQLite has no arrays; on Postgres the statement has to be run by a
// pipeline, because gorm takes arrays apart.
func (c *columns) table(d *dialect) (text string, args []any) {
	if d != sqliteDialect {
		return "SELECT * FROM unnest(" + c.casts() + ")", c.parameters()
	}
	for row := range c.rows {
		for i, isText := range c.isText {
			if isText {
				args = append(args, c.texts[i][row])
			} else {
				args = append(args, c.numbers[i][row])
			}
		}
	}
	return "VALUES " + tuples("("+tuples("?", len(c.isText))+")", c.rows), args
}

func (c *columns) parameters() []any {
	all := make([]any, len(c.isText))
	for i, isText := range c.isText {
		if all[i] = c.numbers[i]; isText {
			all[i] = c.texts[i]
		}
	}
	return all
}
