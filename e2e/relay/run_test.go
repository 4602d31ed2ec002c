package relay

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

var (
	runPremises = flag.Int("relay.premises", 8, "how many premises the run with two relays has, at most 250")
	runEvery    = flag.Duration("relay.every", 100*time.Millisecond, "how often each camera of that run sends")
	runJudged   = flag.Bool("relay.judged", false, "also fail for video that stands still for longer than SPEC and issue allow: for a machine that has nothing else to do")
)

// What the run asks of a machine that is quiet.
const (
	mayStandStill = 10 * time.Second // after a relay was killed
	mayPause      = time.Second      // while the place of copying changes
)

// Addresses of the run. Homes are at 71.230.n.1.
const (
	runServer   = "96.114.30.1"
	runReceiver = "96.114.14.140"
	runPort     = 20000 // and the number of the home: where its receiver is
	runSize     = 700   // bytes of payload
)

// TestRelayRun has homes that all use 172.16.0.233, two relays of which first one hangs and then the other is killed under load, and the programs as they are delivered.
// Destinations go meanwhile. Every packet that leaves a home, a relay or the internet for a home is judged: it may carry video only of the home whose receiver it is for, in the clear only from whoever copies at the
// moment, and each datagram once.
func TestRelayRun(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	r := newRun(t, *runPremises)
	stop := make(chan struct{})
	var cameras sync.WaitGroup
	cameras.Go(func() { r.send(stop) })
	defer cameras.Wait()
	defer close(stop)

	r.until("every home copies", func(h *runHome) bool { return h.from == h.uplink })
	r.mark()
	r.change(`{"fanout":"network","onRelayLoss":"stop"}`, r.holders...)
	r.until("relays copy for every home", func(h *runHome) bool { return slices.Contains(r.relayAddrs, h.from) })
	r.pauses("from home to network", mayPause)

	r.mark()
	r.change(`{"fanout":"home"}`, r.holders...)
	r.until("every home copies again", func(h *runHome) bool { return h.from == h.uplink })
	r.pauses("from network to home", mayPause)
	r.change(`{"fanout":"network"}`, r.holders...)
	r.until("relays copy again", func(h *runHome) bool { return slices.Contains(r.relayAddrs, h.from) })

	served := r.served()
	require.Len(t, served, 2, "both relays have premises: %v", served)
	r.mark()
	require.NoError(t, r.relays[0].Cmd.Process.Signal(syscall.SIGSTOP))
	r.until("the other relay copies for every home of one that hangs", func(h *runHome) bool { return h.from == r.relayAddrs[1] })
	r.pauses(fmt.Sprintf("relay stopped, %d of %d premises moved", served[r.relayAddrs[0]], len(r.homes)), mayStandStill)
	r.over(r.relayAddrs[0])
	require.NoError(t, r.relays[0].Cmd.Process.Signal(syscall.SIGCONT))
	r.guestsGo()

	r.mark()
	r.relays[1].Kill()
	r.until("the relay that hung copies for every home of one that was killed", func(h *runHome) bool { return h.from == r.relayAddrs[0] })
	r.pauses(fmt.Sprintf("relay killed, %d of %d premises moved", len(r.homes), len(r.homes)), mayStandStill)

	// With no relay left each account holder's decision counts.
	r.change(`{"onRelayLoss":"home"}`, r.holders[1])
	r.relays[0].Kill()
	atHome := func(h *runHome) bool { return h.from == h.uplink }
	stopped := func(h *runHome) bool { return h.n%len(r.holders) == 0 }
	r.until("homes copy whose account holder wants that", func(h *runHome) bool { return stopped(h) || atHome(h) })
	r.mu.Lock()
	for _, h := range r.homes {
		require.False(t, stopped(h) && atHome(h), "home %d copies against its account holder's decision", h.n)
	}
	r.mu.Unlock()
	r.change(`{"fanout":"home"}`, r.holders...)
	r.until("every home copies again", atHome)
	r.crossedOnce()
}

// run is the state of the run; what the captures change is guarded by mu.
type run struct {
	*harness.Server
	t          *testing.T
	internet   *netlab.Namespace
	cameras    *netlab.Namespace
	relays     []*harness.Process
	relayAddrs []string
	homes      []*runHome
	holders    []holder

	token      string // of the service that all destinations are but one
	guestToken string // of the other one

	mu       sync.Mutex
	guests   []*guest
	wrong    []string
	captures []*netlab.Capture
}

