package daemon_test

import (
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/pages"
	"github.com/groupcast/groupcast/server/users"
)

// browser is somebody at the pages, who follows no redirect by itself.
type browser struct {
	*service
	cookie string
	// from is the address it seems to come from, if the service believes it.
	from string
}

func (b browser) send(t testing.TB, method, path, body string, header ...string) *http.Response {
	t.Helper()
	header = append(header, "Sec-Fetch-Site", "same-origin")
	if b.cookie != "" {
		header = append(header, "Cookie", b.cookie)
	}
	if b.from != "" {
		header = append(header, "X-Forwarded-For", b.from)
	}
	client := *b.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r, err := client.Do(b.request(t, method, path, body, header...))
	require.NoError(t, err)
	t.Cleanup(func() { r.Body.Close() })
	return r
}

func (b browser) get(t testing.TB, path string) (int, string) {
	t.Helper()
	r := b.send(t, http.MethodGet, path, "")
	return r.StatusCode, text(t, r)
}

// form sends a form of names and values, and gives what it leads to: a place, or a page.
func (b browser) form(t testing.TB, path string, fields ...string) (int, string) {
	t.Helper()
	values := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		values.Add(fields[i], fields[i+1])
	}
	r := b.send(t, http.MethodPost, path, values.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if r.StatusCode == http.StatusSeeOther {
		return r.StatusCode, r.Header.Get("Location")
	}
	return r.StatusCode, text(t, r)
}

// asks begins a device grant from an address and gives its user code.
func (s *service) asks(t testing.TB, from string) string {
	t.Helper()
	r := s.do(t, http.MethodPost, "/oauth/device_authorization", url.Values{
		"client_id": {"gc-device"}, "device_type": {"camera"}, "model": {"M<1>"}, "serial": {"0042"},
	}.Encode(), "Content-Type", "application/x-www-form-urlencoded", "X-Forwarded-For", from)
	require.Equal(t, http.StatusOK, r.StatusCode)
	o := object(t, r)
	issuer := s.URL()
	assert.Equal(t, issuer+"/device", o["verification_uri"])
	assert.Equal(t, issuer+"/device?user_code="+o["user_code"].(string), o["verification_uri_complete"])
	return o["user_code"].(string)
}

// advance moves the clock of a service on SQLite.
func (s *service) advance(t testing.TB, d time.Duration) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(s.cfg.DataDir, "groupcast.db")+"?_busy_timeout=10000")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), fmt.Sprintf(`UPDATE installation SET clock_offset_ms = clock_offset_ms + %[1]d,
		expiry_ran_at = CASE expiry_ran_at WHEN 0 THEN 0 ELSE expiry_ran_at + %[1]d END`, d.Milliseconds()))
	require.NoError(t, err)
}

func everyPage() (all [][2]string, public map[string]bool) {
	public = map[string]bool{}
	for _, p := range pages.All(pages.Services{Users: users.New(nil, nil, nil, nil, users.SignUpOpen)}) {
		key := p.Method + " " + p.Path
		if p.Rule != nil && p.Rule.Public || p.Operation == "login" || p.Operation == "signUp" {
			public[key] = true
		}
		path := strings.NewReplacer(":premisesId", string(models.NewPremisesID()), ":deviceId", "7", ":serviceId", "svc-x", ":registrationId",
			string(models.NewRegistrationID())).Replace(p.Path)
		all = append(all, [2]string{key, path})
	}
	return all, public
}

