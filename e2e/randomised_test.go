package e2e

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/receiver"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

var (
	randomisedDuration = flag.Duration("randomised.duration", 8*time.Second, "how long a randomised run goes on, for each backend")
	randomisedSeed     = flag.Uint64("randomised.seed", 0, "repeat the choices of a randomised run; 0 draws them")
)

// randomised is one run.
type randomised struct {
	*example
	t       *testing.T
	wire    *wire
	wan     *netlab.Namespace
	watch   *watcher
	agent   *harness.Agent
	random  *rand.Rand
	members []*member
	forger  *forger
	camera  string // its registration
	next    int    // addresses that were given
	did     map[string]int
}

// member is a destination of groupcast1 that comes and goes, each time at an address that nobody had before.
type member struct {
	token, body string
	kind        membership // what it is each time
	membership  *membership
	address     string
	port        uint16     // registered; 0: none
	program     *consenter // of one that is asked for its consent, while it is there
	silentUntil time.Time  // nothing else is done to it before

	registration string // "" while it is none
}

// A camera streams, and strangers in the home and outside try what they can, while members come, go, move, fall silent and speak again, the agent is
// stopped, killed and started, and the server fails. On the uplink there is never a group IP, a LAN address, option 0x88, a copy to anybody who wasn't in the
// table when the datagram was sent, or to where nobody consents who has to; and to an address that has proved nothing goes one small packet for each
// that came from there, or a probe.
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
			r.asking()
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
			r.everybody()
			r.check()
		})
	}
}

func newRandomised(t *testing.T, backend string, seed uint64) *randomised {
	home := netlab.NewHome(t, netlab.New(t, "gateway"))
	home.Camera.Address("cam0", "172.168.0.6/24")
	r := &randomised{
		t: t, wire: &wire{camera: home.Camera, gateway: home.Gateway}, random: rand.New(rand.NewPCG(seed, 1)), did: map[string]int{},
		watch: newWatcher(), wan: home.WAN,
	}
	// At the addresses of those who needn't consent nobody answers.
	home.WAN.Run("ip", "route", "add", "local", askedRange, "dev", "lo")
	home.WAN.Neighbour("ext0", uplinkAddr, home.Gateway.HardwareAddr("wan0"))
	home.Gateway.Neighbour("wan0", "203.0.113.254", home.WAN.HardwareAddr("ext0"))
	for _, ip := range []string{groupIP, groupIP2, "172.168.0.240"} {
		home.Camera.Neighbour("cam0", ip, home.Gateway.HardwareAddr("lan0"))
	}
	capture := home.Gateway.Watch("wan0", r.watch.frame)
	t.Cleanup(func() { capture.Frames() })
	r.example = newExample(t, harness.Options{In: r.wire.gateway, Listen: "127.0.0.1:8080", Args: []string{"--metrics-listen", serverMetrics}})
	r.Exempt(t, "svc-upload", exemptRange)
	r.Exempt(t, "svc-other", exemptRange)
	r.agent = harness.StartAgent(t, harness.AgentOptions{
		Server: r.Server, GatewayID: r.gateway, Token: r.gatewayToken, In: r.wire.gateway, Metrics: agentMetrics,
		LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr,
		GroupRange: "172.168.0.233-172.168.0.254", Backend: backend, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
	})
	r.awaitDeclared(t)
	r.camera = r.postCamera(t)
	r.members = []*member{
		{token: r.uploadToken, body: memberBody("Service", uploadAccountID)},
		{token: r.otherToken, body: memberBody("Service", r.otherID)},
	}
	for _, m := range r.members {
		r.comes(m)
	}
	return r
}

// Where members are who needn't consent, and who have to.
const (
	exemptRange = "68.80.0.0/12"
	askedRange  = "69.64.0.0/10"
)

// somewhere is what a body says of where a destination is: its address and port are still to be filled in.
const somewhere = `"privateIPv4":null,"publicIPv4":"%s","IPv6":null,"TTLs":3600,"port":%s`

