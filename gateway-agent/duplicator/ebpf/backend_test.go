package ebpf_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/backendtest"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
)

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		os.Exit(agentProcess())
	}
	netlab.WaitTogether()
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, c ebpf.Config) *ebpf.Backend {
	t.Helper()
	b, err := ebpf.Open(c)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	return b
}

func TestBackend(t *testing.T) { backendtest.Run(t, backend()) }

func TestSoak(t *testing.T) {
	b := backend()
	b.Entries = func(d duplicator.Duplicator) map[string]int { return d.(*ebpf.Backend).Entries() }
	backendtest.Soak(t, b)
}

func backend() backendtest.Backend {
	return backendtest.Backend{PacketByPacket: true, Open: func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
		return open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
	}}
}
