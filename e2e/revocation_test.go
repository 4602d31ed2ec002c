package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// rogue is a gateway, or somebody who has all that lies on its disk.
type rogue struct {
	*attacker
	id     models.ID
	access string
}

func (h identityHome) rogue(t *testing.T) *rogue {
	t.Helper()
	r := &rogue{attacker: newAttacker(t, h.Server)}
	enrolled := r.enrol(t, h.ticketFor(t, models.DeviceGateway))
	require.Equal(t, 201, enrolled.status, "%v", enrolled.body)
	var err error
	r.id, err = models.ParseID(fmt.Sprint(enrolled.body["deviceId"]))
	require.NoError(t, err)
	r.login(t)
	return r
}

func (r *rogue) login(t *testing.T) {
	t.Helper()
	token := r.clientCredentials(t, r.assertion(t, nil))
	require.Equal(t, 200, token.status, "%v", token.body)
	r.access = fmt.Sprint(token.body["access_token"])
}

// information asks for a gateway's group information, with the proof of a key.
func (r *rogue) information(t *testing.T, id models.ID, by *attacker) (int, http.Header, string) {
	t.Helper()
	path := "/v1/gateways/" + id.String() + "/groups"
	return by.resource(t, "GET", path, "DPoP "+r.access, by.proof(t, "GET", r.s.URL+path, r.access))
}

// wait begins a long poll and gives what it is answered, once it is.
func (r *rogue) wait(t *testing.T) <-chan *http.Response {
	t.Helper()
	status, header, text := r.information(t, r.id, r.attacker)
	require.Equal(t, 200, status, text)
	path := "/v1/gateways/" + r.id.String() + "/groups"
	req, err := http.NewRequest(http.MethodGet, r.s.URL+path+"?wait=50", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "DPoP "+r.access)
	req.Header.Set("DPoP", r.proof(t, "GET", r.s.URL+path, r.access))
	req.Header.Set("If-None-Match", header.Get("ETag"))
	answered := make(chan *http.Response, 1)
	client := &http.Client{Transport: r.s.HTTP.Transport, Timeout: 5 * time.Minute}
	go func() {
		defer close(answered)
		if resp, err := client.Do(req); assert.NoError(t, err) {
			answered <- resp
		}
	}()
	return answered
}

// ended expects that a wait was ended because its token is not good any more.
func ended(t *testing.T, answered <-chan *http.Response) {
	t.Helper()
	resp := <-answered
	require.NotNil(t, resp)
	status, header, text := taken(t, resp)
	assert.Equal(t, 401, status, "an empty snapshot would be wrong: %s", text)
	assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
	assert.Contains(t, text, "/problems/unauthenticated")
	assert.NotEmpty(t, header.Get("WWW-Authenticate"))
}

// A gateway of one home wants those of others, of the same account and of another one; and somebody has its token but not its key.
func TestAttackARogueGateway(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		cottage := identityHome{Server: s, account: h.account, premises: s.Premises(t, h.account, "cottage", false)}
		gateway := h.rogue(t)
		missing := models.ID(1)
		_, _, want := gateway.information(t, missing, gateway.attacker)
		for name, other := range map[string]*rogue{"the same account": cottage.rogue(t), "another account": newIdentityHome(t, s, "Jones").rogue(t)} {
			status, _, text := gateway.information(t, other.id, gateway.attacker)
			assert.Equal(t, 404, status, name)
			assert.Equal(t, withoutInstance(t, want), withoutInstance(t, text), "like one that isn't there")
		}
		status, _, text := gateway.information(t, gateway.id, newAttacker(t, s))
		assert.Equal(t, 401, status, "a proof of another key: %s", text)
		status, _, text = gateway.resource(t, "GET", "/v1/gateways/"+gateway.id.String()+"/groups", "Bearer "+gateway.access, "")
		assert.Equal(t, 401, status, "no proof: %s", text)
		status, _, text = gateway.information(t, gateway.id, gateway.attacker)
		assert.Equal(t, 200, status, text)
	})
}

// Who has the disk of a gateway has its key, its tokens and its last snapshot. From its removal on that gives nothing more.
func TestAttackAStolenGatewayDisk(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		thief := h.rogue(t)
		waiting := thief.wait(t)
		d, err := s.Admin.DeleteDeviceWithResponse(t.Context(), thief.id)
		require.NoError(t, err)
		require.Equal(t, http.StatusNoContent, d.StatusCode(), "%s", d.Body)
		ended(t, waiting)
		status, _, text := thief.information(t, thief.id, thief.attacker)
		assert.Equal(t, 401, status, text)
		for _, path := range []string{"/v1/gateways/" + thief.id.String(), "/v1/groups"} {
			status, _, text = thief.resource(t, "GET", path, "DPoP "+thief.access, thief.proof(t, "GET", s.URL+path, thief.access))
			assert.Equal(t, 401, status, text)
		}
		assert.Equal(t, "invalid_client", thief.clientCredentials(t, thief.assertion(t, nil)).code(), "the key gets no new token")
	})
}

// Every way to withdraw a gateway's tokens ends what waits with them.
func TestAttackAWaitOutlivesARevocation(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		gateway := h.rogue(t)
		waiting := gateway.wait(t)
		revoked := gateway.form(t, "/oauth/revoke", url.Values{"client_id": {"gc-gateway"}, "token": {gateway.access}})
		require.Equal(t, 200, revoked.status, "%v", revoked.body)
		ended(t, waiting)
		gateway.login(t)
		status, _, text := gateway.information(t, gateway.id, gateway.attacker)
		require.Equal(t, 200, status, "its key is good for a new one: %s", text)

		waiting = gateway.wait(t)
		heir := newAttacker(t, s)
		replaced := heir.enrol(t, h.ticket(t, adminapi.TicketRequest{DeviceID: &gateway.id}))
		require.Equal(t, 201, replaced.status, "%v", replaced.body)
		ended(t, waiting)

		var actions []string
		rows, err := s.Admin.ListAuditWithResponse(t.Context(), &adminapi.ListAuditParams{AccountID: &h.account})
		require.NoError(t, err)
		require.NotNil(t, rows.JSON200, "%s", rows.Body)
		for _, a := range rows.JSON200.Rows {
			actions = append(actions, a.Action)
		}
		for _, want := range []string{"token.revoke", "ticket.create", "ticket.redeem", "device.enrol", "device.key.replace"} {
			assert.Contains(t, actions, want)
		}
	})
}
