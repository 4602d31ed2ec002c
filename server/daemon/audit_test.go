package daemon_test

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// audited gives the rows that the filter chooses, newest first.
func (s *service) audited(t testing.TB, p adminapi.ListAuditParams) []adminapi.AuditRow {
	t.Helper()
	size := int32(500)
	p.PageSize = &size
	r, err := s.admin.ListAuditWithResponse(t.Context(), &p)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.Rows
}

// actions gives what was done since there were so many rows, oldest first.
func (s *service) actions(t testing.TB, since int) (all []string) {
	t.Helper()
	rows := s.audited(t, adminapi.ListAuditParams{})
	for _, a := range slices.Backward(rows[:len(rows)-since]) {
		all = append(all, a.Actor[:max(strings.IndexByte(a.Actor, '/'), 0)]+" "+a.Action)
	}
	return all
}

func TestWhatHappensIsInTheLog(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		assert.Equal(t, []string{" key.create", " key.rotate"}, s.actions(t, 0), "the first key")
		h := s.home(t, "Smith")
		all := s.actions(t, 2)
		for _, want := range []string{" account.create", " premises.create", " device.enrol", " service.create", " link.put", " token.issue", "gateway gateway.declare"} {
			assert.Contains(t, all, want)
		}
		n := len(all) + 2
		then := func(what string, want []string, do func()) {
			t.Helper()
			do()
			assert.Equal(t, want, s.actions(t, n), what)
			n += len(want)
		}
		declare := func() {
			r := s.do(t, http.MethodPut, "/v1/gateways/"+h.gateway.String(), declaration, "Authorization", "Bearer "+h.gatewayToken)
			require.Equal(t, 200, r.StatusCode)
		}
		then("the same declaration", nil, declare)
		var groupIP, upload string
		then("a group", []string{"device group.create", "device group.join"}, func() { groupIP = s.source(t, h, "door") })
		then("a renewal", nil, func() { s.source(t, h, "door") })
		then("a destination", []string{"service group.join"}, func() { upload = s.join(t, h, "door", groupIP, "") })
		then("its renewal", nil, func() { s.join(t, h, "door", groupIP, "") })
		then("its move", []string{"service group.move"}, func() {
			status, body := s.post(t, h.uploadToken, `{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.141","groupName":"door","groupIP":%q}`, h.upload, groupIP)
			require.Equal(t, 200, status, "%v", body)
		})
		then("leave", []string{"service group.leave"}, func() {
			require.Equal(t, 200, s.do(t, http.MethodDelete, "/v1/registrations/"+upload, "", "Authorization", h.uploadToken).StatusCode)
		})
		then("a device that is removed, with its group", []string{" group.leave", " group.end", " device.remove"}, func() {
			_, err := s.admin.DeleteDeviceWithResponse(t.Context(), h.camera)
			require.NoError(t, err)
		})
		var credential string
		then("a credential", []string{" credential.create"}, func() {
			c, err := s.admin.CreateServiceCredentialWithResponse(t.Context(), "svc-smith", nil, adminapi.ServiceCredentialRequest{})
			require.NoError(t, err)
			require.NotNil(t, c.JSON200, "%s", c.Body)
			credential = c.JSON200.CredentialID
		})
		then("its end", []string{" credential.remove"}, func() {
			_, err := s.admin.DeleteServiceCredentialWithResponse(t.Context(), "svc-smith", credential)
			require.NoError(t, err)
		})
		then("a key", []string{" key.create"}, func() {
			_, err := s.admin.RotateSigningKeysWithResponse(t.Context(), adminapi.KeyRotation{})
			require.NoError(t, err)
		})
		then("the same again", nil, func() {
			_, err := s.admin.RotateSigningKeysWithResponse(t.Context(), adminapi.KeyRotation{})
			require.NoError(t, err)
		})
		then("by force", []string{" key.rotate"}, func() {
			_, err := s.admin.RotateSigningKeysWithResponse(t.Context(), adminapi.KeyRotation{Force: new(true)})
			require.NoError(t, err)
		})
		then("a new life", []string{" life.begin"}, func() {
			_, err := s.admin.RotateEpochWithResponse(t.Context())
			require.NoError(t, err)
		})
		for _, a := range s.audited(t, adminapi.ListAuditParams{}) {
			if a.Object != nil {
				assert.NotContains(t, *a.Object, "96.114.14", "no destination's address")
			}
		}
		mine := s.audited(t, adminapi.ListAuditParams{AccountID: &h.account, Action: new("group.move"), Actor: new("service/svc-smith")})
		require.Len(t, mine, 1)
		assert.Regexp(t, `^group/g_[0-9a-z]+/registration/r_[0-9a-z]+$`, *mine[0].Object)
	})
}

