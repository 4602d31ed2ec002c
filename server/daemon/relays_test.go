package daemon_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// relayNode is a relay that enrolled over HTTP, with a key of its own.
type relayNode struct {
	id     models.ID
	client *http.Client
	s      *service
}

func (s *service) relayNode(t testing.TB, name string) relayNode {
	t.Helper()
	created, err := s.admin.CreateRelayWithResponse(t.Context(), nil, adminapi.RelayRequest{Name: name})
	require.NoError(t, err)
	require.NotNil(t, created.JSON200, "%s", created.Body)
	harness.Secret("relay ticket", created.JSON200.Ticket)
	c, err := clientauth.Enrolment{Path: filepath.Join(t.TempDir(), "credential"), Server: s.base()}.UseTicket(t.Context(), created.JSON200.Ticket)
	require.NoError(t, err)
	require.Equal(t, created.JSON200.RelayID.String(), c.RelayID())
	require.Empty(t, c.DeviceID())
	return relayNode{created.JSON200.RelayID, &http.Client{Transport: c.Transport()}, s}
}

// send sends a request whose answer the caller reads.
func (r relayNode) send(t testing.TB, method, path, body string, header ...string) *http.Response {
	t.Helper()
	answer, err := r.client.Do(r.s.request(t, method, path, body, header...))
	require.NoError(t, err)
	return answer
}

func (r relayNode) do(t testing.TB, method, path, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	answer := r.send(t, method, path, body, header...)
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(b), answer.Header
}

func (r relayNode) path(rest string) string { return "/v1/relays/" + r.id.String() + rest }

func tunnelKey(c byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(c), 32)))
}

// TestRelayOverHTTP: two relays enrol by ticket with keys of their own, declare and poll; the account holder has the premises copied in the network; each sees
// what it is assigned, and another's relay looks like none.
func TestRelayOverHTTP(t *testing.T) {
	t.Parallel()
	each(t, relayOverHTTP, "--public-url", "")
}

