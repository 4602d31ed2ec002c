package table

import (
	"errors"
	"fmt"
	"iter"

	"github.com/hashicorp/go-memdb"

	"github.com/groupcast/groupcast/models"
)

// DB holds the last group information in memory, exactly as the server said it. Readers see one state of it as long as they
// like, whatever is written meanwhile.
type DB struct{ db *memdb.MemDB }

// The rows. They are never changed once they are in a table: memdb hands the same ones to every reader.
type (
	origin struct {
		Gateway  string
		Epoch    string
		Revision int64
	}
	source struct {
		GroupID models.GroupID
		models.GatewaySource
	}
	destination struct {
		GroupID models.GroupID
		models.GatewayDestination
	}
)

const (
	tableOrigin       = "origin"
	tableGroups       = "groups"
	tableSources      = "sources"
	tableDestinations = "destinations"

	byID    = "id"
	byIP    = "ip"
	byGroup = "group"
)

func schema() *memdb.DBSchema {
	index := func(name, field string, unique bool) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, Unique: unique, Indexer: &memdb.StringFieldIndex{Field: field}}
	}
	table := func(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, i := range indexes {
			t.Indexes[i.Name] = i
		}
		return t
	}
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range []*memdb.TableSchema{
		table(tableOrigin, index(byID, "Gateway", true)),
		table(tableGroups, index(byID, "ID", true), &memdb.IndexSchema{Name: byIP, Unique: true, Indexer: ipIndex{}}),
		table(tableSources, index(byID, "RegistrationID", true), index(byGroup, "GroupID", false)),
		table(tableDestinations, index(byID, "RegistrationID", true), index(byGroup, "GroupID", false)),
	} {
		s.Tables[t.Name] = t
	}
	return s
}

// ipIndex orders groups by premises, which at a gateway is one, by whose tunnel they come through, and by group IP, as numbers.
type ipIndex struct{}

func (ipIndex) FromObject(o any) (bool, []byte, error) {
	g, ok := o.(*models.Group)
	if !ok {
		return false, nil, fmt.Errorf("%T is not a group", o)
	}
	ip := g.IP.As16()
	key := string(g.PremisesID) + "\x00" + g.GatewayID.String() + "\x00"
	return true, append([]byte(key), ip[:]...), nil
}

func (ipIndex) FromArgs(...any) ([]byte, error) {
	return nil, errors.New("groups are listed by this index and not looked up")
}

// Open makes an empty table.
func Open() (*DB, error) {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, fmt.Errorf("table: %w", err)
	}
	return &DB{db}, nil
}

// Replace makes the table hold the group information and nothing else, in one step. Check has to have passed it: unique
// indexes here find rows, they don't refuse second ones.
func (d *DB) Replace(info models.GroupInformation) error {
	origins := map[origin]bool{{info.GatewayID.String(), info.Epoch, info.Revision}: true}
	groups, sources, destinations := map[models.Group]bool{}, map[source]bool{}, map[destination]bool{}
	for _, g := range info.Groups {
		groups[g.Group] = true
		for _, s := range g.Sources {
			sources[source{g.ID, s}] = true
		}
		for _, d := range g.Destinations {
			destinations[destination{g.ID, d}] = true
		}
	}
	txn := d.db.Txn(true)
	defer txn.Abort() // does nothing after Commit
	for _, err := range []error{
		replace(txn, tableOrigin, origins), replace(txn, tableGroups, groups),
		replace(txn, tableSources, sources), replace(txn, tableDestinations, destinations),
	} {
		if err != nil {
			return fmt.Errorf("table: %w", err)
		}
	}
	txn.Commit()
	return nil
}

// replace leaves rows alone that stay as they are: most changes are about one member.
func replace[R comparable](txn *memdb.Txn, table string, wanted map[R]bool) error {
	var obsolete []*R
	it, err := txn.Get(table, byID)
	if err != nil {
		return err
	}
	for o := it.Next(); o != nil; o = it.Next() {
		row := o.(*R)
		if !wanted[*row] {
			obsolete = append(obsolete, row)
		}
		delete(wanted, *row)
	}
	for _, row := range obsolete {
		if err := txn.Delete(table, row); err != nil {
			return err
		}
	}
	for row := range wanted {
		if err := txn.Insert(table, &row); err != nil {
			return err
		}
	}
	return nil
}

// View is one consistent reading of the table.
type View struct{ txn *memdb.Txn }

// Read gives the table as it is now.
func (d *DB) Read() View { return View{d.db.Txn(false)} }

// version is the cursor of what the table holds, "" if it holds nothing.
func (v View) version() (string, error) {
	for o, err := range rows[*origin](v, tableOrigin, byID) {
		if err != nil {
			return "", err
		}
		return Version(o.Epoch, o.Revision), nil
	}
	return "", nil
}

// rows lists the rows of a table that an index finds, in the order of that index. They are to be read only.
func rows[T any](v View, table, index string, args ...any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		it, err := v.txn.Get(table, index, args...)
		if err != nil {
			yield(none, fmt.Errorf("table: %w", err))
			return
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if !yield(o.(T), nil) {
				return
			}
		}
	}
}
