package config_test

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/config"
)

func load(t *testing.T, file string, environ, args []string) (config.Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	source := config.Flags(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "groupcastd.yaml")
		require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
		args = append([]string{"--config", path}, args...)
	}
	require.NoError(t, fs.Parse(args))
	return source.Load(environ)
}

func TestReferenceConfigurationIsCompleteAndHoldsTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../../docs/groupcastd.yaml")
	require.NoError(t, err)
	reference, err := load(t, string(text), nil, nil)
	require.NoError(t, err)
	require.NoError(t, reference.Check())
	defaults, err := load(t, "", nil, nil)
	require.NoError(t, err)
	if len(reference.TrustedProxies) == 0 {
		reference.TrustedProxies = defaults.TrustedProxies
	}
	assert.Equal(t, defaults, reference)

	var keys map[string]any
	require.NoError(t, yaml.Unmarshal(text, &keys))
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Flags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" {
			assert.Contains(t, keys, f.Name, "docs/groupcastd.yaml lacks the key")
			assert.NotEmpty(t, f.Usage)
		}
	})
}

const complete = `
listen: 0.0.0.0:8443
public-url: https://groupcast.example
tls-cert: /etc/cert.pem
tls-key: /etc/key.pem
behind-proxy: true
trusted-proxies: [10.0.0.0/8, 192.0.2.1]
data-dir: /data
database-url: postgres://u:p@h/d
database-max-conns: 20
migrate: true
key-encryption-key-file: /run/credentials/kek
signing-alg: ES256
external-issuers: /etc/issuers.json
nats-url: tls://nats.example:4222
nats-credentials: /etc/nats.creds
nats-ca: /etc/nats-ca.pem
nats-cert: /etc/nats-cert.pem
nats-key: /etc/nats-key.pem
nats-replicas: 3
event-queue-size: 2048
webhook-ports: [443, 8443]
sign-up: open
rate-limit-source: 7
rate-limit-principal: 8
audit-retention: 48h
quota-premises: 11
quota-devices: 12
quota-registrations: 13
quota-groups: 14
quota-destinations: 15
max-stale: 60s
long-poll-max-waiters: 5
drain-time: 1s
allow-loopback: true
stun-listen: 127.0.0.1:3478
stun-address: groupcast.example:3478
mqtt-listen: 127.0.0.1:8883
mqtt-max-connections: 100
mqtt-max-per-account: 10
mqtt-max-per-source: 20
metrics-listen: ""
log-level: warn
log-format: json
`

func TestFileVariablesAndFlagsMeanTheSame(t *testing.T) {
	fromFile, err := load(t, complete, nil, nil)
	require.NoError(t, err)
	assert.Equal(t, config.Config{
		Listen: "0.0.0.0:8443", PublicURL: "https://groupcast.example", TLSCert: "/etc/cert.pem", TLSKey: "/etc/key.pem", BehindProxy: true,
		TrustedProxies: []string{"10.0.0.0/8", "192.0.2.1"}, DataDir: "/data", DatabaseURL: "postgres://u:p@h/d", DatabaseMaxConns: 20, Migrate: true,
		KeyEncryptionKeyFile: "/run/credentials/kek", SigningAlg: "ES256", ExternalIssuers: "/etc/issuers.json",
		NATSURL: "tls://nats.example:4222", NATSCredentials: "/etc/nats.creds", NATSCA: "/etc/nats-ca.pem", NATSCert: "/etc/nats-cert.pem",
		NATSKey: "/etc/nats-key.pem", NATSReplicas: 3, EventQueueSize: 2048, WebhookPorts: []uint{443, 8443},
		SignUp: "open", RateLimitSource: 7, RateLimitPrincipal: 8, AuditRetention: 48 * time.Hour,
		Quotas:   models.Quotas{PremisesPerAccount: 11, DevicesPerAccount: 12, RegistrationsPerAccount: 13, GroupsPerPremises: 14, DestinationsPerGroup: 15},
		MaxStale: time.Minute, LongPollMaxWaiters: 5, DrainTime: time.Second,
		AllowLoopback: true, STUNListen: "127.0.0.1:3478", STUNAddress: "groupcast.example:3478", MQTTListen: "127.0.0.1:8883", MQTTMaxConns: 100, MQTTMaxPerAccount: 10, MQTTMaxPerSource: 20, MetricsListen: "", LogLevel: slog.LevelWarn, LogFormat: "json",
	}, fromFile)

	var values map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(complete), &values))
	var environ, args []string
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Flags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config" {
			return
		}
		value, ok := values[f.Name]
		require.True(t, ok, "%s is missing in this test", f.Name)
		text := fmt.Sprint(value)
		if list, ok := value.([]any); ok {
			text = strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", ",")
		}
		environ = append(environ, "GROUPCAST_"+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))+"="+text)
		args = append(args, "--"+f.Name+"="+text)
	})
	fromEnv, err := load(t, "", environ, nil)
	require.NoError(t, err)
	assert.Equal(t, fromFile, fromEnv)
	fromFlags, err := load(t, "", nil, args)
	require.NoError(t, err)
	assert.Equal(t, fromFile, fromFlags)
}