// memberBody is the body of a destination of groupcast1 that is somewhere.
func memberBody(kind string, id models.ID) string {
	return destinationBody(kind, id, "", somewhere, "groupcast1", "172.168.0.233")
}

// asking adds members who have to consent: a service that has a port and may be asked first, one that speaks first, and a phone that may be anywhere.
func (r *randomised) asking() {
	probe := true
	answer, err := r.Admin.ChangeServiceWithResponse(r.t.Context(), "svc-thumbnail", adminapi.ServiceChange{
		Name: "svc-thumbnail", AllowedCIDRs: adminapi.AllowedCIDRs{{Cidr: askedRange, Probe: &probe}},
	})
	require.NoError(r.t, err)
	require.NotNil(r.t, answer.JSON200, "%s", answer.Body)
	r.Service(r.t, "svc-live", "svc-live")
	live := r.Link(r.t, "svc-live", r.account, 0)
	asked := []*member{
		{token: r.thumbnailToken, body: memberBody("Service", r.thumbnailID), port: 6000, kind: membership{asks: true, strict: true, mayProbe: true}},
		{token: r.ServiceToken(r.t, "svc-live"), body: memberBody("Service", live), kind: membership{asks: true, strict: true}},
		{token: r.phoneToken, body: memberBody("Device", r.phone), kind: membership{asks: true}},
	}
	for _, m := range asked {
		r.comes(m)
	}
	r.members = append(r.members, asked...)
	r.forger = newForger(r.wan)
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
	silent := m.program != nil && m.program.silent.Load()
	switch n := r.random.IntN(24); {
	case n < 8 && m.registration == "":
		r.comes(m)
	case silent && time.Now().Before(m.silentUntil):
		r.pause()
	case n < 5 && silent:
		r.speaks(m)
	case n < 5 && m.program != nil:
		r.note("somebody falls silent")
		m.program.fallsSilent()
		if *randomisedDuration > time.Minute && r.random.IntN(2) == 0 { // until its consent has surely ended
			m.silentUntil = time.Now().Add(models.ConsentExpires + heardLate + time.Second)
		}
	case n < 8 && m.program != nil:
		r.movesPort(m)
	case n < 11 && m.registration != "":
		r.moves(m)
	case n < 14 && m.registration != "":
		r.goes(m, func() {})
	case n < 16:
		r.forger.act(r)
	case n < 18:
		r.note("the agent is killed")
		r.agent.Kill()
		r.pause()
		r.startAgent()
	case n < 20:
		r.note("the agent is stopped")
		require.NoError(r.t, r.agent.Stop())
		r.pause()
		r.startAgent()
	case n < 21 && m.registration != "":
		r.note("somebody leaves while there is no agent")
		r.agent.Kill()
		r.goes(m, r.startAgent)
	case n < 22 && *randomisedDuration > time.Minute: // agents that start without a server spread over half a minute
		r.note("the server fails, and the agent is killed meanwhile")
		r.Kill()
		r.agent.Kill()
		r.pause()
		r.startAgent()
		r.Start(r.t)
	case n < 23:
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
	r.watch.restarts()
	r.agent.Start(r.t)
	r.awaitStatus("the agent copies", func(agent.Status) bool { return true })
}

// comes registers a member at an address that is new, and waits until copies arrive there.
func (r *randomised) comes(m *member) {
	r.t.Helper()
	r.note("somebody comes")
	membership := m.kind
	m.membership, m.address = &membership, r.address(m)
	membership.port = m.port
	r.watch.joins(&membership, m.address)
	m.registration = r.registers(m).RegistrationID
	r.awaitStatus("somebody who came is in the table", has(m.registration))
	if !membership.asks {
		r.awaitCopies(m)
		return
	}
	m.program = openConsenter(r.wan, m.address, m.port)
	if r.random.IntN(4) == 0 || m.kind.mayProbe && r.forger == nil { // the first time, so that each run has somebody who is asked first and silent
		r.note("somebody comes and says nothing")
		return
	}
	r.speaks(m)
}

// address gives one that nobody else had, so that a late copy to whoever left can't hide.
func (r *randomised) address(m *member) string {
	r.next++
	first := "68.80"
	if m.kind.asks {
		first = "69.64"
	}
	return fmt.Sprintf("%s.%d.%d", first, r.next/250, r.next%250+1)
}

// registers gives the answer to a new registration, or to one that moves, and tells it to the watcher.
func (r *randomised) registers(m *member) registered {
	r.t.Helper()
	port := "null"
	if m.port != 0 {
		port = strconv.Itoa(int(m.port))
	}
	body := fmt.Sprintf(m.body, m.address, port)
	if !m.kind.asks {
		return r.post(r.t, m.token, body)
	}
	a := r.post(r.t, m.token, body)
	r.watch.knows(m.membership, models.ConsentCredential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd})
	return a
}

