package relay

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	receiverkit "github.com/groupcast/groupcast/receiver"
)

// lossy is a service that can be lost: each other call is refused by what stands before it, or cut off, as by one that was killed.
type lossy struct {
	http.Handler
	lost  atomic.Bool
	calls atomic.Int64
}

func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.lost.Load() && l.calls.Add(1)%2 == 0 {
		panic(http.ErrAbortHandler)
	}
	if l.lost.Load() {
		scripted.Problem(w, http.StatusServiceUnavailable, "unavailable", "It is away.")
		return
	}
	l.Handler.ServeHTTP(w, r)
}

// Leave and fail-closed hold in the network as at home: who left gets nothing more while the others do, a relay that loses the service stops after maxStaleSeconds
// though video goes on to come, and so does a home, which then sends nothing into the tunnel; each goes on when it hears of the service again.
func TestRelayStops(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	const maxStale = 3
	l := newNetwork(t, netlab.New(t, "relay"), 1)
	h := l.homes[0]
	to := []string{netlab.Upload, netlab.Thumbnail}
	upload, thumbnail := l.receiver(to[0]), l.receiver(to[1])

	inNetwork := models.FanoutNetwork
	forGateway := api.GroupInformation{GatewayID: gatewayID, Epoch: "e", Revision: "1", MaxStaleSeconds: maxStale, Groups: []api.GatewayGroup{apiGroup(0, to...)}}
	gatewayService := scripted.New(forGateway, token)
	gatewayEdge := &lossy{Handler: gatewayService.Handler()}
	gateway := newNode(t, h.gateway, gatewayEdge, "--gateway-id", gatewayID.String(), "--lan-prefix", "172.16.0.0/24", "--lan-address", "172.16.0.1",
		"--uplink-address", "198.18.1.1", "--backend", "socket")
	forRelay := api.RelayInformation{RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: maxStale, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{}}
	relayService := scripted.NewRelay(forRelay, relayInside, token)
	relayEdge := &lossy{Handler: relayService.Handler()}
	relay := newNode(t, l.relayNS, relayEdge, "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr)

	forRelay.Revision, forRelay.Groups = "2", []api.GatewayGroup{apiGroup(0, to...)}
	forRelay.Premises = []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: gateway.publicKey(l), TunnelAddress: h.inside}}
	relayService.Set(forRelay)
	l.until("the relay holds it", func() bool { return relayService.Cursor() == "e.2" })
	forGateway.Revision, forGateway.Fanout = "2", &inNetwork
	forGateway.Relay = &api.GatewayRelay{
		RelayID: relayID, TunnelKey: relay.publicKey(l), EndpointIPv4: netip.MustParseAddr(relayAddr), EndpointPort: tunnelPort, TunnelAddress: relayInside, OwnTunnelAddress: h.inside, Forwarding: true,
	}
	gatewayService.Set(forGateway)

	n := 0
	send := func() string {
		n++
		p := string(payload(n, 500))
		h.send(datagram(uint16(n), cameraAddr, []byte(p)))
		return p
	}
	relayed := func(what string) {
		t.Helper()
		l.until(what, func() bool {
			p := send()
			return upload.tryNext() == p && upload.from == relayAddr
		})
	}
	// copied is how many copies of datagrams with these numbers left the relay or the home.
	copied := func(first, last int) (copies int) {
		for _, f := range append(l.uplink.Frames(), h.uplink.Frames()...) {
			var number int
			if p := f.IPv4(); p != nil && !f.Outgoing && p[9] == 17 && len(p) > 28+7 {
				if _, err := fmt.Sscanf(string(p[28:28+7]), "%06d ", &number); err == nil && number >= first && number <= last {
					copies++
				}
			}
		}
		return copies
	}
	relayed("the relay copies")
	require.Positive(t, copied(1, n))

	t.Run("who left gets nothing more", func(*testing.T) {
		l.until("the other gets copies too", func() bool { p := send(); return thumbnail.tryNext() == p })
		forRelay.Revision, forRelay.Groups = "3", []api.GatewayGroup{apiGroup(0, to[0])}
		relayService.Set(forRelay)
		l.until("the relay holds it", func() bool { return relayService.Cursor() == "e.3" })
		for thumbnail.tryNext() != "" { // what was on its way
			continue
		}
		for range 20 {
			send()
		}
		relayed("the other goes on")
		thumbnail.nothing()
	})

	lose := func(edge *lossy, who *node, crosses int) {
		t.Helper()
		edge.lost.Store(true)
		l.until("it knows that it may not go on", func() bool { send(); return !who.status().Forwarding })
		const many, size = 20, 900 // as large as no other
		first := n + 1
		for range many {
			n++
			h.send(datagram(uint16(n), cameraAddr, payload(n, size)))
		}
		last := n
		edge.lost.Store(false)
		relayed("copies again") // and what was sent before is through
		require.Zero(t, copied(first, last), "copies by a table that is too old")
		crossed := 0
		for _, bytes := range h.uplinkData() {
			if bytes > size {
				crossed++
			}
		}
		require.Equal(t, crosses*many, crossed, "on the uplink")
	}
	t.Run("a home that loses the service", func(*testing.T) { lose(gatewayEdge, gateway, 0) })
	t.Run("a relay that loses the service", func(*testing.T) { lose(relayEdge, relay, 1) })
}

