package models

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// ID identifies a device or, as service account id, the consent of one account for one service. It lies between 1 and
// 9223372036854775807 and is a decimal string on every wire: JavaScript's numbers lose digits above 2^53 (SPEC §4).
type ID int64

// ErrBadID is wrapped by every error of ParseID.
var ErrBadID = errors.New("not an id: give a decimal number from 1 to 9223372036854775807 without sign or leading zero")

// ParseID reads the canonical decimal form. It refuses signs, leading zeros, points, exponents and everything above int64.
func ParseID(s string) (ID, error) {
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("%q is %w", truncate(s, 24), ErrBadID)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is %w", truncate(s, 24), ErrBadID)
	}
	return ID(n), nil
}

// NewID draws a random id in [10^17, 2^63): always 18 or 19 digits, so it can't be guessed or mistaken for a counter.
func NewID() ID {
	const low = 100_000_000_000_000_000
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // crypto/rand never fails: it ends the process instead
		if n := int64(binary.BigEndian.Uint64(b[:]) >> 1); n >= low {
			return ID(n)
		}
	}
}

// String gives the decimal form.
func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

// Valid tells whether the id is in range; the zero ID is not.
func (id ID) Valid() bool { return id > 0 }

// MarshalText makes the id a string in JSON, in paths and in queries.
func (id ID) MarshalText() ([]byte, error) {
	if !id.Valid() {
		return nil, fmt.Errorf("%d is %w", int64(id), ErrBadID)
	}
	return strconv.AppendInt(nil, int64(id), 10), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) error {
	n, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = n
	return nil
}

// The identifiers below are opaque to clients: a letter that names the kind, and a time-ordered UUID (RFC 9562 version 7) in
// lower-case base32, so that new rows land at the end of their indexes.
type (
	// AccountID identifies an account, the tenant.
	AccountID string
	// PremisesID identifies a home or building of an account.
	PremisesID string
	// GroupID identifies one life of a group.
	GroupID string
	// RegistrationID identifies one member's lease in a group.
	RegistrationID string
	// ServiceID is the name that an operator gave a service, for example svc-upload.
	ServiceID string
)

var opaque = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

func newOpaque(prefix string) string {
	u := uuid.Must(uuid.NewV7()) // fails only if the system has no randomness, where nothing can go on
	return prefix + opaque.EncodeToString(u[:])
}

// NewAccountID draws a new account id.
func NewAccountID() AccountID { return AccountID(newOpaque("a_")) }

// NewPremisesID draws a new premises id.
func NewPremisesID() PremisesID { return PremisesID(newOpaque("p_")) }

// NewGroupID draws a new group id.
func NewGroupID() GroupID { return GroupID(newOpaque("g_")) }

// NewRegistrationID draws a new registration id.
func NewRegistrationID() RegistrationID { return RegistrationID(newOpaque("r_")) }

// NewCredentialID draws the id of a service's credential.
func NewCredentialID() string { return newOpaque("c_") }

// NewEpoch draws the random name of a database's life; see SPEC §6.
func NewEpoch() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
