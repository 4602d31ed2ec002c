package daemon

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often the files of the certificate are looked at, while clients connect.
const lookEvery = time.Second

// certificate is read again when its files change, so that a renewed one is in use without a restart. A renewed one that can't be
// used is reported, and the one before stays.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]version
	looked  time.Time
}

// version tells one content of a file from another.
type version struct {
	changed time.Time
	size    int64
}

// newCertificate reads the certificate and makes a TLS configuration of it.
func newCertificate(cert, key string, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{cert: cert, key: key, log: log}
	seen, err := c.versions()
	if err == nil {
		err = c.load(seen)
	}
	if err != nil {
		return nil, err
	}
	// net/http would add h2 only for whichever listener of the server comes first.
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get, NextProtos: []string{"h2", "http/1.1"}}, nil
}

func (c *certificate) versions() (seen [2]version, err error) {
	for i, file := range []struct{ key, path string }{{"tls-cert", c.cert}, {"tls-key", c.key}} {
		info, err := os.Stat(file.path)
		if err != nil {
			return seen, fmt.Errorf("%s: %w", file.key, err)
		}
		seen[i] = version{info.ModTime(), info.Size()}
	}
	return seen, nil
}

func (c *certificate) load(seen [2]version) error {
	c.seen, c.looked = seen, time.Now() // what can't be used is not tried again until it changes
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("tls-cert and tls-key: %w", err)
	}
	c.current = &pair
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookEvery {
		return c.current, nil
	}
	c.looked = time.Now()
	seen, err := c.versions()
	if err == nil && seen != c.seen {
		if err = c.load(seen); err == nil {
			c.log.Info("the TLS certificate was renewed")
		}
	}
	if err != nil {
		c.log.Warn("the TLS certificate changed and can't be used; the one before stays in use", "error", err)
	}
	return c.current, nil
}