// Consent holds in the network as at home: the relay sends nothing before the destination has proved to the relay that it wants it, and nothing when it has fallen
// silent for as long as a consent lasts; it goes on when it hears of the destination again.
func TestRelayAsks(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	l := newNetwork(t, netlab.New(t, "relay"), 1)
	h := l.homes[0]
	l.internet.Address("lo", netlab.Upload+"/32")
	conn := l.internet.ListenUDP(netip.AddrPortFrom(netip.MustParseAddr(netlab.Upload), mediaPort).String())

	inNetwork := models.FanoutNetwork
	forGateway := api.GroupInformation{GatewayID: gatewayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, netlab.Upload)}}
	gatewayService := scripted.New(forGateway, token)
	gateway := newNode(t, h.gateway, gatewayService.Handler(), "--gateway-id", gatewayID.String(), "--lan-prefix", "172.16.0.0/24", "--lan-address", "172.16.0.1",
		"--uplink-address", "198.18.1.1", "--backend", "socket")
	group := apiGroup(0, netlab.Upload)
	ufrag, password, every, expires := "Yw5Fh2kPq0Za", "8mNbVcXzLkJhGfDsAqWeRt", int32(1), int32(5)
	group.GroupDestinations[0].Consent = &api.GatewayConsent{Policy: models.PolicyLearned, Ufrag: &ufrag, Pwd: &password, Every: &every, Expires: &expires}
	relayService := scripted.NewRelay(api.RelayInformation{
		RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{group},
		Premises: []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: gateway.publicKey(l), TunnelAddress: h.inside}},
	}, relayInside, token)
	relay := newNode(t, l.relayNS, relayService.Handler(), "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr,
		"--allow-without-consent=false")
	l.until("the relay holds it", func() bool { return relayService.Cursor() == "e.1" })
	forGateway.Revision, forGateway.Fanout = "2", &inNetwork
	forGateway.Relay = &api.GatewayRelay{
		RelayID: relayID, TunnelKey: relay.publicKey(l), EndpointIPv4: netip.MustParseAddr(relayAddr), EndpointPort: tunnelPort, TunnelAddress: relayInside, OwnTunnelAddress: h.inside, Forwarding: true,
	}
	gatewayService.Set(forGateway)
	l.until("the gateway forwards", func() bool { return gateway.status().Cursor == "e.2" })

	var silent atomic.Bool
	var newest atomic.Int64 // number of the datagram that came last
	kit := receiverkit.New(models.ConsentCredential{Ufrag: ufrag, Password: password})
	go func() {
		b := make([]byte, 1<<16)
		for {
			size, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			reply, check := kit.Take(time.Now(), from, b[:size])
			var number int64
			switch {
			case check && !silent.Load():
				_, _ = conn.WriteToUDPAddrPort(reply, from)
			case check:
			default:
				if _, err := fmt.Sscanf(string(b[:size]), "%06d ", &number); err == nil {
					newest.Store(number)
				}
			}
		}
	}()
	n := 0
	send := func() {
		n++
		h.send(datagram(uint16(n), cameraAddr, payload(n, 500)))
	}
	judged := func(many int) {
		t.Helper()
		received := func() uint64 {
			if g := relay.status().Groups; len(g) == 1 {
				return g[0].Received
			}
			return 0
		}
		before := received()
		l.until("the relay has judged", func() bool { send(); return received() >= before+uint64(many) })
	}
	judged(5)
	require.Zero(t, newest.Load(), "video before consent")

	var port uint16
	l.until("a port is reserved", func() bool { port = relay.status().Groups[0].Ports["r_camera0"]; return port != 0 })
	keeps := func() (silence context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		kit.Senders([]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(relayAddr), port)})
		go kit.Keep(ctx, conn)
		return cancel
	}
	silence := keeps()
	l.until("video after consent", func() bool { send(); return newest.Load() > 0 })

	silence()
	silent.Store(true)
	l.until("the consent is lost", func() bool { send(); return relay.status().Groups[0].Destinations[0].Consent != models.ConsentLive })
	first := int64(n)
	judged(10)
	require.LessOrEqual(t, newest.Load(), first, "video after the consent")

	silent.Store(false)
	defer keeps()()
	l.until("video again", func() bool { send(); return newest.Load() > first })
}
