package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// subject is a caller of the matrix.
type subject struct {
	name, kind, token string
	// household is the account; service and devices of different ones know nothing of each other.
	household int
	// id and member are what it registers as; a gateway doesn't.
	id, member string
	camera     bool
	// objects are the values of path parameters that name something of its own.
	objects map[string]string
}

// matrix is a service with two accounts that look alike, and an installation elsewhere that looks like both.
type matrix struct {
	*harness.Server
	subjects []*subject
	// groupIPs has the group IP of each account's group.
	groupIPs [2]string
	changed  bool
}

const matrixGroup = "porch"

func newMatrix(t *testing.T, databaseURL string) *matrix {
	t.Helper()
	m := &matrix{Server: harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--log-level", "warn"}}), changed: true}
	m.subjects = append(m.subjects, &subject{name: "anonymous"})
	elsewhere := harness.StartServer(t, harness.Options{})
	for household := range 2 {
		account := m.Account(t, fmt.Sprint("household ", household))
		home, cabin := m.Premises(t, account, "home", false), m.Premises(t, account, "cabin", false)
		foreignHome := elsewhere.Premises(t, elsewhere.Account(t, fmt.Sprint("household ", household)), "home", false)
		off := false
		device := func(name string, kind models.DeviceType, premises models.PremisesID) *subject {
			id := m.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: name, Pop: &off})
			s := &subject{
				name: fmt.Sprintf("%s %d", name, household), kind: "device", token: m.DeviceToken(t, id), household: household,
				id: id.String(), member: "Device", camera: kind == models.DeviceCamera, objects: map[string]string{},
			}
			if kind == models.DeviceGateway {
				s.kind, s.member, s.objects["gatewayId"] = "gateway", "", s.id
				m.declare(t, s)
			}
			// The other installation knows a device of the same id.
			elsewhere.Device(t, foreignHome, adminapi.DeviceRequest{DeviceID: &id, Type: kind, Name: name, Pop: &off})
			m.subjects = append(m.subjects, s, &subject{name: "another installation's " + s.name, token: elsewhere.DeviceToken(t, id)})
			return s
		}
		device("gateway", models.DeviceGateway, home)
		device("gateway of the cabin", models.DeviceGateway, cabin)
		device("camera", models.DeviceCamera, home)
		device("phone", models.DevicePhone, home)
		service := models.ServiceID(fmt.Sprint("svc-", household))
		m.Service(t, service, string(service))
		elsewhere.Service(t, service, string(service))
		m.subjects = append(m.subjects, &subject{
			name: string(service), kind: "service", token: m.ServiceToken(t, service), household: household,
			id: m.Link(t, service, account, 0).String(), member: "Service", objects: map[string]string{},
		}, &subject{name: "another installation's " + string(service), token: elsewhere.ServiceToken(t, service)})
	}
	return m
}

func (m *matrix) declare(t *testing.T, gateway *subject) {
	t.Helper()
	status, body := m.call(t, gateway, http.MethodPut, "/v1/gateways/"+gateway.id, "application/json", encode(matrixValues))
	require.Equal(t, 200, status, body)
}

// matrixValues are members of bodies that mean the same for everybody.
var matrixValues = map[string]any{
	"lanPrefix": "192.168.1.0/24", "gatewayIPv4": "192.168.1.1", "uplinkIPv4": "203.0.113.1", "groupRange": "192.168.1.230-192.168.1.239",
}