// speaks has a member's program consent, and waits until it gets copies. One whose senders don't answer registers again, to learn where they are.
func (r *randomised) speaks(m *member) {
	r.t.Helper()
	r.note("somebody speaks")
	var a registered
	require.Eventually(r.t, func() bool { a = r.registers(m); return len(a.Senders) == 1 }, time.Minute, 20*time.Millisecond, "the gateway hasn't told where it sends from")
	m.program.consents(a)
	r.awaitCopies(m)
}

// awaitCopies waits until something comes that is sent from now on.
func (r *randomised) awaitCopies(m *member) {
	r.t.Helper()
	after := r.watch.sent.Load()
	if after == 0 {
		return // the camera doesn't stream yet
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(m.address), mediaPort)
	if m.program != nil {
		at = m.program.at
	}
	again := time.Now().Add(receiver.Quiet)
	require.Eventually(r.t, func() bool {
		if m.program != nil && time.Now().After(again) {
			r.note("somebody asks again where copies come from")
			m.program.knows(r.registers(m))
			again = time.Now().Add(receiver.Quiet)
		}
		return r.watch.got(m.membership, at, after) || r.broken()
	}, time.Minute, 5*time.Millisecond, "copies to somebody who came, moved or speaks again")
}

// movesPort has a member's program go on at another port of its address.
func (r *randomised) movesPort(m *member) {
	r.t.Helper()
	r.note("somebody moves to another port")
	m.program.close()
	if m.port != 0 {
		m.port = 6000 + (m.port+1)%100
		r.tells(m)
	}
	m.program = openConsenter(r.wan, m.address, m.port)
	r.speaks(m)
}

// moves has a member go on at another address.
func (r *randomised) moves(m *member) {
	r.t.Helper()
	r.note("somebody moves to another address")
	m.address = r.address(m)
	if m.program == nil {
		before := m.membership
		membership := m.kind
		m.membership = &membership
		r.watch.joins(&membership, m.address)
		r.tells(m)
		r.watch.leaves(before)
		r.awaitCopies(m)
		return
	}
	m.program.close()
	r.tells(m)
	m.program = openConsenter(r.wan, m.address, m.port)
	r.speaks(m)
}

// tells registers where a member has gone, and waits until the gateway goes by it.
func (r *randomised) tells(m *member) {
	r.t.Helper()
	var before string
	r.awaitStatus("the agent says what is in force", func(s agent.Status) bool { before = s.Cursor; return true })
	if m.kind.asks {
		r.watch.moves(m.membership, m.address, m.port)
	}
	r.registers(m)
	r.awaitStatus("the agent goes by where somebody is now", func(s agent.Status) bool { return s.Cursor != before && s.KeptCursor == s.Cursor })
}