// TestPagesWantASession comes to every page without a session, with one that was made up, and with the token of a device.
func TestPagesWantASession(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--sign-up", "open"))
	h := s.home(t, "Smith")
	all, public := everyPage()
	assert.Equal(t, map[string]bool{
		"GET /pages/style.css": true, "GET /pages/icon.svg": true, "GET /login": true, "POST /login": true, "GET /sign-up": true, "POST /sign-up": true,
	}, public, "whoever lets anyone in says so here")
	for _, page := range all {
		key, path := page[0], page[1]
		method, _, _ := strings.Cut(key, " ")
		for name, header := range map[string][]string{
			"nobody": nil, "made up": {"Cookie", "__Host-groupcast=made-up"}, "a device": {"Authorization", "Bearer " + h.phoneToken},
			"a device with a cookie": {"Authorization", "Bearer " + h.phoneToken, "Cookie", "__Host-groupcast=made-up"},
		} {
			r := browser{service: s}.send(t, method, path, "", append(header, "Content-Type", "application/x-www-form-urlencoded")...)
			if public[key] {
				assert.NotEqual(t, http.StatusSeeOther, r.StatusCode, key)
			} else {
				assert.Equal(t, http.StatusSeeOther, r.StatusCode, "%s as %s", key, name)
				assert.Regexp(t, "^/login(\\?next=|$)", r.Header.Get("Location"))
			}
			policy := r.Header.Get("Content-Security-Policy")
			for _, part := range []string{"default-src 'none'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
				assert.Contains(t, policy, part, key)
			}
			assert.NotContains(t, policy, "unsafe", key)
			assert.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"), key)
			if !strings.HasPrefix(path, "/pages/") {
				assert.Equal(t, "no-store", r.Header.Get("Cache-Control"), key)
			}
		}
	}
	closed := start(t, settings(t, dataDir(t), "--sign-up", "closed"))
	assert.Equal(t, http.StatusNotFound, browser{service: closed}.send(t, http.MethodGet, "/sign-up", "").StatusCode)
	_, login := browser{service: closed}.get(t, "/login")
	assert.NotContains(t, login, "/sign-up")
}

func TestLogInAtThePage(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		s.user(t, s.home(t, "Smith"), "anna")
		b := browser{service: s}
		status, page := b.form(t, "/login", "userName", "anna", "password", "not the right words", "next", "/device?user_code=BCDF-GHJK")
		assert.Equal(t, http.StatusUnauthorized, status)
		assert.Contains(t, page, `role="alert"`)
		assert.Contains(t, page, "User name or password is wrong.")
		assert.Contains(t, page, `value="anna"`)
		assert.Contains(t, page, `value="/device?user_code=BCDF-GHJK"`)
		assert.NotContains(t, page, "not the right words")
		var r *http.Response
		require.Eventually(t, func() bool { // after a failure the next try has to wait, as at the API
			r = b.send(t, http.MethodPost, "/login", url.Values{"userName": {" anna "}, "password": {goodPassword}, "next": {"/device?user_code=BCDF-GHJK&x=y"}}.Encode(),
				"Content-Type", "application/x-www-form-urlencoded")
			return r.StatusCode == http.StatusSeeOther
		}, waitLong, waitStep)
		assert.Equal(t, "/device?user_code=BCDF-GHJK", r.Header.Get("Location"))
		c := r.Cookies()[0]
		assert.Equal(t, "__Host-groupcast", c.Name)
		assert.True(t, c.Secure && c.HttpOnly && c.SameSite == http.SameSiteLaxMode && c.Path == "/" && c.Domain == "" && c.MaxAge == 7*24*3600, "%v", c)
		b.cookie = c.Name + "=" + c.Value
		status, page = b.get(t, "/account")
		assert.Equal(t, http.StatusOK, status)
		assert.Contains(t, page, "<h1>Smith</h1>")
		r = b.send(t, http.MethodPost, "/logout", "")
		assert.Equal(t, http.StatusSeeOther, r.StatusCode)
		assert.Equal(t, -1, r.Cookies()[0].MaxAge)
		status, to := b.form(t, "/account/premises", "name", "Cabin")
		assert.Equal(t, http.StatusSeeOther, status)
		assert.Equal(t, "/login", to, "the session is gone")
	})
}