func relayOverHTTP(t *testing.T, s *service) {
	h := s.house(t, "Relayed")
	a, b := s.relayNode(t, "relay-a"), s.relayNode(t, "relay-b")
	for i, r := range []relayNode{a, b} {
		body := fmt.Sprintf(`{"tunnelKey":%q,"endpointIPv4":"96.114.20.%d","endpointPort":51820,"uplinkIPv4":"96.114.20.%[2]d"}`, tunnelKey(byte('a'+i)), i+1)
		status, answer, _ := r.do(t, http.MethodPut, r.path(""), body)
		require.Equal(t, http.StatusOK, status, "%s", answer)
		require.Contains(t, answer, `"tunnelAddress":"fd`)
		status, first, _ := r.do(t, http.MethodGet, r.path("/groups"), "")
		require.Equal(t, http.StatusOK, status, "%s", first)
		require.Contains(t, first, `"groups":[],"maxStaleSeconds":900,"premises":[]`)
	}
	may := []models.PremisesID{h.home.premises}
	set, err := s.admin.SetRelayPremisesWithResponse(t.Context(), a.id, adminapi.RelayPremisesRequest{Premises: &may})
	require.NoError(t, err)
	require.NotNil(t, set.JSON200, "%s", set.Body)

	withTunnel := strings.TrimSuffix(declaration, "}") + fmt.Sprintf(`,"tunnelKey":%q}`, tunnelKey('g'))
	declared := s.do(t, http.MethodPut, "/v1/gateways/"+h.home.gateway.String(), withTunnel, "Authorization", "Bearer "+h.gatewayToken)
	require.Equal(t, http.StatusOK, declared.StatusCode, "%s", text(t, declared))
	changed := s.do(t, http.MethodPatch, "/v1/premises/"+string(h.home.premises), `{"fanout":"network","onRelayLoss":"stop"}`, "Cookie", h.cookie)
	answer := object(t, changed)
	require.Equal(t, http.StatusOK, changed.StatusCode, "%v", answer)
	require.Equal(t, "network", answer["fanout"])
	require.Equal(t, "stop", answer["onRelayLoss"])

	var snapshot string
	var header http.Header
	require.Eventually(t, func() bool { // a poll is recorded soon, and assignments are looked at twice a second
		_, snapshot, header = a.do(t, http.MethodGet, a.path("/groups"), "")
		return strings.Contains(snapshot, string(h.home.premises))
	}, time.Minute, 20*time.Millisecond)
	require.Contains(t, snapshot, `"groupIP":"192.168.1.230"`)
	require.Contains(t, snapshot, `"destinationIPv4":"198.51.99.9"`)
	tag := header.Get("ETag")
	status, _, header := a.do(t, http.MethodGet, a.path("/groups"), "", "If-None-Match", tag) // and so acknowledges it
	require.Equal(t, http.StatusNotModified, status)
	require.Equal(t, tag, header.Get("ETag"))
	_, again, _ := a.do(t, http.MethodGet, a.path("/groups"), "")
	require.Equal(t, snapshot, again, "the same bytes")
	_, nothing, _ := b.do(t, http.MethodGet, b.path("/groups"), "")
	require.NotContains(t, nothing, string(h.home.premises))

	// The relay polls on, and the gateway hears that it forwards.
	require.Eventually(t, func() bool {
		a.do(t, http.MethodGet, a.path("/groups?wait=1"), "", "If-None-Match", tag)
		r := s.do(t, http.MethodGet, "/v1/gateways/"+h.home.gateway.String()+"/groups", "", "Authorization", "Bearer "+h.gatewayToken)
		return strings.Contains(text(t, r), `"forwarding":true`)
	}, time.Minute, 20*time.Millisecond)

	// Another's relay, and one that there is not, are the same.
	foreign, other := func(path string) string {
		_, body, _ := a.do(t, http.MethodGet, "/v1/relays/"+path+"/groups", "")
		return body
	}, models.NewID()
	strip := func(problem string) string {
		before, _, _ := strings.Cut(problem, `"instance"`)
		return before
	}
	assert.Equal(t, strip(foreign(other.String())), strip(foreign(b.id.String())))
	assert.Contains(t, foreign(b.id.String()), "/problems/not-found")
	for _, path := range []string{"/v1/groups", "/v1/premises", "/v1/gateways/" + h.home.gateway.String() + "/groups"} {
		status, body, _ := a.do(t, http.MethodGet, path, "")
		assert.Equal(t, http.StatusForbidden, status, "%s: %s", path, body)
		assert.NotContains(t, body, string(h.home.premises))
	}
	status, body, _ := a.do(t, http.MethodGet, "/v1/gateways/"+h.home.gateway.String()+"/groups", "")
	assert.Equal(t, http.StatusForbidden, status, "%s", body)
	status, body, _ = a.do(t, http.MethodGet, a.path("/groups?wait=3"), "")
	assert.Equal(t, http.StatusBadRequest, status, "%s", body)

	removed, err := s.admin.DeleteRelayWithResponse(t.Context(), a.id)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, removed.StatusCode())
	refused, err := a.client.Do(s.request(t, http.MethodGet, a.path("/groups"), ""))
	if err == nil {
		_ = refused.Body.Close()
	}
	require.ErrorContains(t, err, "does not accept this credential any more", "neither the token nor the key")
	require.Eventually(t, func() bool {
		r := s.do(t, http.MethodGet, "/v1/gateways/"+h.home.gateway.String()+"/groups", "", "Authorization", "Bearer "+h.gatewayToken)
		answer := text(t, r)
		return strings.Contains(answer, `"fanout":"network"`) && !strings.Contains(answer, `"relay"`)
	}, time.Minute, 20*time.Millisecond, "with the policy stop nobody copies")
}
