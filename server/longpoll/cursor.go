package longpoll

import (
	"strconv"
	"strings"
)

// Cursor names one state of a gateway's group information (SPEC §6): the life of the database, and the gateway's revision in it.
type Cursor struct {
	Epoch    string
	Revision int64
}

// String gives epoch.revision, the form of the contract.
func (c Cursor) String() string { return c.Epoch + "." + strconv.FormatInt(c.Revision, 10) }

// ETag is the strong validator of the state: the cursor in quotes (RFC 9110 §8.8.3).
func (c Cursor) ETag() string { return `"` + c.String() + `"` }

// ParseCursor reads what String wrote; false for anything else.
func ParseCursor(s string) (Cursor, bool) {
	epoch, revision, ok := strings.Cut(s, ".")
	n, err := strconv.ParseInt(revision, 10, 64)
	c := Cursor{Epoch: epoch, Revision: n}
	if !ok || err != nil || epoch == "" || n < 1 || c.String() != s {
		return Cursor{}, false
	}
	return c, true
}
