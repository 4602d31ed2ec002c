package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// operation is one of the public contract.
type operation struct {
	*openapi3.Operation
	route *routers.Route
	// kinds of callers that may call it; none means that no token is needed.
	kinds []string
	// problems are the codes it may answer.
	problems []string
}

func operations(t *testing.T) []*operation {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	// The contract's formats in our own words; the library knows them loosely or not at all.
	for name, is := range map[string]func(string) bool{
		"decimal-id": func(v string) bool { id, err := strconv.ParseInt(v, 10, 64); return err == nil && id > 0 },
		"ipv4":       func(v string) bool { a, err := netip.ParseAddr(v); return err == nil && a.Is4() },
		"ipv6": func(v string) bool {
			a, err := netip.ParseAddr(v)
			return err == nil && a.Is6() && !a.Is4In6() && a.Zone() == ""
		},
	} {
		openapi3.DefineStringFormatValidator(name, openapi3.NewCallbackValidator(func(v string) error {
			if !is(v) {
				return fmt.Errorf("%q is no %s", v, name)
			}
			return nil
		}))
	}
	var list []*operation
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		item := doc.Paths.Value(path)
		for _, method := range slices.Sorted(maps.Keys(item.Operations())) {
			op := item.GetOperation(method)
			o := &operation{Operation: op, route: &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: op}}
			for _, code := range op.Extensions["x-gc-problems"].([]any) {
				o.problems = append(o.problems, code.(string))
			}
			for _, kind := range op.Extensions["x-gc-authz"].(map[string]any)["kinds"].([]any) {
				if kind != "anyone" {
					o.kinds = append(o.kinds, kind.(string))
				}
			}
			list = append(list, o)
		}
	}
	return list
}

func (o *operation) parameters() []*openapi3.Parameter {
	var list []*openapi3.Parameter
	for _, p := range slices.Concat(o.route.PathItem.Parameters, o.Parameters) {
		list = append(list, p.Value)
	}
	return list
}

// body is the schema of the JSON body, or nil.
func (o *operation) body() *openapi3.Schema {
	if o.RequestBody == nil {
		return nil
	}
	return o.RequestBody.Value.Content.Get("application/json").Schema.Value
}

// deniedFor says why a caller may not call this, or nothing.
func (o *operation) deniedFor(c caller) string {
	switch {
	case len(o.kinds) == 0:
		return ""
	case c.kind == "":
		return "without a valid token"
	case !slices.Contains(o.kinds, c.kind):
		return "by a " + c.kind
	}
	return ""
}

func (o *operation) allowed(callers []caller) []caller {
	return slices.DeleteFunc(slices.Clone(callers), func(c caller) bool { return o.deniedFor(c) != "" })
}

// caller is somebody with a token, and how it registers.
type caller struct {
	name, kind, token string
	// id, member and device are what it registers as.
	id, member string
	device     models.DeviceType
	// cookie is the session of a browser that comes from source; key is what a token is bound to.
	cookie, source string
	key            *attacker
}

// GoString keeps tokens out of what rapid prints.
func (c caller) GoString() string { return c.name }

// world is a running service in which somebody is registered, and what a request can name in it.
type world struct {
	*example
	t       *testing.T
	callers []caller
	people  people
	// operation is the one that is being tried.
	operation string
	// registrations has one of each caller, groups one group.
	registrations        map[string]string
	group, groupIP, etag string
	webhook              string
	// changed says that a request may have changed all this.
	changed bool
}

func newWorld(t *testing.T, databaseURL string) *world {
	w := &world{t: t, example: newExample(t, harness.Options{DatabaseURL: databaseURL, Args: []string{
		"--log-level", "warn", "--trusted-proxies", "127.0.0.1/32", "--quota-premises", "0",
	}})}
	off := false
	elsewhere := w.Premises(t, w.Account(t, "somebody else"), "elsewhere", false)
	stranger := w.Device(t, elsewhere, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: "stranger", Pop: &off})
	w.callers = []caller{
		{name: "camera", kind: "device", token: w.cameraToken, id: cameraID.String(), member: "Device", device: models.DeviceCamera},
		{name: "phone", kind: "device", token: w.phoneToken, id: w.phone.String(), member: "Device", device: models.DevicePhone},
		{name: "stranger", kind: "device", token: w.DeviceToken(t, stranger), id: stranger.String(), member: "Device", device: models.DeviceCamera},
		{name: "gateway", kind: "gateway", token: w.gatewayToken, id: w.gateway.String()},
		{name: "upload", kind: "service", token: w.uploadToken, id: uploadAccountID.String(), member: "Service"},
		{name: "user", kind: "user", id: w.phone.String()},
		{name: "user", kind: "user", id: w.phone.String()}, // three times, because it may do more than the app
		{name: "user", kind: "user", id: w.phone.String()},
		{name: "app", kind: "user", id: w.phone.String()},
		{name: "nobody"},
		{name: "liar", token: w.cameraToken[:len(w.cameraToken)-8] + "AAAAAAAA", id: cameraID.String(), member: "Device", device: models.DeviceCamera},
	}
	return w
}

