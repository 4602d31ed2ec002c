package clientauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

const (
	fileVersion = 1
	maxFile     = 64 << 10
)

// file is the credential file: JSON, mode 0600. A program refuses versions that it doesn't know, so a newer one may change the form.
type file struct {
	Version int `json:"version"`
	// Server is the public URL of groupcastd, which is also its name as issuer.
	Server string `json:"server"`
	// ClientID is empty between the making of the key and the end of the enrolment.
	ClientID string `json:"clientId,omitempty"`
	// PrivateKey is PKCS #8 in PEM. With a ClientID and no RefreshToken it authenticates the client.
	PrivateKey string `json:"privateKey,omitempty"`
	// ClientSecret authenticates a service instead of a key.
	ClientSecret string `json:"clientSecret,omitempty"`
	// RefreshToken is what the device grant gave.
	RefreshToken string `json:"refreshToken,omitempty"`
	Scope        string `json:"scope,omitempty"`
	// DPoP binds the access tokens to PrivateKey.
	DPoP bool `json:"dpop,omitempty"`
	// DeviceID is the device's or gateway's own id, and RelayID a relay's, if the server told it.
	DeviceID string `json:"deviceId,omitempty"`
	RelayID  string `json:"relayId,omitempty"`
}

func (f *file) check() error {
	switch {
	case f.Version != fileVersion:
		return fmt.Errorf("it has version %d and this program reads version %d: use a newer program, or enrol anew", f.Version, fileVersion)
	case f.PrivateKey == "" && f.ClientSecret == "":
		return errors.New("it has neither privateKey nor clientSecret: enrol anew")
	case f.ClientSecret != "" && (f.ClientID == "" || f.PrivateKey != ""):
		return errors.New("a service has a clientId with either a clientSecret or a privateKey: correct the file")
	case f.PrivateKey == "" && (f.DPoP || f.RefreshToken != ""):
		return errors.New("dpop and refreshToken need a privateKey: correct the file or enrol anew")
	}
	return nil
}

// readSecret reads a file that only its owner may read.
func readSecret(path string) ([]byte, error) {
	opened, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no credential file %s: enrol first, or put an access token there: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("credential %s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others than its owner can read or change %s (mode %#o): run chmod 600 %s, and get a new credential if others use this host",
			path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("credential %s is larger than %d bytes: it is not a credential file", path, maxFile)
	}
	return b, nil
}

// isFile tells a credential file from a bare token, which never begins with a brace.
func isFile(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) }

func parseFile(path string, b []byte) (*file, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	f := &file{}
	if err := d.Decode(f); err != nil {
		return nil, fmt.Errorf("credential file %s is damaged: enrol anew", path) // the cause could quote a secret
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("credential file %s: %w", path, err)
	}
	return f, nil
}

// write replaces the file whole or not at all, and returns when it is on the disk.
func (f *file) write(path string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("credential file: %w", err)
	}
	dir := filepath.Dir(path)
	// The temporary file lies beside the other: on the same file system, and not where other users can watch.
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write credential file %s: %w", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write credential file %s: %w", path, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write credential file %s: %w", path, err)
	}
	return nil
}

// parseBareToken checks a file that holds an access token and nothing else.
func parseBareToken(path string, b []byte) (string, error) {
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("credential %s is empty: put the access token there, or enrol", path)
	}
	if strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", fmt.Errorf("credential %s holds more than a token: leave the access token alone in it, without scheme or name", path)
	}
	return token, nil
}
