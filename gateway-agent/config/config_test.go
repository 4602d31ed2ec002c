package config_test

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/models"
)

const complete = `
server: https://groupcast.example/base
ca: /etc/ca.pem
credential: /etc/token
gateway-id: 9223372036854775807
lan-interface: br-lan
lan-prefix: 172.168.0.0/24
lan-address: 172.168.0.1
uplink-address: 203.0.113.1
group-range: 172.168.0.233-172.168.0.254
media-ports: [5004, 6000]
sender-ports: 40000-40099
copy-options: nop
state-dir: /run/agent
metrics-listen: ""
log-level: warn
log-format: json
`

func load(t *testing.T, file string, environ, args []string) (config.Config, error) {
	t.Helper()
	set := flag.NewFlagSet("test", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	source := config.Flags(set)
	if file != "" {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
		args = append([]string{"--config", path}, args...)
	}
	require.NoError(t, set.Parse(args))
	return source.Load(environ)
}

func TestAnyMediaPort(t *testing.T) {
	for _, file := range []string{"media-ports: any", "media-ports: [any]"} {
		c, err := load(t, file, nil, nil)
		require.NoError(t, err)
		assert.True(t, c.AnyPort)
		assert.Empty(t, c.MediaPorts)
	}
	c, err := load(t, "media-ports: any", []string{"GATEWAY_AGENT_MEDIA_PORTS=6000"}, nil)
	require.NoError(t, err)
	assert.False(t, c.AnyPort)
}

func TestFileVariablesAndFlagsMeanTheSame(t *testing.T) {
	fromFile, err := load(t, complete, nil, nil)
	require.NoError(t, err)
	require.NoError(t, fromFile.Check())

	assert.Equal(t, "https://groupcast.example/base", fromFile.Server.String())
	assert.Equal(t, models.ID(9223372036854775807), fromFile.Gateway.ID, "YAML must not round the id")
	assert.Equal(t, netip.MustParsePrefix("172.168.0.0/24"), fromFile.Gateway.LANPrefix)
	assert.Equal(t, "172.168.0.233-172.168.0.254", fromFile.Gateway.Range.String())
	assert.Equal(t, []uint16{5004, 6000}, fromFile.MediaPorts)
	assert.Equal(t, sender.Range{First: 40000, Last: 40099}, fromFile.SenderPorts)
	assert.Equal(t, packet.NOP, fromFile.CopyOptions)
	assert.False(t, fromFile.MetricsListen.IsValid(), "an empty metrics-listen turns the metrics off")
	assert.Equal(t, slog.LevelWarn, fromFile.LogLevel)

	var values map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(complete), &values))
	var environ, args []string
	for key := range values {
		value := text(t, values[key])
		environ = append(environ, config.EnvPrefix+strings.ToUpper(strings.ReplaceAll(key, "-", "_"))+"="+value)
		args = append(args, "--"+key+"="+value)
	}
	fromEnv, err := load(t, "", environ, nil)
	require.NoError(t, err)
	assert.Equal(t, fromFile, fromEnv)
	fromFlags, err := load(t, "", nil, args)
	require.NoError(t, err)
	assert.Equal(t, fromFile, fromFlags)
}

func text(t *testing.T, value any) string {
	b, err := yaml.Marshal(value)
	require.NoError(t, err)
	s := strings.TrimSpace(string(b))
	s = strings.ReplaceAll(strings.TrimPrefix(s, "- "), "\n- ", ",")
	return strings.Trim(s, `"`)
}

func TestFlagsWinOverVariablesOverTheFileOverDefaults(t *testing.T) {
	const file = "log-level: error\nlog-format: json\ncopy-options: nop\n"
	environ := []string{"GATEWAY_AGENT_LOG_LEVEL=warn", "GATEWAY_AGENT_LOG_FORMAT=text", "HOME=/root"}
	c, err := load(t, file, environ, []string{"--log-level", "debug"})
	require.NoError(t, err)
	assert.Equal(t, slog.LevelDebug, c.LogLevel)
	assert.Equal(t, "text", c.LogFormat)
	assert.Equal(t, packet.NOP, c.CopyOptions)
	assert.Equal(t, "127.0.0.1:9091", c.MetricsListen.String())
}

func TestTheFileMayBeNamedByAVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	require.NoError(t, os.WriteFile(path, []byte("copy-options: nop"), 0o600))
	c, err := load(t, "", []string{"GATEWAY_AGENT_CONFIG=" + path}, nil)
	require.NoError(t, err)
	assert.Equal(t, packet.NOP, c.CopyOptions)
}