// refusal waits until the log has a refusal of the operation, and gives it.
func (s *service) refusal(t testing.TB, operation string) (found adminapi.AuditRow) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, a := range s.audited(t, adminapi.ListAuditParams{Action: new("request")}) {
			if *a.Object == "operation/"+operation {
				found = a
				return true
			}
		}
		return false
	}, waitLong, waitStep, "no row about %s", operation)
	return found
}

func TestAttacksAreInTheLog(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		a, b := s.home(t, "Smith"), s.home(t, "Jones")
		groupIP := s.source(t, b, "door")
		// A phone of A names B's group.
		status, body := s.post(t, a.phoneToken, `{"type":"Device","id":"%s","destination":true,"groupName":"door","groupIP":%q,"publicIPv4":"203.0.113.1"}`, a.phone, groupIP)
		require.Equal(t, 404, status, "%v", body)
		row := s.refusal(t, "register")
		assert.Equal(t, "device/"+a.phone.String(), row.Actor)
		assert.Equal(t, a.account, models.AccountID(*row.AccountID))
		assert.Equal(t, "not-found", *row.Reason)
		assert.Equal(t, "127.0.0.0/24", *row.Source)
		// A device does what gateways do, and a gateway reads another home.
		require.Equal(t, 403, s.do(t, http.MethodPut, "/v1/gateways/"+a.gateway.String(), declaration, "Authorization", "Bearer "+a.cameraToken).StatusCode)
		assert.Equal(t, "forbidden", *s.refusal(t, "declareGateway").Reason)
		require.Equal(t, 404, s.do(t, http.MethodGet, "/v1/gateways/"+b.gateway.String()+"/groups", "", "Authorization", "Bearer "+a.gatewayToken).StatusCode)
		row = s.refusal(t, "getGroupInformation")
		assert.Equal(t, "gateway/"+a.gateway.String(), row.Actor)
		// Nobody with a made-up token.
		require.Equal(t, 401, s.do(t, http.MethodDelete, "/v1/registrations/r_01j9zq3v6t7n8m2k4h5g6f7d8s", "", "Authorization", "Bearer a.b.c").StatusCode)
		row = s.refusal(t, "leave")
		assert.Equal(t, "anonymous", row.Actor)
		assert.Equal(t, "unauthenticated", *row.Reason)
		// A wrong password has its row already.
		s.invited(t, a.account, "anna")
		require.Equal(t, 401, s.do(t, http.MethodPost, "/v1/login", `{"userName":"anna","password":"not the right one"}`).StatusCode)
		require.Equal(t, 403, s.do(t, http.MethodPut, "/v1/gateways/"+b.gateway.String(), declaration, "Authorization", "Bearer "+a.phoneToken).StatusCode)
		require.Eventually(t, func() bool {
			return slices.ContainsFunc(s.audited(t, adminapi.ListAuditParams{Action: new("request")}), func(r adminapi.AuditRow) bool {
				return r.Actor == "device/"+a.phone.String() && *r.Object == "operation/declareGateway"
			})
		}, waitLong, waitStep)
		for _, r := range s.audited(t, adminapi.ListAuditParams{Action: new("request")}) {
			assert.NotEqual(t, "operation/login", *r.Object)
		}
	})
}

// What ends at one replica ends what waits at the other, though nobody tells it: a removed gateway, and withdrawn tokens.
func TestAttackARevokedGatewayWaitsElsewhere(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	dir := dataDir(t)
	a := start(t, settings(t, dir, "--database-url", url, "--migrate"))
	b := start(t, settings(t, dataDir(t), "--database-url", url, "--key-encryption-key-file", filepath.Join(dir, "kek")))
	removed, other := a.home(t, "Smith"), a.home(t, "Jones")
	gone := b.pollLater(t, removed, b.poll(t, removed, "").Header.Get("ETag"))
	stays := b.pollLater(t, other, b.poll(t, other, "").Header.Get("ETag"))
	b.waitForWaiters(t, 2)
	d, err := a.admin.DeleteDeviceWithResponse(t.Context(), removed.gateway)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, d.StatusCode(), "%s", d.Body)
	r := <-gone
	assert.Equal(t, 401, r.StatusCode)
	assert.NotEmpty(t, r.Header.Get("WWW-Authenticate"))
	assert.Equal(t, "unauthenticated", code(t, r))
	assert.Equal(t, 401, b.poll(t, removed, "").StatusCode, "and on the next request")
	b.waitForWaiters(t, 1)
	assert.Empty(t, stays, "another gateway's wait goes on")
	assert.Equal(t, "1", b.metric(t, `groupcast_longpoll_answers_total{reason="token_ended"}`))
	a.source(t, other, "door")
	assert.Equal(t, 200, (<-stays).StatusCode)
}
