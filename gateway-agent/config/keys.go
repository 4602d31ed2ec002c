package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/models"
)

// key is one setting: its name, what it is if nobody sets it, and how its text is read.
type key struct {
	name    string
	def     string
	help    string
	boolean bool
	list    bool
	read    func(*Config, string) error
}

var keys = []key{
	{name: "server", help: "`URL` of the registration service", read: func(c *Config, s string) (err error) {
		c.Server, err = serverURL(s)
		return err
	}},
	{name: "ca", help: "`FILE` with the certificates that sign the server's (PEM); empty: the system's", read: func(c *Config, s string) error {
		c.CA = s
		return nil
	}},
	{name: "credential", help: "`FILE` with the access token, readable by its owner only; read again when it changes", read: func(c *Config, s string) error {
		c.Credential = s
		return nil
	}},
	{name: "allow-plain-http", def: "false", boolean: true, help: "send the token without TLS to a server that is not on loopback", read: func(c *Config, s string) (err error) {
		c.AllowPlainHTTP, err = boolean(s)
		return err
	}},
	{name: "mode", def: ModeGateway, help: "where this agent copies: at home or in the network, `gateway|relay`", read: func(c *Config, s string) error {
		c.Mode = s
		return oneOf(s, ModeGateway, ModeRelay)
	}},
	{name: "relay-id", help: "`ID` of this relay, as the operator enrolled it; only in mode relay", read: func(c *Config, s string) (err error) {
		c.Relay.ID, err = models.ParseID(s)
		return err
	}},
	{name: "tunnel-endpoint", help: "IPv4 `ADDRESS:PORT` where gateways reach this relay's tunnel; it listens at that UDP port; only in mode relay", read: func(c *Config, s string) (err error) {
		c.Relay.Endpoint, err = netip.ParseAddrPort(s)
		if err != nil || !c.Relay.Endpoint.Addr().Is4() || c.Relay.Endpoint.Port() == 0 {
			return errors.New("give an IPv4 address and a port, for example 198.51.99.7:51820")
		}
		return nil
	}},
	{name: "tunnel", def: "true", boolean: true, help: "let a relay of the operator copy, if the account holder wants that; only in mode gateway", read: func(c *Config, s string) (err error) {
		c.Tunnel, err = boolean(s)
		return err
	}},
	{name: "gateway-id", help: "`ID` of this gateway, as the operator enrolled it", read: func(c *Config, s string) (err error) {
		c.Gateway.ID, err = models.ParseID(s)
		return err
	}},
	{name: "lan-interface", help: "`INTERFACE` of the LAN with the cameras; empty: the one that has lan-address", read: func(c *Config, s string) error {
		c.LANInterface = s
		return nil
	}},
	{name: "lan-prefix", help: "the LAN's IPv4 `PREFIX`, from /16 to /30, for example 192.168.1.0/24", read: func(c *Config, s string) (err error) {
		c.Gateway.LANPrefix, err = lanPrefix(s)
		return err
	}},
	{name: "lan-address", help: "this gateway's own IPv4 `ADDRESS` in the LAN", read: func(c *Config, s string) (err error) {
		c.Gateway.LANAddr, err = ipv4(s)
		return err
	}},
	{name: "uplink-address", help: "IPv4 `ADDRESS` that copies leave with", read: func(c *Config, s string) (err error) {
		c.Gateway.Uplink, err = ipv4(s)
		return err
	}},
	{name: "behind-nat", def: behindAuto, help: "whether a NAT is between the uplink and the internet: `auto|true|false`; auto: if uplink-address is private", read: func(c *Config, s string) error {
		c.behindNAT = s
		return oneOf(s, behindAuto, "true", "false")
	}},
	{name: "group-range", help: "`RANGE` of group IPs that DHCP must not hand out, first-last or a prefix; empty: .230 to .254", read: func(c *Config, s string) (err error) {
		c.Gateway.Range, err = addrRange(s)
		return err
	}},
	{name: "media-ports", def: "5004", list: true, help: "UDP `PORTS` that cameras send to, separated by commas, or any", read: func(c *Config, s string) (err error) {
		if c.AnyPort = s == "any"; c.AnyPort {
			return nil
		}
		c.MediaPorts, err = ports(s)
		return err
	}},
	{name: "sender-ports", help: "`FIRST-LAST` UDP port that copies leave from, one for each source in a group; empty: any", read: func(c *Config, s string) (err error) {
		c.SenderPorts, err = portRange(s)
		return err
	}},
	{name: "copy-options", def: "strip", help: "what copies carry in place of the camera's IP options: `strip|nop`", read: func(c *Config, s string) error {
		c.CopyOptions = packet.CopyOptions(s)
		return oneOf(s, string(packet.Strip), string(packet.NOP))
	}},
	{name: "uplink-rate", def: "0", help: "`BITS` per second that all copies together may take of the uplink, for example 20M; 0: no limit", read: func(c *Config, s string) (err error) {
		c.UplinkRate, err = bits(s)
		return err
	}},
	{name: "destination-rate", def: "0", help: "`BITS` per second that the copies for one destination may take, for example 8M; 0: no limit", read: func(c *Config, s string) (err error) {
		c.DestinationRate, err = bits(s)
		return err
	}},
	{name: "backend", def: BackendAuto, help: "what copies: `auto|socket|ebpf`", read: func(c *Config, s string) error {
		c.Backend = s
		return oneOf(s, BackendAuto, BackendSocket, BackendEBPF)
	}},
	{name: "bpf-dir", def: "/sys/fs/bpf/groupcast", help: "`DIR` in a BPF file system, where the ebpf backend stays while the agent restarts", read: func(c *Config, s string) error {
		c.BPFDir = s
		return nil
	}},
	{name: "state-dir", def: "/var/lib/groupcast-gateway-agent", help: "`DIR` for the last group information; one agent per directory", read: func(c *Config, s string) error {
		c.StateDir = s
		return nil
	}},
	{name: "metrics-listen", def: "127.0.0.1:9091", help: "`ADDRESS:PORT` for Prometheus; empty: off", read: func(c *Config, s string) (err error) {
		if s != "" {
			c.MetricsListen, err = netip.ParseAddrPort(s)
		}
		if err != nil {
			return errors.New("give an IP address and a port, for example 127.0.0.1:9091, or leave it empty")
		}
		return nil
	}},
	{name: "allow-loopback", def: "false", boolean: true, help: "allow 127.0.0.0/8 as LAN and destinations: a demonstration on one machine", read: func(c *Config, s string) (err error) {
		c.AllowLoopback, err = boolean(s)
		return err
	}},
	{name: "private-networks", list: true, help: "`PREFIXES` of private or other special-purpose addresses, separated by commas, that destinations may consent at; empty: none but the LAN", read: func(c *Config, s string) (err error) {
		c.PrivateNetworks, err = prefixes(s)
		return err
	}},
	{name: "allow-without-consent", def: "false", boolean: true, help: "send copies to whatever address is registered, without asking whether they are wanted there", read: func(c *Config, s string) (err error) {
		c.AllowWithoutConsent, err = boolean(s)
		return err
	}},
	{name: "log-level", def: "info", help: "`debug|info|warn|error`", read: func(c *Config, s string) error {
		levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
		c.LogLevel = levels[s]
		return oneOf(s, "debug", "info", "warn", "error")
	}},
	{name: "log-format", def: "text", help: "`text|json`", read: func(c *Config, s string) error {
		c.LogFormat = s
		return oneOf(s, "text", "json")
	}},
}

