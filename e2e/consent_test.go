package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// Strangers whom the tests of this file have somebody name, and one who names them.
const (
	silentAddr = "96.114.20.1"
	echoAddr   = "96.114.20.2"
	forgedAddr = "96.114.20.3"
	thiefAddr  = "96.114.20.4"
	evilAddr   = "96.114.20.5"
	sixAddr    = "2600:1::99"
	strangers  = "96.114.20.0/24"
)

const spokenMedia = "\x80 this is the camera's stream "

// consentHome is the worked example with real programs. The camera never stops, and everything on the uplink is recorded.
type consentHome struct {
	t *testing.T
	*example

	wire  *wire
	agent *harness.Agent
}

func newConsentHome(t *testing.T, backend string) *consentHome {
	h := &consentHome{t: t, wire: newWire(t)}
	h.wire.gateway.Address("wan0", "2600:1::1/64")
	h.wire.wan.Address("ext0", "2600:1::2/64")
	h.wire.wan.Address("ext0", sixAddr+"/64")
	h.wire.gateway.Route("::/0", "2600:1::2")
	for _, a := range []string{silentAddr, echoAddr, forgedAddr, thiefAddr, evilAddr} {
		h.wire.wan.Address("lo", a+"/32")
	}
	h.example = newExample(t, harness.Options{In: h.wire.gateway, Listen: "127.0.0.1:8080"})
	h.agent = harness.StartAgent(t, h.agentOptions(backend, filepath.Join(netlab.BPFFS(t), "groupcast")))
	h.awaitDeclared(t)
	h.postCamera(t)
	h.stream(cameraAddr, groupIP)
	return h
}

func (h *consentHome) agentOptions(backend, bpf string) harness.AgentOptions {
	return harness.AgentOptions{
		Server: h.Server, GatewayID: h.example.gateway, Token: h.gatewayToken, In: h.wire.gateway,
		LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr,
		GroupRange: "172.168.0.233-172.168.0.254", Backend: backend, BPFDir: bpf,
	}
}

// stream has a camera send 200 datagrams a second until the test ends.
func (h *consentHome) stream(from, to string) { streamFrom(h.t, h.wire.camera, from, to) }

func streamFrom(t *testing.T, camera *netlab.Namespace, from, to string) {
	t.Helper()
	c := camera.ListenUDP(from + ":0")
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(streamOption(0x88, from)))
	}))
	require.NoError(t, err)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		media := append([]byte(spokenMedia), make([]byte, 1000)...)
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_, _ = c.WriteTo(media, &net.UDPAddr{IP: net.ParseIP(to), Port: mediaPort})
			}
		}
	})
	t.Cleanup(func() { close(done); wait.Wait() })
}

// status is the running agent's own word.
func (h *consentHome) status() agent.Status {
	h.t.Helper()
	s, err := agent.Ask(h.t.Context(), h.agent.StateDir())
	require.NoError(h.t, err)
	return s
}

func (h *consentHome) until(what string, condition func() bool) {
	h.t.Helper()
	require.Eventually(h.t, condition, time.Minute, 20*time.Millisecond, what)
}

// join registers a destination in a group and gives the answer and the size of the request as it went out, in bytes.
func (h *consentHome) join(token, body string) (a registered, size int) {
	h.t.Helper()
	text := "POST /v1/registrations HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\nAuthorization: \r\n\r\n" + token + body
	return h.post(h.t, token, body), len(text)
}

func destinationBody(kind string, id models.ID, instance, place, group, ip string) string {
	name := ""
	if instance != "" {
		name = fmt.Sprintf(`"instance":%q,`, instance)
	}
	return fmt.Sprintf(`{"type":%q,"id":"%s",%s"destination":true,%s,"groupName":%q,"groupIP":%q}`, kind, id, name, place, group, ip)
}

// consentOf is how a member's consent stands by the API.
func (h *consentHome) consentOf(token, registration string) models.ConsentState {
	h.t.Helper()
	r, err := h.Client(h.t, token).GetRegistrationWithResponse(h.t.Context(), models.RegistrationID(registration))
	require.NoError(h.t, err)
	require.NotNil(h.t, r.JSON200, "%s", r.Body)
	return r.JSON200.Consent.State
}

