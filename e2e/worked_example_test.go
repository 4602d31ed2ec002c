package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// The addresses and ids are the source document's own.
const (
	cameraID        models.ID = 664123086043511412
	uploadAccountID models.ID = 2908757376510572177

	cameraAddr    = "172.168.0.5"
	gatewayAddr   = "172.168.0.1"
	uplinkAddr    = "203.0.113.1"
	groupIP       = "172.168.0.233"
	groupIP2      = "172.168.0.235"
	uploadAddr    = "96.114.14.140"
	thumbnailAddr = "69.252.80.75"
	phoneAddr     = "71.230.36.162"
	foreignAddr   = "68.87.41.40" // groupcast2's only destination
)

// example is the world of the worked example: everybody exists and has a token, nobody has registered.
type example struct {
	*harness.Server
	account  models.AccountID
	premises models.PremisesID
	gateway  models.ID

	phone, camera2       models.ID
	thumbnailID, otherID models.ID

	cameraToken, camera2Token, gatewayToken, phoneToken string
	uploadToken, thumbnailToken, otherToken             string
}

func newExample(t *testing.T, o harness.Options) *example {
	s := harness.StartServer(t, o)
	e := &example{Server: s}
	off := false
	e.account = s.Account(t, "worked example")
	e.premises = s.Premises(t, e.account, "home", true)
	id := cameraID
	s.Device(t, e.premises, adminapi.DeviceRequest{DeviceID: &id, Type: models.DeviceCamera, Name: "camera1", Pop: &off})
	e.camera2 = s.Device(t, e.premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: "camera2", Pop: &off})
	e.gateway = s.Device(t, e.premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	e.phone = s.Device(t, e.premises, adminapi.DeviceRequest{Type: models.DevicePhone, Name: "phone", Pop: &off})
	for svc, address := range map[models.ServiceID]string{"svc-upload": uploadAddr, "svc-thumbnail": thumbnailAddr, "svc-other": foreignAddr} {
		s.Service(t, svc, string(svc))
		s.Exempt(t, svc, address)
	}
	require.Equal(t, uploadAccountID, s.Link(t, "svc-upload", e.account, uploadAccountID))
	e.thumbnailID = s.Link(t, "svc-thumbnail", e.account, 0)
	e.otherID = s.Link(t, "svc-other", e.account, 0)

	e.cameraToken, e.camera2Token = s.DeviceToken(t, cameraID), s.DeviceToken(t, e.camera2)
	e.gatewayToken, e.phoneToken = s.DeviceToken(t, e.gateway), s.DeviceToken(t, e.phone)
	e.uploadToken, e.thumbnailToken = s.ServiceToken(t, "svc-upload"), s.ServiceToken(t, "svc-thumbnail")
	e.otherToken = s.ServiceToken(t, "svc-other")
	return e
}

// declare makes the gateway state its LAN; with the agent running, the agent does it.
func (e *example) declare(t *testing.T) {
	groupRange := "172.168.0.233-172.168.0.254"
	r, err := e.Client(t, e.gatewayToken).DeclareGatewayWithResponse(t.Context(), e.gateway, api.GatewayDeclaration{
		LanPrefix:   "172.168.0.0/24",
		GatewayIPv4: netip.MustParseAddr(gatewayAddr),
		UplinkIPv4:  netip.MustParseAddr(uplinkAddr),
		GroupRange:  &groupRange,
	})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	assert.Equal(t, groupRange, r.JSON200.GroupRange)
}

// registered is what the worked example needs of an answer.
type registered struct {
	GroupIP        string `json:"groupIP"`
	State          int    `json:"state"`
	RegistrationID string `json:"registrationId"`
	Consent        struct{ Ufrag, Pwd string }
	Senders        []struct {
		Address netip.Addr
		Port    uint16
	}
}

// post registers with the document's own body and gives the answer.
func (e *example) post(t *testing.T, token, body string) (answer registered) {
	t.Helper()
	status, text := e.Post(t, "/v1/registrations", token, body) // the bare token: the document's header has no scheme
	require.Equal(t, 200, status, "%s", text)
	require.NoError(t, json.Unmarshal([]byte(text), &answer))
	return answer
}

func (e *example) postCamera(t *testing.T) string {
	t.Helper()
	a := e.post(t, e.cameraToken, `{"type":"Device","id":"664123086043511412","destination":false,"privateIPv4":"172.168.0.5",
		"publicIPv4":"71.230.36.162","IPv6":null,"groupName":"groupcast1","groupIP":null,"TTLs":3600}`)
	assert.Equal(t, groupIP, a.GroupIP)
	return a.RegistrationID
}

func (e *example) postUpload(t *testing.T) string {
	t.Helper()
	// The id as a bare JSON number: 19 digits that must not be rounded.
	a := e.post(t, e.uploadToken, `{"type":"service","id":2908757376510572177,"destination":true,"privateIPv4":null,
		"publicIPv4":"96.114.14.140","IPv6":null,"groupName":"groupcast1","groupIP":"172.168.0.233","TTLs":3600}`)
	assert.Equal(t, 1, a.State)
	return a.RegistrationID
}

func (e *example) postThumbnail(t *testing.T) registered {
	t.Helper()
	a := e.post(t, e.thumbnailToken, fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"privateIPv4":null,
		"publicIPv4":%q,"IPv6":null,"groupName":"groupcast1","groupIP":"172.168.0.233","TTLs":3600}`, e.thumbnailID, thumbnailAddr))
	assert.Equal(t, 2, a.State)
	return a
}

func (e *example) postPhone(t *testing.T) registered {
	t.Helper()
	a := e.post(t, e.phoneToken, fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"privateIPv4":null,
		"publicIPv4":%q,"IPv6":null,"groupName":"groupcast1","groupIP":"172.168.0.233","TTLs":3600}`, e.phone, phoneAddr))
	assert.Equal(t, 3, a.State)
	return a
}

