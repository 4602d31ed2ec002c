//go:build !race

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	unit   = "../../packaging/gateway-agent/gateway-agent.service"
	nobody = 65534
)

// wireInformation has one camera that needs no option, and one destination.
func wireInformation() api.GroupInformation {
	info := revision(1)
	info.Groups = append(info.Groups, api.GatewayGroup{
		GroupID: "g_1", PremisesID: "p_1", GroupName: "groupcast1", GroupIP: netip.MustParseAddr("172.168.0.233"), Generation: 1, State: 1,
		GroupSources: []api.GroupSource{{
			RegistrationID: "r_camera", SourceName: "camera1", SourceIPv4: netip.MustParseAddr("172.168.0.5"),
			SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerSource,
		}},
		GroupDestinations: []api.GroupDestination{{
			RegistrationID: "r_upload", DestinationID: "1", DestinationName: "upload",
			DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(netlab.Upload)),
			DestinationIPv6: nullable.NewNullNullable[netip.Addr](), DestinationPort: nullable.NewNullNullable[int32](),
			Consent: &api.GatewayConsent{Policy: models.PolicyExempt},
		}},
	})
	return info
}

// unitSetting gives what the packaged unit says.
func unitSetting(t *testing.T, key string) string {
	t.Helper()
	b, err := os.ReadFile(unit)
	require.NoError(t, err)
	m := regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllSubmatch(b, -1)
	require.Len(t, m, 1, key)
	return string(m[0][1])
}

// With an ordinary user, exactly the unit's capabilities, nothing to write but its state and a BPF file system of its own, and no way to more, backend auto
// takes the kernel path; without one of them it takes sockets and says what is missing.
func TestTheUnitIsEnoughForTheKernelPath(t *testing.T) {
	netlab.Require(t)
	// go test's own directories are closed to other users.
	bin, err := os.MkdirTemp("", "gcb-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(bin) })
	require.NoError(t, os.Chmod(bin, 0o755))
	program := filepath.Join(bin, "gateway-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the package
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for name, test := range map[string]struct {
		without string
		backend string
		log     string
	}{
		"as packaged":     {"", "copying in the kernel", "this host can run it"},
		"without BPF":     {"CAP_BPF", "copying by sockets", "give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"},
		"without PERFMON": {"CAP_PERFMON", "copying by sockets", "give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"},
		"without a mount": {"mount", "copying by sockets", "mount a BPF file system and let the agent write there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newUnit(t, program)
			log := a.start(test.without)
			require.Contains(t, log(), "gateway-agent runs")
			assert.Contains(t, log(), test.backend)
			assert.Contains(t, log(), test.log)
			a.streams()
			// Only a static program can give up a capability; it has no need of this one any more.
			assert.Zero(t, a.permitted()&(1<<unix.CAP_PERFMON), "%x", a.permitted())
		})
	}
}

// unitAgent is an agent that is started as the unit would, in a home of its own.
type unitAgent struct {
	t       *testing.T
	program string
	dir     string
	home    netlab.Home
	running *exec.Cmd
}

func newUnit(t *testing.T, program string) *unitAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "gcu-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	for _, own := range []string{"state", "bpf"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, own), 0o700))
		require.NoError(t, os.Chown(filepath.Join(dir, own), nobody, nobody))
	}

	a := &unitAgent{t: t, program: program, dir: dir, home: netlab.NewHome(t, netlab.New(t, "gateway"))}
	service := scripted.New(wireInformation(), "the-token")
	var l net.Listener
	a.home.Gateway.Do(func() { l, err = net.Listen("tcp", "127.0.0.1:0") })
	require.NoError(t, err)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: service.Handler(), ReadHeaderTimeout: time.Minute}}
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte("the-token"), 0o600))
	require.NoError(t, os.Chown(token, nobody, nobody))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "agent.yaml"), fmt.Appendf(nil, `
server: %s
credential: %s
gateway-id: 812345678901234567
lan-interface: lan0
lan-prefix: 172.168.0.0/24
lan-address: 172.168.0.1
uplink-address: 203.0.113.1
group-range: 172.168.0.230-172.168.0.254
state-dir: %s
bpf-dir: %s
metrics-listen: ""
`, server.URL, token, filepath.Join(dir, "state"), filepath.Join(dir, "bpf")), 0o644))
	return a
}

// start waits until the agent copies.
func (a *unitAgent) start(without string) (log func() string) {
	a.t.Helper()
	var wanted []string
	for c := range strings.FieldsSeq(unitSetting(a.t, "AmbientCapabilities")) {
		if c != without {
			wanted = append(wanted, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
		}
	}
	require.Equal(a.t, unitSetting(a.t, "AmbientCapabilities"), unitSetting(a.t, "CapabilityBoundingSet"))
	require.Contains(a.t, strings.Fields(unitSetting(a.t, "SystemCallFilter")), "bpf")
	mount := fmt.Sprintf("mount -t bpf -o mode=0700,nosuid,nodev,noexec bpf %[1]s/bpf && chown %[2]d:%[2]d %[1]s/bpf", a.dir, nobody)
	if without == "mount" {
		mount = "true"
	}
	caps := "-all," + strings.Join(wanted, ",")
	// ProtectSystem=strict, then the user and the capabilities.
	script := fmt.Sprintf(`set -e
mount --bind %[1]s/state %[1]s/state
%[2]s
mount -o remount,bind,ro /
exec setpriv --reuid %[3]d --regid %[3]d --clear-groups --inh-caps %[4]s --ambient-caps %[4]s --bounding-set %[4]s --no-new-privs \
	%[5]s run --config %[1]s/agent.yaml`, a.dir, mount, nobody, caps, a.program)
	c := exec.CommandContext(a.t.Context(), "unshare", "--mount", "sh", "-c", script)
	text := &logtest.Log{}
	c.Stdout, c.Stderr = text, text
	a.home.Gateway.Start(c)
	a.running = c
	a.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if a.t.Failed() {
			a.t.Log(text)
		}
	})
	require.Eventually(a.t, func() bool {
		s, err := agent.Ask(a.t.Context(), filepath.Join(a.dir, "state"))
		return err == nil && s.Forwarding && s.Cursor == "e1.1"
	}, time.Minute, 10*time.Millisecond)
	return text.String
}

// permitted gives the capabilities that any of the agent's threads could still use.
func (a *unitAgent) permitted() (all uint64) {
	a.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.running.Process.Pid))
	require.NoError(a.t, err)
	require.NotEmpty(a.t, files)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread ended
		}
		require.NoError(a.t, err)
		m := regexp.MustCompile(`(?m)^CapPrm:\s*(\S+)$`).FindSubmatch(b)
		require.NotNil(a.t, m)
		n, err := strconv.ParseUint(string(m[1]), 16, 64)
		require.NoError(a.t, err)
		all |= n
	}
	return all
}

// streams fails unless what a camera sends gets to its destination.
func (a *unitAgent) streams() {
	a.t.Helper()
	receiver := a.home.WAN.ListenUDP(netlab.Upload + ":5004")
	cam := a.home.Camera.ListenUDP("172.168.0.5:0")
	_, err := cam.WriteTo([]byte("video"), &net.UDPAddr{IP: net.IPv4(172, 168, 0, 233), Port: 5004})
	require.NoError(a.t, err)
	buf := make([]byte, 100)
	require.NoError(a.t, receiver.SetReadDeadline(time.Now().Add(time.Minute)))
	n, _, err := receiver.ReadFrom(buf)
	require.NoError(a.t, err)
	require.Equal(a.t, "video", string(buf[:n]))
}
