package agent_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/pion/stun/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

var secret = consentcheck.Credential{Ufrag: "Yw5Fh2kPq0Za", Password: "8mNbVcXzLkJhGfDsAqWeRt"}

// asking has the one destination asked for its consent.
func asking(i api.GroupInformation, policy models.ConsentPolicy, probes int32) api.GroupInformation {
	i.Groups[0].GroupDestinations[0].Consent = &api.GatewayConsent{Policy: policy, Ufrag: &secret.Ufrag, Pwd: &secret.Password, Probes: &probes}
	return i
}

// senderPort waits until a port is reserved for the camera.
func (h *home) senderPort() uint16 {
	h.t.Helper()
	var port uint16
	require.Eventually(h.t, func() bool {
		for _, g := range h.status().Groups {
			port = g.Ports["r_camera1"]
		}
		return port != 0
	}, soon, patience, "a port is reserved")
	return port
}

func (h *home) consent(id string) models.ConsentState {
	for _, g := range h.status().Groups {
		for _, d := range g.Destinations {
			if d.ID == id {
				return d.Consent
			}
		}
	}
	return ""
}

func (h *home) consentBecomes(want models.ConsentState) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return h.consent("r_1_0") == want }, time.Minute, patience, "consent becomes %s", want)
}

// consents has the receiver go through the whole exchange with a port.
func (r *receiver) consents(port uint16) {
	r.t.Helper()
	require.True(r.t, r.ask(port, secret, soon), "its check is answered")
}

// ask sends a check, and answers what comes back until its own is answered, or nothing more comes for so long.
func (r *receiver) ask(port uint16, c consentcheck.Credential, wait time.Duration) (answered bool) {
	r.t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(uplink), port)
	data, id := consentcheck.NewRequest(c, consentcheck.ToAgent)
	_, err := r.conn.WriteToUDPAddrPort(data, to)
	require.NoError(r.t, err)
	b := make([]byte, 1500)
	for {
		require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(wait)))
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			require.ErrorIs(r.t, err, os.ErrDeadlineExceeded)
			return false
		}
		m, ok := consentcheck.Parse(b[:n])
		require.True(r.t, ok, "only checks come before consent: %q", b[:n])
		if m.Kind == consentcheck.Answer {
			assert.Equal(r.t, id, m.ID)
			assert.True(r.t, m.Authentic(c.Password))
			return true
		}
		require.True(r.t, m.Authentic(c.Password))
		_, err = r.conn.WriteToUDPAddrPort(consentcheck.NewAnswer(c, m.ID, from, n), from)
		require.NoError(r.t, err)
	}
}

// drain reads what has come, until nothing more does.
func (r *receiver) drain() {
	b := make([]byte, 1500)
	for err := error(nil); err == nil; _, err = r.conn.Read(b) {
		_ = r.conn.SetReadDeadline(time.Now().Add(quietness))
	}
}

func TestConsentNothingBeforeItAndCopiesAfter(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	h.service.Set(asking(information("e1", 2, "127.31.1.1"), models.PolicyLearned, 0))
	h.service.SetSequence(41)
	h.start()
	h.inForce("e1.2")
	port := h.senderPort()
	assert.Equal(t, models.ConsentPending, h.consent("r_1_0"))
	h.send(groupIP, "unasked")
	one.getsNothing()
	assert.False(t, one.ask(port, consentcheck.Credential{Ufrag: secret.Ufrag, Password: "not that one"}, quietness))
	h.send(groupIP, "with another secret")
	one.getsNothing()

	one.consents(port)
	h.consentBecomes(models.ConsentLive)
	h.send(groupIP, "asked")
	assert.Equal(t, port, one.gets("asked").Port(), "copies leave from where the check went")
	// Now there is a socket of the backend's that is connected to the receiver: checks come to that.
	one.consents(port)

	// It moves to another port: that gets the copies when it has consented, and the old one none from then on.
	moved, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("127.31.1.1")})
	require.NoError(t, err)
	defer moved.Close()
	other := &receiver{t, moved}
	other.consents(port)
	require.Eventually(t, func() bool {
		h.send(groupIP, "moved")
		return other.hears("moved 0")
	}, soon, patience)
	for payload := ""; payload != "only there 2"; payload, _ = other.copy() { // after what else was sent meanwhile
		if payload == "" {
			one.drain()
			h.send(groupIP, "only there")
		}
	}
	for b := make([]byte, 1500); ; {
		require.NoError(t, one.conn.SetReadDeadline(time.Now().Add(quietness)))
		n, err := one.conn.Read(b)
		if err != nil {
			break
		}
		require.True(t, consentcheck.IsSTUN(b[:n]), "a copy where it was: %q", b[:n])
	}

	// The server was told, with numbers above those of whoever reported before.
	require.Eventually(t, func() bool {
		at := netip.MustParseAddrPort(moved.LocalAddr().String())
		for _, r := range h.service.Reports() {
			if r.Consents == nil {
				continue
			}
			for _, c := range *r.Consents {
				if c.State == api.Live && c.RegistrationID == "r_1_0" && c.Sender == "r_camera1" && c.IPv4.MustGet() == at.Addr() && c.Port.MustGet() == int32(at.Port()) {
					return r.Sequence > 41
				}
			}
		}
		return false
	}, soon, patience)
	assert.Equal(t, int32(port), (*h.service.Reports()[0].Senders)[0].Port)
	assert.NotContains(t, h.log.String(), "127.31.1.1")

	// An agent that starts again has the same port, and interrupts nobody who has just consented.
	h.stop()
	h.start()
	h.inForce("e1.2")
	assert.Equal(t, port, h.senderPort())
	h.send(groupIP, "restarted")
	other.gets("restarted")

	// One that was killed has left nothing: who asks again is served again, without a new registration.
	h.stop()
	require.NoError(t, os.Remove(filepath.Join(h.config.StateDir, "leases.json")))
	h.start()
	h.inForce("e1.2")
	assert.NotEqual(t, models.ConsentLive, h.consent("r_1_0"))
	other.consents(port)
	h.consentBecomes(models.ConsentLive)
}

