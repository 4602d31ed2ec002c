package nat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/receiver"
)

// Where things are around the internet of the lab.
const (
	serverAddr = "96.114.14.9"
	homeAddr   = "71.230.36.1" // of the home, be it the gateway's own or its NAT's
	homeLater  = "71.230.36.3" // what the provider gives it afterwards
	uplinkAddr = "192.168.5.2" // of a gateway behind a NAT
	groupName  = "groupcast1"
	long       = 2 * time.Minute // for what takes up to 30 s by the clock
	mediaPort  = 5004
)

func TestMain(m *testing.M) {
	netlab.WaitTogether()
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

// The NATs are the kernel's, and so is their forgetting. %OUT% is the address outside, %IN% that of the host inside.
const (
	// Endpoint-independent: whatever goes out from one port has the same one outside, and whoever sends there gets in.
	openReceiver = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 udp sport 5004 snat to %OUT%:6000; }; " +
		"chain pre { type nat hook prerouting priority dstnat; iifname wan0 udp dport 6000 dnat to %IN%:5004; }; }"
	openHome = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade; }; " +
		"chain pre { type nat hook prerouting priority dstnat; iifname wan0 meta l4proto udp dnat to %IN%; }; }"
	openHomeLater = "flush ruleset; table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 udp sport %PORT% snat to %OUT%:7000; oifname wan0 masquerade; }; " +
		"chain pre { type nat hook prerouting priority dstnat; iifname wan0 ip daddr %OUT% udp dport 7000 dnat to %IN%:%PORT%; }; }"
	// What most homes have: the same port wherever it sends to, but only that place gets in.
	filteringNAT = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade; }; }; " +
		"table ip filter { chain in { type filter hook input priority filter; iifname wan0 meta l4proto udp drop; }; }"
	// Endpoint-dependent: another port for each place it sends to, and only that place gets in.
	strictNAT = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 meta l4proto udp masquerade fully-random; oifname wan0 masquerade; }; }"
)

// lab is a home with a camera and a gateway, the real service somewhere in the internet, and receivers elsewhere. Each link is a network of its own.
type lab struct {
	*harness.Server

	t         *testing.T
	internet  *netlab.Namespace
	nat       *netlab.Namespace // in front of the gateway; nil: none
	agent     *harness.Agent
	account   models.AccountID
	premises  models.PremisesID
	groupIP   string
	group     string
	receivers []*phone
	mu        sync.Mutex
	senders   []netip.AddrPort    // outside, as the last event told
	consents  map[string][]string // what events told of each member's consent, in order
}

// phone is one of the account's phones, with the receiver kit on a socket.
type phone struct {
	lab          *lab
	nat          *netlab.Namespace // in front of it; nil: none
	id           models.ID
	token        string
	registration string
	conn         *net.UDPConn
	kit          *receiver.Consent
	hush         context.CancelFunc
	silent       atomic.Bool
	media        atomic.Int64
}

