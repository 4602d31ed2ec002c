package daemon_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

// listed is one list: how to read it, what its entries are called by, and how one is made and removed.
type listed struct {
	path   string
	header []string
	id     string
	add    func(i int)
	remove func(id string) // nil if entries stay
}

// lists are all lists of both contracts, by operation.
func (s *service) lists(t *testing.T) map[string]listed {
	t.Helper()
	h, other := s.home(t, "Smith"), s.home(t, "Other") // what goes is of the other, so that the callers stay
	bystander := []string{"Cookie", s.user(t, other, "ben")}
	user := []string{"Cookie", s.user(t, h, "anna")}
	upload, camera := []string{"Authorization", "Bearer " + h.uploadToken}, []string{"Authorization", "Bearer " + h.cameraToken}
	wide := strings.Replace(declaration, "231", "250", 1)
	r := s.do(t, http.MethodPut, "/v1/gateways/"+h.gateway.String(), wide, "Authorization", "Bearer "+h.gatewayToken)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
	groupIP := s.source(t, h, "door")
	sources := map[string]string{} // group → registration of its source
	gone := func(path string, header []string) {
		r := s.send(t, http.MethodDelete, path, header)
		require.Less(t, r.StatusCode, 300, "%s: %s", path, text(t, r))
	}
	credentials := "/admin/services/svc-other/credentials"
	return map[string]listed{
		"listRegistrations": {
			"/v1/registrations", upload, "registrationId",
			func(i int) { s.join(t, h, "door", groupIP, fmt.Sprint("w", i)) },
			func(id string) { gone("/v1/registrations/"+id, upload) },
		},
		"listGroups": {
			"/v1/groups", user, "groupId",
			func(i int) {
				status, body := s.post(t, h.cameraToken, `{"type":"Device","id":"%s","destination":false,"privateIPv4":%q,"groupName":"g%d"}`, h.camera, cameraAddr, i)
				require.Equal(t, http.StatusOK, status, "%v", body)
				sources[fmt.Sprint("g", i)] = body["registrationId"].(string)
			},
			func(id string) {
				name := object(t, s.do(t, http.MethodGet, "/v1/groups/"+id, "", user...))["groupName"].(string)
				if name == "door" { // the home's own; its source was registered before
					for _, v := range object(t, s.do(t, http.MethodGet, "/v1/registrations", "", camera...))["registrations"].([]any) {
						if v := v.(map[string]any); v["groupName"] == name {
							sources[name] = v["registrationId"].(string)
						}
					}
				}
				gone("/v1/registrations/"+sources[name], camera)
			},
		},
		"listLinks": {
			"/v1/account/services", bystander, "serviceId",
			func(i int) {
				id := models.ServiceID(fmt.Sprint("svc-", i))
				v, err := s.admin.CreateServiceWithResponse(t.Context(), nil, adminapi.ServiceRequest{ServiceID: id, Name: string(id)})
				require.NoError(t, err)
				require.NotNil(t, v.JSON200, "%s", v.Body)
				l, err := s.admin.CreateLinkWithResponse(t.Context(), nil, adminapi.LinkRequest{ServiceID: id, AccountID: other.account})
				require.NoError(t, err)
				require.NotNil(t, l.JSON200, "%s", l.Body)
			},
			func(id string) { gone("/v1/account/services/"+id, bystander) },
		},
		"listPremises": {
			"/v1/premises", user, "premisesId",
			func(i int) {
				r := s.do(t, http.MethodPost, "/v1/premises", fmt.Sprintf(`{"name":"p%d"}`, i), user...)
				require.Equal(t, http.StatusCreated, r.StatusCode, "%s", text(t, r))
			},
			func(id string) {
				if id != string(h.premises) { // that one has devices
					gone("/v1/premises/"+id, user)
				}
			},
		},
		"listDevices": {
			"/v1/devices", bystander, "deviceId",
			func(i int) {
				d, err := s.admin.CreateDeviceWithResponse(t.Context(), nil, adminapi.DeviceRequest{PremisesID: other.premises, Type: models.DevicePhone, Name: fmt.Sprint("d", i)})
				require.NoError(t, err)
				require.NotNil(t, d.JSON200, "%s", d.Body)
			},
			func(id string) { gone("/v1/devices/"+id, bystander) },
		},
		"listAccounts": {
			path: "/admin/accounts", id: "accountId",
			add: func(i int) {
				_, err := s.admin.CreateAccountWithResponse(t.Context(), nil, adminapi.AccountRequest{Name: fmt.Sprint("a", i)})
				require.NoError(t, err)
			},
		},
		"listAudit": {
			path: "/admin/audit", id: "id",
			add: func(i int) {
				_, err := s.admin.CreateAccountWithResponse(t.Context(), nil, adminapi.AccountRequest{Name: fmt.Sprint("b", i)})
				require.NoError(t, err)
			},
		},
		"listRelays": {
			"/admin/relays", nil, "relayId",
			func(i int) {
				_, err := s.admin.CreateRelayWithResponse(t.Context(), nil, adminapi.RelayRequest{Name: fmt.Sprint("relay", i)})
				require.NoError(t, err)
			},
			func(id string) {
				relay, err := models.ParseID(id)
				require.NoError(t, err)
				_, err = s.admin.DeleteRelayWithResponse(t.Context(), relay)
				require.NoError(t, err)
			},
		},
		"listServiceCredentials": {
			credentials, nil, "credentialId",
			func(int) {
				_, err := s.admin.CreateServiceCredentialWithResponse(t.Context(), "svc-other", nil, adminapi.ServiceCredentialRequest{})
				require.NoError(t, err)
			},
			func(id string) { gone(credentials+"/"+id, nil) },
		},
		"listWebhooks": {
			"/v1/webhooks", upload, "webhookId",
			func(i int) {
				r := s.do(t, http.MethodPost, "/v1/webhooks", fmt.Sprintf(`{"url":"https://hooks.example.com/%d"}`, i), upload...)
				require.Equal(t, http.StatusCreated, r.StatusCode, "%s", text(t, r))
			},
			func(id string) { gone("/v1/webhooks/"+id, upload) },
		},
	}
}