func TestConsentProbesOnlyWhereAllowed(t *testing.T) {
	h := newHome(t)
	one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
	info := asking(information("e1", 2, "127.31.1.1", "127.31.1.2"), models.PolicyStrict, 5)
	for i := range info.Groups[0].GroupDestinations {
		info.Groups[0].GroupDestinations[i].DestinationPort = nullable.NewNullableWithValue(int32(h.media))
	}
	info.Groups[0].GroupDestinations[1].Consent = &api.GatewayConsent{Policy: models.PolicyLearned, Ufrag: &secret.Password, Pwd: &secret.Password}
	h.service.Set(info)
	h.start()
	b := make([]byte, 1500)
	require.NoError(t, one.conn.SetReadDeadline(time.Now().Add(soon)))
	n, from, err := one.conn.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	m, ok := consentcheck.Parse(b[:n])
	require.True(t, ok && m.Kind == consentcheck.Request && m.Authentic(secret.Password))
	_, err = one.conn.WriteToUDPAddrPort(consentcheck.NewAnswer(secret, m.ID, from, n), from)
	require.NoError(t, err)
	h.consentBecomes(models.ConsentLive)
	h.send(groupIP, "asked")
	one.gets("asked")
	two.getsNothing()
}

// Whatever the server says and whatever an operator lets pass, nothing is sent to addresses that are set aside for another purpose.
func TestConsentSpecialAddressesGetNothingEvenIfExempt(t *testing.T) {
	special := []string{
		"10.1.2.3", "100.64.1.2", "169.254.169.254", "172.16.0.9", "192.0.0.9", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.7.20", "192.175.48.1",
		"198.18.0.1", "198.51.100.1", "203.0.113.1", "127.31.0.240", "127.31.0.1",
		"::1", "::7f00:1", "64:ff9b::a01:203", "64:ff9b:1::a01:203", "100::1", "2001::1", "2001:db8::1", "2002:a01:203::1", "2600::5efe:10.1.2.3", "2620:4f:8000::1",
		"3fff::1", "5f00::1", "fd00::1", "fe80::1", "fec0::1",
	}
	for name, set := range map[string]func(*home){"exempt": func(*home) {}, "allow-without-consent": func(h *home) { h.config.AllowWithoutConsent = true }} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			set(h)
			one := h.receiver("127.31.1.1")
			info := information("e1", 2, append(slices.Clone(special), "127.31.1.1")...)
			for i := range special {
				d := &info.Groups[0].GroupDestinations[i]
				if a := netip.MustParseAddr(special[i]); a.Is6() {
					d.DestinationIPv4, d.DestinationIPv6 = nullable.NewNullNullable[netip.Addr](), nullable.NewNullableWithValue(a)
				}
			}
			h.service.Set(info)
			h.start()
			h.inForce("e1.2")
			h.send(groupIP, "media")
			one.gets("media")
			assert.Equal(t, len(special), h.status().RefusedCount)
			for _, d := range h.status().Groups[0].Destinations[:len(special)] {
				assert.Zero(t, d.Packets, special[slices.IndexFunc(info.Groups[0].GroupDestinations, func(g api.GroupDestination) bool { return string(g.RegistrationID) == d.ID })])
			}
		})
	}
}

