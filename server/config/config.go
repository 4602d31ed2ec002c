// Package config holds the settings of groupcastd. Each key is defined once, in define, and is at the same time a flag, a variable
// GROUPCAST_… and a key of the YAML file; flags win over variables, variables over the file, the file over the defaults.
//
// It reads and checks settings and opens nothing: files that keys name are read by those who need them.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/groupcast/groupcast/models"
)

// EnvPrefix begins the name of every variable; the rest is the key in capitals with _ for -.
const EnvPrefix = "GROUPCAST_"

// fileKey names the YAML file. It is a flag and a variable, but no key of the file.
const fileKey = "config"

// Config is what one groupcastd runs with. docs/groupcastd.yaml describes every key.
type Config struct {
	Listen         string
	PublicURL      string
	TLSCert        string
	TLSKey         string
	BehindProxy    bool
	TrustedProxies []string

	DataDir              string
	DatabaseURL          string
	DatabaseMaxConns     int
	Migrate              bool
	KeyEncryptionKeyFile string
	SigningAlg           string
	ExternalIssuers      string
	NATSURL              string
	NATSCredentials      string
	NATSCA               string
	NATSCert             string
	NATSKey              string
	NATSReplicas         int
	EventQueueSize       int
	WebhookPorts         []uint
	SignUp               string
	RateLimitSource      int
	RateLimitPrincipal   int
	AuditRetention       time.Duration
	Quotas               models.Quotas

	MaxStale           time.Duration
	LongPollMaxWaiters int
	DrainTime          time.Duration
	AllowLoopback      bool

	STUNListen  string
	STUNAddress string

	MQTTListen        string
	MQTTMaxConns      int
	MQTTMaxPerAccount int
	MQTTMaxPerSource  int

	MetricsListen string
	LogLevel      slog.Level
	LogFormat     string
}

// define is the one list of keys, with their defaults and what they are for.
func define(fs *pflag.FlagSet, c *Config) {
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:8080", "`ADDRESS:PORT` of the public interface")
	fs.StringVar(&c.PublicURL, "public-url", "", "`URL` that clients reach the service at; empty: made from listen")
	fs.StringVar(&c.TLSCert, "tls-cert", "", "`FILE` with the certificate chain (PEM); read again when it changes")
	fs.StringVar(&c.TLSKey, "tls-key", "", "`FILE` with the certificate's private key (PEM)")
	fs.BoolVar(&c.BehindProxy, "behind-proxy", false, "allow plain HTTP off loopback, because a proxy in front terminates TLS")
	fs.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "`PREFIXES` of the proxies whose X-Forwarded-For is believed")

	fs.StringVar(&c.DataDir, "data-dir", "/var/lib/groupcast", "`DIR` for the SQLite database, the key-encryption key and admin.sock; one process per directory")
	fs.StringVar(&c.DatabaseURL, "database-url", "", "`URL` of a Postgres database; empty: SQLite in data-dir")
	fs.IntVar(&c.DatabaseMaxConns, "database-max-conns", 12, "size of the Postgres connection pool")
	fs.BoolVar(&c.Migrate, "migrate", false, "bring a Postgres schema up to date at the start; SQLite's always is")
	fs.StringVar(&c.KeyEncryptionKeyFile, "key-encryption-key-file", "", "`FILE` with the key that seals the keys in the database; created if missing; empty: kek in data-dir")

	fs.StringVar(&c.SigningAlg, "signing-alg", "EdDSA", "`EdDSA|ES256|RS256` of the keys that sign access tokens")
	fs.StringVar(&c.ExternalIssuers, "external-issuers", "", "`FILE` with the issuers whose tokens for services or users are taken as well (JSON); empty: none")

	fs.StringVar(&c.NATSURL, "nats-url", "", "`URLS` of a NATS cluster with JetStream that events go to; empty: a queue within this process")
	fs.StringVar(&c.NATSCredentials, "nats-credentials", "", "`FILE` with the credentials for the NATS cluster; empty: none")
	fs.StringVar(&c.NATSCA, "nats-ca", "", "`FILE` with the certificates that sign the NATS cluster's (PEM); empty: the system's")
	fs.StringVar(&c.NATSCert, "nats-cert", "", "`FILE` with the certificate to show to the NATS cluster (PEM); empty: none")
	fs.StringVar(&c.NATSKey, "nats-key", "", "`FILE` with the private key of nats-cert (PEM)")
	fs.IntVar(&c.NATSReplicas, "nats-replicas", 1, "how many servers of the NATS cluster keep each event: 1, 3 or 5")
	fs.IntVar(&c.EventQueueSize, "event-queue-size", 1024, "how much the queue of events keeps at most, in MiB")

	fs.UintSliceVar(&c.WebhookPorts, "webhook-ports", []uint{443}, "`PORTS` that webhooks may be on")

	fs.StringVar(&c.SignUp, "sign-up", "invite", "`open|invite|closed`: who may create an account")
	fs.IntVar(&c.RateLimitSource, "rate-limit-source", 120000, "requests a minute from one network (/24, or /64 for IPv6); 0: any number")
	fs.IntVar(&c.RateLimitPrincipal, "rate-limit-principal", 30000, "requests a minute of one device, service or user; 0: any number")

	fs.DurationVar(&c.AuditRetention, "audit-retention", 400*24*time.Hour, "how long audit rows are kept, 24h at least; 0: for ever")
	fs.IntVar(&c.Quotas.PremisesPerAccount, "quota-premises", 100, "premises that an account holder can have; 0: any number")
	fs.IntVar(&c.Quotas.DevicesPerAccount, "quota-devices", 1000, "devices that can enrol in an account; 0: any number")
	fs.IntVar(&c.Quotas.RegistrationsPerAccount, "quota-registrations", 10000, "live registrations of an account; 0: any number")
	fs.IntVar(&c.Quotas.GroupsPerPremises, "quota-groups", 25, "live groups of a premises; 0: any number")
	fs.IntVar(&c.Quotas.DestinationsPerGroup, "quota-destinations", 32, "live destinations of a group; 0: any number")

	fs.DurationVar(&c.MaxStale, "max-stale", 900*time.Second, "how long gateways go on copying without an answer")
	fs.IntVar(&c.LongPollMaxWaiters, "long-poll-max-waiters", 10000, "how many long polls may wait at once")
	fs.DurationVar(&c.DrainTime, "drain-time", 5*time.Second, "time over which waiting long polls and MQTT connections are ended at a stop")
	fs.BoolVar(&c.AllowLoopback, "allow-loopback", false, "allow members and gateways in 127.0.0.0/8, for demonstrations on one machine")

	fs.StringVar(&c.STUNListen, "stun-listen", "", "`ADDRESS:PORT` (UDP) that tells gateways behind a NAT what their ports are mapped to; empty: off")
	fs.StringVar(&c.STUNAddress, "stun-address", "", "`HOST:PORT` that gateways reach stun-listen at; empty: the host of public-url and the port of stun-listen")
	fs.StringVar(&c.MQTTListen, "mqtt-listen", "", "`ADDRESS:PORT` for devices that hear events over MQTT 3.1.1; empty: off")
	fs.IntVar(&c.MQTTMaxConns, "mqtt-max-connections", 20000, "how many devices may be connected over MQTT at once")
	fs.IntVar(&c.MQTTMaxPerAccount, "mqtt-max-per-account", 1000, "how many of one account")
	fs.IntVar(&c.MQTTMaxPerSource, "mqtt-max-per-source", 5000, "how many from one network (/24, or /64 for IPv6)")

	fs.StringVar(&c.MetricsListen, "metrics-listen", "127.0.0.1:9090", "`ADDRESS:PORT` for Prometheus; empty: off")
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "text", "`text|json`")
}