// holder is who decides about some of the homes.
type holder struct {
	account  models.AccountID
	cookie   string
	premises []models.PremisesID
}

type runHome struct {
	n       int
	uplink  string
	gateway *netlab.Namespace
	frame   []byte // of the camera, without what is sent
	index   int    // of the camera's interface
	sent    int

	seen    map[string]string // by whom each datagram was copied
	from    string            // who copied last
	at      time.Time         // when
	longest time.Duration     // without a copy, since mark
	missing int               // datagrams that nobody had copied at mark
	crossed int               // messages with data into the tunnel
	over    map[string]int    // up to which datagram a relay may copy no more
}

// guest is a further destination of the first home, which goes in one of three ways while a relay copies.
type guest struct {
	how          string
	registration string
	copies       int
	over         bool
}

// guestPort is that of the first one; the others follow.
const guestPort = 30000

const (
	expires = iota
	leaves
	unlinked
)

// over says that a relay may copy nothing of what was sent until now.
func (r *run) over(relay string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.homes {
		h.over[relay] = h.sent
	}
}

// guestsGo has one destination's lease end because nobody renews it, another leave, and the account holder end the consent to the service of a third. Nothing more gets
// there, whoever copies afterwards. The others go on.
func (r *run) guestsGo() {
	r.t.Helper()
	copies := func() (all []int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, g := range r.guests {
			all = append(all, g.copies)
		}
		return all
	}
	before := copies()
	r.wait("the relay copies to each guest", func() bool {
		for i, n := range copies() {
			if n == before[i] {
				return false
			}
		}
		return true
	})
	// As if its time and its grace had passed, for this lease only: relays count as alive by the clock that tests can set.
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(r.DataDir, "groupcast.db")+"?_txlock=immediate&_busy_timeout=30000")
	require.NoError(r.t, err)
	defer db.Close()
	moved, err := db.ExecContext(r.t.Context(), "UPDATE leases SET expires_at = expires_at - 1000*(ttl_seconds+60), removable_at = removable_at - 1000*(ttl_seconds+60) WHERE registration_id = ?",
		r.guests[expires].registration)
	require.NoError(r.t, err)
	rows, err := moved.RowsAffected()
	require.NoError(r.t, err)
	require.EqualValues(r.t, 1, rows)
	status, text := r.Send(r.t, http.MethodDelete, "/v1/registrations/"+r.guests[leaves].registration, r.token, "")
	require.Equal(r.t, http.StatusOK, status, text)
	require.Less(r.t, r.do(http.MethodDelete, "/v1/account/services/svc-guest", "", r.holders[0].cookie).StatusCode, 300)
	for _, g := range r.guests {
		token := r.token
		if g == r.guests[unlinked] {
			token = r.guestToken
		}
		r.wait("the service doesn't know any more who "+g.how, func() bool {
			status, _ := r.Send(r.t, http.MethodGet, "/v1/registrations/"+g.registration, token, "")
			return status == http.StatusNotFound
		})
	}
	// The relay hears of it within two seconds, also if each hint is lost (SPEC §6): so none comes while the home's other destination gets some, after a while.
	r.wait("nothing comes to the guests", func() bool {
		before, others := copies(), r.copied(0)
		r.wait("others go on", func() bool { return r.copied(0) >= others+20 })
		return slices.Equal(copies(), before)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.guests {
		g.over = true
	}
}

// copied is how many datagrams of a home were copied to its own destination.
func (r *run) copied(home int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.homes[home].seen)
}