// postSecondGroup makes groupcast2: its camera asks for .235 by name, and one service receives it.
func (e *example) postSecondGroup(t *testing.T) {
	t.Helper()
	a := e.post(t, e.camera2Token, fmt.Sprintf(`{"type":"Device","id":"%s","destination":false,"privateIPv4":"172.168.0.6",
		"publicIPv4":"71.230.36.162","groupName":"groupcast2","groupIP":"172.168.0.235"}`, e.camera2))
	assert.Equal(t, groupIP2, a.GroupIP)
	assert.Equal(t, 0, a.State)
	b := e.post(t, e.otherToken, fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":%q,
		"groupName":"groupcast2","groupIP":"172.168.0.235"}`, e.otherID, foreignAddr))
	assert.Equal(t, 1, b.State)
}

func (e *example) leave(t *testing.T, token, registration string) int {
	t.Helper()
	r, err := e.Client(t, token).LeaveWithResponse(t.Context(), models.RegistrationID(registration))
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return int(r.JSON200.State)
}

// information fetches the gateway's group information and gives, by group IP, the destinations' addresses.
func (e *example) information(t *testing.T) map[string][]string {
	t.Helper()
	r, err := e.Client(t, e.gatewayToken).GetGroupInformationWithResponse(t.Context(), e.gateway, &api.GetGroupInformationParams{})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	got := map[string][]string{}
	for _, g := range r.JSON200.Groups {
		require.Len(t, g.GroupSources, 1)
		assert.Equal(t, models.TriggerOption, g.GroupSources[0].Trigger)
		assert.Equal(t, int(g.State), len(g.GroupDestinations))
		list := []string{}
		for i, d := range g.GroupDestinations {
			if i == 0 {
				assert.NotEmpty(t, d.DestinationID)
			}
			list = append(list, d.DestinationIPv4.MustGet().String())
		}
		got[g.GroupName+" "+g.GroupIP.String()+" from "+g.GroupSources[0].SourceIPv4.String()] = list
	}
	return got
}

// documentsNames holds the members of the group information against the source document's, letter by letter.
func (e *example) documentsNames(t *testing.T) {
	t.Helper()
	status, body := e.Send(t, http.MethodGet, "/v1/gateways/"+e.gateway.String()+"/groups", "Bearer "+e.gatewayToken, "")
	require.Equal(t, 200, status, body)
	var information struct{ Groups []map[string]any }
	require.NoError(t, json.Unmarshal([]byte(body), &information))
	require.Len(t, information.Groups, 2)
	g := information.Groups[0]
	only := func(member any, names ...string) map[string]any {
		t.Helper()
		got := map[string]any{}
		for _, name := range names {
			require.Contains(t, member, name)
			got[name] = member.(map[string]any)[name]
		}
		return got
	}
	assert.Equal(t, map[string]any{"groupName": "groupcast1", "groupIP": groupIP, "state": 3.}, only(g, "groupName", "groupIP", "state"))
	require.Len(t, g["groupSources"], 1)
	assert.Equal(t, map[string]any{"sourceName": "camera1", "sourceIPv4": cameraAddr, "sourceIPv6": nil},
		only(g["groupSources"].([]any)[0], "sourceName", "sourceIPv4", "sourceIPv6"))
	require.Len(t, g["groupDestinations"], 3)
	for i, want := range []map[string]any{
		{"destinationId": "1", "destinationName": "svc-upload", "destinationIPv4": uploadAddr, "destinationIPv6": nil},
		{"destinationId": "2", "destinationName": "svc-thumbnail", "destinationIPv4": thumbnailAddr, "destinationIPv6": nil},
		{"destinationId": "3", "destinationName": "phone", "destinationIPv4": phoneAddr, "destinationIPv6": nil},
	} {
		assert.Equal(t, want, only(g["groupDestinations"].([]any)[i], "destinationId", "destinationName", "destinationIPv4", "destinationIPv6"))
	}
}

// TestWorkedExampleOverHTTP is steps 1 to 5 and 8 of SPEC §3, on both databases.
func TestWorkedExampleOverHTTP(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		e := newExample(t, harness.Options{DatabaseURL: databaseURL})
		e.declare(t)

		first := e.postCamera(t)
		e.postSecondGroup(t)
		e.postUpload(t)
		thumbnail := e.postThumbnail(t).RegistrationID
		e.postPhone(t)
		assert.Equal(t, first, e.postCamera(t), "posting again renews the same registration")

		assert.Equal(t, map[string][]string{
			"groupcast1 172.168.0.233 from 172.168.0.5": {uploadAddr, thumbnailAddr, phoneAddr},
			"groupcast2 172.168.0.235 from 172.168.0.6": {foreignAddr},
		}, e.information(t))

		e.documentsNames(t)

		assert.Equal(t, 2, e.leave(t, e.thumbnailToken, thumbnail))
		assert.Equal(t, []string{uploadAddr, phoneAddr}, e.information(t)["groupcast1 172.168.0.233 from 172.168.0.5"])

		// Nobody but the gateway is told where another member receives.
		groups, err := e.Client(t, e.phoneToken).ListGroupsWithResponse(t.Context(), &api.ListGroupsParams{})
		require.NoError(t, err)
		require.NotNil(t, groups.JSON200, "%s", groups.Body)
		for _, addr := range []string{uploadAddr, phoneAddr, cameraAddr, foreignAddr} {
			assert.NotContains(t, string(groups.Body), addr)
		}
		assert.Contains(t, string(groups.Body), `"groupIP":"172.168.0.233"`)
	})
}