// Source reads the settings of one command line; Load adds the environment and the file.
type Source struct {
	config Config
	flags  *pflag.FlagSet
	file   string
}

// Flags defines --config and one flag per key.
func Flags(fs *pflag.FlagSet) *Source {
	s := &Source{flags: pflag.NewFlagSet("keys", pflag.ContinueOnError)}
	define(s.flags, &s.config)
	fs.StringVar(&s.file, fileKey, "", "read the keys from this YAML `FILE`")
	fs.AddFlagSet(s.flags)
	return s
}

// Load gives the settings once the command line is parsed. An unknown key or variable, or a value that can't be read, is an
// error that names it and where it stands. Whether the settings make sense together, Check tells.
func (s *Source) Load(environ []string) (Config, error) {
	variables, faults := s.readEnv(environ)
	if s.file == "" {
		s.file, _ = variables[fileKey].(string)
	}
	delete(variables, fileKey)
	var keys map[string]any
	if s.file != "" {
		var err error
		if keys, err = s.readFile(); err != nil {
			faults = append(faults, err)
		}
	}
	s.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			return
		}
		value, where := variables[f.Name], envName(f.Name)
		if value == nil {
			value, where = keys[f.Name], s.file
		}
		if value == nil {
			return
		}
		if err := set(f, value); err != nil {
			faults = append(faults, fmt.Errorf("%s (%s): %w", f.Name, where, err))
		}
	})
	if err := errors.Join(faults...); err != nil {
		return Config{}, err
	}
	return s.config, nil
}

func envName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

func (s *Source) known(key string) bool { return s.flags.Lookup(key) != nil }

// readEnv gives the variables by key.
func (s *Source) readEnv(environ []string) (map[string]any, []error) {
	var faults []error
	k := koanf.New("\x00") // no key is nested
	err := k.Load(env.Provider("\x00", env.Opt{
		Prefix:      EnvPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, EnvPrefix), "_", "-"))
			if key != fileKey && !s.known(key) || envName(key) != name {
				faults = append(faults, fmt.Errorf("%s is no variable of groupcastd: remove it, or look up its spelling in docs/groupcastd.yaml", name))
				return "", nil
			}
			return key, value
		},
	}), nil)
	if err != nil {
		faults = append(faults, fmt.Errorf("read the environment: %w", err))
	}
	return k.Raw(), faults
}

// readFile gives the keys of the YAML file.
func (s *Source) readFile() (map[string]any, error) {
	k := koanf.New("\x00")
	if err := k.Load(file.Provider(s.file), yaml.Parser()); err != nil {
		return nil, fmt.Errorf("%s: can't read %s: %w", fileKey, s.file, err)
	}
	keys := k.Raw()
	var faults []error
	for key := range keys {
		if !s.known(key) {
			faults = append(faults, fmt.Errorf("%s (%s): unknown key: remove it, or look up its spelling in docs/groupcastd.yaml", key, s.file))
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return keys, errors.Join(faults...)
}

// set reads a value into a flag's variable as if it had been given on the command line.
func set(f *pflag.Flag, value any) error {
	switch v := value.(type) {
	case nil:
		return errors.New("the key has no value")
	case map[string]any:
		return errors.New("write one plain value")
	case []any:
		list, ok := f.Value.(pflag.SliceValue)
		if !ok {
			return errors.New("write one plain value, not a list")
		}
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = fmt.Sprint(item)
		}
		return list.Replace(items)
	default:
		if text := fmt.Sprint(v); f.Value.Set(text) != nil {
			return fmt.Errorf("%q is not a value for this key: %s", text, f.Usage)
		}
		return nil
	}
}