// inGroup is how the consent of the members of that name stands, as others of the group see it.
func (h *consentHome) inGroup(token, name string) (states []models.ConsentState) {
	h.t.Helper()
	groups, err := h.Client(h.t, token).ListGroupsWithResponse(h.t.Context(), &api.ListGroupsParams{})
	require.NoError(h.t, err)
	require.NotNil(h.t, groups.JSON200, "%s", groups.Body)
	for _, g := range groups.JSON200.Groups {
		for _, m := range g.Members {
			if m.Name == name && m.Consent != nil {
				states = append(states, *m.Consent)
			}
		}
	}
	return states
}

// service makes one whom gateways may ask first at the strangers' addresses.
func probedService(t *testing.T, s *harness.Server, id models.ServiceID) {
	s.Service(t, id, string(id))
	probe := true
	s.Allow(t, id, adminapi.AllowedCIDR{Cidr: strangers, Probe: &probe})
}

// datagram is a UDP datagram on the uplink.
type datagram struct {
	at       time.Time
	out      bool
	from, to netip.AddrPort
	size     int // of the IP packet
	payload  []byte
}

func datagrams(frames []netlab.Frame) (all []datagram) {
	for _, f := range frames {
		d := datagram{at: f.At, out: f.Outgoing}
		var udp []byte
		switch p := f.IPv4(); {
		case p != nil && p[9] == unix.IPPROTO_UDP:
			udp, d.size = p[int(p[0]&0xf)*4:], len(p)
			d.from, d.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), 0), netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), 0)
		case len(f.Data) > 14+40 && binary.BigEndian.Uint16(f.Data[12:]) == unix.ETH_P_IPV6 && f.Data[14+6] == unix.IPPROTO_UDP:
			p := f.Data[14:]
			udp, d.size = p[40:], 40+int(binary.BigEndian.Uint16(p[4:]))
			d.from, d.to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[8:24])), 0), netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[24:40])), 0)
		}
		if len(udp) < 8 {
			continue
		}
		d.from = netip.AddrPortFrom(d.from.Addr(), binary.BigEndian.Uint16(udp))
		d.to = netip.AddrPortFrom(d.to.Addr(), binary.BigEndian.Uint16(udp[2:]))
		d.payload = udp[8:]
		all = append(all, d)
	}
	return all
}

// traffic is what went to an address and port, and what came from there; port 0: from all.
type traffic struct {
	checks, media     int // datagrams to it
	checkBytes, bytes int // of IP packets to it, and from it
	largest           int // check, in bytes
	lastMedia         time.Time
	ufrags            map[string]int // whom the requests to it are about
}

func trafficOf(frames []netlab.Frame, addr string, port uint16) traffic {
	t := traffic{ufrags: map[string]int{}}
	at := netip.MustParseAddr(addr)
	is := func(a netip.AddrPort) bool { return a.Addr() == at && (port == 0 || a.Port() == port) }
	for _, d := range datagrams(frames) {
		switch {
		case !d.out && is(d.from):
			t.bytes += d.size
		case d.out && is(d.to) && consentcheck.IsSTUN(d.payload):
			t.checks++
			t.checkBytes += d.size
			t.largest = max(t.largest, d.size)
			if m, ok := consentcheck.Parse(d.payload); ok && m.Kind == consentcheck.Request {
				ufrag, _ := consentcheck.ToReceiver.Ufrag(m.Username)
				t.ufrags[ufrag]++
			}
		case d.out && is(d.to):
			t.media++
			t.lastMedia = d.at
		}
	}
	return t
}

func (h *consentHome) traffic(addr string, port uint16) traffic {
	h.t.Helper()
	return trafficOf(h.wire.uplink.Frames(), addr, port)
}

// forge sends a datagram with somebody's source address.
func (h *consentHome) forge(from, to netip.AddrPort, payload []byte) {
	h.t.Helper()
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload))) // no checksum
	h.wire.wan.InjectIPv4(append(p, payload...))
}

func checkOf(a registered) []byte {
	b, _ := consentcheck.NewRequest(consentcheck.Credential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd}, consentcheck.ToAgent)
	return b
}

