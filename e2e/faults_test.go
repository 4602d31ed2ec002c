package e2e

import (
	"encoding/binary"
	"fmt"
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
		Unasked: true,
		Server:  s, GatewayID: gateway, Token: gatewayToken, AllowLoopback: true,
		LANInterface: "lo", LANPrefix: lan + "0/24", LANAddress: lan + "1", Uplink: "127.0.0.1",
	})
	require.Eventually(t, func() bool {
		r, err := s.Client(t, gatewayToken).GetGatewayWithResponse(t.Context(), gateway)
		return err == nil && r.JSON200 != nil && r.JSON200.LanPrefix != ""
	}, 10*time.Second, 20*time.Millisecond, "the agent has not declared its LAN")
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

// join registers a receiver of its own and gives its socket.
func (h *home) join(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 1, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	h.registrations++
	status, body := h.Post(t, "/v1/registrations", h.uploadToken, fmt.Sprintf(
		`{"type":"Service","id":"%s","destination":true,"instance":"w%d","publicIPv4":"127.0.1.1","port":%d,"groupName":"door","groupIP":%q}`,
		h.upload, h.registrations, conn.LocalAddr().(*net.UDPAddr).Port, h.group))
	require.Equal(t, http.StatusOK, status, body)
	return conn
}

// hears waits until the receiver has got n datagrams that were sent from now on.
func (h *home) hears(t *testing.T, conn *net.UDPConn, n int) {
	t.Helper()
	from := h.sent.Load()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	buf := make([]byte, 2048)
	for n > 0 {
		size, err := conn.Read(buf)
		require.NoError(t, err, "the copies stopped")
		require.Equal(t, 8, size)
		if binary.BigEndian.Uint64(buf) > from {
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

// TestAgentCopiesBeforeTheServerAnswers kills both: the agent has the last snapshot on disk.
func TestAgentCopiesBeforeTheServerAnswers(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	receiver := h.join(t)
	h.hears(t, receiver, 50)

	h.Server.Kill()
	h.agent.Kill()
	h.agent.Start(t)
	h.hears(t, receiver, 200)

	h.Server.Start(t)
	h.hears(t, h.join(t), 50)
	require.NoError(t, h.agent.Stop())
	require.NoError(t, h.Server.Stop())
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
