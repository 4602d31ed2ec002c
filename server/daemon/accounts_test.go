package daemon_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

const (
	goodPassword = "four words are enough"
	waitLong     = time.Minute
	waitStep     = 200 * time.Millisecond
)

// each runs a test on a service with SQLite and on one with a real Postgres, beside each other and other parallel tests.
func each(t *testing.T, test func(t *testing.T, s *service), args ...string) {
	onSQLite(t, test, args...)
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, start(t, settings(t, dataDir(t), append([]string{"--migrate", "--database-url", pgtest.URL(t)}, args...)...)))
	})
}

func onSQLite(t *testing.T, test func(t *testing.T, s *service), args ...string) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, start(t, settings(t, dataDir(t), args...)))
	})
}

// invited makes a user of the account, or of a new one if it is empty.
func (s *service) invited(t testing.TB, account models.AccountID, name string) {
	t.Helper()
	var body adminapi.InvitationRequest
	if account != "" {
		body.AccountID = &account
	}
	i, err := s.admin.CreateInvitationWithResponse(t.Context(), nil, body)
	require.NoError(t, err)
	require.NotNil(t, i.JSON200, "%s", i.Body)
	r := s.do(t, http.MethodPost, "/v1/accounts", fmt.Sprintf(`{"userName":%q,"password":%q,"accountName":"x","invitation":%q}`, name, goodPassword, i.JSON200.Invitation))
	require.Equal(t, http.StatusCreated, r.StatusCode, "%s", text(t, r))
}

// login gives the header of a new session.
func (s *service) login(t testing.TB, name, password string) string {
	t.Helper()
	r := s.do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":%q}`, name, password))
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
	all := r.Cookies()
	require.Len(t, all, 1)
	c := all[0]
	assert.Equal(t, "__Host-groupcast", c.Name)
	assert.True(t, c.Secure && c.HttpOnly && c.SameSite == http.SameSiteLaxMode && c.Path == "/" && c.Domain == "" && c.MaxAge == 7*24*3600, "%v", c)
	return c.Name + "=" + c.Value
}

// user makes a user of a home's account and logs them in.
func (s *service) user(t testing.TB, h home, name string) string {
	t.Helper()
	s.invited(t, h.account, name)
	return s.login(t, name, goodPassword)
}

// code is the end of a problem's type.
func code(t testing.TB, r *http.Response) string {
	t.Helper()
	kind, _ := object(t, r)["type"].(string)
	return strings.TrimPrefix(kind, "/problems/")
}

func TestSignUp(t *testing.T) {
	t.Parallel()
	body := `{"userName":"Anna@example.net","password":"four words are enough","accountName":"The Smiths"}`
	each(t, func(t *testing.T, s *service) {
		r := s.do(t, http.MethodPost, "/v1/accounts", body)
		require.Equal(t, http.StatusCreated, r.StatusCode)
		a := object(t, r)
		assert.Equal(t, "The Smiths", a["name"])
		r = s.do(t, http.MethodPost, "/v1/accounts", strings.Replace(body, "Anna", "anna", 1))
		assert.Equal(t, http.StatusConflict, r.StatusCode, "a name is one name in any case")
		r = s.do(t, http.MethodPost, "/v1/accounts", strings.Replace(strings.Replace(body, "Anna", "berta", 1), goodPassword, "short", 1))
		assert.Equal(t, "bad-request", code(t, r))
		cookie := s.login(t, "ANNA@example.net", goodPassword)
		r = s.do(t, http.MethodGet, "/v1/account", "", "Cookie", cookie)
		assert.Equal(t, a, object(t, r))
		unknown, err := s.admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: new(models.NewAccountID())})
		require.NoError(t, err)
		assert.Equal(t, http.StatusNotFound, unknown.StatusCode())
	}, "--sign-up", "open")
	s := start(t, settings(t, dataDir(t)))
	assert.Equal(t, "forbidden", code(t, s.do(t, http.MethodPost, "/v1/accounts", body)), "by invitation only")
	r := s.do(t, http.MethodPost, "/v1/accounts", strings.Replace(body, `"accountName"`, `"invitation":"made-up","accountName"`, 1))
	assert.Equal(t, "forbidden", code(t, r))
	i, err := s.admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{})
	require.NoError(t, err)
	with := strings.Replace(body, `"accountName"`, fmt.Sprintf(`"invitation":%q,"accountName"`, i.JSON200.Invitation), 1)
	require.Equal(t, http.StatusCreated, s.do(t, http.MethodPost, "/v1/accounts", with).StatusCode)
	assert.Equal(t, "forbidden", code(t, s.do(t, http.MethodPost, "/v1/accounts", strings.Replace(with, "Anna", "berta", 1))), "an invitation is good once")
	closed := start(t, settings(t, dataDir(t), "--sign-up", "closed"))
	assert.Equal(t, "forbidden", code(t, closed.do(t, http.MethodPost, "/v1/accounts", with)))
}