func lookup(name string) *key {
	for i := range keys {
		if keys[i].name == name {
			return &keys[i]
		}
	}
	return nil
}

func serverURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("give a URL, for example https://groupcast.example")
	}
	// The text isn't repeated: it could hold a password.
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("give scheme, host and path only; the token belongs in the credential file")
	}
	return u, nil
}

func ipv4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, fmt.Errorf("%q is not the IPv4 address of a host", s)
	}
	return a, nil
}

func lanPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Bits() < 16 || p.Bits() > 30 {
		return netip.Prefix{}, fmt.Errorf("%q is not an IPv4 prefix from /16 to /30, for example 192.168.1.0/24", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits: did you mean %s?", s, p.Masked())
	}
	return p, nil
}

func prefixes(s string) (all []netip.Prefix, err error) {
	if s == "" {
		return nil, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(item))
		if err != nil || p != p.Masked() || p.Addr().IsMulticast() || p.Bits() < 8 {
			return nil, fmt.Errorf("%q is not a prefix of at least /8, for example 10.0.0.0/8", item)
		}
		all = append(all, p)
	}
	return all, nil
}

// maxRange is the largest group range of the contract.
const maxRange = 254

func addrRange(s string) (models.AddrRange, error) {
	bad := fmt.Errorf("%q is not a range of at most %d IPv4 addresses: give first-last, for example 192.168.1.230-192.168.1.254, or a prefix", s, maxRange)
	var r models.AddrRange
	if first, last, ok := strings.Cut(s, "-"); ok {
		f, errF := netip.ParseAddr(strings.TrimSpace(first))
		l, errL := netip.ParseAddr(strings.TrimSpace(last))
		if errF != nil || errL != nil {
			return r, bad
		}
		r = models.AddrRange{First: f, Last: l}
	} else {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() || p != p.Masked() {
			return r, bad
		}
		r = models.AddrRange{First: p.Addr(), Last: netipx.PrefixLastIP(p)}
	}
	if n := r.Size(); n < 1 || n > maxRange {
		return models.AddrRange{}, bad
	}
	return r, nil
}

func ports(s string) ([]uint16, error) {
	var out []uint16
	for item := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(item), 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a UDP port from 1 to 65535, and \"any\" stands alone", item)
		}
		if slices.Contains(out, uint16(n)) {
			return nil, fmt.Errorf("port %d stands twice: keep one", n)
		}
		out = append(out, uint16(n))
	}
	if len(out) > 16 {
		return nil, fmt.Errorf("%d ports are too many: give at most 16, or any", len(out))
	}
	return out, nil
}

func portRange(s string) (r sender.Range, err error) {
	first, last, _ := strings.Cut(s, "-")
	f, errF := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	l, errL := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if errF != nil || errL != nil || f == 0 || l < f {
		return r, fmt.Errorf("%q is not a range of UDP ports, for example 40000-40099", s)
	}
	return sender.Range{First: uint16(f), Last: uint16(l)}, nil
}

// bits reads a rate in bits per second: a number, or one with k, M or G for thousands, millions or billions.
func bits(s string) (uint64, error) {
	number, factor := s, uint64(1)
	if i := len(s) - 1; i > 0 {
		if f, ok := map[byte]uint64{'k': 1e3, 'M': 1e6, 'G': 1e9}[s[i]]; ok {
			number, factor = s[:i], f
		}
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a rate in bits per second, for example 20M or 800k", s)
	}
	return n * factor, nil
}

func boolean(s string) (bool, error) {
	return s == "true", oneOf(s, "true", "false")
}

func oneOf(s string, allowed ...string) error {
	if !slices.Contains(allowed, s) {
		return fmt.Errorf("%q is not one of %s", s, strings.Join(allowed, ", "))
	}
	return nil
}