// TestAttackOpenRedirect asks to be sent somewhere else after the log-in.
func TestAttackOpenRedirect(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	s.invited(t, "", "anna")
	for _, next := range []string{
		"//evil.example/device", "https://evil.example/device", "/\\evil.example", "/device/../..//evil.example", "javascript:alert(1)", "/device@evil.example",
		"//evil.example:80/device", "/account?x=y", "/v1/account", "%2f%2fevil.example", "/device?user_code=%0d%0aSet-Cookie:x",
	} {
		status, to := browser{service: s}.form(t, "/login", "userName", "anna", "password", goodPassword, "next", next)
		assert.Equal(t, http.StatusSeeOther, status, next)
		assert.Contains(t, []string{"/account", "/device"}, to, next)
	}
}

func TestSignUpAtThePage(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	b := browser{service: s}
	_, page := b.get(t, "/sign-up")
	assert.Contains(t, page, "by invitation")
	status, page := b.form(t, "/sign-up", "userName", "anna", "password", goodPassword, "accountName", "Smith", "invitation", "made-up")
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, page, "Ask the operator for another one.")
	status, page = b.form(t, "/sign-up", "userName", "a", "password", goodPassword, "accountName", "", "invitation", "made-up")
	assert.Equal(t, http.StatusBadRequest, status)
	assert.Contains(t, page, `role="alert"`)
	i, err := s.admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{})
	require.NoError(t, err)
	status, to := b.form(t, "/sign-up", "userName", "anna", "password", goodPassword, "accountName", "Smith", "invitation", i.JSON200.Invitation)
	assert.Equal(t, http.StatusSeeOther, status)
	assert.Equal(t, "/account", to)
	s.login(t, "anna", goodPassword)
}

// TestAttackCrossSiteForms is a page of another site that sends our forms with the user's cookie.
func TestAttackCrossSiteForms(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	b := browser{service: s, cookie: s.user(t, h, "anna")}
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"},
	} {
		for _, path := range []string{"/login", "/logout", "/device/decision", "/account/premises", "/account/devices/" + h.phone.String() + "/remove"} {
			r := s.do(t, http.MethodPost, path, "name=Trap", append(header, "Cookie", b.cookie, "Content-Type", "application/x-www-form-urlencoded")...)
			assert.Equal(t, http.StatusForbidden, r.StatusCode, "%s %v", path, header)
			page := text(t, r)
			assert.Contains(t, page, "A page of another site sent this.")
			assert.Contains(t, r.Header.Get("Content-Type"), "text/html")
		}
	}
	r := s.do(t, http.MethodPost, "/account/premises", `{"name":"Trap"}`, "Cookie", b.cookie, "Content-Type", "text/plain")
	assert.Equal(t, http.StatusUnsupportedMediaType, r.StatusCode)
	_, page := b.get(t, "/account")
	assert.NotContains(t, page, "Trap")
	assert.Equal(t, 4, strings.Count(page, `aria-label="Device `))
}