// newLab builds the home behind the NAT with the given rules, or behind none, and starts the service, the agent and the camera's stream.
func newLab(t *testing.T, backend, rules string) *lab {
	l := &lab{t: t, internet: netlab.New(t, "internet"), consents: map[string][]string{}}
	camera, gateway := netlab.New(t, "camera"), netlab.New(t, "gateway")
	l.internet.Address("lo", serverAddr+"/32")
	l.internet.Sysctl("net.ipv4.ip_forward", "1")
	netlab.Connect(camera, "cam0", gateway, "lan0")
	camera.Address("cam0", "10.9.0.5/24")
	gateway.Address("lan0", "10.9.0.1/24")
	uplink := homeAddr
	if rules == "" {
		netlab.Connect(gateway, "wan0", l.internet, "home0")
		gateway.Address("wan0", homeAddr+"/29")
		gateway.Route("0.0.0.0/0", "71.230.36.6")
	} else {
		uplink = uplinkAddr
		l.nat = netlab.New(t, "home")
		netlab.Connect(gateway, "wan0", l.nat, "lan0")
		netlab.Connect(l.nat, "wan0", l.internet, "home0")
		gateway.Address("wan0", uplinkAddr+"/24")
		gateway.Route("0.0.0.0/0", "192.168.5.1")
		l.nat.Address("lan0", "192.168.5.1/24")
		l.nat.Address("wan0", homeAddr+"/29")
		l.nat.Address("wan0", homeLater+"/29")
		l.nat.Route("0.0.0.0/0", "71.230.36.6")
		l.nat.Sysctl("net.ipv4.ip_forward", "1")
		l.nat.Run("nft", fill(rules, homeAddr, uplinkAddr, 0))
	}
	l.internet.Address("home0", "71.230.36.6/29")
	gateway.Sysctl("net.ipv4.ip_forward", "1")

	l.Server = harness.StartServer(t, harness.Options{In: l.internet, Listen: serverAddr + ":8080", Args: []string{
		"--behind-proxy", "--stun-listen", serverAddr + ":3478", "--stun-address", serverAddr + ":3478",
	}})
	off := false
	l.account = l.Account(t, "NATs")
	l.premises = l.Premises(t, l.account, "home", false)
	cameraID := l.Device(t, l.premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: "camera", Pop: &off})
	gatewayID := l.Device(t, l.premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	gatewayToken := l.DeviceToken(t, gatewayID)
	o := harness.AgentOptions{
		Server: l.Server, GatewayID: gatewayID, Token: gatewayToken, In: gateway, LANInterface: "lan0", LANPrefix: "10.9.0.0/24", LANAddress: "10.9.0.1",
		Uplink: uplink, Backend: backend, PlainHTTP: true,
	}
	if backend == "ebpf" {
		o.BPFDir = filepath.Join(netlab.BPFFS(t), "groupcast")
	}
	l.agent = harness.StartAgent(t, o)
	require.Eventually(t, func() bool {
		r, err := l.Client(t, gatewayToken).GetGatewayWithResponse(t.Context(), gatewayID)
		if err != nil || r.JSON200 == nil || r.JSON200.LanPrefix == "" {
			return false
		}
		assert.Equal(t, rules != "", *r.JSON200.BehindNAT, "the agent tells by the uplink's address")
		return true
	}, long, 20*time.Millisecond, "the agent has not declared its LAN")
	cameraToken := l.DeviceToken(t, cameraID)
	l.groupIP = l.register(cameraToken, fmt.Sprintf(`{"type":"Device","id":"%s","destination":false,"privateIPv4":"10.9.0.5","publicIPv4":%q,"groupName":%q}`, cameraID, homeAddr, groupName)).GroupIP
	groups, err := l.Client(t, cameraToken).ListGroupsWithResponse(t.Context(), nil)
	require.NoError(t, err)
	require.NotNil(t, groups.JSON200, "%s", groups.Body)
	l.group = string(groups.JSON200.Groups[0].GroupID)
	l.stream(camera)
	return l
}

func fill(text, out, in string, port uint16) string {
	return strings.NewReplacer("%OUT%", out, "%IN%", in, "%PORT%", fmt.Sprint(port)).Replace(text)
}

// answer is what the tests need of an answer to a registration.
type answer struct {
	GroupIP        string
	RegistrationID string
	Consent        struct{ Ufrag, Pwd, State string }
	Senders        []struct {
		Address, LearnedAddress, Consent string
		Port, LearnedPort                uint16
	}
}

func (l *lab) register(token, body string) (a answer) {
	l.t.Helper()
	status, text := l.Post(l.t, "/v1/registrations", token, body)
	require.Equal(l.t, http.StatusOK, status, "%s", text)
	require.NoError(l.t, json.Unmarshal([]byte(text), &a))
	return a
}

