package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	minStale = 30 * time.Second
	maxStale = 24 * time.Hour
	maxDrain = time.Minute
	// minRetention leaves the time to look at the log before it is gone.
	minRetention = 24 * time.Hour
)

// CheckStorage tells everything that keeps the database from being opened, each with its key.
func (c Config) CheckStorage() error {
	var faults []error
	if c.DataDir == "" {
		faults = append(faults, errors.New("data-dir: give a directory"))
	}
	// The URL may hold a password, so no message repeats it.
	if c.DatabaseURL != "" && !strings.HasPrefix(c.DatabaseURL, "postgres://") && !strings.HasPrefix(c.DatabaseURL, "postgresql://") {
		faults = append(faults, errors.New("database-url: give a URL like postgres://user@host/database, or leave it empty for SQLite in data-dir"))
	}
	if c.DatabaseMaxConns < 2 || c.DatabaseMaxConns > 1000 {
		faults = append(faults, errors.New("database-max-conns: give a number from 2 to 1000"))
	}
	return errors.Join(append(faults, c.checkLog())...)
}

func (c Config) checkLog() error {
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("log-format: %q is neither text nor json", c.LogFormat)
	}
	return nil
}

// Check tells everything that keeps the service from running with these settings, each with its key.
func (c Config) Check() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format, args...))
	}
	if err := c.CheckStorage(); err != nil {
		faults = append(faults, err)
	}
	switch {
	case c.NATSURL == "" && (c.NATSCredentials != "" || c.NATSCA != "" || c.NATSCert != "" || c.NATSKey != ""):
		fault("nats-url", "settings for a NATS cluster are there, so its URL is needed as well")
	case (c.NATSCert == "") != (c.NATSKey == ""):
		fault("nats-cert", "a certificate and its private key belong together: set nats-cert and nats-key, or neither")
	}
	if c.NATSReplicas != 1 && c.NATSReplicas != 3 && c.NATSReplicas != 5 {
		fault("nats-replicas", "give 1, 3 or 5")
	}
	if c.EventQueueSize < 1 || c.EventQueueSize > 1<<20 {
		fault("event-queue-size", "give a number of MiB from 1 to 1048576")
	}
	for _, p := range c.WebhookPorts {
		if p < 1 || p > 65535 {
			fault("webhook-ports", "%d is no port: give numbers from 1 to 65535", p)
		}
	}
	host, err := splitAddress(c.Listen)
	if err != nil {
		fault("listen", "%w", err)
	}
	metricsHost := "127.0.0.1"
	if c.MetricsListen != "" {
		if metricsHost, err = splitAddress(c.MetricsListen); err != nil {
			fault("metrics-listen", "%w", err)
		}
	}
	mqttHost := "127.0.0.1"
	if c.MQTTListen != "" {
		if mqttHost, err = splitAddress(c.MQTTListen); err != nil {
			fault("mqtt-listen", "%w", err)
		} else if c.TLSCert == "" && !loopback(mqttHost) && !c.BehindProxy {
			fault("mqtt-listen", "%s is not on loopback, and tokens must not cross a network readably: set tls-cert and tls-key, "+
				"or behind-proxy if a proxy in front terminates TLS", c.MQTTListen)
		}
	}
	stunHost := "127.0.0.1"
	if c.STUNListen != "" {
		if stunHost, err = splitAddress(c.STUNListen); err != nil {
			fault("stun-listen", "%w", err)
		}
	}
	if c.STUNAddress != "" {
		if host, err := splitAddress(c.STUNAddress); err != nil || host == "" || c.STUNListen == "" {
			fault("stun-address", "give a host and a port like groupcast.example:3478, and set stun-listen too")
		}
	}
	if c.MQTTMaxConns < 1 || c.MQTTMaxPerAccount < 1 || c.MQTTMaxPerSource < 1 {
		fault("mqtt-max-connections", "give at least 1, as for mqtt-max-per-account and mqtt-max-per-source")
	}
	switch {
	case c.TLSCert == "" && c.TLSKey != "":
		fault("tls-cert", "tls-key is set, so the certificate is needed as well")
	case c.TLSCert != "" && c.TLSKey == "":
		fault("tls-key", "tls-cert is set, so its private key is needed as well")
	case c.TLSCert == "" && !loopback(host) && !c.BehindProxy:
		fault("listen", "%s is not on loopback, and tokens must not cross a network readably: set tls-cert and tls-key, "+
			"or behind-proxy if a proxy in front terminates TLS", c.Listen)
	}
	if err := checkPublicURL(c.PublicURL); err != nil {
		fault("public-url", "%w", err)
	}
	if _, err := c.Proxies(); err != nil {
		fault("trusted-proxies", "%w", err)
	}
	if c.SignUp != "open" && c.SignUp != "invite" && c.SignUp != "closed" {
		fault("sign-up", "%q is neither open, invite nor closed", c.SignUp)
	}
	if c.RateLimitSource < 0 {
		fault("rate-limit-source", "give a number of requests a minute, or 0 for no limit")
	}
	if c.RateLimitPrincipal < 0 {
		fault("rate-limit-principal", "give a number of requests a minute, or 0 for no limit")
	}
	if c.AuditRetention != 0 && c.AuditRetention < minRetention {
		fault("audit-retention", "%s is less than %s: give more, or 0 to keep everything", c.AuditRetention, minRetention)
	}
	q := c.Quotas
	for _, quota := range []struct {
		key   string
		limit int
	}{
		{"quota-premises", q.PremisesPerAccount},
		{"quota-devices", q.DevicesPerAccount},
		{"quota-registrations", q.RegistrationsPerAccount},
		{"quota-groups", q.GroupsPerPremises},
		{"quota-destinations", q.DestinationsPerGroup},
	} {
		if quota.limit < 0 {
			fault(quota.key, "give a number, or 0 for any number")
		}
	}
	if c.SigningAlg != "EdDSA" && c.SigningAlg != "ES256" && c.SigningAlg != "RS256" {
		fault("signing-alg", "%q is neither EdDSA, ES256 nor RS256", c.SigningAlg)
	}
	if c.AllowLoopback && (!loopback(host) || !loopback(metricsHost) || !loopback(mqttHost) || !loopback(stunHost)) {
		fault("allow-loopback", "it is for demonstrations on one machine, so listen, mqtt-listen, stun-listen and metrics-listen have to be on loopback")
	}
	if c.MaxStale < minStale || c.MaxStale > maxStale || c.MaxStale%time.Second != 0 {
		fault("max-stale", "%s is not a whole number of seconds from %s to %s", c.MaxStale, minStale, maxStale)
	}
	if c.LongPollMaxWaiters < 1 {
		fault("long-poll-max-waiters", "give at least 1")
	}
	if c.DrainTime < 0 || c.DrainTime > maxDrain {
		fault("drain-time", "%s is not between 0s and %s", c.DrainTime, maxDrain)
	}
	return errors.Join(faults...)
}