func newRun(t *testing.T, homes int) *run {
	r := &run{t: t, internet: netlab.New(t, "internet"), cameras: netlab.New(t, "cameras")}
	r.internet.Sysctl("net.ipv4.ip_forward", "1")
	r.internet.Address("lo", runServer+"/32")
	r.internet.Address("lo", runReceiver+"/32")
	for _, s := range []string{"net.ipv4.icmp_ratelimit"} { // nobody listens at the receivers' ports, and nobody needs to hear it
		r.internet.Sysctl(s, "1000000")
	}
	r.Server = harness.StartServer(t, harness.Options{In: r.internet, Listen: runServer + ":8080", Args: []string{"--behind-proxy"}})
	r.Service(t, "svc-view", "view")
	r.Exempt(t, "svc-view", runReceiver)
	for i := range 2 {
		r.newRelay(i)
	}
	const accounts = 2
	var links []models.ID
	for i := range accounts {
		r.holders = append(r.holders, holder{account: r.Account(t, fmt.Sprint("account ", i))})
		links = append(links, r.Link(t, "svc-view", r.holders[i].account, 0))
		r.login(i)
	}
	r.token = r.ServiceToken(t, "svc-view")
	r.Service(t, "svc-guest", "guest")
	r.Exempt(t, "svc-guest", runReceiver)
	guestLink := r.Link(t, "svc-guest", r.holders[0].account, 0)
	r.guestToken = r.ServiceToken(t, "svc-guest")
	r.guests = []*guest{{how: "expired"}, {how: "left"}, {how: "was unlinked"}}
	var declared []func() bool
	var register []func()
	for n := range homes {
		h, device, gatewayToken, camera, premises := r.newHome(n, &r.holders[n%accounts])
		declared = append(declared, func() bool {
			g, err := r.Client(t, gatewayToken).GetGatewayWithResponse(t.Context(), device)
			return err == nil && g.JSON200 != nil && g.JSON200.LanPrefix != ""
		})
		register = append(register, func() {
			r.post(r.DeviceToken(t, camera), fmt.Sprintf(`{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"publicIPv4":%q,"groupName":"door","groupIP":%q}`,
				camera, cameraAddr, h.uplink, groupIP))
			join := func(token string, link models.ID, port int) string {
				return r.post(token, fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":%q,"groupName":"door","groupIP":%q,"premisesId":%q,"instance":"%d","port":%[5]d}`,
					link, runReceiver, groupIP, premises, port))
			}
			join(r.token, links[n%accounts], runPort+n)
			if n > 0 {
				return
			}
			r.guests[expires].registration = join(r.token, links[0], guestPort+expires)
			r.guests[leaves].registration = join(r.token, links[0], guestPort+leaves)
			r.guests[unlinked].registration = join(r.guestToken, guestLink, guestPort+unlinked)
		})
	}
	for n, is := range declared {
		r.wait(fmt.Sprintf("gateway %d has declared its LAN", n), is)
		register[n]()
	}
	return r
}

// post registers and gives the registration's id.
func (r *run) post(token, body string) string {
	r.t.Helper()
	status, text := r.Post(r.t, "/v1/registrations", token, body)
	require.Equal(r.t, http.StatusOK, status, "%s", text)
	var answer struct{ RegistrationID string }
	require.NoError(r.t, json.Unmarshal([]byte(text), &answer))
	return answer.RegistrationID
}

// newRelay has the operator enrol a relay for all premises, and starts it.
func (r *run) newRelay(i int) {
	in, address, near := netlab.New(r.t, fmt.Sprint("relay", i)), fmt.Sprintf("96.114.20.%d", 4*i+1), fmt.Sprintf("96.114.20.%d", 4*i+2)
	iface := fmt.Sprint("relay", i)
	netlab.Connect(in, "wan0", r.internet, iface)
	in.Address("wan0", address+"/30")
	r.internet.Address(iface, near+"/30")
	in.Route("0.0.0.0/0", near)
	r.watch(iface, func(f netlab.Frame, p []byte) { r.judge(f, p, address, nil) })

	r.relays = append(r.relays, harness.StartRelay(r.t, harness.RelayOptions{Server: r.Server, In: in, Name: iface, Address: address, PlainHTTP: true}))
	r.relayAddrs = append(r.relayAddrs, address)
}

