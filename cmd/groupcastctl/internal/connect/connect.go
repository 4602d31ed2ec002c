// Package connect opens the way to a groupcast service: to the public contract over HTTP or HTTPS with an access token from a
// file, and to the operator's contract over the unix socket in the data directory.
package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/groupcast/groupcast/openapi/adminclient"
	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

const (
	dialTimeout = 10 * time.Second
	// answerTimeout is longer than the longest wait that the contract knows (50 s).
	answerTimeout = 70 * time.Second
)

// Public says where the service is and who calls.
type Public struct {
	Server string
	// CA is a file with the certificates that the server's must chain to; empty means those of the system.
	CA string
	// TokenFile holds the access token. It is read at each call.
	TokenFile string
	// AllowPlainHTTP lets the token cross a network without TLS.
	AllowPlainHTTP bool
}

// Options are how the service is reached.
func (p Public) Options() (clientauth.Options, error) {
	if server, err := url.Parse(p.Server); err == nil && server.Scheme == "http" && !p.AllowPlainHTTP && !isLoopback(server.Hostname()) {
		return clientauth.Options{}, errors.New("--server: the credential would cross the network readably: use https, or --allow-plain-http if the way there is " +
			"protected otherwise")
	}
	transport := newTransport()
	if p.CA != "" {
		var err error
		if transport.TLSClientConfig, err = trust(p.CA); err != nil {
			return clientauth.Options{}, err
		}
	}
	return clientauth.Options{Base: transport, AllowPlainHTTP: p.AllowPlainHTTP}, nil
}

// Open checks the settings. It doesn't call the service.
func (p Public) Open() (*client.ClientWithResponses, error) {
	if p.TokenFile == "" {
		return nil, errors.New("--token-file: give the file with the credential (\"groupcastctl enrol\" writes one) or with an access token")
	}
	options, err := p.Options()
	if err != nil {
		return nil, err
	}
	c, err := clientauth.Open(p.TokenFile, p.Server, options)
	if err != nil {
		return nil, err
	}
	return client.NewClientWithResponses(c.Server(), client.WithHTTPClient(&http.Client{Transport: c.Transport()}))
}

// Admin opens the operator's contract of the service whose data directory this is.
func Admin(dataDir string) (*adminclient.ClientWithResponses, error) {
	if dataDir == "" {
		return nil, errors.New("--data-dir: give the data directory of the groupcastd on this host")
	}
	socket := filepath.Join(dataDir, "admin.sock")
	transport := newTransport()
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("%w: is groupcastd running with --data-dir %s, and may you open its socket?", err, dataDir)
		}
		return conn, nil
	}
	return adminclient.NewClientWithResponses("http://groupcastd", adminclient.WithHTTPClient(&http.Client{Transport: &again{transport}}))
}

// again sends a request that has an Idempotency-Key once more, with that key, if no answer came: what it asks for may have been done or not,
// and is not done twice. A service that starts again has a moment to do so.
type again struct{ base http.RoundTripper }

func (a *again) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := a.base.RoundTrip(r)
	if r.Header.Get("Idempotency-Key") == "" || r.GetBody == nil {
		return answer, err
	}
	for _, pause := range [...]time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second} {
		if err == nil {
			break
		}
		select {
		case <-r.Context().Done():
			return nil, err
		case <-time.After(pause):
		}
		body, bodyErr := r.GetBody()
		if bodyErr != nil {
			return nil, err
		}
		next := r.Clone(r.Context())
		next.Body = body
		answer, err = a.base.RoundTrip(next)
	}
	return answer, err
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       answerTimeout,
		ForceAttemptHTTP2:     true,
	}
}

func trust(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ca: there is no certificate in PEM form in %s", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}