// TestForeignAtThePages names what another has and what nobody has: one page, to the letter.
func TestForeignAtThePages(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		own, other := s.house(t, "Own"), s.house(t, "Other")
		b := browser{service: s, cookie: own.cookie}
		none := missing(other.objects)
		foreign := other.of(models.KindUser)
		for _, f := range []struct {
			path   string
			fields []string
		}{
			{"/account/premises/{premises}/remove", nil},
			{"/account/premises/{premises}", []string{"fanout", "network"}},
			{"/account/premises/{premises}/enrolments", []string{"deviceType", "camera"}},
			{"/account/devices/{device}", []string{"name", "Mine"}},
			{"/account/devices/{device}/remove", nil},
			{"/account/links/{service}/end", nil},
			{"/account/registrations/{registration}/end", nil},
		} {
			fill := func(o objects) string {
				return strings.NewReplacer("{premises}", string(o.premises), "{device}", o.device.String(), "{service}", string(o.service),
					"{registration}", o.registration).Replace(f.path)
			}
			foreignStatus, foreignPage := b.form(t, fill(foreign), f.fields...)
			noneStatus, nonePage := b.form(t, fill(none), f.fields...)
			oddStatus, oddPage := b.form(t, strings.NewReplacer("{premises}", "%00", "{device}", "x", "{service}", "%27", "{registration}", "%ff").Replace(f.path), f.fields...)
			assert.Equal(t, http.StatusNotFound, foreignStatus, f.path)
			assert.Equal(t, foreignStatus, noneStatus, f.path)
			assert.Equal(t, foreignPage, nonePage, f.path)
			assert.Equal(t, foreignStatus, oddStatus, f.path)
			assert.Equal(t, foreignPage, oddPage, f.path)
		}
		code := s.asks(t, "127.0.0.1")
		for _, premises := range []models.PremisesID{foreign.premises, none.premises} {
			status, page := b.form(t, "/device/decision", "user_code", code, "decision", "approve", "premisesId", string(premises))
			assert.Equal(t, http.StatusNotFound, status)
			assert.Contains(t, page, "it isn’t yours")
		}
		_, page := b.get(t, "/account")
		for _, secret := range []string{string(foreign.premises), foreign.device.String(), foreign.registration, other.objects.phone.String(), "96.114.14.140", "198.51.100.9", "192.168.1.5"} {
			assert.NotContains(t, page, secret)
		}
		status, _ := browser{service: s, cookie: other.cookie}.get(t, "/account")
		assert.Equal(t, http.StatusOK, status)
	})
}