// TestConsentAttacks has somebody who may register try to have a stream sent to strangers, in all ways that SPEC §10 and row 23 of the threat model name,
// while an honest member receives it. Each stranger gets no media and no more bytes than the attacker sent.
func TestConsentAttacks(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newConsentHome(t, backend)
			a := h.joinReady(h.phoneToken, destinationBody("Device", h.phone, "", `"publicIPv4":"`+phoneAddr+`"`, "groupcast1", groupIP))
			phone := consents(t, h.wire.receivers[phoneAddr].UDPConn, a)
			phone.next(t)
			gateway := netip.AddrPortFrom(a.Senders[0].Address, a.Senders[0].Port)

			// Those who are asked first: one is silent, one sends everything back.
			probedService(t, h.Server, "svc-probed")
			probed, probedToken := h.Link(t, "svc-probed", h.account, 0), h.ServiceToken(t, "svc-probed")
			h.wire.wan.ListenUDP(silentAddr + ":5004")
			go echo(h.wire.wan.ListenUDP(echoAddr + ":5004"))
			silent, silentSize := h.join(probedToken, destinationBody("Service", probed, "silent", `"publicIPv4":"`+silentAddr+`","port":5004`, "groupcast1", groupIP))
			echoing, echoSize := h.join(probedToken, destinationBody("Service", probed, "echo", `"publicIPv4":"`+echoAddr+`","port":5004`, "groupcast1", groupIP))

			// One with a registration of its own writes a stranger's address on its checks, once and then often.
			off := false
			evilID := h.Device(t, h.premises, adminapi.DeviceRequest{Type: models.DevicePhone, Name: "evil", Pop: &off})
			evilToken := h.DeviceToken(t, evilID)
			evil := h.joinReady(evilToken, destinationBody("Device", evilID, "", `"publicIPv4":"`+evilAddr+`"`, "groupcast1", groupIP))
			h.wire.wan.ListenUDP(forgedAddr + ":5004")
			forged := netip.MustParseAddrPort(forgedAddr + ":5004")
			h.until("a forged request leads to one of the gateway's", func() bool {
				if n := h.traffic(forgedAddr, 0).checks; n > 0 {
					return true
				}
				h.forge(forged, gateway, checkOf(evil)) // until the gateway has heard of the registration
				time.Sleep(50 * time.Millisecond)
				return false
			})
			dealt := func() uint64 { // with requests
				c := h.status().Checks
				return c.Asked + c.Answered + c.Capped.Address + c.Capped.Target + c.Capped.Destination
			}
			flood := func(from func(n uint16) netip.AddrPort) {
				for n, start := uint16(0), dealt(); dealt() < start+80; n++ { // some may be lost
					require.Less(t, n, uint16(5000), "the gateway deals with nothing")
					h.forge(from(n), gateway, checkOf(evil))
				}
			}
			flood(func(uint16) netip.AddrPort { return forged })
			flood(func(n uint16) netip.AddrPort { return netip.AddrPortFrom(forged.Addr(), 6000+n) }) // all ports of one host
			before := h.status().Checks
			h.forge(forged, gateway, checkOf(registered{Consent: struct{ Ufrag, Pwd string }{"nobodyknows", evil.Consent.Pwd}}))
			h.forge(forged, gateway, checkOf(registered{Consent: struct{ Ufrag, Pwd string }{a.Consent.Ufrag, evil.Consent.Pwd}}))
			h.forge(netip.MustParseAddrPort("192.168.7.7:5004"), gateway, checkOf(evil)) // a home's LAN, somewhere

			// What the phone sent, again from elsewhere: its requests, and its answers to requests of the gateway.
			thief := netip.MustParseAddrPort(thiefAddr + ":5004")
			go echo(h.wire.wan.ListenUDP(thief.String()))
			replay := func() {
				for _, d := range datagrams(h.wire.uplink.Frames()) {
					if !d.out && d.from.Addr().String() == phoneAddr && consentcheck.IsSTUN(d.payload) {
						h.forge(thief, gateway, d.payload)
						h.forge(netip.AddrPortFrom(netip.MustParseAddr(phoneAddr), 6000), gateway, d.payload) // somebody behind the same NAT
					}
				}
			}
			replay()

			// Its secret at the other group's port, and the other group's destination's at this one.
			h.postSecondGroup(t)
			var other netip.AddrPort
			h.until("the other group has a port", func() bool {
				for _, g := range h.status().Groups {
					for _, port := range g.Ports {
						if g.Name == "groupcast2" && port != 0 {
							other = netip.AddrPortFrom(gateway.Addr(), port)
						}
					}
				}
				return other.IsValid()
			})
			h.stream("172.168.0.6", groupIP2)
			h.forge(netip.MustParseAddrPort(evilAddr+":5004"), other, checkOf(evil))
			h.forge(thief, other, checkOf(a))
			h.until("refused, forged and unknown checks are counted", func() bool {
				now := h.status().Checks
				return now.Unknown >= before.Unknown+3 && now.Forged >= before.Forged+1 && now.Refused >= before.Refused+1
			})
			replay() // with what there is by now
			assert.GreaterOrEqual(t, h.status().Checks.Capped.Address, uint64(60))
			assert.GreaterOrEqual(t, h.status().Checks.Capped.Target, uint64(60))

			h.until("those who were asked count as unreachable", func() bool {
				return h.consentOf(probedToken, silent.RegistrationID) == models.ConsentUnreachable &&
					h.consentOf(probedToken, echoing.RegistrationID) == models.ConsentUnreachable
			})
			for len(phone.media) > 0 {
				<-phone.media
			}
			phone.next(t) // all the while
			for name, v := range map[string]struct {
				addr       string
				port       uint16
				checks     int
				request    int // bytes of the registration's HTTP request, without TCP and TLS; 0: what came from the address counts
				registered registered
			}{
				"silent":                          {silentAddr, 0, models.MaxProbes, silentSize, silent},
				"echo":                            {echoAddr, 0, models.MaxProbes, echoSize, echoing},
				"forged":                          {forgedAddr, 5004, models.MaxProbes, 0, evil},
				"all ports of forged":             {forgedAddr, 0, 4 * models.MaxProbes, 0, evil},
				"thief":                           {thiefAddr, 0, models.MaxProbes, 0, a},
				"another behind the phone's NAT":  {phoneAddr, 6000, models.MaxProbes, 0, a},
				"evil itself, at the other group": {evilAddr, 0, 0, 0, evil},
				"a private address":               {"192.168.7.7", 0, 0, 0, evil},
			} {
				got := h.traffic(v.addr, v.port)
				t.Logf("%s: %d checks with %d bytes, for %d bytes or a registration of %d", name, got.checks, got.checkBytes, got.bytes, v.request)
				assert.Zero(t, got.media, "%s got media", name)
				assert.LessOrEqual(t, got.checks, v.checks, name)
				assert.LessOrEqual(t, got.largest, 120, "%s: a check is small", name)
				spent := got.bytes
				if v.request > 0 {
					spent = v.request
					assert.Positive(t, got.checks, "%s was not asked at all", name)
				}
				assert.LessOrEqual(t, got.checkBytes, spent, "%s: the gain of the attacker's bytes is above 1", name)
				for ufrag := range got.ufrags {
					assert.Equal(t, v.registered.Consent.Ufrag, ufrag, name)
				}
			}
		})
	}
}

