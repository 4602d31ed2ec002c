package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/groupcast/groupcast/models"
)

// defaultRange is the service's own default (SPEC §5): .230 to .254 of the /24 that the gateway is in, as far as it lies in the LAN,
// without the gateway itself. The agent spells it out when it declares, so that both sides know the range without asking.
func (c *Config) defaultRange() {
	g := &c.Gateway
	if g.Range.Size() > 0 || !g.LANPrefix.IsValid() || !g.LANAddr.IsValid() {
		return
	}
	first, last := g.LANAddr.As4(), g.LANAddr.As4()
	first[3], last[3] = 230, 254
	hosts := g.Hosts()
	r := models.AddrRange{First: netip.AddrFrom4(first), Last: netip.AddrFrom4(last)}
	if r.First.Less(hosts.First) {
		r.First = hosts.First
	}
	if hosts.Last.Less(r.Last) {
		r.Last = hosts.Last
	}
	switch g.LANAddr {
	case r.First:
		r.First = r.First.Next()
	case r.Last:
		r.Last = r.Last.Prev()
	}
	g.Range = r // of size 0 if there is none: Check says so
}

// behindAuto leaves it to the uplink's address whether a NAT is in front of it.
const behindAuto = "auto"

// shared is what carriers number their customers from (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// translated tells whether an address is nobody's on the internet, so that a NAT has to stand in between. An answer of the STUN port would be better
// evidence, but anybody on the way could forge that, and the declaration lets the agent ask destinations first.
func translated(uplink netip.Addr) bool { return uplink.IsPrivate() || shared.Contains(uplink) }

// Check tells everything that keeps an agent from running with this configuration, each with its key.
func (c Config) Check() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format, args...))
	}
	g := c.Gateway
	if c.Server == nil {
		fault("server", "give the URL of the registration service")
	} else if c.Server.Scheme == "http" && !c.AllowPlainHTTP && !loopbackHost(c.Server.Hostname()) {
		fault("server", "the token would cross the network readably: use https, or set allow-plain-http if the way there is protected otherwise")
	}
	if c.Credential == "" {
		fault("credential", "give the file with the gateway's access token")
	}
	if c.Mode == ModeRelay {
		c.checkRelay(fault)
		return errors.Join(faults...)
	}
	if !g.ID.Valid() {
		fault("gateway-id", "give the id that the operator enrolled this gateway with")
	}
	if c.StateDir == "" {
		fault("state-dir", "give a directory for the last group information")
	}
	if !g.LANPrefix.IsValid() {
		fault("lan-prefix", "give the LAN's prefix, for example 192.168.1.0/24")
	}
	if !g.LANAddr.IsValid() {
		fault("lan-address", "give this gateway's own address in the LAN")
	}
	if !g.Uplink.IsValid() {
		fault("uplink-address", "give the address that copies leave with")
	}
	if len(faults) == 0 {
		c.checkLAN(fault)
	}
	return errors.Join(faults...)
}

func (c Config) checkRelay(fault func(key, format string, args ...any)) {
	if !c.Relay.ID.Valid() {
		fault("relay-id", "give the id that the operator enrolled this relay with")
	}
	if !c.Relay.Endpoint.IsValid() {
		fault("tunnel-endpoint", "give the address and port that gateways reach this relay at")
	}
	if !c.Gateway.Uplink.IsValid() {
		fault("uplink-address", "give the address that copies leave with")
	}
	if c.StateDir == "" {
		fault("state-dir", "give a directory for the last group information")
	}
	if c.Gateway.ID.Valid() || c.Gateway.LANPrefix.IsValid() || c.Gateway.LANAddr.IsValid() || c.LANInterface != "" {
		fault("mode", "a relay has no LAN: leave out gateway-id, lan-prefix, lan-address and lan-interface")
	}
	if c.UplinkRate != 0 {
		fault("uplink-rate", "a relay's copies can't be limited together: leave it out, or limit each destination by destination-rate")
	}
	if c.Backend == BackendEBPF && c.DestinationRate != 0 {
		fault("backend", "with destination-rate a relay copies by sockets: leave one of them out")
	}
}

func (c Config) checkLAN(fault func(key, format string, args ...any)) {
	g := c.Gateway
	hosts := g.Hosts()
	if !hosts.Contains(g.LANAddr) {
		fault("lan-address", "%s is not a host of the LAN %s", g.LANAddr, g.LANPrefix)
	}
	switch r := g.Range; {
	case r.Size() == 0:
		fault("group-range", "the usual range, .230 to .254, is not in %s: give first-last", g.LANPrefix)
	case !hosts.Contains(r.First) || !hosts.Contains(r.Last):
		fault("group-range", "%s is not inside the LAN %s, or holds its network or broadcast address", r, g.LANPrefix)
	case r.Contains(g.LANAddr):
		fault("group-range", "%s holds lan-address: leave it out", r)
	case r.Contains(g.Uplink):
		fault("group-range", "%s holds uplink-address: leave it out", r)
	}
	onLoopback := g.LANAddr.IsLoopback() || g.Uplink.IsLoopback()
	switch {
	case onLoopback && !c.AllowLoopback:
		fault("allow-loopback", "lan-address or uplink-address is in 127.0.0.0/8, which is for demonstrations on one machine: set allow-loopback if this is one")
	case c.AllowLoopback && (!g.LANAddr.IsLoopback() || !g.Uplink.IsLoopback() || c.MetricsListen.IsValid() && !c.MetricsListen.Addr().IsLoopback()):
		fault("allow-loopback", "lan-address, uplink-address and metrics-listen have to be in 127.0.0.0/8 too: it is for demonstrations on one machine")
	}
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