// restore registers everybody again, so that everything that a path can name exists.
func (m *matrix) restore(t *testing.T) {
	t.Helper()
	if !m.changed {
		return
	}
	m.changed = false
	register := func(s *subject) {
		status, body := m.call(t, s, http.MethodPost, "/v1/registrations", "application/json", encode(m.registration(s)))
		require.Equal(t, 200, status, "%s: %s", s.name, body)
		var a api.RegistrationAnswer
		require.NoError(t, json.Unmarshal([]byte(body), &a))
		s.objects["registrationId"], m.groupIPs[s.household] = string(*a.RegistrationID), a.GroupIP.String()
	}
	for _, camera := range []bool{true, false} { // the group begins with its source
		for _, s := range m.subjects {
			if s.member != "" && s.camera == camera {
				register(s)
			}
		}
	}
	for _, s := range m.subjects {
		if s.kind == "" {
			continue
		}
		status, body := m.call(t, s, http.MethodGet, "/v1/groups", "", nil)
		require.Equal(t, 200, status, body)
		var page api.GroupPage
		require.NoError(t, json.Unmarshal([]byte(body), &page))
		if strings.HasPrefix(s.name, "gateway of the cabin") {
			require.Empty(t, page.Groups, s.name)
			continue
		}
		require.Len(t, page.Groups, 1, s.name)
		s.objects["groupId"] = string(page.Groups[0].GroupID)
	}
}

// registration is the body with which a subject registers.
func (m *matrix) registration(s *subject) map[string]any {
	b := map[string]any{"type": s.member, "id": s.id, "destination": !s.camera, "groupName": matrixGroup}
	if s.camera {
		b["privateIPv4"], b["publicIPv4"] = "192.168.1.5", "203.0.113.1"
	} else {
		b["publicIPv4"], b["groupIP"] = fmt.Sprint("96.114.14.", 140+s.household), m.groupIPs[s.household]
	}
	return b
}

func (m *matrix) call(t *testing.T, s *subject, method, path, media string, body []byte) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, m.URL+path, strings.NewReader(string(body)))
	require.NoError(t, err)
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := m.HTTP.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// matrixRequest gives a path and a body that fit the contract, as the owner of the object would send them. Nothing in it is known by
// operation, so that a new one is covered by what the contract says; what the contract doesn't say fails the test.
func (o *operation) matrixRequest(t *testing.T, m *matrix, owner *subject, objects map[string]string) (path, media string, body []byte) {
	t.Helper()
	path = o.route.Path
	for _, p := range o.parameters() {
		switch {
		case p.In == "path":
			require.NotEmpty(t, objects[p.Name], "%s: the test knows no %s: give its subjects one", o.OperationID, p.Name)
			path = strings.ReplaceAll(path, "{"+p.Name+"}", url.PathEscape(objects[p.Name]))
		case p.Required:
			require.Fail(t, "no way to call it", "%s wants the %s parameter %s", o.OperationID, p.In, p.Name)
		}
	}
	if o.RequestBody == nil {
		return path, "", nil
	}
	require.Len(t, o.RequestBody.Value.Content, 1, "%s: more than one form of the body", o.OperationID)
	for name, content := range o.RequestBody.Value.Content {
		names := slices.Sorted(maps.Keys(content.Examples))
		require.NotEmpty(t, names, "%s has no example of a body, so the test can't call it", o.OperationID)
		members := maps.Clone(content.Examples[names[0]].Value.Value.(map[string]any))
		media = name
		if media == "application/x-www-form-urlencoded" {
			form := url.Values{}
			for k, v := range members {
				form.Set(k, fmt.Sprint(v))
			}
			return path, media, []byte(form.Encode())
		}
		for k := range members {
			if v, ok := matrixValues[k]; ok {
				members[k] = v
			}
		}
		if _, registers := members["destination"]; registers {
			members = m.registration(owner)
		}
		body = encode(members)
	}
	return path, media, body
}

// problemCode is the code of a problem document, or nothing.
func problemCode(body string) string {
	var p struct{ Type string }
	_ = json.Unmarshal([]byte(body), &p)
	return strings.TrimPrefix(p.Type, "/problems/")
}

// TestMatrix calls every operation of the contract as everybody, for everything that a path can name: it is done exactly where
// x-gc-authz and the ownership of the object allow it, and what is missing and what is foreign look the same.
func TestMatrix(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		m := newMatrix(t, databaseURL)
		kinds := map[string]bool{}
		for _, s := range m.subjects {
			kinds[s.kind] = true
		}
		for _, o := range operations(t) {
			t.Run(o.OperationID, func(t *testing.T) {
				for _, kind := range o.kinds {
					require.True(t, kinds[kind], "nobody in this test is a %s: add one to newMatrix", kind)
				}
				calls := 0
				for _, s := range m.subjects {
					for _, owner := range m.subjects {
						if owner.kind == "" {
							continue
						}
						calls += o.cell(t, m, s, owner)
					}
				}
				t.Log(calls, "calls")
			})
		}
	})
}