// What isn't asked because enough was is counted by why, where operators look.
func TestConsentCapsAreShown(t *testing.T) {
	h := newHome(t)
	h.service.Set(asking(information("e1", 2, "127.31.1.1"), models.PolicyLearned, 0))
	h.config.MetricsListen = freeAddr(t)
	h.start()
	h.inForce("e1.2")
	to := netip.AddrPortFrom(netip.MustParseAddr(uplink), h.senderPort())
	var first *net.UDPConn
	for range 5 { // of one host, and none answers
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("127.31.1.1")})
		require.NoError(t, err)
		defer c.Close()
		if first == nil {
			first = c
		}
		data, _ := consentcheck.NewRequest(secret, consentcheck.ToAgent)
		_, err = c.WriteToUDPAddrPort(data, to)
		require.NoError(t, err)
	}
	for range models.MaxProbes {
		data, _ := consentcheck.NewRequest(secret, consentcheck.ToAgent)
		_, err := first.WriteToUDPAddrPort(data, to)
		require.NoError(t, err)
	}
	data, _ := consentcheck.NewRequest(consentcheck.Credential{Ufrag: secret.Ufrag, Password: "another password"}, consentcheck.ToAgent)
	_, err := first.WriteToUDPAddrPort(data, to)
	require.NoError(t, err)
	want := consent.Counters{Capped: consent.Capped{Address: 1, Target: 1}, Asked: 3 + models.MaxProbes, Forged: 1}
	require.Eventually(t, func() bool { return h.status().Checks == want }, soon, patience, "%+v", h.status().Checks)
	metrics := h.get("http://" + h.config.MetricsListen.String() + "/metrics")
	for result, n := range map[string]int{"capped_address": 1, "capped_target": 1, "capped_destination": 0, "capped_group": 0, "capped_gateway": 0, "asked": 8, "forged": 1, "validated": 0} {
		assert.Contains(t, metrics, fmt.Sprintf("groupcast_agent_consent_checks_total{result=%q} %d\n", result, n))
	}
	assert.Contains(t, metrics, `groupcast_agent_destination_consent{destination="r_1_0",consent="pending"} 1`)
}

func TestConsentIsNotAskedForOnlyIfTheOperatorSaysSo(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	h.service.Set(asking(information("e1", 2, "127.31.1.1"), models.PolicyLearned, 0))
	h.config.AllowWithoutConsent = true
	h.start()
	h.inForce("e1.2")
	h.send(groupIP, "unasked")
	one.gets("unasked")
	assert.Contains(t, h.log.String(), `level=WARN msg="allow-without-consent is set`)
	h.stop()

	h.config.AllowWithoutConsent = false
	older := information("e1", 3, "127.31.1.1")
	older.Groups[0].GroupDestinations[0].Consent = nil // of a server that knows nothing of consent
	h.service.Set(older)
	h.start()
	h.inForce("e1.3")
	h.send(groupIP, "unasked")
	one.getsNothing()
}

// stunPort is a STUN server that says whatever a test wants to have been mapped; the zero AddrPort is silence.
type stunPort struct {
	at     netip.AddrPort
	mapped atomic.Pointer[netip.AddrPort]
	other  atomic.Int64 // datagrams that aren't questions
}