// joinReady registers until the gateway has told where its copies come from.
func (h *consentHome) joinReady(token, body string) registered {
	h.t.Helper()
	return untilSenders(h.t, func() registered { return h.post(h.t, token, body) })
}

func echo(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(b[:n], from)
	}
}

// TestConsentIsLost has a receiver move to another port and then fall silent, over both families: its copies follow, and end within the 30 seconds of
// its last answer, and its group and the events say so.
func TestConsentIsLost(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newConsentHome(t, backend)
			body := destinationBody("Device", h.phone, "", `"publicIPv4":"`+phoneAddr+`"`, "groupcast1", groupIP)
			a := h.joinReady(h.phoneToken, body)
			off := false
			tablet := h.Device(t, h.premises, adminapi.DeviceRequest{Type: models.DeviceTablet, Name: "tablet", Pop: &off})
			b := h.joinReady(h.DeviceToken(t, tablet), destinationBody("Device", tablet, "", `"IPv6":"`+sixAddr+`"`, "groupcast1", groupIP))
			require.True(t, b.Senders[0].Address.Is6(), "its copies come over IPv6")
			h.until("both are asked for", func() bool { return len(h.status().Groups) == 1 && len(h.status().Groups[0].Destinations) == 2 })

			over6 := consents(t, h.wire.wan.ListenUDP("["+sixAddr+"]:5004"), b)
			over6.next(t)
			old := consents(t, h.wire.receivers[phoneAddr].UDPConn, a)
			old.next(t)
			assert.Equal(t, []models.ConsentState{models.ConsentLive}, h.eventually(h.phoneToken, "tablet", models.ConsentLive))

			// Another port has the copies once it has answered, and the old one none from then on.
			old.fallSilent()
			moved := consents(t, h.wire.wan.ListenUDP(phoneAddr+":7000"), a)
			moved.next(t)
			h.until("the old port gets no more", func() bool {
				frames := h.wire.uplink.Frames()
				was, is := trafficOf(frames, phoneAddr, 5004), trafficOf(frames, phoneAddr, 7000)
				return is.lastMedia.Sub(was.lastMedia) > 500*time.Millisecond
			})
			stayed := h.traffic(phoneAddr, 5004).media

			// Both fall silent. Renewals that are under way may still be answered.
			answered := moved.fallSilent()
			if last := over6.fallSilent(); last.After(answered) {
				answered = last
			}
			h.eventually(h.phoneToken, "phone", models.ConsentLost)
			h.eventually(h.phoneToken, "tablet", models.ConsentLost)
			now := h.traffic(phoneAddr, 7000).media + h.traffic(sixAddr, 0).media
			for addr, port := range map[string]uint16{phoneAddr: 7000, sixAddr: 5004} {
				last := h.traffic(addr, port).lastMedia
				require.False(t, last.IsZero())
				assert.Less(t, last.Sub(answered), models.ConsentExpires+heardLate, "media goes on for longer than the consent of %s", addr)
			}
			assert.Equal(t, stayed, h.traffic(phoneAddr, 5004).media, "the old port got media again")
			assert.Equal(t, now, h.traffic(phoneAddr, 7000).media+h.traffic(sixAddr, 0).media, "media after the consent was lost")
			assert.Contains(t, h.told(), "phone lost")
			assert.Contains(t, h.told(), "tablet lost")

			// Who comes back has its copies again without a new registration.
			again := consents(t, h.wire.wan.ListenUDP(phoneAddr+":7001"), a)
			again.next(t)
			h.eventually(h.phoneToken, "phone", models.ConsentLive)
		})
	}
}

