package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// people are the users among the callers: one with the session of a browser, and one for whom an app acts. What is drawn logs the
// first out, changes their password and locks them out after a wrong one; restore makes that good.
type people struct {
	count            int
	name, password   string
	cookie, source   string
	since            time.Time
	wrong, loggedOut bool
	app              *attacker
	token, refresh   string

	// cabin is a premises and spare a device that nothing else depends on.
	cabin models.PremisesID
	spare models.ID
}

// soon is before a session isn't fresh any more and a token ends.
const soon = 4 * time.Minute

// newUser makes a user of the account. Each comes from a network of their own: wrong passwords make a network wait, too.
func (w *world) newUser() (name, password, source string) {
	w.people.count++
	n := w.people.count
	name, password, source = fmt.Sprint("user", n), fmt.Sprint("four words are enough ", n), fmt.Sprintf("198.18.%d.7", n%250)
	i, err := w.Admin.CreateInvitationWithResponse(w.t.Context(), nil, adminapi.InvitationRequest{AccountID: &w.account})
	require.NoError(w.t, err)
	require.NotNil(w.t, i.JSON200, "%s", i.Body)
	status, answer, _ := w.browser(http.MethodPost, "/v1/accounts", source, "", fmt.Sprintf(
		`{"userName":%q,"password":%q,"accountName":"x","invitation":%q}`, name, password, i.JSON200.Invitation))
	require.Equal(w.t, http.StatusCreated, status, answer)
	return name, password, source
}

// browser sends what one would.
func (w *world) browser(method, path, source, cookie, body string) (int, string, []*http.Cookie) {
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.URL+path, strings.NewReader(body))
	require.NoError(w.t, err)
	r.Header.Set("X-Forwarded-For", source)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	answer, err := w.HTTP.Do(r)
	require.NoError(w.t, err)
	status, _, text := taken(w.t, answer)
	return status, text, answer.Cookies()
}

// restorePeople lets them be callers again.
func (w *world) restorePeople() {
	p := &w.people
	if p.name == "" || p.wrong {
		p.name, p.password, p.source = w.newUser()
		p.loggedOut = true
	}
	if p.loggedOut || time.Since(p.since) > soon {
		status, answer, cookies := w.browser(http.MethodPost, "/v1/login", p.source, "", fmt.Sprintf(`{"userName":%q,"password":%q}`, p.name, p.password))
		require.Equal(w.t, http.StatusOK, status, answer)
		p.cookie = cookies[0].Name + "=" + cookies[0].Value
	}
	fields := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {p.refresh}, "client_id": {"gc-app"}}
	if p.app == nil {
		p.app = newAttacker(w.t, w.Server)
		begun := p.app.form(w.t, "/oauth/device_authorization", url.Values{"client_id": {"gc-app"}})
		require.Equal(w.t, http.StatusOK, begun.status, "%v", begun.body)
		name, _, _ := w.newUser()
		decided, err := w.Admin.DecideDeviceGrantWithResponse(w.t.Context(), adminapi.DeviceGrantDecision{
			UserCode: fmt.Sprint(begun.body["user_code"]), Approve: true, PremisesID: w.premises, UserName: &name,
		})
		require.NoError(w.t, err)
		require.NotNil(w.t, decided.JSON200, "%s", decided.Body)
		fields = url.Values{
			"grant_type":  {"urn:ietf:params:oauth:grant-type:device_code"},
			"device_code": {fmt.Sprint(begun.body["device_code"])}, "client_id": {"gc-app"},
		}
	}
	if p.token == "" || time.Since(p.since) > soon {
		got := p.app.form(w.t, "/oauth/token", fields)
		require.Equal(w.t, http.StatusOK, got.status, "%v", got.body)
		p.token = fmt.Sprint(got.body["access_token"])
		if refresh, ok := got.body["refresh_token"].(string); ok {
			p.refresh = refresh
		}
	}
	if p.wrong || p.loggedOut || time.Since(p.since) > soon {
		p.since, p.wrong, p.loggedOut = time.Now(), false, false
	}
	for i := range w.callers {
		switch c := &w.callers[i]; c.name {
		case "user":
			c.cookie, c.source = p.cookie, p.source
		case "app":
			c.token, c.key = p.token, p.app
		}
	}
}