func newSTUNPort(t *testing.T) *stunPort {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 31, 9, 9)})
	require.NoError(t, err)
	s := &stunPort{at: netip.MustParseAddrPort(conn.LocalAddr().String())}
	s.says("")
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			question := &stun.Message{Raw: b[:n]}
			if question.Decode() != nil || question.Type != stun.BindingRequest || len(question.Attributes) == 0 || question.Attributes[0].Type != stun.AttrSoftware {
				s.other.Add(1)
				continue
			}
			if at := s.mapped.Load(); at.IsValid() {
				answer := stun.MustBuild(stun.NewTransactionIDSetter(question.TransactionID), stun.BindingSuccess, &stun.XORMappedAddress{IP: at.Addr().AsSlice(), Port: int(at.Port())})
				_, _ = conn.WriteToUDPAddrPort(answer.Raw, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return s
}

func (s *stunPort) says(mapped string) {
	var at netip.AddrPort
	if mapped != "" {
		at = netip.MustParseAddrPort(mapped)
	}
	s.mapped.Store(&at)
}

// mapped is where the service was last told that the camera's copies come from outside, and how often it was told of the camera at all.
func (h *home) mapped() (at netip.AddrPort, told int) {
	for _, r := range h.service.Reports() {
		if r.Senders == nil {
			continue
		}
		told++
		s := (*r.Senders)[0]
		at = netip.AddrPort{}
		if addr, err := s.MappedIPv4.Get(); err == nil {
			at = netip.AddrPortFrom(addr, uint16(s.MappedPort.MustGet()))
		}
	}
	return at, told
}

func TestConsentAGatewayBehindANATTellsWhatItsPortsAreMappedTo(t *testing.T) {
	h := newHome(t)
	h.service.Set(asking(information("e1", 2, "127.31.1.1"), models.PolicyLearned, 0))
	h.config.Gateway.BehindNAT = true
	port := newSTUNPort(t)
	port.says("71.230.36.1:7000")
	h.service.SetSTUN(port.at.String())
	h.start()
	becomes := func(want string, told int) {
		t.Helper()
		require.Eventually(t, func() bool { _, n := h.mapped(); return n >= told }, 4*soon, patience)
		at, n := h.mapped()
		assert.Equal(t, [2]any{want, told}, [2]any{at.String(), n})
	}
	becomes("71.230.36.1:7000", 1) // and not without it before
	assert.Equal(t, "71.230.36.1:7000", h.status().Groups[0].Mapped["r_camera1"].String())
	port.says("71.230.36.2:7001")
	becomes("71.230.36.2:7001", 2)
	assert.True(t, *h.service.Declarations()[0].BehindNAT)
	h.stop()

	// Nobody waits for long for a STUN port that is silent.
	port.says("")
	h.start()
	becomes("invalid AddrPort", 3)
	assert.NotContains(t, h.log.String(), "has no STUN port")
}

func TestConsentWithoutASTUNPortIsSaid(t *testing.T) {
	h := newHome(t)
	h.service.Set(asking(information("e1", 2, "127.31.1.1"), models.PolicyLearned, 0))
	h.config.Gateway.BehindNAT = true
	h.start()
	require.Eventually(t, func() bool { _, n := h.mapped(); return n == 1 }, soon, patience)
	assert.Contains(t, h.log.String(), "have the operator set stun-listen")
}

// The service may have consent asked for more often: then copies end as much sooner.
func TestConsentEndsWhenTheServiceSays(t *testing.T) {
	h := newHome(t)
	one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
	info := asking(information("e1", 2, "127.31.1.1", "127.31.1.2"), models.PolicyLearned, 0)
	every, expires := int32(1), int32(3)
	info.Groups[0].GroupDestinations[0].Consent.Every, info.Groups[0].GroupDestinations[0].Consent.Expires = &every, &expires
	usual := consentcheck.Credential{Ufrag: "Kd83hWq0Lp2s", Password: secret.Password}
	info.Groups[0].GroupDestinations[1].Consent = &api.GatewayConsent{Policy: models.PolicyLearned, Ufrag: &usual.Ufrag, Pwd: &usual.Password}
	h.service.Set(info)
	h.start()
	h.inForce("e1.2")
	require.True(t, two.ask(h.senderPort(), usual, soon))
	one.consents(h.senderPort())
	// The one that consented first, for the usual 30 seconds, outlives it.
	require.Eventually(t, func() bool {
		return h.consent("r_1_0") == models.ConsentLost && h.consent("r_1_1") == models.ConsentLive
	}, soon, patience)
	one.drain() // the agent's own checks
	h.send(groupIP, "too late")
	one.getsNothing()
}

// Nobody has copies sent to the service itself, even if it is exempt, nor to this host.
func TestConsentNoCopiesForTheServiceItself(t *testing.T) {
	h := newHome(t)
	port, one := newSTUNPort(t), h.receiver("127.31.1.1")
	info := information("e1", 2, "127.31.9.9", "127.31.1.1")
	info.Groups[0].GroupDestinations[0].DestinationPort = nullable.NewNullableWithValue(int32(port.at.Port()))
	h.service.Set(info)
	h.service.SetSTUN(port.at.String())
	h.start()
	h.inForce("e1.2")
	require.Eventually(t, func() bool { // it is found out with the first answer, and in force soon after
		before := port.other.Load()
		h.send(groupIP, "exempt")
		one.gets("exempt")
		time.Sleep(patience)
		return port.other.Load() == before
	}, soon, patience)
}
