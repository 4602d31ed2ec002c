// Package outbound calls addresses that somebody else chose, such as a partner's webhook, without letting them choose one of ours: it connects
// to public addresses on allowed ports only.
//
// The decision is made about the very address that is dialled, after the name was resolved. So it doesn't matter what a name resolved to a
// moment ago, nor how an address is spelled. No redirect is followed and no proxy is asked.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Rules say what may be connected to.
type Rules struct {
	// Ports that may be connected to.
	Ports []uint16
	// AllowLoopback lets 127.0.0.0/8 be called, on any port, for demonstrations on one machine.
	AllowLoopback bool
	// Resolver and RootCAs are the system's if they are nil.
	Resolver *net.Resolver
	RootCAs  *x509.CertPool
}

// ErrRefused is wrapped by the error of a connection that the rules don't allow. The text names no address.
var ErrRefused = errors.New("this address or port may not be called")

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// Check gives an error that wraps ErrRefused unless the rules allow to connect to it.
func (r Rules) Check(to netip.AddrPort) error {
	if r.AllowLoopback && loopback.Contains(to.Addr()) {
		return nil
	}
	if !models.PublicHost(to.Addr()) || !slices.Contains(r.Ports, to.Port()) {
		return ErrRefused
	}
	return nil
}

// control is asked for each address right before it is connected to.
func (r Rules) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return ErrRefused
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return r.Check(to)
}

const (
	connectTimeout = 5 * time.Second
	// idleConnections bounds what is kept open to a host that may be called again soon.
	idleConnections = 2
	idleTimeout     = 30 * time.Second
	maxHeader       = 16 << 10
)

// NewClient makes a client that keeps to the rules. The context of a request bounds it.
func NewClient(r Rules) *http.Client {
	dialer := &net.Dialer{Timeout: connectTimeout, Resolver: r.Resolver, ControlContext: r.control}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.RootCAs},
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    connectTimeout,
			MaxIdleConnsPerHost:    idleConnections,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
