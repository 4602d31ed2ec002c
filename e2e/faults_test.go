package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// home is one home on loopback: a LAN in 127/8 of its own, a camera that streams without pause, a gateway agent. It needs no
// privilege, so the camera's trigger is its source.
type home struct {
	*harness.Server
	agent         *harness.Agent
	upload        models.ID
	uploadToken   string
	camera        netip.Addr
	group         netip.Addr
	sent          atomic.Uint64
	registrations int
}

func newHome(t testing.TB) *home {
	s := harness.StartServer(t, harness.Options{Args: []string{"--allow-loopback"}})
	return homeOf(t, s, s)
}

// homeOf makes a home at a server, whose agent asks at the place that it is given, which may be another.
func homeOf(t testing.TB, s, asks *harness.Server) *home {
	lan := fmt.Sprintf("127.%d.%d.", 2+rand.IntN(250), rand.IntN(250))
	h := &home{Server: s, camera: netip.MustParseAddr(lan + "5")}
	account := s.Account(t, "home")
	premises := s.Premises(t, account, "home", false)
	off, trigger := false, models.TriggerSource
	camera := s.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: "camera", Pop: &off, Trigger: &trigger})
	gateway := s.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	s.Service(t, "svc-upload", "upload")
	h.upload = s.Link(t, "svc-upload", account, 0)
	h.uploadToken = s.ServiceToken(t, "svc-upload")
	gatewayToken := s.DeviceToken(t, gateway)
	h.agent = harness.StartAgent(t, harness.AgentOptions{
		Server: asks, GatewayID: gateway, Token: gatewayToken, AllowLoopback: true,
		LANInterface: "lo", LANPrefix: lan + "0/24", LANAddress: lan + "1", Uplink: "127.0.0.1",
	})
	require.Eventually(t, func() bool {
		r, err := s.Client(t, gatewayToken).GetGatewayWithResponse(t.Context(), gateway)
		return err == nil && r.JSON200 != nil && r.JSON200.LanPrefix != ""
	}, time.Minute, 20*time.Millisecond, "the agent has not declared its LAN")
	status, body := s.Post(t, "/v1/registrations", s.DeviceToken(t, camera), fmt.Sprintf(
		`{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"groupName":"door"}`, camera, h.camera))
	require.Equal(t, http.StatusOK, status, body)
	groups, err := s.Client(t, h.uploadToken).ListGroupsWithResponse(t.Context(), &api.ListGroupsParams{})
	require.NoError(t, err)
	require.NotNil(t, groups.JSON200, "%s", groups.Body)
	require.Len(t, groups.JSON200.Groups, 1)
	h.group = groups.JSON200.Groups[0].GroupIP
	h.stream(t)
	return h
}

// stream sends numbered datagrams from the camera to the group IP until the test ends.
func (h *home) stream(t testing.TB) {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.camera, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.group, mediaPort)))
	require.NoError(t, err)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				// While no agent listens the kernel refuses; a camera goes on sending.
				if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, h.sent.Add(1))); err != nil {
					continue
				}
			}
		}
	})
	t.Cleanup(func() {
		close(done)
		wg.Wait()
		conn.Close()
	})
}

// listen opens the socket of another receiver.
func (h *home) listen(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 0)))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	h.registrations++
	return conn
}

// register registers the receiver that was opened last.
func (h *home) register(t testing.TB, conn *net.UDPConn) (a registered) {
	t.Helper()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	status, body := h.Post(t, "/v1/registrations", h.uploadToken, fmt.Sprintf(
		`{"type":"Service","id":"%s","destination":true,"instance":"w%d","publicIPv4":%q,"port":%d,"groupName":"door","groupIP":%q}`,
		h.upload, h.registrations, at.Addr(), at.Port(), h.group))
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, json.Unmarshal([]byte(body), &a))
	return a
}

// join registers a receiver of its own, which consents.
func (h *home) join(t *testing.T) *consenting {
	t.Helper()
	conn := h.listen(t, "127.0.1.1")
	return consents(t, conn, untilSenders(t, func() registered { return h.register(t, conn) }))
}

// hears waits until the receiver has got n datagrams that were sent from now on.
func (h *home) hears(t *testing.T, c *consenting, n int) {
	t.Helper()
	for from := h.sent.Load(); n > 0; {
		b := c.next(t)
		require.Len(t, b, 8)
		if binary.BigEndian.Uint64(b) > from {
			n--
		}
	}
}

// TestCopiesGoOnWhileTheServerIsAway kills the server under a running stream, and brings it back.
func TestCopiesGoOnWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	first := h.join(t)
	h.hears(t, first, 50)

	h.Server.Kill()
	h.hears(t, first, 500)

	h.Server.Start(t)
	second := h.join(t)
	h.hears(t, second, 50)
	h.hears(t, first, 50)
}

