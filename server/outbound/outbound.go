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

// special is what IANA's special-purpose registry for IPv4 keeps from being a public host's address, with what was deprecated and multicast
// (RFC 6890; registry as of 2025-10).
var special = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4")

// Of IPv6 only global unicast is public, which leaves out loopback, link-local, unique local, multicast, mapped addresses and both NAT64 prefixes
// (64:ff9b::/96, 64:ff9b:1::/48). specialV6 is what is special within it: Teredo and other protocols, documentation, 6to4, AS112.
var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	specialV6     = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
	loopback      = netip.MustParsePrefix("127.0.0.0/8")
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// public tells whether an address can be that of a host on the public internet. A mapped IPv4 address can't: nobody writes one in good faith.
func public(a netip.Addr) bool {
	holds := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.IsValid() || a.Zone() != "":
		return false
	case a.Is4():
		return !slices.ContainsFunc(special, holds)
	default:
		return globalUnicast.Contains(a) && !slices.ContainsFunc(specialV6, holds)
	}
}

// Check gives an error that wraps ErrRefused unless the rules allow to connect to it.
func (r Rules) Check(to netip.AddrPort) error {
	if r.AllowLoopback && loopback.Contains(to.Addr()) {
		return nil
	}
	if !public(to.Addr()) || !slices.Contains(r.Ports, to.Port()) {
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
