package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// PrivateKey is this host's X25519 key. It has no text form, so that no log gets it.
type PrivateKey struct{ key *ecdh.PrivateKey }

// Valid tells whether it is a key.
func (k PrivateKey) Valid() bool { return k.key != nil }

// Public gives the key that peers know this host by.
func (k PrivateKey) Public() models.TunnelKey { return models.TunnelKey(k.key.PublicKey().Bytes()) }

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