// eventually waits until all members of that name have this consent.
func (h *consentHome) eventually(token, name string, want models.ConsentState) (states []models.ConsentState) {
	h.t.Helper()
	h.until(fmt.Sprintf("the consent of %s is %s", name, want), func() bool {
		states = h.inGroup(token, name)
		return len(states) > 0 && !slices.ContainsFunc(states, func(s models.ConsentState) bool { return s != want })
	})
	return states
}

// told gives what the group's events said of consents: whose is how.
func (h *consentHome) told() (said []string) {
	h.t.Helper()
	groups, err := h.Client(h.t, h.phoneToken).ListGroupsWithResponse(h.t.Context(), &api.ListGroupsParams{})
	require.NoError(h.t, err)
	require.NotNil(h.t, groups.JSON200)
	for after := "1"; ; {
		req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.URL+"/v1/groups/"+string(groups.JSON200.Groups[0].GroupID)+"/events?lastEventId="+after, nil)
		require.NoError(h.t, err)
		req.Header.Set("Authorization", "Bearer "+h.phoneToken)
		req.Header.Set("Accept", "application/json")
		r, err := h.HTTP.Do(req)
		require.NoError(h.t, err)
		var batch struct {
			LastEventID string
			Events      []struct {
				Type string
				Data struct {
					Members []struct {
						Name    string
						Consent models.ConsentState
					}
				}
			}
		}
		require.NoError(h.t, json.NewDecoder(r.Body).Decode(&batch))
		require.NoError(h.t, r.Body.Close())
		for _, e := range batch.Events {
			if e.Type != string(models.EventConsentChanged) && !strings.HasSuffix(e.Type, "consent.changed") {
				continue
			}
			for _, m := range e.Data.Members {
				said = append(said, m.Name+" "+string(m.Consent))
			}
		}
		if len(batch.Events) == 0 || batch.LastEventID == after {
			return said
		}
		after = batch.LastEventID
	}
}

