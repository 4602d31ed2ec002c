package relay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// watchers is how many destinations a busy home has: those of the worked example.
const watchers = 3

const watchersPassword = "AAAAAAAAAAAAAAAAAAAAAA"

// busyHomes have a camera and three destinations each, which consent. Those of home 0 are so many.
func busyHomes(revision, homes, first int) api.RelayInformation {
	info := manyHomes(revision, homes, 0)
	for n := range info.Groups {
		to := watchers
		if n == 0 {
			to = first
		}
		info.Groups[n].GroupDestinations = []api.GroupDestination{}
		for i := range to {
			id := fmt.Sprintf("%d-%d", n, i)
			probes, pwd, ufrag := int32(models.MaxProbes), watchersPassword, fmt.Sprintf("%08d", n*watchers+i)
			info.Groups[n].GroupDestinations = append(info.Groups[n].GroupDestinations, api.GroupDestination{
				RegistrationID: models.RegistrationID("r_" + id), DestinationID: strconv.Itoa(i + 1), DestinationName: "receiver",
				DestinationIPv4: nullable.NewNullableWithValue(netip.AddrFrom4([4]byte{96, byte(i), byte(n >> 8), byte(n)})), DestinationIPv6: nullable.NewNullNullable[netip.Addr](),
				DestinationPort: nullable.NewNullableWithValue(int32(mediaPort)),
				Consent:         &api.GatewayConsent{Policy: models.PolicyStrict, Ufrag: &ufrag, Pwd: &pwd, Probes: &probes},
			})
		}
	}
	return info
}

// consenting answers for every address of 96.0.0.0/8, and counts the answers.
func consenting(b *testing.B, in *netlab.Namespace, answered *atomic.Int64) {
	b.Helper()
	in.Run("ip", "route", "add", "local", "96.0.0.0/8", "dev", "lo")
	var conn *net.UDPConn
	in.Do(func() {
		var err error
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: mediaPort})
		require.NoError(b, err)
	})
	b.Cleanup(func() { _ = conn.Close() })
	raw, err := conn.SyscallConn()
	require.NoError(b, err)
	require.NoError(b, raw.Control(func(fd uintptr) {
		require.NoError(b, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
		require.NoError(b, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<24))
	}))
	go func() {
		datagram, oob := make([]byte, 1<<12), make([]byte, 256)
		for {
			n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(datagram, oob)
			if err != nil {
				return
			}
			m, ok := consentcheck.Parse(datagram[:n])
			name, asked := consentcheck.ToReceiver.Ufrag(m.Username)
			if !ok || !asked || !m.Authentic(watchersPassword) {
				continue
			}
			at := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			reply := consentcheck.NewAnswer(consentcheck.Credential{Ufrag: name, Password: watchersPassword}, m.ID, at, n)
			if _, _, err := conn.WriteMsgUDPAddrPort(reply, answersFrom(oob[:oobn]), from); err == nil {
				answered.Add(1)
			}
		}
	}()
}

// answersFrom has what is sent leave from the address that a datagram came to.
func answersFrom(oob []byte) []byte {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Type == unix.IP_PKTINFO {
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])})
		}
	}
	return nil
}

// files is how many files a process has open.
func (n *node) files() int {
	n.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	require.NoError(n.t, err)
	return len(all)
}

// busyFigures shows what homes cost a relay whose destinations consent, each of which is asked every five seconds. No media: that is what make bench-dataplane measures.
func busyFigures(b *testing.B, backend string, homes int) {
	b.Helper()
	l := &lab{relayNS: netlab.New(b, "relay"), internet: netlab.New(b, "internet")}
	netlab.Connect(l.relayNS, "wan0", l.internet, "relay0")
	l.relayNS.Address("wan0", relayAddr+"/30")
	l.internet.Address("relay0", "198.18.0.2/30")
	l.relayNS.Route("0.0.0.0/0", "198.18.0.2")
	var answered atomic.Int64
	consenting(b, l.internet, &answered)
	service := scripted.NewRelay(manyHomes(1, 0, 0), relayInside, token)
	n := newAsking(b, l.relayNS, nil, service.Handler(), "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr,
		"--backend", backend, "--log-level", "info")
	revision := 1
	wait := func(what string, is func() bool) {
		b.Helper()
		for end := time.Now().Add(10 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("not after ten minutes: %s\n%s", what, n.log)
			}
		}
	}
	set := func(homes, first int) {
		b.Helper()
		revision++
		service.Set(busyHomes(revision, homes, first))
		wait("the relay holds it", func() bool { return service.Cursor() == table.Version("e", int64(revision)) })
	}
	cost := func(what func()) float64 {
		before := n.worked()
		what()
		return n.worked() - before
	}
	set(0, 0)
	time.Sleep(settled)
	none, files := n.resident(), n.files()
	first := cost(func() { set(homes, watchers) })
	live := func() (live int) {
		for _, g := range n.status().Groups {
			for _, d := range g.Destinations {
				if d.Consent == models.ConsentLive {
					live++
				}
			}
		}
		return live
	}
	asked := cost(func() {
		wait("all consent", func() bool {
			time.Sleep(5 * time.Second)
			return live() == homes*watchers
		})
	})
	time.Sleep(settled)
	name := fmt.Sprintf("relay_busy_%s", backend)
	fmt.Printf("beside %s_premises_kb %.1f kB: %d homes with %d destinations each, %.1f MB, without premises %.1f MB\n", name, (n.resident()-none)/float64(homes), homes, watchers,
		n.resident()/1000, none/1000)
	fmt.Printf("beside %s_files %d, without premises %d\n", name, n.files(), files)
	fmt.Printf("beside %s_first_cpu %.0f ms for the first snapshot, %.0f ms until all had consented\n", name, first, asked)
	before := answered.Load()
	second := cost(func() { time.Sleep(idling) }) / idling.Seconds()
	fmt.Printf("beside %s_cpu %.0f ms/s while nothing changes, %.0f checks/s\n", name, second, float64(answered.Load()-before)/idling.Seconds())
	var all []float64
	for i := range 10 {
		start := time.Now()
		spent := cost(func() { set(homes, watchers-1+i%2) })
		all = append(all, spent-second*time.Since(start).Seconds())
	}
	slices.Sort(all)
	fmt.Printf("beside %s_change_cpu %.0f ms for a change of one home, what would have been spent meanwhile not counted\n", name, (all[4]+all[5])/2)
}

// BenchmarkRelayBusy has PREMISES homes (10,000), all at one group IP.
func BenchmarkRelayBusy(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("make bench-relay measures")
	}
	netlab.Require(b)
	homes := manyPremises
	if s := os.Getenv("PREMISES"); s != "" {
		var err error
		homes, err = strconv.Atoi(s)
		require.NoError(b, err)
	}
	for _, backend := range []string{"socket", "ebpf"} {
		b.Run(backend, func(b *testing.B) { busyFigures(b, backend, homes) })
	}
}