// newHome builds a home, whose camera is an interface that sends, and starts its gateway's agent.
func (r *run) newHome(n int, of *holder) (h *runHome, gateway models.ID, token string, camera models.ID, premises models.PremisesID) {
	h = &runHome{n: n, uplink: fmt.Sprintf("71.230.%d.1", n), gateway: netlab.New(r.t, fmt.Sprint("gateway", n)), seen: map[string]string{}, over: map[string]int{}}
	cam, wan := fmt.Sprint("cam", n), fmt.Sprint("home", n)
	netlab.Connect(r.cameras, cam, h.gateway, "lan0")
	h.gateway.Address("lan0", "172.16.0.1/24")
	netlab.Connect(h.gateway, "wan0", r.internet, wan)
	h.gateway.Address("wan0", h.uplink+"/30")
	r.internet.Address(wan, fmt.Sprintf("71.230.%d.2/30", n))
	h.gateway.Route("0.0.0.0/0", fmt.Sprintf("71.230.%d.2", n))
	h.gateway.Sysctl("net.ipv4.ip_forward", "1")
	h.frame = slices.Concat(h.gateway.HardwareAddr("lan0"), r.cameras.HardwareAddr(cam), []byte{8, 0})
	h.index = r.cameras.Index(cam)
	r.watch(wan, func(f netlab.Frame, p []byte) { r.judge(f, p, h.uplink, h) })

	off := false
	premises = r.Premises(r.t, of.account, fmt.Sprint("home ", n), false)
	of.premises = append(of.premises, premises)
	camera = r.Device(r.t, premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: "camera", Pop: &off})
	gateway = r.Device(r.t, premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	token = r.DeviceToken(r.t, gateway)
	harness.StartAgent(r.t, harness.AgentOptions{
		Server: r.Server, GatewayID: gateway, Token: token, In: h.gateway, LANInterface: "lan0", LANPrefix: "172.16.0.0/24", LANAddress: "172.16.0.1",
		Uplink: h.uplink, PlainHTTP: true,
	})
	r.homes = append(r.homes, h)
	return h, gateway, token, camera, premises
}

func (r *run) watch(iface string, each func(f netlab.Frame, packet []byte)) {
	r.captures = append(r.captures, r.internet.Watch(iface, func(f netlab.Frame) {
		if p := f.IPv4(); p != nil && p[9] == unix.IPPROTO_UDP && len(p) >= 28 {
			each(f, p)
		}
	}))
}

// judge looks at a packet between the internet and a relay, or a home.
func (r *run) judge(f netlab.Frame, p []byte, host string, h *runHome) {
	udp := p[int(p[0]&15)*4:]
	to, port := netip.AddrFrom4([4]byte(p[16:20])).String(), int(binary.BigEndian.Uint16(udp[2:]))
	var home, number int
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, err := fmt.Sscanf(string(udp[8:min(len(udp), 40)]), "home %d %d ", &home, &number); n != 2 || err != nil {
		if h != nil && !f.Outgoing && slices.Contains(r.relayAddrs, to) && port == tunnelPort && len(udp) > 8+32 && udp[8] == 4 {
			h.crossed++
		}
		if bytes.Contains(udp, []byte("home ")) {
			r.wrongly("video that nobody copied, to %s:%d", to, port)
		}
		return
	}
	switch {
	case f.Outgoing:
		r.wrongly("a copy of home %d's video goes to %s", home, host)
	case home < len(r.homes) && number <= r.homes[home].over[host]:
		r.wrongly("%s copies datagram %d of home %d, which waited while it hung", host, number, home)
	case home == 0 && to == runReceiver && port >= guestPort && port < guestPort+len(r.guests) && (h == nil || h.n == 0):
		g := r.guests[port-guestPort]
		g.copies++
		if g.over {
			r.wrongly("%s copies datagram %d to one who %s", host, number, g.how)
		}
	case to != runReceiver || port != runPort+home || home >= len(r.homes):
		r.wrongly("a copy of home %d's video from %s goes to %s:%d", home, host, to, port)
	case h != nil && home != h.n:
		r.wrongly("home %d sends home %d's video", h.n, home)
	default:
		of := r.homes[home]
		key := fmt.Sprint(number)
		if who, twice := of.seen[key]; twice {
			r.wrongly("datagram %d of home %d was copied by %s and by %s", number, home, who, host)
		}
		of.seen[key], of.from = host, host
		if !of.at.IsZero() {
			of.longest = max(of.longest, f.At.Sub(of.at))
		}
		of.at = f.At
	}
}

func (r *run) wrongly(format string, args ...any) {
	if len(r.wrong) < 20 {
		r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
	}
}

// send is all cameras.
func (r *run) send(stop <-chan struct{}) {
	var fd int
	var err error
	r.cameras.Do(func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		r.t.Error(err)
		return
	}
	defer unix.Close(fd)
	tick := time.NewTicker(*runEvery / time.Duration(len(r.homes)))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		h := r.homes[i%len(r.homes)]
		r.mu.Lock()
		h.sent++
		sent := h.sent
		r.mu.Unlock()
		payload := fmt.Appendf(nil, "home %d %d ", h.n, sent)
		payload = append(payload, bytes.Repeat([]byte{'v'}, runSize-len(payload))...)
		frame := slices.Concat(h.frame, datagram(uint16(sent), cameraAddr, payload))
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: h.index}); err != nil {
			r.t.Error(err)
			return
		}
	}
}

