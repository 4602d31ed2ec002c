package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	manyPremises = 10_000
	// settled is how long a process is left alone before its memory is looked at: longer than Go takes to give back what it doesn't need.
	settled = 30 * time.Second
	idling  = 10 * time.Second // how long an idle relay is watched
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
func (n *node) worked() (ms float64) {
	n.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.cmd.Process.Pid))
	require.NoError(n.t, err)
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread ended
		}
		ns, err := strconv.ParseFloat(string(bytes.Fields(b)[0]), 64)
		require.NoError(n.t, err)
		ms += ns / 1e6
	}
	return ms
}

func figure(name string, value float64, unit, op string, target float64) {
	verdict := "ok"
	if op == "<=" && value > target {
		verdict = "short"
	}
	fmt.Printf("figure %s %.2f %s want %s %g %s\n", name, value, unit, op, target, verdict)
}

// BenchmarkRelayFigures shows what 10,000 homes cost the real agent as a relay, beside the same process with none and with a tenth of them. Memory is looked at when Go has had the
// time to give back what it doesn't need; processor time is that of all the agent's threads.
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
		b.Helper()
		revision++
		service.Set(manyHomes(revision, homes, busy))
		for end := time.Now().Add(time.Minute); service.Cursor() != table.Version("e", int64(revision)); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("not after a minute: the relay holds revision %d", revision)
			}
		}
	}
	cost := func(what func()) float64 {
		before := n.worked()
		what()
		return n.worked() - before
	}
	// change is what it takes that one home of so many gets a destination or loses it.
	change := func(homes int) float64 {
		set(homes, 0)
		var all []float64
		for i := range 10 {
			all = append(all, cost(func() { set(homes, 1-i%2) }))
		}
		slices.Sort(all)
		return (all[4] + all[5]) / 2
	}
	set(0, 0)
	time.Sleep(settled)
	none := n.resident()
	idle := cost(func() { time.Sleep(idling) }) / idling.Seconds()
	first := cost(func() { set(manyPremises, 0) })
	time.Sleep(settled)
	figure("relay_idle_premises_kb", (n.resident()-none)/manyPremises, "kB", "<=", 4)
	fmt.Printf("beside relay_resident_mb %.1f MB, without premises %.1f MB\n", n.resident()/1000, none/1000)
	fmt.Printf("beside relay_idle_cpu %.1f ms/s, without premises %.1f ms/s\n", cost(func() { time.Sleep(idling) })/idling.Seconds(), idle)
	fmt.Printf("beside relay_first_cpu %.0f ms for the first snapshot\n", first)
	fmt.Printf("beside relay_change_cpu %.1f ms for a change of one home of %d, %.1f ms of %d\n", change(manyPremises), manyPremises, change(manyPremises/10), manyPremises/10)
}