func TestReferenceConfigurationIsCompleteAndHoldsTheDefaults(t *testing.T) {
	b, err := os.ReadFile("../../docs/gateway-agent.yaml")
	require.NoError(t, err)
	reference, err := load(t, string(b), nil, nil)
	require.NoError(t, err)
	require.NoError(t, reference.Check())
	defaults, err := load(t, "", nil, nil)
	require.NoError(t, err)

	// What is required has no default: without it the reference is nothing but the defaults.
	var values map[string]yaml.Node
	require.NoError(t, yaml.Unmarshal(b, &values))
	set := flag.NewFlagSet("test", flag.ContinueOnError)
	config.Flags(set)
	var keys []string
	set.VisitAll(func(f *flag.Flag) {
		if f.Name != "config" {
			keys = append(keys, f.Name)
		}
	})
	assert.Len(t, values, len(keys))
	for _, key := range keys {
		assert.Contains(t, values, key, "docs/gateway-agent.yaml lacks the key %s", key)
	}
	var optional strings.Builder
	required := map[string]bool{}
	for _, key := range []string{"server", "credential", "gateway-id", "lan-prefix", "lan-address", "uplink-address"} {
		required[key] = true
	}
	for line := range strings.Lines(string(b)) {
		if key, _, ok := strings.Cut(line, ":"); !ok || !required[key] {
			optional.WriteString(line)
		}
	}
	onlyOptional, err := load(t, optional.String(), nil, nil)
	require.NoError(t, err)
	assert.Equal(t, defaults, onlyOptional)
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for name, test := range map[string]struct {
		file    string
		environ []string
		args    []string
		want    []string
	}{
		"unknown key":       {file: "lan-adress: 1.2.3.4", want: []string{"lan-adress", "line 1", "unknown key"}},
		"unknown variable":  {environ: []string{"GATEWAY_AGENT_LAN_ADRESS=x"}, want: []string{"GATEWAY_AGENT_LAN_ADRESS"}},
		"misspelt variable": {environ: []string{"GATEWAY_AGENT_LAN-PREFIX=x"}, want: []string{"GATEWAY_AGENT_LAN-PREFIX"}},
		"key twice":         {file: "ca: a\nca: b", want: []string{"ca", "twice", "line 2"}},
		"nested":            {file: "lan-prefix:\n  a: b", want: []string{"lan-prefix", "plain"}},
		"list for a scalar": {file: "lan-prefix: [a]", want: []string{"lan-prefix", "plain"}},
		"nested list":       {file: "media-ports: [[1]]", want: []string{"media-ports", "plain"}},
		"not a mapping":     {file: "- a", want: []string{"line 1", "key: value"}},
		"not YAML":          {file: "\tx: [", want: []string{"not YAML"}},
		"server":            {file: "server: groupcast", want: []string{"server", "URL"}},
		"server with token": {args: []string{"--server", "https://u:secret@h"}, want: []string{"--server", "credential file"}},
		"id 0":              {file: "gateway-id: 0", want: []string{"gateway-id", "decimal"}},
		"id too large":      {file: "gateway-id: 9223372036854775808", want: []string{"gateway-id"}},
		"id as float":       {file: "gateway-id: 1e5", want: []string{"gateway-id"}},
		"prefix host bits":  {file: "lan-prefix: 10.0.0.1/24", want: []string{"lan-prefix", "10.0.0.0/24"}},
		"prefix too long":   {file: "lan-prefix: 10.0.0.0/31", want: []string{"lan-prefix", "/16 to /30"}},
		"prefix IPv6":       {file: "lan-prefix: 2001:db8::/24", want: []string{"lan-prefix"}},
		"address IPv6":      {file: "lan-address: \"::1\"", want: []string{"lan-address"}},
		"address multicast": {environ: []string{"GATEWAY_AGENT_UPLINK_ADDRESS=224.0.0.1"}, want: []string{"uplink-address", "GATEWAY_AGENT_UPLINK_ADDRESS"}},
		"range backwards":   {file: "group-range: 10.0.0.9-10.0.0.8", want: []string{"group-range"}},
		"range too large":   {file: "group-range: 10.0.0.0/16", want: []string{"group-range", "254"}},
		"port 0":            {file: "media-ports: [0]", want: []string{"media-ports", "65535"}},
		"port twice":        {file: "media-ports: 5004,5004", want: []string{"media-ports", "twice"}},
		"any and more":      {file: "media-ports: [any, 5004]", want: []string{"media-ports", "stands alone"}},
		"sender ports":      {file: "sender-ports: 40099-40000", want: []string{"sender-ports", "40000-40099"}},
		"one sender port":   {file: "sender-ports: 40000", want: []string{"sender-ports"}},
		"no ports":          {file: "media-ports: []", want: []string{"media-ports"}},
		"copy options":      {file: "copy-options: off", want: []string{"copy-options", "strip, nop"}},
		"boolean":           {file: "allow-loopback: yes", want: []string{"allow-loopback", "true, false"}},
		"metrics":           {file: "metrics-listen: localhost:9091", want: []string{"metrics-listen"}},
		"log level":         {file: "log-level: loud", want: []string{"log-level", "debug"}},
		"several at once":   {file: "log-level: loud\nx: y", want: []string{"log-level", "unknown key"}},
		"no such file":      {args: []string{"--config", "/does/not/exist.yaml"}, want: []string{"/does/not/exist.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, test.file, test.environ, test.args)
			require.Error(t, err)
			for _, want := range test.want {
				assert.ErrorContains(t, err, want)
			}
			assert.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestCheckNamesWhatKeepsTheAgentFromRunning(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"plain HTTP":             {[]string{"--server=http://192.0.2.1:8080"}, "server: "},
		"LAN address elsewhere":  {[]string{"--lan-address=10.0.0.1"}, "lan-address: "},
		"broadcast":              {[]string{"--lan-address=172.168.0.255"}, "lan-address: "},
		"range elsewhere":        {[]string{"--group-range=10.0.0.1-10.0.0.4"}, "group-range: "},
		"range with broadcast":   {[]string{"--group-range=172.168.0.233-172.168.0.255"}, "group-range: "},
		"range with the gateway": {[]string{"--lan-address=172.168.0.240"}, "group-range: "},
		"range with the uplink":  {[]string{"--uplink-address=172.168.0.240"}, "group-range: "},
		"no default range":       {[]string{"--lan-prefix=172.168.0.0/28", "--group-range="}, "group-range: "},
		"loopback uplink":        {[]string{"--uplink-address=127.0.0.1"}, "allow-loopback: "},
		"allow-loopback only":    {[]string{"--allow-loopback"}, "allow-loopback: "},
		"no server":              {[]string{"--server="}, "server: "},
		"no credential":          {[]string{"--credential="}, "credential: "},
		"no id":                  {[]string{"--gateway-id="}, "gateway-id: "},
		"no prefix":              {[]string{"--lan-prefix="}, "lan-prefix: "},
		"no uplink":              {[]string{"--uplink-address="}, "uplink-address: "},
		"no state":               {[]string{"--state-dir="}, "state-dir: "},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, complete, nil, test.args)
			require.NoError(t, err)
			assert.ErrorContains(t, c.Check(), test.want)
		})
	}
	t.Run("allowed", func(t *testing.T) {
		for _, args := range [][]string{
			{"--server=http://127.0.0.1:8080"},
			{"--server=http://[::1]:8080"},
			{"--server=http://192.0.2.1:8080", "--allow-plain-http"},
			{"--lan-prefix=127.168.0.0/24", "--lan-address=127.168.0.1", "--uplink-address=127.0.0.1", "--group-range=", "--allow-loopback=true"},
		} {
			c, err := load(t, complete, nil, args)
			require.NoError(t, err)
			assert.NoError(t, c.Check(), "%v", args)
		}
	})
}