// restore brings back what the last request may have changed.
func (w *world) restore(t *rapid.T) {
	if !w.changed {
		return
	}
	w.changed = false
	w.restorePeople()
	w.restoreOfUsers()
	call := func(method, path, token, body string, answer any) {
		req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		req.Header.Set("Authorization", token)
		r, err := w.HTTP.Do(req)
		require.NoError(t, err)
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Contains(t, []int{http.StatusOK, http.StatusCreated}, r.StatusCode, "%s %s: %s", method, path, text)
		require.NoError(t, json.Unmarshal(text, answer))
		if method == http.MethodGet && r.Header.Get("ETag") != "" {
			w.etag = r.Header.Get("ETag")
		}
	}
	var camera, upload, phone api.RegistrationAnswer
	call(http.MethodPut, "/v1/gateways/"+w.gateway.String(), w.gatewayToken, `{"lanPrefix":"172.168.0.0/24","gatewayIPv4":"172.168.0.1",
		"uplinkIPv4":"203.0.113.1","groupRange":"172.168.0.233-172.168.0.254"}`, &api.Gateway{})
	call(http.MethodPost, "/v1/registrations", w.cameraToken, `{"type":"Device","id":"664123086043511412","destination":false,
		"privateIPv4":"172.168.0.5","groupName":"groupcast1","TTLs":3600}`, &camera)
	call(http.MethodPost, "/v1/registrations", w.uploadToken, fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,
		"publicIPv4":"96.114.14.140","groupName":"groupcast1","groupIP":%q,"TTLs":3600}`, uploadAccountID, camera.GroupIP), &upload)
	call(http.MethodPost, "/v1/registrations", w.phoneToken, fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,
		"publicIPv4":"71.230.36.162","groupName":"groupcast1","TTLs":3600}`, w.phone), &phone)
	w.registrations = map[string]string{
		"camera": string(*camera.RegistrationID), "upload": string(*upload.RegistrationID), "phone": string(*phone.RegistrationID),
	}
	var groups api.GroupPage
	call(http.MethodGet, "/v1/groups?groupName=groupcast1", w.uploadToken, "", &groups)
	w.group, w.groupIP = string(groups.Groups[0].GroupID), camera.GroupIP.String()
	call(http.MethodGet, "/v1/gateways/"+w.gateway.String()+"/groups", w.gatewayToken, "", &api.GroupInformation{})
	if mostly[w.operation] == "stranger" {
		stranger := w.called("stranger")
		tunnel, token := "/v1/devices/"+stranger.id+"/tunnel", stranger.token
		call(http.MethodPut, tunnel, token, fmt.Sprintf(`{"tunnelKey":%q,"privateIPv4":%q}`, tunnelKey, cameraAddr), &api.Tunnel{})
		call(http.MethodGet, tunnel, token, "", &api.TunnelInformation{})
	}
	var hooks api.WebhookPage
	call(http.MethodGet, "/v1/webhooks", w.uploadToken, "", &hooks)
	if len(hooks.Webhooks) > 0 {
		w.webhook = string(hooks.Webhooks[0].WebhookID)
		return
	}
	var hook api.WebhookSecret
	call(http.MethodPost, "/v1/webhooks", w.uploadToken, fmt.Sprintf(`{"url":%q}`, webhookURL), &hook)
	w.webhook = string(hook.Webhook.WebhookID)
}

// webhookURL resolves to what may not be called.
const webhookURL = "https://localhost/hook"

// mostly says who calls an operation, of several that may: a tunnel of its own has a camera only in a home without a gateway, as the stranger's is.
var mostly = map[string]string{"declareTunnel": "stranger", "getTunnelInformation": "stranger"}

func (w *world) called(name string) caller {
	return w.callers[slices.IndexFunc(w.callers, func(c caller) bool { return c.name == name })]
}

