package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/daemon"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/tokens"
)

// expired makes, before the service starts, a device of the account with a token that its issuer minted two days ago.
func expired(t *testing.T, dir string) string {
	t.Helper()
	cfg := settings(t, dir)
	st, err := daemon.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, st.Close()) }()
	require.NoError(t, st.Migrate(t.Context()))
	kek, err := keys.LoadOrCreateKEK(cfg.KEKFile())
	require.NoError(t, err)
	ring, err := keys.Load(t.Context(), st, kek, keys.Options{})
	require.NoError(t, err)
	service := accounts.New(st, models.Quotas{})
	a, err := service.CreateAccount(context.Background(), "old")
	require.NoError(t, err)
	p, err := service.CreatePremises(context.Background(), a.ID, "old", false)
	require.NoError(t, err)
	d, err := service.CreateDevice(context.Background(), accounts.NewDevice{PremisesID: p.ID, Type: models.DeviceCamera, Name: "old"})
	require.NoError(t, err)
	token, err := tokens.NewIssuer(cfg.PublicURL, ring, func() time.Time { return time.Now().Add(-48 * time.Hour) }).Device(d, tokens.Grant{Life: time.Hour})
	require.NoError(t, err)
	return token
}

// chunked hides the length of a body from the client, which then sends chunks.
type chunked struct{ *strings.Reader }