// cell is one caller and the objects of one owner; it gives the number of calls.
func (o *operation) cell(t *testing.T, m *matrix, s, owner *subject) int {
	t.Helper()
	m.restore(t)
	at := fmt.Sprintf("%s by %s, of %s", o.OperationID, s.name, owner.name)
	var names []string
	for _, p := range o.parameters() {
		if p.In == "path" {
			names = append(names, p.Name)
		}
	}
	own := true // everything that the path names belongs to the caller as well
	objects := map[string]string{}
	for _, name := range names {
		if objects[name] = owner.objects[name]; objects[name] == "" {
			return 0 // this owner has nothing of that kind
		}
		own = own && objects[name] == s.objects[name]
	}
	registers := o.registers()
	switch {
	case registers && owner.member == "":
		return 0
	case len(names) == 0 && !registers && owner != s && (s.kind != "" || owner != m.subjects[1]):
		return 0 // nothing of the request depends on the owner: once is enough
	case registers:
		own = owner == s
	}
	path, media, body := o.matrixRequest(t, m, owner, objects)
	status, text := m.call(t, s, o.route.Method, path, media, body)
	m.changed = status < 300 && o.route.Method != http.MethodGet
	code := problemCode(text)
	switch {
	case len(o.kinds) == 0:
		assert.NotContains(t, []string{"unauthenticated", "forbidden", "internal"}, code, "%s: %d %s", at, status, text)
	case s.kind == "":
		assert.Equal(t, "401 unauthenticated", fmt.Sprint(status, " ", code), "%s: %s", at, text)
	case !slices.Contains(o.kinds, s.kind):
		assert.Equal(t, "403 forbidden", fmt.Sprint(status, " ", code), "%s: %s", at, text)
	case own:
		assert.Less(t, status, 300, "%s: %s", at, text)
		for _, other := range m.subjects {
			if other.household != s.household && other.kind != "" {
				for name, id := range other.objects {
					assert.NotContains(t, text, id, "%s: the answer tells a %s of %s", at, name, other.name)
				}
			}
		}
	case registers:
		assert.Contains(t, []string{"403 contradicts-token", "403 forbidden", "404 not-found"}, fmt.Sprint(status, " ", code), "%s: %s", at, text)
	default:
		assert.Equal(t, "404 not-found", fmt.Sprint(status, " ", code), "%s: %s", at, text)
		for _, name := range names {
			lacking := maps.Clone(objects)
			lacking[name] = nobodys(objects[name])
			path, media, body := o.matrixRequest(t, m, owner, lacking)
			missingStatus, missing := m.call(t, s, o.route.Method, path, media, body)
			assert.Equal(t, status, missingStatus, at)
			assert.Equal(t, anonymized(t, missing), anonymized(t, text), "%s: missing and foreign differ", at)
		}
		return 1 + len(names)
	}
	return 1
}

// registers tells whether the body says who the caller is.
func (o *operation) registers() bool {
	if o.RequestBody == nil {
		return false
	}
	content := o.RequestBody.Value.Content.Get("application/json")
	if content == nil {
		return false
	}
	_, ok := content.Schema.Value.Properties["destination"]
	return ok
}

// nobodys is an id of the same form that nothing has.
func nobodys(id string) string {
	const tail = 6
	if len(id) <= tail {
		return "1"
	}
	return id[:len(id)-tail] + strings.Repeat("0", tail)
}

// anonymized is a problem document byte for byte, but without the id of the request.
func anonymized(t *testing.T, body string) string {
	t.Helper()
	var p struct{ Instance string }
	require.NoError(t, json.Unmarshal([]byte(body), &p), body)
	require.NotEmpty(t, p.Instance)
	return strings.Replace(body, p.Instance, "", 1)
}