const tunnelKey = "4WiBLXn1oUJ5rVZ7mUOZqkzvZqVnqS0vJ0nZ4kz9x0E="

// known gives values for a member or parameter of that name that mean something here.
func (w *world) known(c caller, name string) []any {
	switch name {
	case "registrationId":
		if own, ok := w.registrations[c.name]; ok {
			return []any{own, own, w.registrations["camera"]}
		}
		return []any{w.registrations["camera"]}
	case "groupId":
		return []any{w.group}
	case "gatewayId":
		return []any{w.gateway.String()}
	case "deviceId":
		if w.operation == "removeDevice" { // a device that removes itself is gone for the rest of the test
			return []any{w.people.spare.String()}
		}
		return []any{c.id}
	case "serviceId":
		return []any{"svc-other"}
	case "services item":
		return []any{"svc-other", "svc-upload"}
	case "premises item":
		return []any{string(w.premises)}
	case "oldPassword", "password":
		return []any{w.people.password}
	case "newPassword":
		return []any{"four other words it is"}
	case "webhookId":
		return []any{w.webhook}
	case "url":
		return []any{webhookURL}
	case "premisesId":
		if w.people.cabin != "" {
			return []any{string(w.premises), string(w.people.cabin)}
		}
		return []any{string(w.premises)}
	case "groupName":
		return []any{"groupcast1", "groupcast1", "groupcast2"}
	case "groupIP":
		return []any{nil, nil, w.groupIP, groupIP2, "172.168.0.254"}
	case "privateIPv4":
		return []any{nil, cameraAddr, cameraAddr, "172.168.0.6", gatewayAddr, "192.168.7.7"}
	case "publicIPv4":
		return []any{nil, uploadAddr, phoneAddr, uplinkAddr}
	case "IPv6":
		return []any{nil, "2001:db9::7"}
	case "tunnelKey":
		return []any{tunnelKey}
	case "deviceType":
		if c.device != "" {
			return []any{string(c.device)}
		}
	case "lanPrefix":
		return []any{"172.168.0.0/24", "172.168.0.0/24", "10.1.2.0/24"}
	case "gatewayIPv4":
		return []any{gatewayAddr}
	case "uplinkIPv4":
		return []any{uplinkAddr}
	case "groupRange":
		return []any{"172.168.0.233-172.168.0.254", "172.168.0.240/29"}
	case "If-None-Match":
		return []any{w.etag}
	case "index":
		return []any{strings.Trim(w.etag, `"`)}
	case "Prefer":
		return []any{"wait=0", "respond-async, wait=0"}
	}
	return nil
}

// neverWait takes the waiting out of a long poll that would wait: what it answers then is tested elsewhere, and takes long.
func (w *world) neverWait(s *sent) {
	current := strings.Trim(w.etag, `"`)
	if s.query.Has("wait") && (s.query.Get("index") == current || strings.Contains(s.header.Get("If-None-Match"), current)) {
		s.query.Set("wait", "0")
	}
}

