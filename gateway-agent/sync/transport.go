package sync

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/groupcast/groupcast/openapi/api"
)

const (
	// maxBody bounds what is read of an answer; 254 groups of 16 destinations have 2 MB, and a relay of 10,000 homes 20 MB.
	maxBody      atMost = 2 << 20
	maxRelayBody atMost = 64 << 20
	// recycle is how long a connection is used, so that gateways spread over the replicas that there are now.
	recycle = 10 * time.Minute
)

// NewTransport makes connections to the server; ca names a PEM file with the certificates to trust instead of the system's. It
// speaks HTTP/1.1 only: the agent asks one thing at a time, and a connection whose call ran into its deadline is not used again.
func NewTransport(ca string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          2, // one polls, one reports
		IdleConnTimeout:       recycle,
		// A proxy that compresses makes the ETag a weak one.
		DisableCompression: true,
		Protocols:          new(http.Protocols),
		TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12},
	}
	t.Protocols.SetHTTP1(true)
	if ca == "" {
		return t, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("ca: %w: give a file with the certificates that sign the server's", err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: there is no certificate in %s: give a PEM file", ca)
	}
	return t, nil
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// atMost is how many bytes an answer may have.
type atMost int64

// read gives up on a body that is larger.
func (limit atMost) read(r *http.Response, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
	if err != nil {
		return answer{}, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > int(limit) {
		return answer{}, fmt.Errorf("the answer is larger than %d bytes: is this the registration service?", limit)
	}
	return answer{r.StatusCode, r.Header, body}, nil
}

// ServerError is an answer other than the one that was hoped for.
type ServerError struct {
	Status int
	// Problem is what the service says about it; empty if something else answered.
	Problem    api.Problem
	RetryAfter time.Duration
}

func (a answer) failure() *ServerError {
	e := &ServerError{Status: a.status, RetryAfter: retryAfter(a.header.Get("Retry-After"), time.Now())}
	if json.Unmarshal(a.body, &e.Problem) != nil {
		e.Problem = api.Problem{}
	}
	return e
}

func (e *ServerError) Error() string {
	switch {
	case e.Status == http.StatusUnauthorized:
		return "the server refuses the token in the credential file (401): put a new one there, the agent reads it at its next call"
	case e.Problem.Detail != nil:
		return fmt.Sprintf("the server answers %d: %.512s", e.Status, *e.Problem.Detail)
	case e.Problem.Title != "":
		return fmt.Sprintf("the server answers %d: %.512s", e.Status, e.Problem.Title)
	default:
		return fmt.Sprintf("the server answers %d without a problem document: is this the registration service?", e.Status)
	}
}

// retryAfter reads the header of RFC 9110 §10.2.3, seconds or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
