// Package credential authorizes the agent's calls with the access token in a file. It reads the file at each call, which
// happens a few times a minute, so a token that somebody put in place is in use at once and nothing has to watch for it. The
// token leaves this package in a request's header only: never in a log, never in an error.
package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// maxToken bounds the file: a token of ours has about 700 bytes.
const maxToken = 16 << 10

// File is the path of the credential file: the access token and nothing else, for its owner's eyes only.
type File string

// Authorize puts the token into the request's header. It is an editor for the generated client.
func (f File) Authorize(_ context.Context, r *http.Request) error {
	token, err := f.read()
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	return nil
}

// Check tells whether the file can be used as it is now.
func (f File) Check() error {
	_, err := f.read()
	return err
}

func (f File) read() (string, error) {
	file, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("credential: there is no file %s: put the access token there", f)
	}
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("credential: %s is not a regular file: put the access token into a file", f)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("credential: %s has mode %#o, so others than its owner can read or change the token: run chmod 600 %s, and get a new token if others use this host",
			f, info.Mode().Perm(), f)
	}
	b, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	token := strings.TrimSpace(string(b))
	switch {
	case token == "":
		return "", fmt.Errorf("credential: %s is empty: put the access token there", f)
	case len(b) > maxToken || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", fmt.Errorf("credential: %s holds more than a token: leave the access token alone in it, without scheme or name", f)
	}
	return token, nil
}