// TestConsentGate is row 23 of the threat model end to end: two accounts, each with a home, a service that may be asked first and phones behind a gateway that
// says that it is behind a NAT, all name one stranger, again and again. He gets no media, few small checks of each registration and of all together no more
// than four registrations may send in a minute, and fewer bytes than the requests had.
func TestConsentGate(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	gateway, wan := netlab.New(t, "gateway"), netlab.New(t, "wan")
	netlab.Connect(gateway, "wan0", wan, "ext0")
	gateway.Address("wan0", "203.0.113.1/24")
	wan.Address("ext0", "203.0.113.254/24")
	wan.Address("lo", silentAddr+"/32")
	gateway.Route("0.0.0.0/0", "203.0.113.254")
	gateway.Sysctl("net.ipv4.ip_forward", "1")
	wan.Neighbour("ext0", uplinkAddr, gateway.HardwareAddr("wan0"))
	gateway.Neighbour("wan0", "203.0.113.254", wan.HardwareAddr("ext0"))
	for port := range 12 {
		wan.ListenUDP(fmt.Sprintf("%s:%d", silentAddr, 5000+port))
	}
	uplink := gateway.Capture("wan0")
	s := harness.StartServer(t, harness.Options{In: gateway, Listen: "127.0.0.1:8080"})
	probedService(t, s, "svc-probed")
	service := s.ServiceToken(t, "svc-probed")

	const each = 3
	off := false
	ufrags := map[string]bool{}
	requests := 0
	var joins []func() registered
	for n, backend := range []string{"socket", "ebpf"} {
		lan, iface := fmt.Sprintf("172.168.%d.", n), fmt.Sprintf("lan%d", n)
		camera := netlab.New(t, fmt.Sprintf("camera%d", n))
		netlab.Connect(camera, "cam0", gateway, iface)
		camera.Address("cam0", lan+"5/24")
		gateway.Address(iface, lan+"1/24")
		account := s.Account(t, fmt.Sprintf("account %d", n))
		premises := s.Premises(t, account, "home", true)
		device := func(kind models.DeviceType, name string) (models.ID, string) {
			id := s.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: name, Pop: &off})
			return id, s.DeviceToken(t, id)
		}
		gatewayID, gatewayToken := device(models.DeviceGateway, "gateway")
		groupRange := lan + "233-" + lan + "254"
		harness.StartAgent(t, harness.AgentOptions{
			Server: s, GatewayID: gatewayID, Token: gatewayToken, In: gateway, LANInterface: iface, LANPrefix: lan + "0/24", LANAddress: lan + "1",
			Uplink: uplinkAddr, GroupRange: groupRange, Backend: backend, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
		})
		declared := func() bool {
			r, err := s.Client(t, gatewayToken).GetGatewayWithResponse(t.Context(), gatewayID)
			return err == nil && r.JSON200 != nil && r.JSON200.LanPrefix != ""
		}
		require.Eventually(t, declared, time.Minute, 20*time.Millisecond, "the agent has not declared its LAN")
		behind := true
		r, err := s.Client(t, gatewayToken).DeclareGatewayWithResponse(t.Context(), gatewayID, api.GatewayDeclaration{
			LanPrefix: lan + "0/24", GatewayIPv4: netip.MustParseAddr(lan + "1"), UplinkIPv4: netip.MustParseAddr(uplinkAddr), GroupRange: &groupRange, BehindNAT: &behind,
		})
		require.NoError(t, err)
		require.NotNil(t, r.JSON200, "%s", r.Body)

		post := func(token, body string) registered {
			requests += len("POST /v1/registrations HTTP/1.1\r\nHost: a\r\nAuthorization: \r\nContent-Type: application/json\r\n\r\n") + len(token) + len(body)
			status, text := s.Post(t, "/v1/registrations", token, body)
			require.Equal(t, http.StatusOK, status, text)
			var a registered
			require.NoError(t, json.Unmarshal([]byte(text), &a))
			return a
		}
		cameraID, cameraToken := device(models.DeviceCamera, "camera")
		group := post(cameraToken, fmt.Sprintf(`{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"groupName":"door"}`, cameraID, lan+"5"))
		streamFrom(t, camera, lan+"5", group.GroupIP)
		link := s.Link(t, "svc-probed", account, 0)
		for i := range each {
			phone, phoneToken := device(models.DevicePhone, fmt.Sprintf("phone %d", i))
			place := func(port int) string { return fmt.Sprintf(`"publicIPv4":%q,"port":%d`, silentAddr, port) }
			joins = append(joins,
				func() registered {
					return post(service, destinationBody("Service", link, fmt.Sprintf("instance-%d", i), place(5000+i), "door", group.GroupIP))
				},
				func() registered {
					return post(phoneToken, destinationBody("Device", phone, "", place(5000+each+i), "door", group.GroupIP))
				})
		}
	}
	var all []registered
	for _, join := range joins {
		a := join()
		all = append(all, a)
		ufrags[a.Consent.Ufrag] = true
	}
	require.Len(t, ufrags, 4*each)
	leave := func(id string) {
		status, text := s.Send(t, http.MethodDelete, "/v1/registrations/"+id, "Bearer "+service, "")
		require.Equal(t, http.StatusOK, status, text)
	}
	const most = 4 * models.MaxProbes // in this minute, by all four slots of an address
	require.Eventually(t, func() bool { return trafficOf(uplink.Frames(), silentAddr, 0).checks == most }, time.Minute, 50*time.Millisecond,
		"those who have a slot ask five times each")
	// Registering again, and leaving and registering, gives no more: the minute of the slots isn't over.
	for i, join := range joins {
		if i%2 == 0 && i < 2*each { // the service's, of the first account
			leave(all[i].RegistrationID)
		}
		ufrags[join().Consent.Ufrag] = true
	}
	time.Sleep(2 * time.Second) // a first check would come at once; this only gives what must not come time to
	got := trafficOf(uplink.Frames(), silentAddr, 0)
	t.Logf("%d registrations with %d bytes of requests led to %d checks with %d bytes", len(joins), requests, got.checks, got.checkBytes)
	assert.Zero(t, got.media, "media to a stranger")
	assert.Equal(t, most, got.checks)
	assert.Less(t, got.checkBytes, requests)
	assert.LessOrEqual(t, got.largest, 120)
	for ufrag, n := range got.ufrags {
		assert.LessOrEqual(t, n, models.MaxProbes, "of one registration")
		assert.True(t, ufrags[ufrag])
	}
}