func TestDefaultRangeIsTheServices(t *testing.T) {
	c, err := load(t, "", nil, []string{"--lan-prefix=192.168.0.0/16", "--lan-address=192.168.7.1"})
	require.NoError(t, err)
	assert.Equal(t, "192.168.7.230-192.168.7.254", c.Gateway.Range.String(), "the /24 that the gateway is in")
	c, err = load(t, "", nil, []string{"--lan-prefix=192.168.7.128/25", "--lan-address=192.168.7.254"})
	require.NoError(t, err)
	assert.Equal(t, "192.168.7.230-192.168.7.253", c.Gateway.Range.String(), "without the gateway itself")
	c, err = load(t, "", nil, []string{"--lan-prefix=192.168.7.224/28", "--lan-address=192.168.7.225"})
	require.NoError(t, err)
	assert.Equal(t, "192.168.7.230-192.168.7.238", c.Gateway.Range.String(), "as far as it lies in the LAN")
}

func TestBehindNATByTheUplinkUnlessItIsSaid(t *testing.T) {
	for uplink, want := range map[string]bool{
		"203.0.113.1": false, "71.230.36.1": false, "127.0.0.1": false,
		"192.168.5.2": true, "10.0.0.2": true, "172.31.0.2": true, "100.64.0.2": true, "100.127.255.254": true, "100.128.0.1": false,
	} {
		c, err := load(t, "", nil, []string{"--uplink-address=" + uplink})
		require.NoError(t, err)
		assert.Equal(t, want, c.Gateway.BehindNAT, uplink)
		for _, said := range []bool{true, false} {
			c, err := load(t, "", nil, []string{"--uplink-address=" + uplink, fmt.Sprintf("--behind-nat=%t", said)})
			require.NoError(t, err)
			assert.Equal(t, said, c.Gateway.BehindNAT, uplink)
		}
	}
	_, err := load(t, "", nil, []string{"--behind-nat=maybe"})
	assert.ErrorContains(t, err, "auto, true, false")
}
