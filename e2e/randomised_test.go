package e2e

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/models"
)

var (
	randomisedDuration = flag.Duration("randomised.duration", 8*time.Second, "how long a randomised run goes on, for each backend")
	randomisedSeed     = flag.Uint64("randomised.seed", 0, "repeat the choices of a randomised run; 0 draws them")
)

// Payloads of a randomised run: what the datagram is, then its number among all.
const (
	mediaOfCamera  = "media"
	mustNotBeThere = "never"
)

// watcher judges every packet on the uplink as it comes. A number tells when the camera sent: so whether somebody was in the table at that
// moment needs no clock.
type watcher struct {
	sent atomic.Uint64 // number of the camera's last datagram

	mu      sync.Mutex
	member  map[netip.Addr]*membership
	packets int
	faults  []string
}

// membership is when an address may get copies: from the datagram with the first number on, and from the last one on no more.
type membership struct {
	first, last uint64 // last 0: still
	seen        uint64 // greatest number on the uplink
}

func (w *watcher) fault(format string, args ...any) {
	if len(w.faults) < 20 {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
	}
}

func (w *watcher) frame(f netlab.Frame) {
	p := f.IPv4()
	if p == nil || !f.Outgoing {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	home := netip.MustParsePrefix("172.168.0.0/24")
	from, to, header := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), int(p[0]&15)*4
	switch id, err := packet.StreamID(p[20:header]); {
	case home.Contains(to):
		w.fault("for the LAN's address %s: %x", to, p)
	case home.Contains(from) || from != netip.MustParseAddr(uplinkAddr):
		w.fault("from %s: %x", from, p)
	case err != nil || id.IsValid():
		w.fault("with option 0x88: %x", p)
	}
	if p[9] != syscall.IPPROTO_UDP {
		return
	}
	payload := p[header+8:]
	if len(payload) < len(mediaOfCamera)+8 || string(payload[:len(mediaOfCamera)]) != mediaOfCamera {
		w.fault("not what the camera may stream: %.20q to %s", payload, to)
		return
	}
	n := binary.BigEndian.Uint64(payload[len(mediaOfCamera):])
	m := w.member[to]
	switch {
	case m == nil:
		w.fault("datagram %d to %s, who was never a member", n, to)
	case n < m.first || m.last != 0 && n >= m.last:
		w.fault("datagram %d to %s, who was a member from %d on and no more from %d on", n, to, m.first, m.last)
	default:
		m.seen = max(m.seen, n)
	}
}

// join says that whatever is sent from now on may go there.
func (w *watcher) join(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.member[netip.MustParseAddr(addr)] = &membership{first: w.sent.Load() + 1}
}

// leave says that nothing that is sent from now on may go there.
func (w *watcher) leave(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.member[netip.MustParseAddr(addr)].last = w.sent.Load() + 1
}

// got tells whether something that was sent after now comes to that address.
func (w *watcher) got(addr string, after uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.member[netip.MustParseAddr(addr)].seen > after
}

// randomised is one run.
type randomised struct {
	*example
	t       *testing.T
	wire    *wire
	watch   *watcher
	agent   *harness.Agent
	random  *rand.Rand
	members []*member
	did     map[string]int
}

// member is a destination of groupcast1 that comes and goes, each time at an address that nobody had before.
type member struct {
	token, body  string
	address      string
	registration string // "" while it is none
}

// A camera streams, and a stranger in the home tries what it can, while members come and go, the agent is stopped, killed and started, and
// the server fails. On the uplink there is never a group IP, a LAN address, option 0x88, or a copy to anybody who wasn't in the
// table when the datagram was sent.
func TestRandomisedRun(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel() // it mostly waits
			seed := *randomisedSeed
			if seed == 0 {
				seed = rand.Uint64()
			}
			t.Logf("repeat with -randomised.seed=%d", seed)
			r := newRandomised(t, backend, seed)
			var cameras sync.WaitGroup
			stop := make(chan struct{})
			for _, send := range []func(stop <-chan struct{}){r.stream(), r.mischief()} {
				cameras.Go(func() { send(stop) })
			}
			defer cameras.Wait()
			defer close(stop)
			for end := time.Now().Add(*randomisedDuration); time.Now().Before(end) && !r.broken(); {
				r.act()
			}
			for _, m := range r.members {
				if m.registration == "" {
					r.comes(m)
				}
			}
			r.check()
		})
	}
}