// TestConsentNothingGoesRoundIt: what an agent that asked nobody left in the kernel and on its disk is worth nothing to the one that comes after it, and neither
// is anything at its start. What an operator exempts gets copies, and the log says so.
func TestConsentNothingGoesRoundIt(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newConsentHome(t, backend)
			bpf := filepath.Join(netlab.BPFFS(t), "other")
			require.NoError(t, h.agent.Stop())
			unasked := h.agentOptions(backend, bpf)
			unasked.Unasked = true
			h.agent = harness.StartAgent(t, unasked)
			h.until("the log says so", func() bool { return strings.Contains(h.agent.Log(), `level=WARN msg="allow-without-consent is set`) })
			h.postUpload(t)
			h.postThumbnail(t)
			h.Allow(t, "svc-thumbnail") // anywhere, with consent
			h.postPhone(t)
			h.until("all three get copies from an agent that asks nobody", func() bool {
				frames := h.wire.uplink.Frames()
				return trafficOf(frames, uploadAddr, 0).media > 0 && trafficOf(frames, thumbnailAddr, 0).media > 0 && trafficOf(frames, phoneAddr, 0).media > 0
			})

			// It dies, and so does the server; its disk and the kernel have all that it had.
			h.agent.Kill()
			h.Server.Kill()
			h.agent.Configure(t, func(o *harness.AgentOptions) { o.Unasked = false })
			h.agent.Start(t)
			h.until("it copies by what was kept", func() bool { s, err := agent.Ask(t.Context(), h.agent.StateDir()); return err == nil && s.Forwarding })
			forwards := time.Now()
			var frames []netlab.Frame
			h.until("the exempt service gets copies", func() bool {
				frames = slices.DeleteFunc(h.wire.uplink.Frames(), func(f netlab.Frame) bool { return f.At.Before(forwards) }) // by the kernel's time, not the capture's
				return trafficOf(frames, uploadAddr, 0).media > 100
			})
			// Those that were on their way when it said that it forwards.
			assert.LessOrEqual(t, trafficOf(frames, thumbnailAddr, 0).media, 5, "a copy for somebody who didn't consent")
			assert.LessOrEqual(t, trafficOf(frames, phoneAddr, 0).media, 5, "a copy for somebody who didn't consent")
			assert.Contains(t, h.agent.Log(), `level=WARN msg="a destination gets copies unasked: the operator exempts it"`)
			assert.Equal(t, 1, strings.Count(h.agent.Log(), "the operator exempts it"), "of one destination")
			assert.NotContains(t, h.agent.Log(), "allow-without-consent is set")
			assert.Contains(t, h.agent.Log(), "copying by the kept group information")
		})
	}
}