// TestAccountPageEndsThings presses every button of the page and asks the service what became of it.
func TestAccountPageEndsThings(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.house(t, "Smith")
		b := browser{service: s, cookie: h.cookie}
		group := func() map[string]any {
			list := object(t, s.do(t, http.MethodGet, "/v1/groups", "", "Cookie", h.cookie))["groups"].([]any)
			if len(list) == 0 {
				return nil
			}
			return list[0].(map[string]any)
		}
		ends := regexp.MustCompile(`action="(/account/registrations/[^"]+/end)"><button class="danger" aria-label="End ([^,]+), which (sends|receives) door"`)
		find := func(name string) string {
			_, page := b.get(t, "/account")
			for _, m := range ends.FindAllStringSubmatch(page, -1) {
				if m[2] == name {
					return m[1]
				}
			}
			t.Fatalf("%s isn't there: %s", name, page)
			return ""
		}
		require.EqualValues(t, 2, group()["state"])
		status, to := b.form(t, find("phone"))
		require.Equal(t, http.StatusSeeOther, status, to)
		assert.Equal(t, "/account?done=ended", to)
		assert.EqualValues(t, 1, group()["state"])
		status, to = b.form(t, "/account/links/"+string(h.service)+"/end")
		require.Equal(t, http.StatusSeeOther, status, to)
		assert.EqualValues(t, 0, group()["state"])
		status, _ = b.form(t, find("camera1"))
		require.Equal(t, http.StatusSeeOther, status)
		assert.Nil(t, group(), "it was the last source")
		status, _ = b.form(t, "/account/devices/"+h.home.phone.String()+"/remove")
		require.Equal(t, http.StatusSeeOther, status)
		assert.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.phoneToken).StatusCode)

		status, to = b.form(t, "/account/premises", "name", " Cabin ")
		require.Equal(t, http.StatusSeeOther, status, to)
		_, page := b.get(t, to)
		assert.Contains(t, page, "The premises was added.")
		cabin := regexp.MustCompile(`aria-label="Premises Cabin">\s*<div class="row"><div><h3>Cabin</h3><span class="soft mono">(p_\w+)`).FindStringSubmatch(page)
		require.NotNil(t, cabin, page)
		status, page = b.form(t, "/account/premises/"+cabin[1]+"/enrolments", "deviceType", "camera", "name", "", "proofOfPossession", "false")
		assert.Equal(t, http.StatusCreated, status)
		assert.Regexp(t, `id="ticket">[\w-]{43}<`, page)
		status, page = b.form(t, "/account/premises/"+cabin[1]+"/enrolments", "deviceType", "toaster")
		assert.Equal(t, http.StatusBadRequest, status)
		assert.Contains(t, page, "What it is: Give one of: camera")
		changed := func() string {
			t.Helper()
			_, page := b.get(t, "/account")
			_, page, found := strings.Cut(page, `action="/account/premises/`+cabin[1]+`"`)
			require.True(t, found)
			page, _, _ = strings.Cut(page, "</form>")
			return strings.Join(regexp.MustCompile(`value="(\w+)" selected`).FindAllString(page, -1), " ")
		}
		assert.Equal(t, `value="home" selected value="home" selected`, changed())
		status, to = b.form(t, "/account/premises/"+cabin[1], "fanout", "network", "onRelayLoss", "stop")
		require.Equal(t, http.StatusSeeOther, status, to)
		_, page = b.get(t, to)
		assert.Contains(t, page, "The premises was changed.")
		assert.NotContains(t, page, "No copies are made now", "the gateway copies until the first relay is ready")
		assert.Equal(t, `value="network" selected value="stop" selected`, changed())
		for _, loss := range []string{"home", "stop"} {
			status, to = b.form(t, "/account/premises/"+cabin[1], "onRelayLoss", loss)
			require.Equal(t, http.StatusSeeOther, status, to)
		}
		_, page = b.get(t, to)
		assert.Contains(t, page, "No copies are made now: no relay is there.")
		status, page = b.form(t, "/account/premises/"+cabin[1], "fanout", "moon")
		assert.Equal(t, http.StatusBadRequest, status)
		assert.Contains(t, page, "Where copies are made: Give one of: home network")
		status, _ = b.form(t, "/account/premises/"+cabin[1]+"/remove")
		assert.Equal(t, http.StatusSeeOther, status)
		status, page = b.form(t, "/account/premises/"+string(h.home.premises)+"/remove")
		assert.Equal(t, http.StatusConflict, status)
		assert.Contains(t, page, "Remove them first.")
		status, _ = b.form(t, "/account/devices/"+h.home.camera.String(), "name", "Porch", "trigger", "source")
		assert.Equal(t, http.StatusSeeOther, status)
		d := object(t, s.do(t, http.MethodGet, "/v1/devices/"+h.home.camera.String(), "", "Cookie", h.cookie))
		assert.Equal(t, "Porch", d["name"])
		assert.Equal(t, "source", d["trigger"])
		status, to = b.form(t, "/account/links", "serviceId", string(h.service))
		assert.Equal(t, http.StatusSeeOther, status, to)
		_, page = b.get(t, "/account")
		assert.NotContains(t, page, "It may only use", "this consent has no limits")
		r := s.do(t, http.MethodPut, "/v1/account/services/"+string(h.service), fmt.Sprintf(
			`{"scopes":["gc:register"],"premises":[%q],"expiresAt":"2087-03-01T10:00:00Z"}`, h.home.premises), "Cookie", h.cookie)
		require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
		_, page = b.get(t, "/account")
		assert.Contains(t, page, "<br>It may only use gc:register.<br>Only at home.<br>It ends on 1 March 2087 at 10:00 UTC.<")
		status, to = b.form(t, "/account/password", "oldPassword", goodPassword, "newPassword", "four other words it is")
		assert.Equal(t, http.StatusSeeOther, status, to)
		s.login(t, "smith", "four other words it is")
	})
}

// TestStaleSessionAtThePages lets the session grow old: what is dangerous asks for the password, and goes on where it was.
func TestStaleSessionAtThePages(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	b := browser{service: s, cookie: s.user(t, h, "anna")}
	s.advance(t, users.Fresh+time.Second)
	remove := "/account/devices/" + h.phone.String() + "/remove"
	status, page := b.form(t, remove)
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, page, "remove a device")
	assert.Contains(t, page, `action="`+remove+`"`)
	status, page = b.form(t, "/account/links", "serviceId", "svc-smith")
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, page, `name="serviceId" value="svc-smith"`)
	status, page = b.form(t, remove, "password", "not the right words")
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, page, "The password is wrong.")
	assert.NotContains(t, page, "not the right words")
	status, _ = b.get(t, "/account")
	assert.Equal(t, http.StatusOK, status, "looking needs no password")
	require.Eventually(t, func() bool {
		status, _ = b.form(t, remove, "password", goodPassword)
		return status == http.StatusSeeOther
	}, waitLong, waitStep)
	assert.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.phoneToken).StatusCode)
	status, _ = b.form(t, "/account/devices/"+h.camera2.String()+"/remove")
	assert.Equal(t, http.StatusSeeOther, status, "fresh again")
}