// TestAgentCopiesBeforeTheServerAnswers kills both: the agent has the last snapshot on disk, and the ports that receivers' checks go to. Who went
// meanwhile gets nothing from the agent that starts: what it kept says where somebody was, not that he still wants it.
func TestAgentCopiesBeforeTheServerAnswers(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	receiver, gone := h.join(t), h.join(t)
	h.hears(t, receiver, 50)
	h.hears(t, gone, 50)

	h.Server.Kill()
	h.agent.Kill()
	gone.fallSilent()
	before := h.sent.Load()
	h.agent.Start(t)
	h.hears(t, receiver, 200)
	for len(gone.media) > 0 {
		require.LessOrEqual(t, binary.BigEndian.Uint64(<-gone.media), before, "a copy to somebody who no longer consents")
	}

	h.Server.Start(t)
	h.hears(t, h.join(t), 50)
	require.NoError(t, h.agent.Stop())
	require.NoError(t, h.Server.Stop())
}

// TestAReplicaDiesAndReceiversGoOn kills one of two replicas: who consented has its copies all the while, and who registers at the other one consents, gets
// copies and is known there to be live.
func TestAReplicaDiesAndReceiversGoOn(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	var replicas []*harness.Server
	var first *harness.Server
	for range 2 {
		o := replica(url, first)
		o.Args = append(o.Args, "--allow-loopback")
		replicas = append(replicas, harness.StartServer(t, o))
		first = replicas[0]
	}
	balancer := *replicas[0]
	balancer.URL = "http://" + balance(t, replicas)
	h := homeOf(t, replicas[0], &balancer)
	before := h.join(t)
	h.hears(t, before, 50)

	replicas[0].Kill()
	h.hears(t, before, 500)
	h.Server = replicas[1]
	conn := h.listen(t, "127.0.1.1")
	a := untilSenders(t, func() registered { return h.register(t, conn) })
	after := consents(t, conn, a)
	h.hears(t, after, 50)
	h.hears(t, before, 50)
	require.Eventually(t, func() bool {
		r, err := h.Client(t, h.uploadToken).GetRegistrationWithResponse(t.Context(), models.RegistrationID(a.RegistrationID))
		return err == nil && r.JSON200 != nil && r.JSON200.Consent.State == models.ConsentLive
	}, time.Minute, 20*time.Millisecond, "the other replica is told that it is live")
}

// balance gives the address of what stands in front of servers: each connection goes to the first that takes it.
func balance(t testing.TB, servers []*harness.Server) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer front.Close()
				for _, s := range servers {
					back, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
					if err != nil {
						continue
					}
					go func() {
						_, _ = io.Copy(back, front)
						back.Close()
					}()
					_, _ = io.Copy(front, back)
					return
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestNothingAcceptedIsLost kills the server at a random moment while 16 clients register, again and again: whatever was
// answered with 200 is there after the restart.
func TestNothingAcceptedIsLost(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		e := newExample(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--quota-destinations", "0"}})
		e.declare(t)
		e.postCamera(t)
		accepted := map[string]bool{}
		for round := range 3 {
			var mu sync.Mutex
			var wg sync.WaitGroup
			started := make(chan struct{})
			var once sync.Once
			for worker := range 16 {
				wg.Go(func() {
					for i := 0; ; i++ {
						instance := fmt.Sprintf("r%d-w%d-%d", round, worker, i)
						req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, e.URL+"/v1/registrations", newBody(
							`{"type":"Service","id":"%s","destination":true,"instance":%q,"publicIPv4":"96.114.14.140","groupName":"groupcast1","groupIP":%q}`,
							uploadAccountID, instance, groupIP))
						req.Header.Set("Content-Type", "application/json")
						req.Header.Set("Authorization", e.uploadToken)
						r, err := e.HTTP.Do(req)
						if err != nil {
							return // killed
						}
						r.Body.Close()
						if r.StatusCode != http.StatusOK {
							assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
							return
						}
						mu.Lock()
						accepted[instance] = true
						mu.Unlock()
						once.Do(func() { close(started) })
					}
				})
			}
			<-started
			time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
			e.Kill()
			wg.Wait()
			e.Start(t)

			present := map[string]bool{}
			size := int32(500)
			for token := (*string)(nil); ; {
				page, err := e.Client(t, e.uploadToken).ListRegistrationsWithResponse(t.Context(),
					&api.ListRegistrationsParams{PageSize: &size, PageToken: token})
				require.NoError(t, err)
				require.NotNil(t, page.JSON200, "%s", page.Body)
				for _, r := range page.JSON200.Registrations {
					present[r.Instance] = true
				}
				if token = page.JSON200.NextPageToken; token == nil {
					break
				}
			}
			for instance := range accepted {
				assert.True(t, present[instance], "registration %s was answered with 200 and is gone", instance)
			}
		}
		require.NotEmpty(t, accepted)
	})
}

func newBody(format string, args ...any) *strings.Reader {
	return strings.NewReader(fmt.Sprintf(format, args...))
}