// request makes the request anew each time, because a body can be read once only.
func (o *operation) request(t *rapid.T, base string, s *sent) *http.Request {
	path := o.route.Path
	for name, value := range s.path {
		path = strings.Replace(path, "{"+name+"}", url.PathEscape(value), 1)
	}
	var body io.Reader
	if s.body != nil {
		body = bytes.NewReader(s.body)
	}
	if s.chunked {
		body = io.MultiReader(body) // hides the length
	}
	r, err := http.NewRequestWithContext(t.Context(), o.route.Method, base+path, body)
	require.NoError(t, err)
	r.URL.RawQuery = s.query.Encode()
	r.Header = s.header.Clone()
	if s.media != "" {
		r.Header.Set("Content-Type", s.media)
	}
	switch c := s.caller; {
	case c.cookie != "":
		r.Header.Set("Cookie", c.cookie)
		r.Header.Set("X-Forwarded-For", c.source)
	case c.key != nil:
		r.Header.Set("Authorization", "DPoP "+c.token)
		r.Header.Set("DPoP", c.key.proof(c.key.t, r.Method, base+r.URL.EscapedPath(), c.token))
	case c.token != "":
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	return r
}

// notOfTheDomain are the codes that a request which fits the contract, of a caller that may send it, never meets.
var notOfTheDomain = []models.Code{
	models.CodeBadRequest, models.CodeUnauthenticated, models.CodeTooLarge, models.CodeUnsupportedMedia, models.CodeUnknownRoute,
	models.CodeMethodNotAllowed,
}

// notFuzzed are the operations whose requests can't be drawn, and why.
var notFuzzed = map[string]bool{
	// What they take is good once (tickets, codes, assertions), needs a fresh proof for each request, and is limited per network, so that
	// almost every drawn request would only meet rate-limited. Their fields, proofs and grants are attacked one by one in identity_test.go.
	"requestToken": true, "authorizeDevice": true, "enrol": true, "revokeToken": true,
	// After the first wrong password everybody has to wait, and what a password's text may be is more than a schema can say.
	"signUp": true, "login": true,
	// Without Accept: application/json they are streams, which have no end; server/eventstreams draws what comes over them.
	"listen": true, "listenToGroup": true,
	// A relay's token is always bound to its key, so that each request needs a fresh proof; server/daemon's TestRelayOverHTTP does them.
	"declareRelay": true, "getRelayInformation": true, "reportRelayConsents": true,
}

// TestContractFuzz sends requests that fit the contract, and such that are broken in one way, to a running service. What fits
// is done, or refused by a rule of the domain that the operation lists; what doesn't fit is refused; nothing is ever a fault
// of the service; and every answer fits the contract, too. `make contract-fuzz` does the same for longer.
func TestContractFuzz(t *testing.T) {
	t.Parallel()
	all, ids := operations(t), map[string]bool{}
	for _, o := range all {
		ids[o.OperationID] = true
	}
	for id := range notFuzzed {
		require.True(t, ids[id], "notFuzzed names %s, which is no operation", id)
	}
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		w := newWorld(t, databaseURL)
		for _, o := range all {
			if notFuzzed[o.OperationID] {
				continue
			}
			t.Run(o.OperationID, func(t *testing.T) { o.fuzz(t, w) })
		}
	})
}

func (o *operation) fuzz(t *testing.T, w *world) {
	w.operation, w.changed = o.OperationID, true
	seen, codes := map[string]int{}, map[models.Code]int{}
	harness.Check(t, o.checks(), func(t *rapid.T) {
		w.restore(t)
		s := o.draw(t, w)
		r, err := w.HTTP.Do(o.request(t, w.URL, s))
		require.NoError(t, err)
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		seen[fmt.Sprint(r.StatusCode)]++
		w.changed = r.StatusCode < 300 && r.Request.Method != http.MethodGet
		w.noteUsers(s, r.StatusCode)

		context := fmt.Sprintf("%s, %s\n%s %s\n%.1000s\n\nanswer: %d %s", s.how, s.caller.name, r.Request.Method, r.Request.URL, s.body, r.StatusCode, body)
		require.Less(t, r.StatusCode, 500, context)
		code := o.checkAnswer(t, s, r, body, context)
		codes[code]++
		switch s.want {
		case refuse:
			require.GreaterOrEqual(t, r.StatusCode, 400, context)
		case accept:
			require.NotContains(t, notOfTheDomain, code, context)
		}
	})
	t.Log(seen, codes)
	if len(o.allowed(w.callers)) > 0 {
		assert.Positive(t, seen["200"]+seen["201"]+seen["204"], "nothing ever succeeded, so little was tested: %v", seen)
	}
}

// checkAnswer holds an answer against the contract and gives the code of its problem, if it is one.
func (o *operation) checkAnswer(t *rapid.T, s *sent, r *http.Response, body []byte, context string) models.Code {
	in := &openapi3filter.RequestValidationInput{
		Request: o.request(t, "http://service", s), PathParams: s.path, Route: o.route,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: r.StatusCode, Header: r.Header, Body: io.NopCloser(bytes.NewReader(body)), Options: in.Options,
	})
	require.NoError(t, err, context)
	if r.StatusCode < 400 {
		return ""
	}
	var problem struct {
		Type, Title, Detail, Instance string
		Status                        int
	}
	require.NoError(t, json.Unmarshal(body, &problem), context)
	require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"), context)
	require.Equal(t, r.StatusCode, problem.Status, context)
	require.NotEmpty(t, problem.Detail, context)
	require.NotEmpty(t, problem.Instance, context)
	code := strings.TrimPrefix(problem.Type, "/problems/")
	// An empty or a dotted part of a path is no part: such a path is another one.
	if code == string(models.CodeUnknownRoute) && slices.ContainsFunc(slices.Collect(maps.Values(s.path)), func(v string) bool {
		return v == "" || v == "." || v == ".."
	}) {
		return models.CodeUnknownRoute
	}
	require.Contains(t, o.problems, code, "the operation doesn't list this problem: "+context)
	return models.Code(code)
}
