package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const kekSize = 32

// KEK is the key-encryption key: it seals private keys for the database, with AES-256-GCM. Every replica needs the same one.
type KEK struct {
	aead cipher.AEAD
	key  []byte
	path string
}

// Format keeps the key out of whatever prints the value.
func (k *KEK) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key-encryption key %s", k.path) }

// LoadOrCreateKEK reads the key from a file that holds 32 bytes in base64, or draws one and writes it with mode 0600 if there is no
// such file. A file that others may read is refused.
func LoadOrCreateKEK(path string) (*KEK, error) {
	kek, err := LoadKEK(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKEK(path); err != nil {
			return nil, err
		}
		return LoadKEK(path) // of several processes at once, one wrote it
	}
	return kek, err
}

// LoadKEK reads the key from a file that has to be there.
func LoadKEK(path string) (*KEK, error) {
	key, err := readKEK(path)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	return &KEK{aead: aead, key: key, path: path}, nil
}

func readKEK(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the key-encryption key: %w", err)
	}
	// Group bits are left alone: systemd shows the access list of a credential there.
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("the key-encryption key %s can be read or written by others: run chmod 600 %[1]s", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the key-encryption key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != kekSize {
		// Neither the text nor the position of a fault in it belongs into a log.
		return nil, fmt.Errorf("the key-encryption key %s is not %d bytes in base64: restore the file from a backup, or make one with openssl rand -base64 %[2]d for a new database",
			path, kekSize)
	}
	return key, nil
}

// createKEK writes a new key so that it is there whole or not at all, and never replaces one.
func createKEK(path string) error {
	key := make([]byte, kekSize)
	_, _ = rand.Read(key) // never fails: it ends the process instead
	tmp, err := os.CreateTemp(filepath.Dir(path), ".kek-*")
	if err != nil {
		return fmt.Errorf("create the key-encryption key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Link(tmp.Name(), path)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create the key-encryption key: %w", err)
	}
	return nil
}

// Seal encrypts a text for the database and binds it to what it is for, so that one sealed text can't take the place of another.
func (k *KEK) Seal(purpose string, plain []byte) []byte {
	return k.aead.Seal(nil, nil, plain, []byte(purpose))
}

// Open decrypts what Seal made for the same purpose.
func (k *KEK) Open(purpose string, sealed []byte) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, sealed, []byte(purpose))
	if err != nil {
		return nil, fmt.Errorf("the key-encryption key %s doesn't open the keys in the database: use the file that belongs to this database, the same for every replica", k.path)
	}
	return plain, nil
}

// Derive gives 32 bytes for one purpose, the same for all replicas (HKDF, RFC 5869).
func (k *KEK) Derive(purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, k.key, nil, "groupcast "+purpose, kekSize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return key, nil
}