func TestFlagsWinOverVariablesOverTheFileOverDefaults(t *testing.T) {
	c, err := load(t, "listen: 127.0.0.1:1\nlog-level: error\nlog-format: json\n",
		[]string{"GROUPCAST_LISTEN=127.0.0.1:2", "GROUPCAST_LOG_LEVEL=warn", "OTHER_LISTEN=x"},
		[]string{"--listen", "127.0.0.1:3"})
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:3", c.Listen)
	assert.Equal(t, slog.LevelWarn, c.LogLevel)
	assert.Equal(t, "json", c.LogFormat)
	assert.Equal(t, 12, c.DatabaseMaxConns)
}

func TestTheFileMayBeNamedByAVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(path, []byte("log-format: json\n"), 0o600))
	c, err := load(t, "", []string{"GROUPCAST_CONFIG=" + path}, nil)
	require.NoError(t, err)
	assert.Equal(t, "json", c.LogFormat)
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for _, c := range []struct {
		file    string
		environ string
		want    string
	}{
		{file: "lisen: 127.0.0.1:1\n", want: "lisen ("},
		{file: "config: x\n", want: "config ("},
		{file: "listen: 127.0.0.1:1\nlisten: 127.0.0.1:2\n", want: "config: can't read"},
		{file: "listen: [127.0.0.1:1]\n", want: "listen ("},
		{file: "listen:\n  address: 127.0.0.1\n", want: "listen ("},
		{file: "max-stale: 900\n", want: "max-stale ("},
		{file: "behind-proxy: maybe\n", want: "behind-proxy ("},
		{file: "log-level: loud\n", want: "log-level ("},
		{file: "a: b: c\n", want: "config: can't read"},
		{environ: "GROUPCAST_LISEN=x", want: "GROUPCAST_LISEN is no variable"},
		{environ: "GROUPCAST_Listen=x", want: "GROUPCAST_Listen is no variable"},
		{environ: "GROUPCAST_DATABASE_MAX_CONNS=many", want: "database-max-conns (GROUPCAST_DATABASE_MAX_CONNS): "},
		{environ: "GROUPCAST_MIGRATE=", want: "migrate (GROUPCAST_MIGRATE): "},
		{environ: "GROUPCAST_CONFIG=/does/not/exist.yaml", want: "config: can't read /does/not/exist.yaml"},
	} {
		_, err := load(t, c.file, []string{c.environ}, nil)
		if assert.Error(t, err, c.file+c.environ) {
			assert.Contains(t, err.Error(), c.want)
		}
	}
}