// until waits for something to hold for every home, and fails if anything went wrong.
func (r *run) until(what string, is func(*runHome) bool) {
	r.t.Helper()
	left := map[int]bool{}
	for _, h := range r.homes {
		left[h.n] = true
	}
	r.wait(what, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Empty(r.t, r.wrong, what)
		maps.DeleteFunc(left, func(n int, _ bool) bool { return is(r.homes[n]) })
		return len(left) == 0
	})
	for _, c := range r.captures {
		c.Frames() // fails if one was lost
	}
}

func (r *run) wait(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not after 2 minutes: %s", what)
		}
	}
}

// mark begins to measure for how long nothing comes.
func (r *run) mark() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.homes {
		h.longest, h.missing = 0, h.sent-len(h.seen)
	}
}

func (r *run) pauses(what string, most time.Duration) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []time.Duration
	copies, lost := 0, 0
	for _, h := range r.homes {
		all = append(all, h.longest)
		copies += len(h.seen)
		lost += h.sent - len(h.seen) - h.missing
	}
	slices.Sort(all)
	netlab.Progress("relay run: %s: longest without video %s, median %s, %d datagrams lost or on their way; %d homes, %d copies judged, %d wrong", what, all[len(all)-1].Round(time.Millisecond), all[len(all)/2].Round(time.Millisecond),
		lost, len(all), copies, len(r.wrong))
	if *runJudged && all[len(all)-1] > most {
		r.t.Errorf("%s: video stood still for %s", what, all[len(all)-1])
	}
}

// served is for how many homes each relay copies.
func (r *run) served() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]int{}
	for _, h := range r.homes {
		all[h.from]++
	}
	return all
}

// crossedOnce fails if a home's uplink carried more datagrams than its camera sent.
func (r *run) crossedOnce() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.homes {
		relayed := 0
		for _, who := range h.seen {
			if who != h.uplink {
				relayed++
			}
		}
		if h.crossed == 0 || h.crossed < relayed || h.crossed > h.sent {
			r.t.Errorf("home %d: %d datagrams crossed the uplink for %d copies of %d", h.n, h.crossed, relayed, h.sent)
		}
	}
}

// login makes the user that decides for an account.
func (r *run) login(i int) {
	const password = "four words are enough"
	invited, err := r.Admin.CreateInvitationWithResponse(r.t.Context(), nil, adminapi.InvitationRequest{AccountID: &r.holders[i].account})
	require.NoError(r.t, err)
	require.NotNil(r.t, invited.JSON200, "%s", invited.Body)
	name := fmt.Sprint("holder", i)
	made := r.do(http.MethodPost, "/v1/accounts", fmt.Sprintf(`{"userName":%q,"password":%q,"accountName":"x","invitation":%q}`, name, password, invited.JSON200.Invitation), "")
	require.Equal(r.t, http.StatusCreated, made.StatusCode)
	in := r.do(http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":%q}`, name, password), "")
	require.Equal(r.t, http.StatusOK, in.StatusCode)
	r.holders[i].cookie = in.Cookies()[0].Name + "=" + in.Cookies()[0].Value
}

// change is the decision of account holders about all their homes.
func (r *run) change(body string, holders ...holder) {
	r.t.Helper()
	for _, h := range holders {
		for _, p := range h.premises {
			require.Equal(r.t, http.StatusOK, r.do(http.MethodPatch, "/v1/premises/"+string(p), body, h.cookie).StatusCode)
		}
	}
}

func (r *run) do(method, path, body, cookie string) *http.Response {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, r.URL+path, strings.NewReader(body))
	require.NoError(r.t, err)
	q.Header.Set("Content-Type", "application/json")
	if cookie != "" {
		q.Header.Set("Cookie", cookie)
	}
	answer, err := r.HTTP.Do(q)
	require.NoError(r.t, err)
	_, _ = io.Copy(io.Discard, answer.Body)
	require.NoError(r.t, answer.Body.Close())
	return answer
}