// TestBadInput is the list of everything that callers do wrong: each has its status, its problem, and a detail that says what to do.
func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	expiredToken := expired(t, dir)
	s := start(t, settings(t, dir))
	foreign := start(t, settings(t, dataDir(t))) // another installation with the same public URL
	h, other := s.home(t, "Smith"), s.home(t, "Jones")
	foreignToken := foreign.home(t, "Smith").cameraToken

	groupIP := s.source(t, h, "door")
	otherIP := s.source(t, other, "garage")
	otherRegistration := s.join(t, other, "garage", otherIP, "")
	removed := s.home(t, "Brown")
	r, err := s.admin.DeleteDeviceWithResponse(t.Context(), removed.phone)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, r.StatusCode())
	// The second camera takes the second and last group IP.
	status, body := s.post(t, h.camera2Token, `{"type":"Device","id":"%s","destination":false,"privateIPv4":"192.168.1.6","publicIPv4":"203.0.113.1","groupName":"yard"}`, h.camera2)
	require.Equal(t, http.StatusOK, status, "%v", body)
	yardIP := body["groupIP"].(string)

	const route = "/v1/registrations"
	camera := func(members string) string {
		return fmt.Sprintf(`{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"publicIPv4":"203.0.113.1","groupName":"door"%s}`, h.camera, cameraAddr, members)
	}
	withID := func(id string) string { return strings.Replace(camera(""), `"`+h.camera.String()+`"`, id, 1) }
	upload := func(id models.ID, group, ip string) string {
		return fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":%q,"groupIP":%q}`, id, group, ip)
	}
	phone := func(group, ip string) string {
		return fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"publicIPv4":"71.230.36.162","groupName":%q,"groupIP":%s}`, h.phone, group, ip)
	}
	cam := "Bearer " + h.cameraToken
	const idDetail = "Give a decimal number from 1 to 9223372036854775807, without sign, leading zero, point and exponent."

	cases := []struct {
		name   string
		method string // POST if empty
		path   string // /v1/registrations if empty
		auth   []string
		body   string
		chunks bool
		media  string // application/json if empty
		status int
		code   models.Code
		// detail is a part of the detail, and pointer that of the only fault.
		detail, pointer string
	}{
		// The body as such.
		{name: "bad JSON", body: `{"type":`, status: 400, code: models.CodeBadRequest, detail: "The body is not JSON: it ends too early."},
		{name: "not JSON at all", body: `type=Device`, status: 400, code: models.CodeBadRequest, detail: "The body is not JSON"},
		{name: "no body", body: "", status: 400, code: models.CodeBadRequest, detail: "A JSON body is needed."},
		{name: "an array", body: `[]`, status: 400, code: models.CodeBadRequest, detail: "Give a JSON object."},
		{name: "trailing data", body: camera("") + "{}", status: 400, code: models.CodeBadRequest, detail: "send exactly one JSON object"},
		{name: "duplicate member", body: camera(`,"groupName":"door"`), status: 400, code: models.CodeBadRequest, detail: "This member stands twice; send it once.", pointer: "/groupName"},
		{name: "unknown member", body: camera(`,"groupname":"door"`), status: 400, code: models.CodeBadRequest, detail: "There is no such member here; leave it out.", pointer: "/groupname"},
		{name: "missing member", body: strings.Replace(camera(""), `,"groupName":"door"`, "", 1), status: 400, code: models.CodeBadRequest, detail: "This member is required.", pointer: "/groupName"},
		{name: "deep nesting", body: camera(`,"name":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000)), status: 400, code: models.CodeBadRequest, detail: "nested deeper than 32 levels", pointer: "/name/0/0/0"},
		{name: "control character", body: camera(`,"name":"a\u0000b"`), status: 400, code: models.CodeBadRequest, detail: "Leave out control characters.", pointer: "/name"},
		{name: "too large, declared", body: camera(`,"name":"` + strings.Repeat("x", 20000) + `"`), status: 413, code: models.CodeTooLarge, detail: "The body is larger than 16384 bytes. Send only"},
		{name: "too large, chunked", body: camera(`,"name":"` + strings.Repeat("x", 20000) + `"`), chunks: true, status: 413, code: models.CodeTooLarge, detail: "The body is larger than 16384 bytes. Send only"},
		{name: "wrong media type", body: camera(""), media: "text/plain", status: 415, code: models.CodeUnsupportedMedia, detail: "send it with Content-Type: application/json"},
		{name: "a form", body: "type=Device", media: "application/x-www-form-urlencoded", status: 415, code: models.CodeUnsupportedMedia, detail: "send it with Content-Type: application/json"},

		// Its members.
		{name: "id 0", body: withID(`"0"`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id 0 as a number", body: withID(`0`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "negative id", body: withID(`-664123086043511412`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id with a point", body: withID(`664123086043511412.0`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id with an exponent", body: withID(`6.64e17`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id with a leading zero", body: withID(`"0664123086043511412"`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id with a leading zero as a number", body: withID(`0664`), status: 400, code: models.CodeBadRequest, detail: "The body is not JSON"},
		{name: "id above int64", body: withID(`9223372036854775808`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id above int64 as a string", body: withID(`"9223372036854775808"`), status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "/id"},
		{name: "id null", body: withID(`null`), status: 400, code: models.CodeBadRequest, detail: "It can't be null.", pointer: "/id"},
		{name: "wrong type", body: strings.Replace(camera(""), `"destination":false`, `"destination":"false"`, 1), status: 400, code: models.CodeBadRequest, detail: "Give true or false.", pointer: "/destination"},
		{name: "not in the enum", body: strings.Replace(camera(""), `"type":"Device"`, `"type":"Camera"`, 1), status: 400, code: models.CodeBadRequest, detail: "Give one of: Device Service.", pointer: "/type"},
		{name: "not an address", body: strings.Replace(camera(""), cameraAddr, "192.168.1.500", 1), status: 400, code: models.CodeBadRequest, detail: "Give an IPv4 address", pointer: "/privateIPv4"},
		{name: "IPv4 where IPv6 belongs", body: camera(`,"IPv6":"192.168.1.5"`), status: 400, code: models.CodeBadRequest, detail: "Give an IPv6 address", pointer: "/IPv6"},
		{name: "port out of range", body: camera(`,"port":65536`), status: 400, code: models.CodeBadRequest, detail: "Give an integer from 1 to 65535.", pointer: "/port"},
		{name: "TTL with a fraction", body: camera(`,"TTLs":3600.5`), status: 400, code: models.CodeBadRequest, detail: "without point and exponent", pointer: "/TTLs"},
		{name: "group name with a space", body: strings.Replace(camera(""), `"door"`, `"front door"`, 1), status: 400, code: models.CodeBadRequest, detail: "matches ^[A-Za-z0-9]", pointer: "/groupName"},
		{name: "name too long", body: camera(`,"name":"` + strings.Repeat("x", 65) + `"`), status: 400, code: models.CodeBadRequest, detail: "0 to 64 characters", pointer: "/name"},

		// Who is calling.
		{name: "no token", auth: []string{}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: `send it as "Authorization: Bearer TOKEN"`},
		{name: "empty token", auth: []string{"Bearer "}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: `send "Authorization: Bearer TOKEN"`},
		{name: "unknown scheme", auth: []string{"Basic dXNlcjpwYXNz"}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: `send "Authorization: Bearer TOKEN"`},
		{name: "no token but a word", auth: []string{"please"}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "holds no token"},
		{name: "two tokens", auth: []string{cam, cam}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "send exactly one"},
		{name: "expired token", auth: []string{"Bearer " + expiredToken}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "The access token has expired: get a new one."},
		{name: "foreign token", auth: []string{"Bearer " + foreignToken}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "Get one from this service."},
		{name: "damaged token", auth: []string{cam[:len(cam)-3]}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "Get one from this service."},
		{name: "token of a removed device", auth: []string{"Bearer " + removed.phoneToken}, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "Enrol it again."},
		{name: "token in the query", auth: []string{}, path: route + "?access_token=" + h.cameraToken, body: camera(""), status: 401, code: models.CodeUnauthenticated, detail: "send it as"},
		{name: "a gateway registers", auth: []string{"Bearer " + h.gatewayToken}, body: camera(""), status: 403, code: models.CodeForbidden, detail: "A gateway may not do this; it is for: device, service."},
		{name: "a service reads group information", auth: []string{h.uploadToken}, method: "GET", path: "/v1/gateways/" + h.gateway.String() + "/groups", status: 403, code: models.CodeForbidden, detail: "it is for: gateway."},
		{name: "id of another device", body: withID(`"` + h.camera2.String() + `"`), status: 403, code: models.CodeContradictsToken, detail: "token"},
		{name: "another gateway's group information", auth: []string{"Bearer " + h.gatewayToken}, method: "GET", path: "/v1/gateways/" + other.gateway.String() + "/groups", status: 404, code: models.CodeNotFound, detail: "or it is not yours"},
		{name: "a gateway that is none", auth: []string{"Bearer " + h.gatewayToken}, method: "GET", path: "/v1/gateways/5/groups", status: 404, code: models.CodeNotFound, detail: "or it is not yours"},
		{name: "somebody else's registration", auth: []string{"Bearer " + h.uploadToken}, method: "DELETE", path: route + "/" + otherRegistration, status: 404, code: models.CodeNotFound, detail: "or it is not yours"},
		{name: "somebody else's service account id", auth: []string{h.uploadToken}, body: upload(other.upload, "garage", otherIP), status: 404, code: models.CodeNotFound, detail: "or it is not yours"},

		// Where to.
		{name: "unknown route", method: "GET", path: "/v1/cameras", status: 404, code: models.CodeUnknownRoute, detail: "/openapi.yaml"},
		{name: "trailing slash", method: "GET", path: route + "/", status: 404, code: models.CodeUnknownRoute, detail: "/openapi.yaml"},
		{name: "unknown version", path: "/v2/registrations", body: camera(""), status: 404, code: models.CodeUnknownRoute, detail: "/openapi.yaml"},
		{name: "wrong method", method: "PUT", body: camera(""), status: 405, code: models.CodeMethodNotAllowed, detail: "it has: GET, POST."},
		{name: "the operator's interface", auth: []string{}, path: "/admin/accounts", body: `{"name":"x"}`, status: 404, code: models.CodeUnknownRoute, detail: "No operation has this path."},
		{name: "undeclared query parameter", method: "GET", path: route + "?limit=5", status: 400, code: models.CodeBadRequest, detail: "There is no such query parameter here; leave it out.", pointer: "limit"},
		{name: "query parameter of a POST", path: route + "?groupName=door", body: camera(""), status: 400, code: models.CodeBadRequest, detail: "leave it out", pointer: "groupName"},
		{name: "repeated query parameter", method: "GET", path: route + "?pageSize=5&pageSize=6", status: 400, code: models.CodeBadRequest, detail: "send it once", pointer: "pageSize"},
		{name: "query parameter out of bounds", method: "GET", path: route + "?pageSize=501", status: 400, code: models.CodeBadRequest, detail: "Give an integer from 1 to 500.", pointer: "pageSize"},
		{name: "page token of nobody", method: "GET", path: route + "?pageToken=abc", status: 400, code: models.CodeBadRequest, detail: "Leave it out to start with the first page."},
		{name: "a wait too long", auth: []string{"Bearer " + h.gatewayToken}, method: "GET", path: "/v1/gateways/" + h.gateway.String() + "/groups?wait=51", status: 400, code: models.CodeBadRequest, detail: "Give an integer from 0 to 50.", pointer: "wait"},
		{name: "malformed id in the path", method: "GET", path: route + "/1", status: 400, code: models.CodeBadRequest, detail: "matches ^r_", pointer: "registrationId"},
		{name: "id above int64 in the path", auth: []string{"Bearer " + h.gatewayToken}, method: "GET", path: "/v1/gateways/9223372036854775808", status: 400, code: models.CodeBadRequest, detail: idDetail, pointer: "gatewayId"},
		{name: "malformed query", method: "GET", path: route + "?a=%zz", status: 400, code: models.CodeBadRequest, detail: "percent-encode"},
		{name: "a body where none belongs", method: "GET", body: `{}`, status: 400, code: models.CodeBadRequest, detail: "This operation takes no body; leave it out."},

		// The rules of the domain.
		{name: "group IP of another group", body: camera(`,"groupIP":"` + yardIP + `"`), status: 409, code: models.CodeGroupIPMismatch, detail: "groupIP"},
		{name: "group IP of another account's group", auth: []string{h.uploadToken}, body: upload(h.upload, "garage", otherIP), status: 404, code: models.CodeNotFound, detail: "or it is not yours"},
		{name: "service with the right name and a wrong group IP", auth: []string{h.uploadToken}, body: upload(h.upload, "door", "192.168.1.99"), status: 404, code: models.CodeNotFound, detail: "or it is not yours"},
		{name: "destination of no group", auth: []string{"Bearer " + h.phoneToken}, body: phone("attic", "null"), status: 404, code: models.CodeNotFound, detail: "group"},
		{name: "destination with another group IP", auth: []string{"Bearer " + h.phoneToken}, body: phone("door", `"192.168.1.99"`), status: 409, code: models.CodeGroupIPMismatch, detail: "groupIP"},
		{name: "pool exhausted", body: strings.Replace(camera(""), `"door"`, `"third"`, 1), status: 409, code: models.CodePoolExhausted, detail: "group IP"},
		{name: "taken group IP", body: strings.Replace(camera(`,"groupIP":"`+groupIP+`"`), `"door"`, `"third"`, 1), status: 409, code: models.CodeGroupIPTaken, detail: "groupIP"},
		{name: "another LAN", body: strings.Replace(camera(""), cameraAddr, "10.0.0.5", 1), status: 409, code: models.CodeWrongLAN, detail: "LAN"},
		{name: "a source without an address", body: strings.Replace(camera(""), `"`+cameraAddr+`"`, "null", 1), status: 422, code: models.CodeNoUsableAddress, detail: "privateIPv4"},
		{name: "a loopback address", auth: []string{h.uploadToken}, body: strings.Replace(upload(h.upload, "door", groupIP), "96.114.14.140", "127.0.0.9", 1), status: 422, code: models.CodeBadAddress, detail: "publicIPv4 is 127.0.0.9"},
		{name: "a range outside the LAN", auth: []string{"Bearer " + h.gatewayToken}, method: "PUT", path: "/v1/gateways/" + h.gateway.String(), body: strings.Replace(declaration, "192.168.1.230-192.168.1.231", "192.168.2.230-192.168.2.231", 1), status: 422, code: models.CodeBadRange, detail: "must lie within 192.168.1.0/24"},
	}

	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.method == "" {
				c.method = http.MethodPost
			}
			if c.path == "" {
				c.path = route
			}
			if c.auth == nil {
				c.auth = []string{cam}
			}
			if c.media == "" {
				c.media = "application/json"
			}
			req, err := http.NewRequestWithContext(t.Context(), c.method, s.base()+c.path, strings.NewReader(c.body))
			if c.chunks {
				req, err = http.NewRequestWithContext(t.Context(), c.method, s.base()+c.path, chunked{strings.NewReader(c.body)})
			}
			require.NoError(t, err)
			if c.body != "" {
				req.Header.Set("Content-Type", c.media)
			}
			req.Header["Authorization"] = c.auth
			r, err := s.client.Do(req)
			require.NoError(t, err)
			defer r.Body.Close()
			require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
			d := object(t, r)
			assert.Equal(t, c.status, r.StatusCode, "%v", d)
			assert.EqualValues(t, r.StatusCode, d["status"])
			assert.Equal(t, "/problems/"+string(c.code), d["type"])
			assert.Contains(t, d["detail"], c.detail)
			assert.Equal(t, r.Header.Get("X-Request-Id"), d["instance"])
			assert.Equal(t, c.status == 401, r.Header.Get("WWW-Authenticate") != "")
			if c.pointer != "" {
				faults := d["errors"].([]any)
				require.Len(t, faults, 1, "%v", faults)
				assert.Equal(t, c.pointer, faults[0].(map[string]any)["pointer"])
			}
			if c.status == 405 {
				assert.Equal(t, "GET, POST", r.Header.Get("Allow"))
			}
			// The type leads to a page, and the contract says that the operation may answer so.
			page := s.do(t, http.MethodGet, d["type"].(string), "")
			assert.Equal(t, http.StatusOK, page.StatusCode)
			assert.Contains(t, text(t, page), "# "+string(c.code))
			if op := operationOf(doc, c.method, c.path); op != nil {
				assert.Contains(t, op.Extensions["x-gc-problems"], string(c.code), "x-gc-problems of %s", op.OperationID)
			}
		})
	}
	assert.GreaterOrEqual(t, len(cases), 20)

	// Nothing of what was refused has changed anything.
	list := object(t, s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", cam))
	var names []string
	for _, g := range list["groups"].([]any) {
		names = append(names, g.(map[string]any)["groupName"].(string))
		assert.EqualValues(t, 0, g.(map[string]any)["state"])
	}
	slices.Sort(names)
	assert.Equal(t, []string{"door", "yard"}, names)
	for _, secret := range []string{h.cameraToken, expiredToken, foreignToken, h.uploadToken, "96.114.14.140", "71.230.36.162"} {
		assert.NotContains(t, s.log.String(), secret, "a token or an address is in the log")
	}
}

// operationOf finds the operation that a request means, nil if there is none.
func operationOf(doc *openapi3.T, method, path string) *openapi3.Operation {
	path, _, _ = strings.Cut(path, "?")
	for template, item := range doc.Paths.Map() {
		want, got := strings.Split(template, "/"), strings.Split(path, "/")
		if len(want) != len(got) {
			continue
		}
		same := true
		for i := range want {
			same = same && (want[i] == got[i] || strings.HasPrefix(want[i], "{") && got[i] != "")
		}
		if same {
			return item.GetOperation(method)
		}
	}
	return nil
}

// TestBadInputOfTheOperator shows that the socket has the same edge.
func TestBadInputOfTheOperator(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	h := s.home(t, "Smith")
	for _, c := range []struct {
		name, body string
		send       func(body string) (*http.Response, error)
		status     int
		code       models.Code
		detail     string
	}{
		{"bad JSON", `{`, nil, 400, models.CodeBadRequest, "ends too early"},
		{"unknown member", `{"name":"x","x":1}`, nil, 400, models.CodeBadRequest, "leave it out"},
		{"empty name", `{"name":""}`, nil, 400, models.CodeBadRequest, "1 to 64 characters"},
		{"too large", `{"name":"` + strings.Repeat("x", 20000) + `"}`, nil, 413, models.CodeTooLarge, "16384"},
		{"unknown account", `{"accountId":"a_00000000000000000000000000","name":"x"}`, func(b string) (*http.Response, error) {
			return s.admin.CreatePremisesWithBody(t.Context(), nil, "application/json", strings.NewReader(b))
		}, 404, models.CodeNotFound, "account"},
		{"a device twice", fmt.Sprintf(`{"premisesId":%q,"deviceId":%s,"type":"camera","name":"x"}`, h.premises, h.camera), func(b string) (*http.Response, error) {
			return s.admin.CreateDeviceWithBody(t.Context(), nil, "application/json", strings.NewReader(b))
		}, 409, models.CodeAlreadyExists, "id"},
		{"no change", `{}`, func(b string) (*http.Response, error) {
			return s.admin.ChangeDeviceWithBody(t.Context(), h.camera, "application/json", strings.NewReader(b))
		}, 400, models.CodeBadRequest, "at least one member"},
		{"a token for two", fmt.Sprintf(`{"deviceId":%s,"serviceId":"svc-smith"}`, h.camera), func(b string) (*http.Response, error) {
			return s.admin.CreateTokenWithBody(t.Context(), "application/json", strings.NewReader(b))
		}, 400, models.CodeBadRequest, "exactly one"},
		{"a token for too long", fmt.Sprintf(`{"deviceId":%s,"lifetimeSeconds":86401}`, h.camera), func(b string) (*http.Response, error) {
			return s.admin.CreateTokenWithBody(t.Context(), "application/json", strings.NewReader(b))
		}, 400, models.CodeBadRequest, "from 1 to 86400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			send := c.send
			if send == nil {
				send = func(b string) (*http.Response, error) {
					return s.admin.CreateAccountWithBody(t.Context(), nil, "application/json", strings.NewReader(b))
				}
			}
			r, err := send(c.body)
			require.NoError(t, err)
			defer r.Body.Close()
			d := object(t, r)
			assert.Equal(t, c.status, r.StatusCode, "%v", d)
			assert.Equal(t, "/problems/"+string(c.code), d["type"])
			assert.Contains(t, d["detail"], c.detail)
		})
	}
	life := int32(60)
	token, err := s.admin.CreateTokenWithResponse(t.Context(), adminapi.TokenRequest{DeviceID: &h.camera, LifetimeSeconds: &life})
	require.NoError(t, err)
	require.NotNil(t, token.JSON200, "%s", token.Body)
	assert.EqualValues(t, 60, token.JSON200.ExpiresIn)
	assert.NotContains(t, s.log.String(), token.JSON200.AccessToken)
}