func TestRules(t *testing.T) {
	tls := []string{"--tls-cert", "c", "--tls-key", "k"}
	for _, c := range []struct {
		args []string
		want string // the key that the fault names; empty: no fault
	}{
		{nil, ""},
		{[]string{"--listen", "localhost:8080"}, ""},
		{[]string{"--listen", "[::1]:0"}, ""},
		{append([]string{"--listen", "0.0.0.0:8443"}, tls...), ""},
		{[]string{"--listen", ":8080", "--behind-proxy", "--trusted-proxies", "10.0.0.0/8,192.0.2.1"}, ""},
		{[]string{"--public-url", "http://127.0.0.1:8080"}, ""},
		{[]string{"--public-url", "https://groupcast.example/"}, ""},
		{[]string{"--allow-loopback"}, ""},
		{[]string{"--allow-loopback", "--metrics-listen", ""}, ""},
		{[]string{"--listen", ":8080"}, "listen"},
		{[]string{"--listen", "192.168.1.1:8080"}, "listen"},
		{[]string{"--listen", "groupcast.example:8080"}, "listen"},
		{[]string{"--listen", "8080"}, "listen"},
		{[]string{"--listen", "127.0.0.1:http"}, "listen"},
		{[]string{"--tls-cert", "c"}, "tls-key"},
		{[]string{"--tls-key", "k"}, "tls-cert"},
		{[]string{"--public-url", "http://groupcast.example"}, "public-url"},
		{[]string{"--public-url", "groupcast.example"}, "public-url"},
		{[]string{"--public-url", "https://groupcast.example/api"}, "public-url"},
		{[]string{"--public-url", "https://u:p@groupcast.example"}, "public-url"},
		{[]string{"--trusted-proxies", "10.0.0.0/33"}, "trusted-proxies"},
		{append([]string{"--listen", "0.0.0.0:8443", "--allow-loopback"}, tls...), "allow-loopback"},
		{[]string{"--metrics-listen", ":9090", "--allow-loopback"}, "allow-loopback"},
		{[]string{"--metrics-listen", "9090"}, "metrics-listen"},
		{[]string{"--mqtt-listen", "0.0.0.0:8883"}, "mqtt-listen"},
		{[]string{"--mqtt-listen", "0.0.0.0:1883", "--behind-proxy"}, ""},
		{[]string{"--mqtt-listen", "0.0.0.0:8883", "--tls-cert", "c", "--tls-key", "k"}, ""},
		{[]string{"--mqtt-listen", "1883"}, "mqtt-listen"},
		{[]string{"--stun-listen", "0.0.0.0:3478"}, ""},
		{[]string{"--stun-listen", "3478"}, "stun-listen"},
		{[]string{"--stun-listen", "0.0.0.0:3478", "--allow-loopback"}, "allow-loopback"},
		{[]string{"--stun-address", "groupcast.example:3478"}, "stun-address"},
		{[]string{"--stun-listen", "0.0.0.0:3478", "--stun-address", "groupcast.example"}, "stun-address"},
		{[]string{"--mqtt-listen", "0.0.0.0:1883", "--behind-proxy", "--allow-loopback"}, "allow-loopback"},
		{[]string{"--mqtt-max-per-source", "0"}, "mqtt-max-connections"},
		{[]string{"--max-stale", "1s"}, "max-stale"},
		{[]string{"--max-stale", "60500ms"}, "max-stale"},
		{[]string{"--long-poll-max-waiters", "0"}, "long-poll-max-waiters"},
		{[]string{"--drain-time", "1h"}, "drain-time"},
		{[]string{"--database-url", "mysql://u:hunter2@h/d"}, "database-url"},
		{[]string{"--database-max-conns", "0"}, "database-max-conns"},
		{[]string{"--data-dir", ""}, "data-dir"},
		{[]string{"--log-format", "xml"}, "log-format"},
	} {
		cfg, err := load(t, "", nil, c.args)
		require.NoError(t, err)
		err = cfg.Check()
		if c.want == "" {
			assert.NoError(t, err, "%v", c.args)
		} else if assert.Error(t, err, "%v", c.args) {
			assert.True(t, strings.HasPrefix(err.Error(), c.want+": "), "%v: %v", c.args, err)
			assert.NotContains(t, err.Error(), "hunter2")
		}
	}
}

func TestWarnings(t *testing.T) {
	for want, args := range map[string][]string{
		"allow-loopback": {"--allow-loopback"},
		"behind-proxy":   {"--behind-proxy"},
		"public-url":     {"--listen", ":8443", "--tls-cert", "c", "--tls-key", "k"},
		"nats-url":       {"--database-url", "postgres:///groupcast"},
	} {
		cfg, err := load(t, "", nil, args)
		require.NoError(t, err)
		require.Len(t, cfg.Warnings(), 1, "%v", args)
		assert.Contains(t, cfg.Warnings()[0], want)
	}
	cfg, err := load(t, "", nil, nil)
	require.NoError(t, err)
	assert.Empty(t, cfg.Warnings())
	cfg, err = load(t, "", nil, []string{"--database-url", "postgres:///groupcast", "--nats-url", "nats://127.0.0.1:4222"})
	require.NoError(t, err)
	assert.Empty(t, cfg.Warnings())
}

func TestDerived(t *testing.T) {
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	cfg := config.Config{DataDir: "/data"}
	assert.Equal(t, "/data/kek", cfg.KEKFile())
	assert.Equal(t, "http://127.0.0.1:8080", cfg.URL(addr))
	cfg.TLSCert = "c"
	assert.Equal(t, "https://127.0.0.1:8080", cfg.URL(addr))
	cfg.PublicURL, cfg.KeyEncryptionKeyFile = "https://groupcast.example/", "/k"
	assert.Equal(t, "https://groupcast.example", cfg.URL(addr))
	assert.Equal(t, "/k", cfg.KEKFile())
}