func TestSessions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.home(t, "Smith")
		first := s.user(t, h, "anna")
		second := s.login(t, "anna", goodPassword)
		account := func(cookie string) int {
			r := s.do(t, http.MethodGet, "/v1/account", "", "Cookie", cookie)
			return r.StatusCode
		}
		assert.Equal(t, http.StatusOK, account(first))
		assert.Equal(t, http.StatusUnauthorized, account(first+"x"))
		assert.Equal(t, http.StatusUnauthorized, account("__Host-groupcast=; "+first), "two cookies are none")

		wrong := func() *http.Response {
			return s.do(t, http.MethodPost, "/v1/account/password", `{"oldPassword":"wrong one it is","newPassword":"four other words it is"}`, "Cookie", first)
		}
		assert.Equal(t, "forbidden", code(t, wrong()))
		r := wrong()
		for range 3 { // the wait doubles, so that it becomes longer than a busy machine takes
			if r.StatusCode != http.StatusTooManyRequests {
				r = wrong()
			}
		}
		require.Equal(t, http.StatusTooManyRequests, r.StatusCode, "after a failure the next try has to wait")
		assert.NotEmpty(t, r.Header.Get("Retry-After"))
		require.Eventually(t, func() bool {
			r := s.do(t, http.MethodPost, "/v1/account/password", fmt.Sprintf(`{"oldPassword":%q,"newPassword":"four other words it is"}`, goodPassword), "Cookie", first)
			return r.StatusCode == http.StatusNoContent
		}, waitLong, waitStep)
		assert.Equal(t, http.StatusOK, account(first), "the session that changed it goes on")
		assert.Equal(t, http.StatusUnauthorized, account(second), "every other one ends")
		r = s.do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":"anna","password":%q}`, goodPassword))
		assert.Equal(t, http.StatusUnauthorized, r.StatusCode)

		r = s.do(t, http.MethodPost, "/v1/logout", "", "Cookie", first)
		require.Equal(t, http.StatusNoContent, r.StatusCode, "%s", text(t, r))
		assert.Equal(t, -1, r.Cookies()[0].MaxAge)
		assert.Equal(t, http.StatusUnauthorized, account(first))
	})
}

// TestAttackUnknownUserCostsTheSame is row 4 of the threat model: equal work and equal answers, so nobody learns who has an account.
func TestAttackUnknownUserCostsTheSame(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	s.invited(t, "", "anna")
	try := func(name string) map[string]any {
		r := s.do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":"not the right words"}`, name))
		require.Equal(t, http.StatusUnauthorized, r.StatusCode)
		o := object(t, r)
		delete(o, "instance")
		return o
	}
	assert.Equal(t, try("anna"), try("nobody"))
	// The tries of one name don't become more than the delays allow, whatever the number of connections.
	refused := 0
	for range 20 {
		if s.do(t, http.MethodPost, "/v1/login", `{"userName":"anna","password":"not the right words"}`).StatusCode == http.StatusTooManyRequests {
			refused++
		}
	}
	assert.GreaterOrEqual(t, refused, 15)
}

// TestAttackCrossSite is a page of another site that sends something with the user's cookie.
func TestAttackCrossSite(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	cookie := s.user(t, s.home(t, "Smith"), "anna")
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"},
	} {
		r := s.do(t, http.MethodPost, "/v1/premises", `{"name":"Trap"}`, append(header, "Cookie", cookie)...)
		assert.Equal(t, http.StatusForbidden, r.StatusCode)
		assert.Equal(t, "cross-site", code(t, r), "%v", header)
		r = s.do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":"anna","password":%q}`, goodPassword), header...)
		assert.Equal(t, "cross-site", code(t, r), "nobody is logged in as somebody else: %v", header)
	}
	r := s.do(t, http.MethodPost, "/v1/premises", `{"name":"Cabin"}`, "Sec-Fetch-Site", "same-origin", "Cookie", cookie)
	assert.Equal(t, http.StatusCreated, r.StatusCode)
}

func TestAccountHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h, other := s.home(t, "Smith"), s.home(t, "Jones")
		cookie := s.user(t, h, "anna")
		do := func(method, path, body string) *http.Response { return s.do(t, method, path, body, "Cookie", cookie) }

		r := do(http.MethodPost, "/v1/premises", `{"name":"Cabin"}`)
		require.Equal(t, http.StatusCreated, r.StatusCode)
		cabin := object(t, r)["premisesId"].(string)
		r = do(http.MethodPatch, "/v1/premises/"+cabin, `{"name":"Hut"}`)
		assert.Equal(t, "Hut", object(t, r)["name"])
		assert.Len(t, object(t, do(http.MethodGet, "/v1/premises", ""))["premises"], 2)
		assert.Equal(t, "not-empty", code(t, do(http.MethodDelete, "/v1/premises/"+string(h.premises), "")))
		assert.Equal(t, http.StatusNoContent, do(http.MethodDelete, "/v1/premises/"+cabin, "").StatusCode)
		assert.Equal(t, "not-found", code(t, do(http.MethodDelete, "/v1/premises/"+string(other.premises), "")))

		assert.Len(t, object(t, do(http.MethodGet, "/v1/devices", ""))["devices"], 4)
		page := object(t, do(http.MethodGet, "/v1/devices?pageSize=3", ""))
		assert.Len(t, object(t, do(http.MethodGet, "/v1/devices?pageToken="+page["nextPageToken"].(string), ""))["devices"], 1)
		r = do(http.MethodPatch, "/v1/devices/"+h.camera.String(), `{"name":"Porch","trigger":"source"}`)
		assert.Equal(t, "Porch", object(t, r)["name"])
		r = do(http.MethodPost, "/v1/premises/"+string(h.premises)+"/enrolments", `{"deviceType":"camera"}`)
		assert.Equal(t, http.StatusCreated, r.StatusCode)
		assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))

		// Who receives what, and an end to it.
		groupIP := s.source(t, h, "door")
		s.join(t, h, "door", groupIP, "")
		r = do(http.MethodGet, "/v1/groups", "")
		seen := text(t, r)
		assert.NotContains(t, seen, "96.114.14.140", "no address, not even for the account holder")
		assert.NotContains(t, seen, cameraAddr)
		groups := object(t, do(http.MethodGet, "/v1/groups", ""))["groups"].([]any)
		require.Len(t, groups, 1)
		members := groups[0].(map[string]any)["members"].([]any)
		require.Len(t, members, 2)
		registration := members[1].(map[string]any)["registrationId"].(string)
		device := s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.phoneToken)
		assert.NotContains(t, text(t, device), "registrationId", "only the account holder can end what is another's")
		r = do(http.MethodDelete, "/v1/registrations/"+registration, "")
		require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
		assert.Equal(t, http.StatusNotFound, s.do(t, http.MethodGet, "/v1/registrations/"+registration, "", "Authorization", "Bearer "+h.uploadToken).StatusCode)

		// The link: consent, again, and its end.
		s.join(t, h, "door", groupIP, "")
		links := object(t, do(http.MethodGet, "/v1/account/services", ""))["links"].([]any)
		require.Len(t, links, 1)
		before := object(t, do(http.MethodPut, "/v1/account/services/svc-smith", ""))
		assert.Equal(t, links[0], before, "consenting again changes nothing")
		assert.Equal(t, "not-found", code(t, do(http.MethodPut, "/v1/account/services/svc-none", "")))
		r = do(http.MethodPut, "/v1/account/services/svc-smith", fmt.Sprintf(`{"premises":[%q],"scopes":["gc:notify"],"expiresAt":"2100-01-01T00:00:00Z"}`, h.premises))
		require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
		narrow := object(t, do(http.MethodGet, "/v1/account/services", ""))["links"].([]any)[0].(map[string]any)
		assert.Equal(t, before["serviceAccountId"], narrow["serviceAccountId"])
		assert.Equal(t, []any{"gc:notify"}, narrow["scopes"])
		assert.Equal(t, []any{string(h.premises)}, narrow["premises"])
		assert.Equal(t, "2100-01-01T00:00:00Z", narrow["expiresAt"])
		assert.Contains(t, narrow["grantedBy"], "u_")
		held := object(t, s.do(t, http.MethodGet, "/v1/registrations", "", "Authorization", "Bearer "+h.uploadToken))["registrations"]
		assert.Empty(t, held, "who may not register is no member any more")
		status, refused := s.post(t, h.uploadToken, `{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":"door","groupIP":%q}`, h.upload, groupIP)
		assert.Equal(t, http.StatusNotFound, status, "%v", refused)
		for body, want := range map[string]string{
			fmt.Sprintf(`{"premises":[%q]}`, other.premises): "not-found",
			`{"premises":[]}`:                      "bad-request",
			`{"scopes":["gc:account"]}`:            "bad-request",
			`{"expiresAt":"2020-01-01T00:00:00Z"}`: "bad-request",
			`{"expiresAt":"0001-01-01T00:00:00Z"}`: "bad-request",
			`{"expiresAt":"tomorrow"}`:             "bad-request",
		} {
			assert.Equal(t, want, code(t, do(http.MethodPut, "/v1/account/services/svc-smith", body)), body)
		}
		r = do(http.MethodPut, "/v1/account/services/svc-smith", "")
		assert.NotContains(t, text(t, r), "premises", "what isn't said isn't limited")
		s.join(t, h, "door", groupIP, "")
		assert.Equal(t, http.StatusNoContent, do(http.MethodDelete, "/v1/account/services/svc-smith", "").StatusCode)
		status, refused = s.post(t, h.uploadToken, `{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":"door","groupIP":%q}`, h.upload, groupIP)
		assert.Equal(t, http.StatusNotFound, status, "%v", refused)
		assert.NotEqual(t, before["serviceAccountId"], object(t, do(http.MethodPut, "/v1/account/services/svc-smith", ""))["serviceAccountId"])
		assert.Equal(t, "not-found", code(t, do(http.MethodDelete, "/v1/account/services/svc-jones", "")))

		// A removed device is refused on its next request.
		assert.Equal(t, "not-found", code(t, do(http.MethodDelete, "/v1/devices/"+other.phone.String(), "")))
		assert.Equal(t, http.StatusNoContent, do(http.MethodDelete, "/v1/devices/"+h.camera.String(), "").StatusCode)
		assert.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.cameraToken).StatusCode)

		actions := map[string]bool{}
		log, err := s.admin.ListAuditWithResponse(t.Context(), &adminapi.ListAuditParams{AccountID: &h.account})
		require.NoError(t, err)
		require.NotNil(t, log.JSON200, "%s", log.Body)
		for _, row := range log.JSON200.Rows {
			actions[row.Action] = true
		}
		for _, want := range []string{
			"user.create", "login", "premises.create", "premises.change", "premises.remove", "device.enrol", "device.change",
			"device.remove", "link.put", "link.end", "group.leave", "ticket.create",
		} {
			assert.True(t, actions[want], want)
		}
		require.Eventually(t, func() bool {
			v, err := s.admin.VerifyAuditWithResponse(t.Context(), nil)
			return err == nil && v.JSON200 != nil && !v.JSON200.Broken && v.JSON200.Unsealed == 0 && v.JSON200.Head != "0."
		}, waitLong, waitStep)
		assert.NotContains(t, s.log.String(), goodPassword)
		assert.NotContains(t, s.log.String(), strings.TrimPrefix(cookie, "__Host-groupcast="))
	})
}