// Warnings tells what the settings permit that an operator should know of.
func (c Config) Warnings() []string {
	var w []string
	host, _ := splitAddress(c.Listen)
	if c.AllowLoopback {
		w = append(w, "allow-loopback is set: members and gateways may have addresses of 127.0.0.0/8; this is for demonstrations only")
	}
	if c.BehindProxy && len(c.TrustedProxies) == 0 {
		w = append(w, "behind-proxy is set without trusted-proxies: every request seems to come from the proxy, and so does every device without a publicIPv4")
	}
	if c.PublicURL == "" && !loopback(host) {
		w = append(w, "public-url is not set: tokens name the listen address as their issuer, and other replicas won't accept them")
	}
	if c.DatabaseURL != "" && c.NATSURL == "" {
		w = append(w, "nats-url is not set: each replica on this database has an event queue of its own, and only that of the replica that publishes "+
			"gets events; if there is more than one replica, give all of them the nats-url of one NATS cluster")
	}
	return w
}

// KEKFile is where the key-encryption key lies.
func (c Config) KEKFile() string {
	if c.KeyEncryptionKeyFile != "" {
		return c.KeyEncryptionKeyFile
	}
	return filepath.Join(c.DataDir, "kek")
}

// URL is what clients reach the service at, and the issuer of its tokens: public-url, or the address it listens on.
func (c Config) URL(listener net.Addr) string {
	switch {
	case c.PublicURL != "":
		return strings.TrimSuffix(c.PublicURL, "/")
	case c.TLSCert != "":
		return "https://" + listener.String()
	default:
		return "http://" + listener.String()
	}
}

// Proxies are the trusted proxies as prefixes; a plain address is a prefix of one.
func (c Config) Proxies() ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(c.TrustedProxies))
	for _, text := range c.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if addr, e := netip.ParseAddr(text); e == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither a prefix like 10.0.0.0/8 nor an address", text)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

func splitAddress(address string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%q is not like 127.0.0.1:8080", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q has no port from 0 to 65535", address)
	}
	return host, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func checkPublicURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return errors.New("give a URL like https://groupcast.example, without user, path and query")
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return nil
	}
	return fmt.Errorf("%s is not https: tokens must not cross a network readably (http works for loopback only)", text)
}