func newRandomised(t *testing.T, backend string, seed uint64) *randomised {
	home := netlab.NewHome(t, netlab.New(t, "gateway"))
	home.Camera.Address("cam0", "172.168.0.6/24")
	r := &randomised{
		t: t, wire: &wire{camera: home.Camera, gateway: home.Gateway}, random: rand.New(rand.NewPCG(seed, 1)), did: map[string]int{},
		watch: &watcher{member: map[netip.Addr]*membership{}},
	}
	// Whoever gets a copy: nobody answers, so nothing but copies is on the uplink.
	home.WAN.Neighbour("ext0", uplinkAddr, home.Gateway.HardwareAddr("wan0"))
	home.Gateway.Neighbour("wan0", "203.0.113.254", home.WAN.HardwareAddr("ext0"))
	for _, ip := range []string{groupIP, groupIP2, "172.168.0.240"} {
		home.Camera.Neighbour("cam0", ip, home.Gateway.HardwareAddr("lan0"))
	}
	capture := home.Gateway.Watch("wan0", r.watch.frame)
	t.Cleanup(func() { capture.Frames() })
	r.example = newExample(t, harness.Options{In: r.wire.gateway, Listen: "127.0.0.1:8080"})
	r.agent = harness.StartAgent(t, harness.AgentOptions{
		Unasked: true,
		Server:  r.Server, GatewayID: r.gateway, Token: r.gatewayToken, In: r.wire.gateway,
		LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr,
		GroupRange: "172.168.0.233-172.168.0.254", Backend: backend, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
	})
	r.awaitDeclared(t)
	r.postCamera(t)
	const body = `{"type":%q,"id":"%s","destination":true,"privateIPv4":null,"publicIPv4":"%%s","IPv6":null,"groupName":"groupcast1","groupIP":"172.168.0.233","TTLs":3600}`
	r.members = []*member{
		{token: r.uploadToken, body: fmt.Sprintf(body, "Service", uploadAccountID)},
		{token: r.thumbnailToken, body: fmt.Sprintf(body, "Service", r.thumbnailID)},
		{token: r.phoneToken, body: fmt.Sprintf(body, "Device", r.phone)},
	}
	for _, m := range r.members {
		r.comes(m)
	}
	return r
}

// stream sends about 1000 datagrams a second as the registered camera does.
func (r *randomised) stream() func(stop <-chan struct{}) {
	c := r.socket(cameraAddr, streamOption(0x88, cameraAddr))
	to := &net.UDPAddr{IP: net.ParseIP(groupIP), Port: mediaPort}
	return func(stop <-chan struct{}) {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				n := r.watch.sent.Add(1)
				_, _ = c.WriteTo(append(binary.BigEndian.AppendUint64([]byte(mediaOfCamera), n), make([]byte, n%1200)...), to)
			}
		}
	}
}

// mischief sends whatever must never leave the home.
func (r *randomised) mischief() func(stop <-chan struct{}) {
	sockets := []*net.UDPConn{
		r.socket(cameraAddr, nil),
		r.socket(cameraAddr, streamOption(0x08, cameraAddr)),
		r.socket(cameraAddr, streamOption(0x88, "172.168.0.6")),
		r.socket("172.168.0.6", streamOption(0x88, "172.168.0.6")),
		r.socket("172.168.0.6", streamOption(0x88, cameraAddr)),
	}
	own := r.socket(cameraAddr, streamOption(0x88, cameraAddr))
	random := rand.New(rand.NewPCG(r.random.Uint64(), 2))
	return func(stop <-chan struct{}) {
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				payload := append([]byte(mustNotBeThere), make([]byte, random.IntN(1400))...)
				to := &net.UDPAddr{IP: net.ParseIP([]string{groupIP, groupIP2, "172.168.0.240"}[random.IntN(3)]), Port: mediaPort + random.IntN(2)}
				if c := random.IntN(len(sockets) + 1); c < len(sockets) {
					_, _ = sockets[c].WriteTo(payload, to)
				} else { // registered, but to another group, to nobody's group IP or another port
					if to.IP.String() == groupIP {
						to.Port = mediaPort + 1
					}
					_, _ = own.WriteTo(payload, to)
				}
			}
		}
	}
}

func (r *randomised) socket(from string, options []byte) *net.UDPConn {
	r.t.Helper()
	c := r.wire.camera.ListenUDP(from + ":0")
	raw, err := c.SyscallConn()
	require.NoError(r.t, err)
	require.NoError(r.t, raw.Control(func(fd uintptr) {
		if len(options) > 0 {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(options))
		}
	}))
	require.NoError(r.t, err)
	return c
}

func (r *randomised) broken() bool {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	return len(r.watch.faults) > 0
}

