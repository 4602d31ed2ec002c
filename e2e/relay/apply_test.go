package relay

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// processor is the processor time that this process has had.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRelayApply is what a backend takes to put a change of one home of so many into force, all of which have three destinations: processor time of all threads.
func BenchmarkRelayApply(b *testing.B) {
	netlab.Require(b)
	for name, open := range backends {
		for _, homes := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, homes), func(b *testing.B) {
				ns := netlab.New(b, "relay")
				far := netlab.New(b, "internet")
				netlab.Connect(ns, "wan0", far, "relay0")
				ns.Address("wan0", relayAddr+"/30")
				far.Address("relay0", "198.18.0.2/30")
				ns.Route("0.0.0.0/0", "198.18.0.2")
				key, err := tunnel.LoadKey(filepath.Join(b.TempDir(), "key"))
				require.NoError(b, err)
				log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
				var network duplicator.Network
				var tun *tunnel.Tunnel
				ns.Do(func() {
					tun, err = tunnel.Open(tunnel.Config{Name: "gcrelay", Key: key, Port: tunnelPort, Address: relayInside, Log: log})
					require.NoError(b, err)
					network, err = open(duplicator.Config{Uplink: netip.MustParseAddr(relayAddr), Log: log}, tun)
					require.NoError(b, err)
				})
				defer ns.Do(func() { _ = network.Close(); _ = tun.Close() })
				one := func(n, destinations int) *table.Snapshot {
					g := &table.Group{
						ID: fmt.Sprintf("g_%d", n), IP: groupIP, Generation: 1,
						Sources: []table.Source{{ID: fmt.Sprintf("r_c%d", n), Addr: cameraAddr, Trigger: table.TriggerOption, Port: uint16(20_000 + n)}},
					}
					for i := range destinations {
						g.Destinations = append(g.Destinations, table.Destination{ID: fmt.Sprintf("r_%d_%d", n, i), Addr: netip.AddrFrom4([4]byte{96, byte(i), byte(n >> 8), byte(n)}), Port: mediaPort})
					}
					return &table.Snapshot{Version: "e.1", ValidUntil: time.Now().Add(time.Hour), Groups: map[netip.Addr]*table.Group{groupIP: g}}
				}
				all := map[netip.Addr]*table.Snapshot{}
				for n := range homes {
					all[inside(0, n+1)] = one(n, 3)
				}
				apply := func() {
					ns.Do(func() { err = network.Apply(maps.Clone(all)) })
					require.NoError(b, err)
				}
				before := processor(b)
				apply()
				first := processor(b) - before
				time.Sleep(time.Second)
				before = processor(b)
				n := 0
				for b.Loop() {
					n++
					all[inside(0, 1)] = one(0, 2+n%2)
					apply()
				}
				b.ReportMetric(float64((processor(b)-before).Microseconds())/float64(n)/1000, "cpu-ms/change")
				if k, ok := network.(interface{ Kernel() int }); ok {
					require.Equal(b, homes, k.Kernel(), "homes that the kernel serves")
				}
				b.ReportMetric(float64(first.Microseconds())/1000, "cpu-ms/first")
				before = processor(b)
				time.Sleep(5 * time.Second)
				b.ReportMetric(float64((processor(b)-before).Microseconds())/5000, "cpu-ms/idle-s")
			})
		}
	}
}