// TestAttackApproveWithAStaleSession is row 3 of the threat model at the page: an approval of what asks from another network, or in an old
// session, needs the password.
func TestAttackApproveWithAStaleSession(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--trusted-proxies", "127.0.0.1"))
	h := s.home(t, "Smith")
	b := browser{service: s, cookie: s.user(t, h, "anna"), from: "198.51.100.7"}
	approve := func(code string, more ...string) (int, string) {
		return b.form(t, "/device/decision", append([]string{"user_code", code, "decision", "approve", "premisesId", string(h.premises), "name", "porch"}, more...)...)
	}
	waits := func(code string) bool {
		status, page := b.form(t, "/device", "user_code", strings.ToLower(strings.ReplaceAll(code, "-", " ")))
		if status == http.StatusOK {
			assert.Contains(t, page, "M&lt;1&gt;")
			assert.Contains(t, page, "0042")
			assert.Contains(t, page, code)
			assert.Contains(t, page, "join the groups of your account")
		}
		return status == http.StatusOK
	}

	near := s.asks(t, "198.51.100.200")
	require.True(t, waits(near))
	status, to := approve(near)
	require.Equal(t, http.StatusSeeOther, status, "one tap at home: %s", to)
	assert.Equal(t, "/device?done=approve", to)
	assert.False(t, waits(near), "a code is good once")

	far := s.asks(t, "203.0.113.77")
	status, page := b.form(t, "/device", "user_code", far)
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, page, "203.0.113.0/24")
	assert.NotContains(t, page, "203.0.113.77")
	assert.Contains(t, page, "It asks from another network than yours.")
	for _, more := range [][]string{nil, {"password", ""}, {"password", "not the right words"}} {
		status, page := approve(far, more...)
		assert.Equal(t, http.StatusForbidden, status)
		assert.Contains(t, page, `role="alert"`)
		assert.Contains(t, page, `name="password"`)
		require.True(t, waits(far), "it goes on waiting")
	}
	require.Eventually(t, func() bool { status, _ := approve(far, "password", goodPassword); return status == http.StatusSeeOther }, waitLong, waitStep)

	s.advance(t, users.Fresh+time.Second)
	old := s.asks(t, "198.51.100.200")
	status, page = approve(old)
	assert.Equal(t, http.StatusForbidden, status)
	assert.Contains(t, page, "You logged in a while ago.")
	require.True(t, waits(old))
	status, to = b.form(t, "/device/decision", "user_code", old, "decision", "refuse")
	assert.Equal(t, http.StatusSeeOther, status, "whoever refuses needs none")
	assert.Equal(t, "/device?done=refuse", to)
}