// act does one thing.
func (r *randomised) act() {
	r.t.Helper()
	m := r.members[r.random.IntN(len(r.members))]
	switch n := r.random.IntN(20); {
	case n < 12 && m.registration == "":
		r.comes(m)
	case n < 12:
		r.goes(m, func() {})
	case n < 14:
		r.note("the agent is killed")
		r.agent.Kill()
		r.pause()
		r.startAgent()
	case n < 16:
		r.note("the agent is stopped")
		require.NoError(r.t, r.agent.Stop())
		r.pause()
		r.startAgent()
	case n < 17 && m.registration != "":
		r.note("somebody leaves while there is no agent")
		r.agent.Kill()
		r.goes(m, r.startAgent)
	case n < 18 && *randomisedDuration > time.Minute: // agents that start without a server spread over half a minute
		r.note("the server fails, and the agent is killed meanwhile")
		r.Kill()
		r.agent.Kill()
		r.pause()
		r.startAgent()
		r.Start(r.t)
	case n < 19:
		r.note("the server fails")
		r.Kill()
		r.pause()
		r.Start(r.t)
	default:
		r.pause()
	}
}

func (r *randomised) note(what string) { r.did[what]++ }

func (r *randomised) pause() { time.Sleep(time.Duration(r.random.IntN(200)) * time.Millisecond) }

// startAgent waits until the agent copies by something.
func (r *randomised) startAgent() {
	r.t.Helper()
	r.agent.Start(r.t)
	r.awaitStatus("the agent copies", func(agent.Status) bool { return true })
}

// comes waits until copies arrive at an address that is new.
func (r *randomised) comes(m *member) {
	r.t.Helper()
	r.note("somebody comes")
	// One that nobody else had, so a late copy to whoever left can't hide.
	n := len(r.watch.member)
	m.address = fmt.Sprintf("68.%d.%d.%d", 80+n/60000, n/250%240, n%250+1)
	r.watch.join(m.address)
	m.registration = r.post(r.t, m.token, fmt.Sprintf(m.body, m.address)).RegistrationID
	r.awaitStatus("somebody who came is in the table", has(m.registration))
	after := r.watch.sent.Load()
	if after == 0 {
		return // the camera doesn't stream yet
	}
	require.Eventually(r.t, func() bool { return r.watch.got(m.address, after) || r.broken() }, 20*time.Second, 5*time.Millisecond, "copies to somebody who came")
}

// goes waits until the table is without the member, also that which a killed agent would begin with; from then on it is entitled to nothing.
func (r *randomised) goes(m *member, meanwhile func()) {
	r.t.Helper()
	r.note("somebody goes")
	_ = r.leave(r.t, m.token, m.registration)
	meanwhile()
	still := has(m.registration)
	r.awaitStatus("somebody who left is not in the table", func(s agent.Status) bool { return !still(s) && s.KeptCursor == s.Cursor })
	r.watch.leave(m.address)
	m.registration = ""
}

func has(registration string) func(agent.Status) bool {
	return func(s agent.Status) bool {
		for _, g := range s.Groups {
			for _, d := range g.Destinations {
				if d.ID == string(models.RegistrationID(registration)) {
					return true
				}
			}
		}
		return false
	}
}

// awaitStatus waits until the running agent copies, and says what is wanted.
func (r *randomised) awaitStatus(what string, wanted func(agent.Status) bool) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		s, err := agent.Ask(r.t.Context(), r.agent.StateDir())
		return err == nil && s.PID == r.agent.PID() && s.Forwarding && wanted(s)
	}, time.Minute, 2*time.Millisecond, what)
}

func (r *randomised) check() {
	r.t.Helper()
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	r.t.Logf("%d datagrams of the camera, %d packets on the uplink; %v", r.watch.sent.Load(), r.watch.packets, r.did)
	for _, f := range r.watch.faults {
		r.t.Error("on the uplink: " + f)
	}
}

// After kill -9 of an agent that nobody starts again, copies end by themselves within the 30 seconds of SPEC §9, however much the camera
// streams; and what it streams never leaves otherwise.
func TestAKilledAgentCopiesNothingAfterTheDeadline(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel() // it waits
			r := newRandomised(t, backend, 1)
			var cameras sync.WaitGroup
			stop := make(chan struct{})
			cameras.Go(func() { r.stream()(stop) })
			defer cameras.Wait()
			defer close(stop)
			require.Eventually(t, func() bool { return r.watch.got(r.members[0].address, 100) }, 20*time.Second, 5*time.Millisecond, "copies")
			r.agent.Kill()
			time.Sleep(30 * time.Second)
			sent, packets := r.count()
			require.Eventually(t, func() bool { now, _ := r.count(); return now > sent+500 }, 20*time.Second, 5*time.Millisecond, "the camera streams")
			if _, now := r.count(); now != packets {
				t.Errorf("%d packets on the uplink after the deadline", now-packets)
			}
			r.check()
		})
	}
}

func (r *randomised) count() (sent uint64, packets int) {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	return r.watch.sent.Load(), r.watch.packets
}
