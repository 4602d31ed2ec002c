package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	manyPremises   = 10_000
	premisesGroups = 1
	// settled is how long a process is left alone before its memory is looked at: longer than Go takes to give back what it doesn't need.
	settled = 30 * time.Second
)

// manyHomes have a camera and a group each, all at the same address, and no destination; but for the first busy ones, which have one.
func manyHomes(revision, homes, busy int) api.RelayInformation {
	info := api.RelayInformation{
		RelayID: relayID, Epoch: "e", Revision: strconv.Itoa(revision), MaxStaleSeconds: 900, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{},
	}
	for n := range homes {
		var to []string
		if n < busy {
			to = []string{netlab.Upload}
		}
		var key models.TunnelKey
		binary.BigEndian.PutUint64(key[:], uint64(n+1)) //nolint:gosec // it is small
		info.Groups = append(info.Groups, apiGroup(n, to...))
		info.Premises = append(info.Premises, api.RelayPremises{
			PremisesID: models.PremisesID(fmt.Sprintf("p_%d", n)), GatewayID: gatewayID + models.ID(n), TunnelKey: key, TunnelAddress: inside(0, n+1),
		})
	}
	return info
}

// resident is what a process has in memory, in kilobytes, by the kernel's account.
func (n *node) resident() float64 {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	require.NoError(n.t, err)
	_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
	fields := bytes.Fields(rest)
	require.NotEmpty(n.t, fields)
	kb, err := strconv.ParseFloat(string(fields[0]), 64)
	require.NoError(n.t, err)
	return kb
}

// worked is the processor time that a process has had, in milliseconds.
func (n *node) worked() float64 {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", n.cmd.Process.Pid))
	require.NoError(n.t, err)
	_ = b
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.cmd.Process.Pid))
	require.NoError(n.t, err)
	var sum float64
	for _, thread := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", n.cmd.Process.Pid, thread.Name()))
		require.NoError(n.t, err)
		ns, err := strconv.ParseFloat(string(bytes.Fields(b)[0]), 64)
		require.NoError(n.t, err)
		sum += ns / 1e6
	}
	return sum
}

// BenchmarkRelayFigures shows what 10,000 homes cost the real agent as a relay.
func BenchmarkRelayFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("make bench-relay measures")
	}
	netlab.Require(b)
	l := &lab{relayNS: netlab.New(b, "relay")}
	l.relayNS.Address("lo", relayAddr+"/32")
	service := scripted.NewRelay(manyHomes(1, 0, 0), relayInside, token)
	n := newNode(b, l.relayNS, service.Handler(), "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr)
	revision := 1
	set := func(homes, busy int) {
		revision++
		service.Set(manyHomes(revision, homes, busy))
		for end := time.Now().Add(time.Minute); service.Cursor() != table.Version("e", int64(revision)); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("not after a minute: the relay holds revision %d", revision)
			}
		}
	}
	set(0, 0)
	time.Sleep(settled)
	none := n.resident()
	before := n.worked()
	set(manyPremises, 0)
	fmt.Printf("relay: the first snapshot took %.0f ms, %.0f kB at once\n", n.worked()-before, n.resident())
	time.Sleep(settled)
	fmt.Printf("relay: %d threads\n", func() int { all, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.cmd.Process.Pid)); return len(all) }())
	fmt.Printf("figure relay_idle_premises_kb %.1f kB want <= 4\n", (n.resident()-none)/manyPremises)
	before = n.worked()
	time.Sleep(10 * time.Second)
	fmt.Printf("figure relay_idle_cpu %.1f ms/s\n", (n.worked()-before)/10)
	before = n.worked()
	for i := range 10 {
		set(manyPremises, 1+i%2)
	}
	fmt.Printf("figure relay_change_cpu %.1f ms\n", (n.worked()-before)/10)
}

var _ = netip.Addr{}
