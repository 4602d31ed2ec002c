// Package secrets draws what somebody is given once to show later: a session, a ticket, an invitation, a code, a refresh token, a client's
// secret. It also makes what is stored in its place. It never keeps anything, and passwords, which people choose, are not for it.
package secrets

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// New draws 256 random bits, as 43 characters that may stand in a URL.
func New() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Hash is what is stored and looked up. One round without salt is enough: nobody guesses 256 bits.
func Hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}