// send sends a request to the public contract or, by its path, to the operator's.
func (s *service) send(t *testing.T, method, path string, header []string) *http.Response {
	t.Helper()
	if !strings.HasPrefix(path, "/admin/") {
		return s.do(t, method, path, "", header...)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://groupcastd"+path, nil)
	require.NoError(t, err)
	r, err := s.admin.ClientInterface.(*adminclient.Client).Client.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Body.Close() })
	return r
}

// page gives the ids of a page and the token of the next.
func (s *service) page(t *testing.T, l listed, query string) (ids []string, next string) {
	t.Helper()
	r := s.send(t, http.MethodGet, l.path+query, l.header)
	require.Equal(t, http.StatusOK, r.StatusCode)
	answer := object(t, r)
	next, _ = answer["nextPageToken"].(string)
	for _, v := range answer {
		if entries, is := v.([]any); is {
			for _, e := range entries {
				ids = append(ids, e.(map[string]any)[l.id].(string))
			}
		}
	}
	return ids, next
}

// TestPagesOfLists walks every list of both contracts while entries come and go: none appears twice, none that stays is hidden, a page is
// never larger than asked for; and a size or a token that isn't good is refused, also one that belongs to another list.
func TestPagesOfLists(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		lists := s.lists(t)
		for _, document := range [][]byte{openapi.Public, openapi.Admin} {
			doc, err := openapi3.NewLoader().LoadFromData(document)
			require.NoError(t, err)
			for path, item := range doc.Paths.Map() {
				for _, op := range item.Operations() {
					if _, whole := op.Extensions["x-gc-whole"]; strings.HasPrefix(op.OperationID, "list") && !whole {
						require.Contains(t, lists, op.OperationID, "%s is a list: say here how entries come and go", path)
					}
				}
			}
		}
		tokens := map[string]string{}
		for name, l := range lists {
			t.Run(name, func(t *testing.T) {
				for i := range 6 {
					l.add(i)
				}
				before, none := s.page(t, l, "?pageSize=500")
				require.Empty(t, none)
				require.GreaterOrEqual(t, len(before), 6)
				seen, next := s.page(t, l, "?pageSize=2")
				require.Len(t, seen, 2)
				assert.Equal(t, before[:2], seen)
				tokens[name] = next
				stays := slices.Clone(before)
				if l.remove != nil {
					for _, id := range []string{before[1], before[3]} { // the one that the token names, and one to come
						l.remove(id)
						stays = slices.DeleteFunc(stays, func(s string) bool { return s == id })
					}
				}
				l.add(6)
				for next != "" {
					var more []string
					more, next = s.page(t, l, "?pageSize=2&pageToken="+next)
					require.LessOrEqual(t, len(more), 2)
					seen = append(seen, more...)
				}
				for i, id := range seen {
					assert.NotContains(t, seen[:i], id, "an entry appears twice")
				}
				for _, id := range stays {
					assert.Contains(t, seen, id, "an entry that was there all along is hidden")
				}
			})
		}
		for name, l := range lists {
			for _, query := range []string{
				"pageSize=0", "pageSize=501", "pageSize=-1", "pageSize=x", "pageSize=2147483648", "pageSize=2&pageSize=2",
				"pageToken=", "pageToken=abc", "pageToken=!", "pageToken=" + strings.Repeat("A", 129), "pageToken=MS4",
			} {
				r := s.send(t, http.MethodGet, l.path+"?"+query, l.header)
				assert.Equal(t, http.StatusBadRequest, r.StatusCode, "%s?%s", name, query)
				assert.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
				assert.Equal(t, "bad-request", code(t, r), "%s?%s", name, query)
			}
			for other, token := range tokens {
				if other != name {
					r := s.send(t, http.MethodGet, l.path+"?pageToken="+token, l.header)
					assert.Equal(t, http.StatusBadRequest, r.StatusCode, "%s with the token of %s", name, other)
				}
			}
		}
	})
}
