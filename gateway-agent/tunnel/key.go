package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// PublicKey is a peer's X25519 key.
type PublicKey [32]byte

// PrivateKey is this host's X25519 key. It has no text form, so that no log gets it.
type PrivateKey struct{ key *ecdh.PrivateKey }

var errKey = errors.New("a tunnel key is 32 bytes in base64 (RFC 4648 §4, padded)")

// ParsePublicKey reads the form that WireGuard's own tools use: 32 bytes in base64. A key of low order, which would make every shared secret zero, is refused.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(PublicKey{}) {
		return PublicKey{}, errKey
	}
	public, err := ecdh.X25519().NewPublicKey(b)
	if err != nil {
		return PublicKey{}, errKey
	}
	probe, err := ecdh.X25519().NewPrivateKey(make([]byte, 32)) // it is clamped: any will do
	if err == nil {
		_, err = probe.ECDH(public)
	}
	if err != nil {
		return PublicKey{}, errors.New("a tunnel key must not be of low order")
	}
	return PublicKey(b), nil
}

// String is what ParsePublicKey reads.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (k PublicKey) hex() string { return hex.EncodeToString(k[:]) }

// Public gives the key that peers know this host by.
func (k PrivateKey) Public() PublicKey { return PublicKey(k.key.PublicKey().Bytes()) }

func (k PrivateKey) bytes() [32]byte { return [32]byte(k.key.Bytes()) }

// LoadKey reads this host's key from a file of its owner's, and makes one if there is no file.
func LoadKey(file string) (PrivateKey, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(file)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel key: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("tunnel key: others can read %s or write to it: remove the file, and the agent makes another key", file)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err == nil {
		var key *ecdh.PrivateKey
		if key, err = ecdh.X25519().NewPrivateKey(raw); err == nil {
			return PrivateKey{key}, nil
		}
	}
	return PrivateKey{}, fmt.Errorf("tunnel key: %s is damaged: remove the file, and the agent makes another key", file)
}

func makeKey(file string) (PrivateKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel key: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(key.Bytes()) + "\n"
	// In one step, so that a crash leaves no half a key.
	err = os.WriteFile(file+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel key: %w: make room in state-dir", err)
	}
	return PrivateKey{key}, nil
}