func TestJoinPolicy(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.home(t, "Smith")
		s.home(t, "Jones") // brings svc-jones, which the Smiths have no link with
		cookie := s.user(t, h, "anna")
		do := func(method, body string) *http.Response {
			return s.do(t, method, "/v1/account", body, "Cookie", cookie)
		}
		empty := map[string]any{"devices": []any{}, "services": []any{}}
		assert.Equal(t, empty, object(t, do(http.MethodGet, ""))["joinPolicy"], "nobody joins by itself unless somebody says so")

		r := do(http.MethodPatch, `{"joinPolicy":{"devices":[{"deviceType":"phone"},{"deviceType":"receiver","model":"RX-1"},{"deviceType":"phone"}],
			"services":["svc-smith","svc-jones"]}}`)
		require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
		a := object(t, do(http.MethodGet, ""))
		policy := map[string]any{
			"devices":  []any{map[string]any{"deviceType": "phone"}, map[string]any{"deviceType": "receiver", "model": "RX-1"}},
			"services": []any{"svc-smith", "svc-jones"},
		}
		assert.Equal(t, policy, a["joinPolicy"])
		for body, want := range map[string]string{
			`{"joinPolicy":{"devices":[{"deviceType":"toaster"}],"services":[]}}`:       "bad-request",
			`{"joinPolicy":{"devices":[{"deviceType":"gateway"}],"services":[]}}`:       "bad-request",
			`{"joinPolicy":{"devices":[{"type":"phone"}],"services":[]}}`:               "bad-request",
			`{"joinPolicy":{"devices":[]}}`:                                             "bad-request",
			`{"joinPolicy":{"devices":[],"services":["svc-upload; DROP TABLE users"]}}`: "bad-request",
			`{"joinPolicy":{"devices":[],"services":["svc-smith","svc-nobody"]}}`:       "not-found",
		} {
			assert.Equal(t, want, code(t, do(http.MethodPatch, body)), body)
		}
		a = object(t, do(http.MethodPatch, `{"name":"The Smith Family"}`))
		assert.Equal(t, "The Smith Family", a["name"])
		assert.Equal(t, policy, a["joinPolicy"], "what isn't sent stays, and what was refused changed nothing")
		assert.Equal(t, a, object(t, do(http.MethodPatch, `{}`)))
		assert.Equal(t, empty, object(t, do(http.MethodPatch, `{"joinPolicy":{"devices":[],"services":[]}}`))["joinPolicy"])

		// A policy lets nobody in.
		require.Equal(t, http.StatusOK, do(http.MethodPatch, `{"joinPolicy":{"devices":[],"services":["svc-smith"]}}`).StatusCode)
		groupIP := s.source(t, h, "door")
		require.Equal(t, http.StatusNoContent, s.do(t, http.MethodDelete, "/v1/account/services/svc-smith", "", "Cookie", cookie).StatusCode)
		status, body := s.post(t, h.uploadToken, `{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":"door","groupIP":%q}`, h.upload, groupIP)
		assert.Equal(t, http.StatusNotFound, status, "%v", body)
	})
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.home(t, "Smith")
		cookie := s.user(t, h, "anna")
		r := s.do(t, http.MethodPost, "/v1/premises", `{"name":"Cabin"}`, "Cookie", cookie)
		require.Equal(t, http.StatusCreated, r.StatusCode)
		r = s.do(t, http.MethodPost, "/v1/premises", `{"name":"Hut"}`, "Cookie", cookie)
		require.Equal(t, http.StatusConflict, r.StatusCode)
		p := object(t, r)
		assert.Equal(t, "/problems/quota-exceeded", p["type"])
		assert.Equal(t, []any{"premises", 2., 2.}, []any{p["quota"], p["limit"], p["used"]})
		groupIP := s.source(t, h, "door")
		first := s.join(t, h, "door", groupIP, "1")
		body := `{"type":"Service","id":"%s","destination":true,"instance":"2","publicIPv4":"96.114.14.140","groupName":"door","groupIP":%q}`
		status, p := s.post(t, h.uploadToken, body, h.upload, groupIP)
		assert.Equal(t, http.StatusConflict, status)
		assert.Equal(t, []any{"destinations", 1., 1.}, []any{p["quota"], p["limit"], p["used"]})
		assert.Equal(t, first, s.join(t, h, "door", groupIP, "1"), "renewing always works")
		status, p = s.post(t, h.cameraToken, `{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"groupName":"shed"}`, h.camera, cameraAddr)
		assert.Equal(t, http.StatusConflict, status)
		assert.Equal(t, []any{"groups", 1., 1.}, []any{p["quota"], p["limit"], p["used"]})
	}, "--quota-premises", "2", "--quota-groups", "1", "--quota-destinations", "1")
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--rate-limit-source", "500", "--rate-limit-principal", "5"))
	h := s.home(t, "Smith")
	var r *http.Response
	for range 6 {
		r = s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.phoneToken)
	}
	require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
	assert.Equal(t, "5", r.Header.Get("RateLimit-Limit"))
	assert.Equal(t, "0", r.Header.Get("RateLimit-Remaining"))
	assert.NotEmpty(t, r.Header.Get("RateLimit-Reset"))
	assert.NotEmpty(t, r.Header.Get("Retry-After"))
	assert.Equal(t, "rate-limited", code(t, r))
	assert.Equal(t, http.StatusOK, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.cameraToken).StatusCode, "others go on")
	for range 10 {
		r = s.do(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups", "", "Authorization", "Bearer "+h.gatewayToken)
		require.Equal(t, http.StatusOK, r.StatusCode, "polls don't count")
	}
}
