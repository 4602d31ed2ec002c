package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

const relayAddr = "96.114.20.6"

// TestRelayCarriesTheWorkedExample is the worked example with the copies made in the network, by the programs as they are delivered.
func TestRelayCarriesTheWorkedExample(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	w := newWire(t)
	relay := netlab.New(t, "relay")
	netlab.Connect(relay, "wan0", w.wan, "relay0")
	relay.Address("wan0", relayAddr+"/30")
	w.wan.Address("relay0", "96.114.20.5/30")
	relay.Route("0.0.0.0/0", "96.114.20.5")
	w.wan.Sysctl("net.ipv4.ip_forward", "1")
	fromRelay := relay.Capture("wan0")

	e := newExample(t, harness.Options{In: w.gateway, Listen: "127.0.0.1:8080"})
	harness.StartAgent(t, harness.AgentOptions{
		Server: e.Server, GatewayID: e.gateway, Token: e.gatewayToken, In: w.gateway,
		LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr, GroupRange: "172.168.0.233-172.168.0.254",
	})
	e.awaitDeclared(t)
	harness.Reach(t, relay, w.gateway, strings.TrimPrefix(e.URL, "http://"))
	harness.StartRelay(t, harness.RelayOptions{Server: e.Server, In: relay, Name: "relay-1", Address: relayAddr})
	e.postCamera(t)
	e.postSecondGroup(t)
	e.postUpload(t)
	thumbnail := e.postThumbnail(t).RegistrationID
	e.postPhone(t)
	w.await(t, uploadAddr, thumbnailAddr)
	w.receivers[phoneAddr].consents(t, func() registered { return e.postPhone(t) })
	members := []string{uploadAddr, thumbnailAddr, phoneAddr}
	w.await(t, members...)

	e.fanout(t, "network")
	// The phone consents to the relay as well; the services are exempt.
	require.Eventually(t, func() bool {
		a := e.postPhone(t)
		var senders []netip.AddrPort
		for _, s := range a.Senders {
			senders = append(senders, netip.AddrPortFrom(s.Address, s.Port))
		}
		w.receivers[phoneAddr].consent.Senders(senders)
		for !w.silent(t, phoneAddr) {
		}
		return len(senders) == 2
	}, time.Minute, 50*time.Millisecond, "the relay hasn't told where it sends from")
	relayed := func(payload []byte) (n int) {
		for _, f := range fromRelay.Frames() {
			if p := f.IPv4(); p != nil && f.Outgoing && p[9] == syscall.IPPROTO_UDP && bytes.HasSuffix(p, payload) {
				n++
			}
		}
		return n
	}
	atHome := func(payload []byte) (n int) {
		for _, f := range w.uplink.Frames() {
			if p := f.IPv4(); p != nil && f.Outgoing && bytes.HasSuffix(p, payload) {
				n++
			}
		}
		return n
	}
	tries := 0
	require.Eventually(t, func() bool {
		tries++
		payload := fmt.Appendf(nil, "who copies %d?", tries)
		w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
		time.Sleep(50 * time.Millisecond)
		for !w.silent(t, phoneAddr) { // the phone answers checks while it reads
		}
		require.True(t, relayed(payload) == 0 || atHome(payload) == 0, "copied by both")
		return relayed(payload) == 3
	}, time.Minute, time.Millisecond, "the relay doesn't copy")
	w.await(t, members...)

	payload := []byte("the one datagram of step 6, in the network")
	w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
	for _, addr := range members {
		assert.Equal(t, payload, w.received(t, addr))
	}
	require.Eventually(t, func() bool { return relayed(payload) == 3 }, time.Minute, time.Millisecond)
	assert.Zero(t, atHome(payload))
	assert.True(t, w.silent(t, foreignAddr), "groupcast2's destination got a copy")

	large := bytes.Repeat([]byte("4000 bytes "), 400)[:4000]
	w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), large)
	for _, addr := range members {
		assert.Equal(t, large, w.received(t, addr))
	}
	require.Equal(t, 2, e.leave(t, e.thumbnailToken, thumbnail))
	w.await(t, uploadAddr, phoneAddr)

	e.fanout(t, "home")
	require.Eventually(t, func() bool {
		tries++
		payload := fmt.Appendf(nil, "who copies %d?", tries)
		w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
		time.Sleep(50 * time.Millisecond)
		for !w.silent(t, phoneAddr) { // the phone answers checks while it reads
		}
		return atHome(payload) == 2 && relayed(payload) == 0
	}, time.Minute, time.Millisecond, "the gateway doesn't copy again")
}

// fanout is the account holder's decision where copies are made.
func (e *example) fanout(t *testing.T, where string) {
	t.Helper()
	do := func(method, path, body, cookie string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, e.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json")
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		answer, err := e.HTTP.Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { answer.Body.Close() })
		return answer
	}
	const password = "four words are enough"
	i, err := e.Admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: &e.account})
	require.NoError(t, err)
	require.NotNil(t, i.JSON200, "%s", i.Body)
	name := "anna" + where
	require.Equal(t, 201, do(http.MethodPost, "/v1/accounts", fmt.Sprintf(`{"userName":%q,"password":%q,"accountName":"x","invitation":%q}`, name, password, i.JSON200.Invitation), "").StatusCode)
	login := do(http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":%q}`, name, password), "")
	require.Equal(t, 200, login.StatusCode)
	answer := do(http.MethodPatch, "/v1/premises/"+string(e.premises), fmt.Sprintf(`{"fanout":%q}`, where), login.Cookies()[0].Name+"="+login.Cookies()[0].Value)
	body, _ := io.ReadAll(answer.Body)
	require.Equal(t, 200, answer.StatusCode, "%s", body)
}