// restoreOfUsers brings back what only users change, and only if the operation that is being tried does.
func (w *world) restoreOfUsers() {
	p := &w.people
	do := func(method, path, body string, want int) string {
		status, answer, _ := w.browser(method, path, p.source, p.cookie, body)
		require.Equal(w.t, want, status, answer)
		return answer
	}
	switch w.operation {
	case "changePremises", "deletePremises", "createTicket":
		var page api.PremisesPage
		require.NoError(w.t, json.Unmarshal([]byte(do(http.MethodGet, "/v1/premises?pageSize=500", "", http.StatusOK)), &page))
		p.cabin = ""
		for _, one := range page.Premises {
			if one.PremisesID != w.premises {
				p.cabin = one.PremisesID
			}
		}
		if p.cabin == "" {
			var made api.Premises
			require.NoError(w.t, json.Unmarshal([]byte(do(http.MethodPost, "/v1/premises", `{"name":"Cabin"}`, http.StatusCreated)), &made))
			p.cabin = made.PremisesID
		}
	case "linkService", "unlinkService":
		do(http.MethodPut, "/v1/account/services/svc-other", "", http.StatusOK)
	case "removeDevice":
		status, _, _ := w.browser(http.MethodGet, "/v1/devices/"+p.spare.String(), p.source, p.cookie, "")
		if !p.spare.Valid() || status == http.StatusNotFound {
			off := false
			p.spare = w.Device(w.t, w.premises, adminapi.DeviceRequest{Type: models.DevicePhone, Name: "spare", Pop: &off})
		}
	}
}

// noteUsers remembers what an answer means for the user with the session.
func (w *world) noteUsers(s *sent, status int) {
	p := &w.people
	if s.caller.name != "user" {
		return
	}
	switch w.operation {
	case "logout":
		p.loggedOut = status < 300
	case "confirm", "changePassword":
		// Whatever was wrong, another try may have to wait.
		p.wrong = status == http.StatusForbidden || status == http.StatusTooManyRequests
		var sentBody struct{ NewPassword string }
		if status < 300 && json.Unmarshal(s.body, &sentBody) == nil && sentBody.NewPassword != "" {
			p.password = sentBody.NewPassword
		}
	}
	if p.wrong || p.loggedOut {
		w.changed = true
	}
}

// beyondTheSchema tells whether a body that fits the schema may still be a bad request, because a rule stands in words.
func (o *operation) beyondTheSchema(body []byte) bool {
	var m map[string]any
	if json.Unmarshal(body, &m) != nil {
		return false
	}
	switch o.OperationID {
	case "changePassword", "confirm": // no control characters, and 12 to 128 characters in a new one
		for name, value := range m {
			text, _ := value.(string)
			if n := utf8.RuneCountInString(text); name == "newPassword" && (n < 12 || n > 128) || strings.ContainsFunc(text, unicode.IsControl) {
				return true
			}
		}
	case "changeAccount": // gateways never join a group
		return bytes.Contains(body, []byte(`"gateway"`))
	case "createTicket": // for a new device of a type, or for one that is there
		return (m["deviceType"] != nil) == (m["deviceId"] != nil) || m["deviceId"] != nil
	case "linkService": // not what is over already
		at, err := time.Parse(time.RFC3339, fmt.Sprint(m["expiresAt"]))
		return err == nil && time.Until(at) < time.Hour
	}
	return false
}

// checks is how often an operation is tried in the short form: those that hash passwords less often.
func (o *operation) checks() int {
	switch o.OperationID {
	case "changePassword", "confirm", "logout":
		return 30
	case "register": // much of what fits is refused by the domain
		return 200
	}
	return 100
}
