package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/models"
)

// EnvPrefix begins the name of every variable; the rest is the key in upper case with _ for -.
const EnvPrefix = "GATEWAY_AGENT_"

// Config is what one agent runs with. docs/gateway-agent.yaml describes every key.
type Config struct {
	Server         *url.URL
	CA             string // file with the certificates the server's must chain to; empty: the system's
	Credential     string // file with the access token
	AllowPlainHTTP bool

	// Mode is one of the Mode constants.
	Mode string
	// Relay is what a relay declares beside its key; Gateway has its uplink then, and nothing else.
	Relay Relay
	// Tunnel lets a gateway forward to a relay of the operator, if the account holder wants that.
	Tunnel bool

	// Gateway is what the agent declares: its id, LAN prefix, own LAN address, uplink, group range (SPEC §5) and whether a NAT is in front of it.
	Gateway      models.Gateway
	behindNAT    string // true, false or auto
	LANInterface string

	MediaPorts      []uint16 // empty with AnyPort
	AnyPort         bool
	SenderPorts     sender.Range // that copies leave from; the zero Range: any
	CopyOptions     packet.CopyOptions
	DestinationRate uint64 // bits per second for the copies of one destination; 0: no limit
	UplinkRate      uint64 // bits per second for all copies; 0: no limit
	Backend         string // one of the Backend constants
	BPFDir          string // where the ebpf backend stays while the agent restarts

	StateDir      string
	MetricsListen netip.AddrPort // the zero AddrPort: off
	AllowLoopback bool

	AllowWithoutConsent bool           // copies go to whatever is registered
	PrivateNetworks     []netip.Prefix // of special-purpose addresses that destinations may consent at

	LogLevel  slog.Level
	LogFormat string // text or json
}

// Where the agent copies.
const (
	ModeGateway = "gateway" // at home
	ModeRelay   = "relay"   // in the network
)

// Relay is a relay's own part of the configuration.
type Relay struct {
	ID models.ID
	// Endpoint is where gateways reach its tunnel; the agent listens at that port.
	Endpoint netip.AddrPort
}

// NodeID is that of the gateway or the relay.
func (c Config) NodeID() models.ID {
	if c.Mode == ModeRelay {
		return c.Relay.ID
	}
	return c.Gateway.ID
}

// What copies. Auto takes the fastest that the host can run.
const (
	BackendAuto   = "auto"
	BackendSocket = "socket"
	BackendEBPF   = "ebpf"
)

// Source collects the flags of one command line; Load adds the environment and the file.
type Source struct {
	file  string
	flags map[string]string
}

// Flags defines --config and one flag per key. Values are read by Load, so that a bad one is reported like any other.
func Flags(set *flag.FlagSet) *Source {
	s := &Source{flags: map[string]string{}}
	set.StringVar(&s.file, "config", "", "read the keys from this YAML `FILE` (also "+EnvPrefix+"CONFIG)")
	for _, k := range keys {
		record := func(text string) error { s.flags[k.name] = text; return nil }
		if k.boolean {
			set.BoolFunc(k.name, k.help, record)
		} else {
			set.Func(k.name, k.help, record)
		}
	}
	return s
}

// Load gives the configuration: flags win over variables, variables over the file, the file over the defaults. It knows every
// key: one it doesn't know, and every value it can't read, is an error that names the key and where it stands. It doesn't ask
// whether what is needed to run is there; Check does.
func (s *Source) Load(environ []string) (Config, error) {
	texts := map[string]text{}
	for _, k := range keys {
		texts[k.name] = text{k.def, "default"}
	}
	var faults []error
	file := s.file
	variables := map[string]text{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		switch k := lookup(keyOf(name)); {
		case name == EnvPrefix+"CONFIG":
			if file == "" {
				file = value
			}
		case k == nil || env(k.name) != name:
			faults = append(faults, fmt.Errorf("%s is not a variable of gateway-agent: remove it, or look up its spelling in docs/gateway-agent.yaml", name))
		default:
			variables[k.name] = text{value, name}
		}
	}
	if file != "" {
		if err := readFile(file, texts); err != nil {
			faults = append(faults, err)
		}
	}
	maps.Copy(texts, variables)
	for name, value := range s.flags {
		texts[name] = text{value, "--" + name}
	}
	var c Config
	for _, k := range keys {
		t := texts[k.name]
		if t.value == "" && k.def == "" {
			continue
		}
		if err := k.read(&c, t.value); err != nil {
			faults = append(faults, fmt.Errorf("%s (%s): %w", k.name, t.where, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Config{}, err
	}
	c.defaultRange()
	c.Gateway.BehindNAT = c.behindNAT == "true" || c.behindNAT == behindAuto && translated(c.Gateway.Uplink)
	return c, nil
}

// text is the value of a key as somebody wrote it, and where.
type text struct{ value, where string }

func env(key string) string { return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")) }

func keyOf(env string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, EnvPrefix), "_", "-"))
}

// readFile takes the text of every scalar as it was written, before YAML makes a number or a boolean of it: a 19-digit id keeps its digits and
// "off" stays "off".
func readFile(file string, texts map[string]text) error {
	b, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("config: there is no file %s: give the path of the configuration", file)
		}
		return fmt.Errorf("config: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("config: %s is not YAML: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("config: %s line %d: write one \"key: value\" per line", file, root.Line)
	}
	var faults []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		name, node := root.Content[i], root.Content[i+1]
		where := fmt.Sprintf("%s line %d", file, name.Line)
		k := lookup(name.Value)
		switch value, ok := plain(node); {
		case k == nil:
			faults = append(faults, fmt.Errorf("%s (%s): unknown key: remove it, or look up its spelling in docs/gateway-agent.yaml", name.Value, where))
		case seen[k.name]:
			faults = append(faults, fmt.Errorf("%s (%s): the key stands twice: keep one", k.name, where))
		case !ok || node.Kind == yaml.SequenceNode && !k.list:
			faults = append(faults, fmt.Errorf("%s (%s): write one plain value", k.name, where))
		default:
			seen[k.name] = true
			texts[k.name] = text{value, where}
		}
	}
	return errors.Join(faults...)
}

// plain gives the text of a scalar, or of a list of scalars with commas in between.
func plain(n *yaml.Node) (string, bool) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", true
		}
		return n.Value, true
	case yaml.SequenceNode:
		items := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return "", false
			}
			items = append(items, item.Value)
		}
		return strings.Join(items, ","), true
	default:
		return "", false
	}
}
