package dpop

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// nonceSlot is how long one nonce is handed out. RFC 9449 §8 wants nonces unpredictable, not single: what is used once is the jti.
// One a second also keeps the random GCM nonces of one key far below the 2^32 that NIST SP 800-38D §8.3 allows.
const nonceSlot = time.Second

// nonceContext keeps a nonce from being taken for anything else that is sealed under the same key.
var nonceContext = []byte("groupcast dpop nonce")

// Nonces makes and reads the server's nonces: the time, sealed with AES-GCM, so that no replica keeps any state. It is safe for
// concurrent use.
type Nonces struct {
	aead cipher.AEAD
	now  func() time.Time

	mu     sync.Mutex
	latest string
	made   time.Time
}

// NewNonces takes a key of 32 bytes that all replicas share. now is the clock that nonces carry.
func NewNonces(key []byte, now func() time.Time) (*Nonces, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("the key for DPoP nonces has %d bytes: it needs 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key for DPoP nonces: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key for DPoP nonces: %w", err)
	}
	return &Nonces{aead: aead, now: now}, nil
}

// Current gives the nonce for the DPoP-Nonce header.
func (n *Nonces) Current() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	if age := now.Sub(n.made); n.latest == "" || age < 0 || age >= nonceSlot {
		plain := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
		n.latest = base64.RawURLEncoding.EncodeToString(n.aead.Seal(nil, nil, plain, nonceContext))
		n.made = now
	}
	return n.latest
}

// MadeAt tells when a nonce was made, with a precision of a millisecond; false if it is not one of ours.
func (n *Nonces) MadeAt(nonce string) (time.Time, bool) {
	sealed, err := decode(nonce)
	if err != nil {
		return time.Time{}, false
	}
	plain, err := n.aead.Open(nil, nil, sealed, nonceContext)
	if err != nil || len(plain) != 8 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(plain))), true
}