// goes waits until the table is without the member, also that which a killed agent would begin with; from then on it is entitled to nothing, and its
// program, which doesn't know it yet, not even to an answer.
func (r *randomised) goes(m *member, meanwhile func()) {
	r.t.Helper()
	r.note("somebody goes")
	_ = r.leave(r.t, m.token, m.registration)
	meanwhile()
	still := has(m.registration)
	r.awaitStatus("somebody who left is not in the table", func(s agent.Status) bool { return !still(s) && s.KeptCursor == s.Cursor })
	r.watch.leaves(m.membership)
	m.registration = ""
	if m.program != nil {
		m.program.asks(m.membership.credential)
		r.pause()
		m.program.close()
		m.program = nil
	}
}

// forger sends what members could send from addresses that are somebody else's, silent hosts: a right check may bring those one packet, an answer
// none, and nothing brings them a copy.
type forger struct {
	victims  []*net.UDPConn
	answered map[string]bool // for which addresses of members another one answered
}

func newForger(wan *netlab.Namespace) *forger {
	f := &forger{answered: map[string]bool{}}
	for i := range 4 {
		f.victims = append(f.victims, wan.ListenUDP(fmt.Sprintf("69.100.0.%d:5004", i+1)))
	}
	return f
}

func (f *forger) act(r *randomised) {
	for _, m := range r.members {
		if m.program == nil || len(m.program.senders) == 0 {
			continue
		}
		victim, to, credential := f.victims[r.random.IntN(len(f.victims))], m.program.senders[0], m.membership.credential
		if m.port == 0 && !f.answered[m.address] { // once: only so much goes to a host before it consents
			f.answered[m.address] = true
			r.note("somebody has another address answer")
			f.answers(r, m, victim, to)
		}
		r.note("somebody asks from another's address")
		if r.random.IntN(3) == 0 {
			credential.Password += "x"
		}
		check, _ := consentcheck.NewRequest(credential, consentcheck.ToAgent)
		_, _ = victim.WriteToUDPAddrPort(check, to)
	}
}

// answers asks from another port of a member, and answers from the victim's address what comes back.
func (f *forger) answers(r *randomised, m *member, victim *net.UDPConn, to netip.AddrPort) {
	conn := r.wan.ListenUDP(m.address + ":0")
	defer conn.Close()
	check, _ := consentcheck.NewRequest(m.membership.credential, consentcheck.ToAgent)
	_, _ = conn.WriteToUDPAddrPort(check, to)
	b := make([]byte, 1500)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	if n, from, err := conn.ReadFromUDPAddrPort(b); err == nil { // else it was lost
		if reply, _ := receiver.New(m.membership.credential).Take(time.Now(), from, b[:n]); reply != nil {
			_, _ = victim.WriteToUDPAddrPort(reply, to)
		}
	}
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
	w := r.watch
	for _, f := range w.unknown {
		w.fault("a check of nobody's: %x", f.IPv4())
	}
	r.t.Logf("%d datagrams of the camera, %d packets on the uplink, %d checks both ways, at most %d bytes each; %d proofs, %d requests to addresses that had proved "+
		"nothing, %d consents given anew after they had ended; %v", w.sent.Load(), w.packets, w.checks, w.longest, w.proofs, w.unasked, w.outlived, r.did)
	for _, f := range w.faults {
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
			require.Eventually(t, func() bool {
				return r.watch.got(r.members[0].membership, netip.AddrPortFrom(r.members[0].membership.addr, mediaPort), 100)
			}, time.Minute, 5*time.Millisecond, "copies")
			r.agent.Kill()
			deadline := time.Now().Add(30 * time.Second)
			time.Sleep(time.Until(deadline))
			sent, _ := r.count()
			require.Eventually(t, func() bool { now, _ := r.count(); return now > sent+500 }, time.Minute, 5*time.Millisecond, "the camera streams")
			if _, newest := r.count(); newest.After(deadline) {
				t.Errorf("a packet on the uplink %s after the deadline", newest.Sub(deadline))
			}
			r.check()
		})
	}
}

// count is how many datagrams the camera sent, and when the last packet passed the uplink.
func (r *randomised) count() (sent uint64, newest time.Time) {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	return r.watch.sent.Load(), r.watch.newest
}