// stream has the camera send until the test ends.
func (l *lab) stream(camera *netlab.Namespace) {
	var conn net.Conn
	var err error
	camera.Do(func() {
		d := net.Dialer{
			LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.5:40000")),
			Control: func(_, _ string, c syscall.RawConn) error {
				var set error
				return errors.Join(c.Control(func(fd uintptr) {
					set = syscall.SetsockoptString(int(fd), syscall.IPPROTO_IP, syscall.IP_OPTIONS, "\x88\x06\x0a\x09\x00\x05")
				}), set)
			},
		}
		conn, err = d.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr(l.groupIP), mediaPort).String())
	})
	require.NoError(l.t, err)
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = fmt.Fprintf(conn, "\x80\x60 media %d", i) // nobody may listen yet
			}
		}
	}()
	l.t.Cleanup(func() {
		close(stop)
		<-done
		conn.Close()
	})
}

// receiver registers a phone behind a NAT with these rules, or behind none, with the port that it has outside or without. Its network is 69.252.N.0/24.
func (l *lab) receiver(name string, n int, rules string, withPort bool) *phone {
	l.t.Helper()
	off := false
	r := &phone{lab: l, id: l.Device(l.t, l.premises, adminapi.DeviceRequest{Type: models.DevicePhone, Name: name, Pop: &off})}
	r.token = l.DeviceToken(l.t, r.id)
	outside, link := fmt.Sprintf("69.252.%d.75", n), fmt.Sprintf("net%d", n)
	host, inside, port := netlab.New(l.t, name), outside, ""
	edge := host // of the internet
	if rules == "" {
		netlab.Connect(host, "wan0", l.internet, link)
	} else {
		r.nat, inside = netlab.New(l.t, name+"-nat"), "10.1.0.2"
		netlab.Connect(host, "lan0", r.nat, "lan0")
		netlab.Connect(r.nat, "wan0", l.internet, link)
		host.Address("lan0", "10.1.0.2/24")
		host.Route("0.0.0.0/0", "10.1.0.1")
		r.nat.Address("lan0", "10.1.0.1/24")
		r.nat.Sysctl("net.ipv4.ip_forward", "1")
		r.nat.Run("nft", fill(rules, outside, inside, 0))
		edge = r.nat
	}
	l.internet.Address(link, fmt.Sprintf("69.252.%d.254/24", n))
	edge.Address("wan0", outside+"/24")
	edge.Route("0.0.0.0/0", fmt.Sprintf("69.252.%d.254", n))
	if withPort {
		port = fmt.Sprintf(`,"port":%d`, mediaPort)
	}
	r.conn = host.ListenUDP(fmt.Sprintf("%s:%d", inside, mediaPort))
	a := l.register(r.token, fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"publicIPv4":%q,"groupName":%q%s}`, r.id, outside, groupName, port))
	r.registration = a.RegistrationID
	r.kit = receiver.New(models.ConsentCredential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd})
	var ctx context.Context
	ctx, r.hush = context.WithCancel(l.t.Context())
	go r.kit.Keep(ctx, r.conn)
	go r.receive()
	l.mu.Lock()
	l.receivers = append(l.receivers, r)
	r.kit.Senders(l.senders)
	l.mu.Unlock()
	if len(l.receivers) == 1 {
		go l.follow(r.token)
	}
	return r
}

func (r *phone) receive() {
	b := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		reply, check := r.kit.Take(time.Now(), from, b[:n])
		switch {
		case !check:
			r.media.Add(1)
		case reply != nil && !r.silent.Load():
			_, _ = r.conn.WriteToUDPAddrPort(reply, from)
		}
	}
}

// gets waits for more of the stream.
func (r *phone) gets(what string) {
	r.lab.t.Helper()
	before := r.media.Load()
	require.Eventually(r.lab.t, func() bool { return r.media.Load() >= before+5 }, long, 10*time.Millisecond, "the stream %s", what)
}

// becomes waits until the group's API and the events tell that state of the receiver.
func (r *phone) becomes(want models.ConsentState) {
	l := r.lab
	l.t.Helper()
	require.Eventually(l.t, func() bool { return r.consent() == string(want) }, long, 200*time.Millisecond, "consent of %s becomes %s", r.id, want)
	require.Eventually(l.t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return slices.Contains(l.consents[r.id.String()], string(want))
	}, long, 10*time.Millisecond, "an event tells it")
}

// consent is what the group's API says of the receiver.
func (r *phone) consent() string {
	var group struct {
		Members []struct{ ID, Consent string }
	}
	status, text := r.lab.Send(r.lab.t, http.MethodGet, "/v1/groups/"+r.lab.group, r.token, "")
	require.Equal(r.lab.t, http.StatusOK, status, "%s", text)
	require.NoError(r.lab.t, json.Unmarshal([]byte(text), &group))
	for _, m := range group.Members {
		if m.ID == r.id.String() {
			return m.Consent
		}
	}
	return ""
}

// learned is where the service says that the receiver's copies go.
func (r *phone) learned() (at netip.AddrPort) {
	var a answer
	status, text := r.lab.Send(r.lab.t, http.MethodGet, "/v1/registrations/"+r.registration, r.token, "")
	require.Equal(r.lab.t, http.StatusOK, status, "%s", text)
	require.NoError(r.lab.t, json.Unmarshal([]byte(text), &a))
	for _, s := range a.Senders {
		if addr, err := netip.ParseAddr(s.LearnedAddress); err == nil {
			at = netip.AddrPortFrom(addr, s.LearnedPort)
		}
	}
	return at
}

// follow hears of the group, and has the receivers send their checks to where the events say that copies come from.
func (l *lab) follow(token string) {
	ctx := l.t.Context()
	for last := ""; ctx.Err() == nil; {
		var batch struct {
			LastEventID string
			Events      []struct {
				Type string
				Data struct {
					Members []struct{ ID, Role, Consent string }
					Senders []struct {
						Address string
						Port    uint16
						Inside  bool
					}
				}
			}
		}
		if err := l.hear(ctx, token, last, &batch); err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		last = batch.LastEventID
		for _, e := range batch.Events {
			var senders []netip.AddrPort
			for _, s := range e.Data.Senders {
				if at, err := netip.ParseAddr(s.Address); err == nil && at.Is4() && !s.Inside {
					senders = append(senders, netip.AddrPortFrom(at, s.Port))
				}
			}
			l.mu.Lock()
			l.senders = senders
			for _, m := range e.Data.Members {
				if told := l.consents[m.ID]; len(told) == 0 || told[len(told)-1] != m.Consent {
					l.consents[m.ID] = append(told, m.Consent)
				}
			}
			for _, r := range l.receivers {
				r.kit.Senders(senders)
			}
			l.mu.Unlock()
		}
	}
}

func (l *lab) hear(ctx context.Context, token, last string, into any) error {
	q := url.Values{"wait": {"20"}}
	if last != "" {
		q.Set("lastEventId", last)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL+"/v1/groups/"+l.group+"/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	answer, err := l.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// sendersAre waits until events tell that copies come from exactly there, outside.
func (l *lab) sendersAre(want func(netip.AddrPort) bool) (at netip.AddrPort) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.senders) != 1 || !want(l.senders[0]) {
			return false
		}
		at = l.senders[0]
		return true
	}, long, 10*time.Millisecond, "where copies come from is told")
	return at
}

// port is the one that the agent reserved.
func (l *lab) port() (port uint16) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		s, err := agent.Ask(l.t.Context(), l.agent.StateDir())
		if err != nil {
			return false
		}
		for _, g := range s.Groups {
			for _, p := range g.Ports {
				port = p
			}
		}
		return port != 0
	}, long, 20*time.Millisecond, "the agent reserves a port")
	return port
}

// forget has a NAT lose all mappings, as one that starts again.
func (l *lab) forget(nat *netlab.Namespace) {
	l.t.Helper()
	nat.Do(func() { require.NoError(l.t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) })
}

// TestConsentAcrossNATs has a NAT of either kind in front of the receiver, the gateway or both, with the real service, agent and receiver kit: whoever can
// be reached gets the stream, also when a NAT forgets; who goes silent gets no more; and who can't be reached is said to be so.
func TestConsentAcrossNATs(t *testing.T) {
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		for name, test := range map[string]func(*testing.T, string){
			"receivers behind NATs": receiversBehindNATs, "both behind NATs": bothBehindNATs, "a gateway that few get through to": gatewayBehindStrictNAT,
			"both behind NATs that filter": bothBehindFilters,
		} {
			t.Run(name+", "+backend, func(t *testing.T) {
				t.Parallel()
				test(t, backend)
			})
		}
	}
}

func receiversBehindNATs(t *testing.T, backend string) {
	l := newLab(t, backend, "")
	one, other := l.receiver("open", 1, openReceiver, false), l.receiver("strict", 2, strictNAT, false)
	assert.Equal(t, netip.AddrPortFrom(netip.MustParseAddr(homeAddr), l.port()), l.sendersAre(netip.AddrPort.IsValid))
	for _, r := range l.receivers {
		r.gets("after consent")
		r.becomes(models.ConsentLive)
	}
	assert.Equal(t, netip.MustParseAddrPort("69.252.1.75:6000"), one.learned())
	before := other.learned()
	assert.Equal(t, "69.252.2.75", before.Addr().String())

	l.forget(other.nat)
	require.Eventually(t, func() bool { return other.learned() != before }, long, 200*time.Millisecond, "the new mapping is followed")
	other.gets("at the new mapping")

	// One of them goes away without a word.
	one.hush()
	one.silent.Store(true)
	one.becomes(models.ConsentLost)
	end, since := one.media.Load(), other.media.Load()
	require.Eventually(t, func() bool {
		if now := one.media.Load(); now != end { // what was on its way
			end, since = now, other.media.Load()
		}
		return other.media.Load() >= since+50
	}, long, 10*time.Millisecond, "nothing comes any more while the other gets copies")
}

func bothBehindNATs(t *testing.T, backend string) {
	l := newLab(t, backend, openHome)
	l.receiver("plain", 1, "", true)
	l.receiver("open", 2, openReceiver, false)
	l.receiver("strict", 3, strictNAT, false)
	port := l.port()
	assert.Equal(t, netip.AddrPortFrom(netip.MustParseAddr(homeAddr), port), l.sendersAre(netip.AddrPort.IsValid), "never the gateway's own address")
	for _, r := range l.receivers {
		r.gets("after consent")
		r.becomes(models.ConsentLive)
	}

	// The home gets another address, and the NAT another port.
	l.nat.Run("nft", fill(openHomeLater, homeLater, uplinkAddr, port))
	l.forget(l.nat)
	later := netip.MustParseAddrPort(homeLater + ":7000")
	l.sendersAre(func(at netip.AddrPort) bool { return at == later })
	for _, r := range l.receivers {
		r.gets("from the new place")
		r.becomes(models.ConsentLive)
	}
}

// gatewayBehindStrictNAT: what the STUN port says of such a NAT holds for nobody else. Whoever registered a port is asked first and gets through; nobody reaches the others,
// and all can see that.
func gatewayBehindStrictNAT(t *testing.T, backend string) {
	l := newLab(t, backend, strictNAT)
	plain, strict := l.receiver("plain", 1, "", true), l.receiver("strict", 2, strictNAT, false)
	plain.gets("after both sides sent checks")
	plain.becomes(models.ConsentLive)
	strict.becomes(models.ConsentUnreachable)
	assert.Zero(t, strict.media.Load())
	l.forget(l.nat)
	plain.gets("after the mapping changed")
	plain.becomes(models.ConsentLive)
	assert.Zero(t, strict.media.Load())
}

// bothBehindFilters: neither gets in before the other has sent something. Both do if the receiver registered what its own port is outside; else the gateway doesn't know where to send.
func bothBehindFilters(t *testing.T, backend string) {
	l := newLab(t, backend, filteringNAT)
	told, hidden := l.receiver("told", 1, filteringNAT, true), l.receiver("hidden", 2, filteringNAT, false)
	told.gets("after both sides sent checks")
	told.becomes(models.ConsentLive)
	hidden.becomes(models.ConsentUnreachable)
	assert.Zero(t, hidden.media.Load())
	for _, nat := range []*netlab.Namespace{l.nat, told.nat} {
		l.forget(nat)
		told.gets("after a NAT forgot")
	}
}