// TestAnAppAtTheApprovalPage is something that would act for the person: it has no place, and the page says what it is.
func TestAnAppAtTheApprovalPage(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	s.invited(t, "", "anna")
	b := browser{service: s, cookie: s.login(t, "anna", goodPassword)}
	begin := func(fields url.Values) string {
		r := s.do(t, http.MethodPost, "/oauth/device_authorization", fields.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		require.Equal(t, http.StatusOK, r.StatusCode)
		return object(t, r)["user_code"].(string)
	}
	_, page := b.form(t, "/device", "user_code", begin(url.Values{"client_id": {"gc-device"}}))
	assert.Contains(t, page, "You have no premises yet")
	assert.NotContains(t, page, `value="approve"`)
	app := begin(url.Values{"client_id": {"gc-app"}, "scope": {"gc:groups"}})
	_, page = b.form(t, "/device", "user_code", app)
	assert.Contains(t, page, "An app, which would act in your name")
	assert.Contains(t, page, "see who receives what")
	assert.NotContains(t, page, "rename your devices", "it didn't ask for that")
	assert.NotContains(t, page, "Where it is")
	for _, decision := range []string{"", "maybe"} {
		status, _ := b.form(t, "/device/decision", "user_code", app, "decision", decision)
		assert.Equal(t, http.StatusBadRequest, status)
	}
	status, page := b.form(t, "/device/decision", "user_code", app, "decision", "approve", "name", strings.Repeat("x", 65))
	assert.Equal(t, http.StatusBadRequest, status)
	assert.Contains(t, page, "longer than 64")
	status, page = b.form(t, "/device/decision", "user_code", app, "decision", "approve", "account", "a_other")
	assert.Equal(t, http.StatusBadRequest, status, "what no form of ours has")
	assert.Contains(t, page, "There is no such field here")
	status, to := b.form(t, "/device/decision", "user_code", app, "decision", "approve")
	assert.Equal(t, http.StatusSeeOther, status, to)
}

// TestAttackGuessingUserCodes is row 5 of the threat model at the page, and that a link can't use up somebody's tries.
func TestAttackGuessingUserCodes(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.home(t, "Smith")
		b := browser{service: s, cookie: s.user(t, h, "anna")}
		code := s.asks(t, "127.0.0.1")
		for range 20 {
			status, page := b.get(t, "/device?user_code=BBBB-BBBB")
			assert.Equal(t, http.StatusOK, status)
			assert.Contains(t, page, `value="BBBB-BBBB"`)
		}
		_, page := b.get(t, "/device?user_code="+url.QueryEscape(`"><script>`))
		assert.NotContains(t, page, "<script")
		hits, wrong, limited := 0, 0, 0
		for i := range 1000 {
			guess := fmt.Sprintf("BBBB-BB%c%c", "BCDFGHJKLMNPQRSTVWXZ"[i/20%20], "BCDFGHJKLMNPQRSTVWXZ"[i%20])
			path, fields := "/device", []string{"user_code", guess}
			if i%2 == 1 {
				path, fields = "/device/decision", []string{"user_code", guess, "decision", "approve", "premisesId", string(h.premises)}
			}
			switch status, _ := b.form(t, path, fields...); status {
			case http.StatusNotFound:
				wrong++
			case http.StatusTooManyRequests:
				limited++
			default:
				hits++
			}
			if limited == 50 {
				break
			}
		}
		assert.Zero(t, hits)
		assert.Equal(t, devicegrant.MaxWrong, wrong)
		assert.Equal(t, 50, limited)
		r := b.send(t, http.MethodPost, "/device", "user_code="+code, "Content-Type", "application/x-www-form-urlencoded")
		assert.Equal(t, http.StatusTooManyRequests, r.StatusCode, "even the right one")
		assert.NotEmpty(t, r.Header.Get("Retry-After"))
		s.invited(t, h.account, "berta")
		b.cookie = s.login(t, "berta", goodPassword)
		status, _ := b.form(t, "/device", "user_code", code)
		assert.Equal(t, http.StatusOK, status, "others of the household go on")
	}, "--rate-limit-source", "0", "--rate-limit-principal", "0")
}

func TestPagesAreLimited(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--rate-limit-source", "500", "--rate-limit-principal", "5"))
	b := browser{service: s, cookie: s.user(t, s.home(t, "Smith"), "anna")}
	var r *http.Response
	for range 6 {
		r = b.send(t, http.MethodGet, "/account", "")
	}
	assert.Equal(t, http.StatusTooManyRequests, r.StatusCode)
	assert.NotEmpty(t, r.Header.Get("Retry-After"))
	assert.Contains(t, text(t, r), "Too many tries")
}
