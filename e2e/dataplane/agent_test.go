package dataplane

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// What an agent's size is measured with: every group IP of the usual range in use.
const (
	agentGroups    = 25
	agentReceivers = 8
	agentToken     = "the-token"
	agentID        = models.ID(812345678901234567)
)

// buildAgent gives the stripped program, as the Makefile builds it, and its size in megabytes.
func buildAgent(t testing.TB) (path string, size float64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "gateway-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", os.Getenv("AGENT_TAGS"), "-ldflags=-s -w", "-o", path, "../../cmd/gateway-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	info, err := os.Stat(path)
	require.NoError(t, err)
	return path, float64(info.Size()) / 1e6
}

// agentMemory is what a running agent holds after streams to all its groups and so many changes of its group information, in megabytes.
func (l *lab) agentMemory(program, backend string, changes int) float64 {
	l.t.Helper()
	service := scripted.New(information(1), agentToken)
	var listener net.Listener
	var err error
	l.Gateway.Do(func() { listener, err = net.Listen("tcp", "127.0.0.1:0") })
	require.NoError(l.t, err)
	server := &http.Server{Handler: service.Handler()}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()

	dir, err := os.MkdirTemp("", "gcb-") // the path of a unix socket must stay short
	require.NoError(l.t, err)
	defer os.RemoveAll(dir)
	token := filepath.Join(dir, "token")
	require.NoError(l.t, os.WriteFile(token, []byte(agentToken), 0o600))
	cmd := exec.Command(program, "run", "--server", "http://"+listener.Addr().String(), "--credential", token, "--gateway-id", fmt.Sprint(agentID),
		"--lan-prefix", "172.168.0.0/24", "--lan-address", "172.168.0.1", "--uplink-address", uplink, "--state-dir", filepath.Join(dir, "state"),
		"--backend", backend, "--bpf-dir", l.pins, "--log-level", "warn")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	l.Gateway.Start(cmd)
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}()
	inForce := func(revision int) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			polls := service.Polls()
			if len(polls) > 0 && polls[len(polls)-1].Cursor == fmt.Sprintf("e1.%d", revision) {
				return
			}
			if time.Now().After(end) {
				l.t.Fatalf("the agent did not take revision %d:\n%s", revision, log.String())
			}
		}
	}
	inForce(1)
	for i := range changes {
		service.Set(information(i + 2))
		inForce(i + 2)
		if i%(max(changes, agentGroups)/agentGroups) == 0 {
			to := netip.AddrFrom4([4]byte{172, 168, 0, byte(230 + i*agentGroups/max(changes, agentGroups))})
			l.generate(load{to: to.String(), copies: agentReceivers, window: 256, seconds: 0.02})
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	require.NoError(l.t, err)
	var kilobytes float64
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, err = fmt.Sscan(rest, &kilobytes)
			require.NoError(l.t, err)
		}
	}
	require.Positive(l.t, kilobytes)
	return kilobytes / 1000
}

// information is that of 25 groups with 8 destinations each, one of which has another port by each revision.
func information(revision int) api.GroupInformation {
	info := api.GroupInformation{GatewayID: agentID, Epoch: "e1", Revision: fmt.Sprint(revision), MaxStaleSeconds: 900}
	for n := range agentGroups {
		g := api.GatewayGroup{
			GroupID: models.GroupID(fmt.Sprintf("g_%d", n)), PremisesID: "p_1", GroupName: fmt.Sprintf("groupcast%d", n),
			GroupIP: netip.AddrFrom4([4]byte{172, 168, 0, byte(230 + n)}), Generation: 1, State: agentReceivers,
			GroupSources: []api.GroupSource{{
				RegistrationID: models.RegistrationID(fmt.Sprintf("r_camera%d", n)), SourceName: "camera1", SourceIPv4: netip.MustParseAddr(camera),
				SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerOption,
			}},
		}
		for i := range agentReceivers {
			port := int32(5004)
			if i == 0 {
				port = int32(6000 + revision%1000)
			}
			g.GroupDestinations = append(g.GroupDestinations, api.GroupDestination{
				RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d_%d", n, i)), DestinationID: fmt.Sprint(i + 1), DestinationName: fmt.Sprintf("receiver %d", i),
				DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(receiver(i))),
				DestinationIPv6: nullable.NewNullNullable[netip.Addr](), DestinationPort: nullable.NewNullableWithValue(port),
				Consent: &api.GatewayConsent{Policy: models.PolicyExempt},
			})
		}
		info.Groups = append(info.Groups, g)
	}
	return info
}
