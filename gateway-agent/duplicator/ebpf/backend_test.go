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

// The suite with a gateway that forwards, the tunnel, and a relay that copies in the kernel.
func TestRelayBackend(t *testing.T) {
	backendtest.Run(t, backendtest.Backend{Reserved: true, OpenRelay: func(t *testing.T, c duplicator.Config, inside duplicator.Inside) backendtest.Relay {
		r, err := ebpf.OpenRelay(ebpf.Config{Config: c}, inside)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}})
}

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
