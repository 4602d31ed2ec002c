package daemon_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestConsentOverHTTP goes the way of a consent through the contract: registrant and gateway have the same secret and nobody else sees it, what the gateway
// reports is seen by all, and waiting gateways aren't woken by it.
func TestConsentOverHTTP(t *testing.T) {
	each(t, func(t *testing.T, s *service) {
		h := s.house(t, "Consent")
		get := func(path string, header ...string) map[string]any {
			t.Helper()
			r := s.do(t, http.MethodGet, path, "", header...)
			require.Equal(t, http.StatusOK, r.StatusCode)
			return object(t, r)
		}
		gateway, phone := []string{"Authorization", "Bearer " + h.gatewayToken}, []string{"Authorization", "Bearer " + h.phoneToken}
		status, answer := s.post(t, h.phoneToken, `{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","groupName":"door"}`, h.home.phone)
		require.Equal(t, http.StatusOK, status)
		mine, ok := answer["consent"].(map[string]any)
		require.True(t, ok, "%v", answer)
		assert.Equal(t, []any{}, answer["senders"])
		assert.Equal(t, "pending", mine["state"])
		assert.EqualValues(t, 5, mine["every"])
		assert.EqualValues(t, 30, mine["expires"])

		information := get("/v1/gateways/"+h.home.gateway.String()+"/groups", gateway...)
		group := information["groups"].([]any)[0].(map[string]any)
		var source, destination string
		for _, d := range group["groupDestinations"].([]any) {
			if d := d.(map[string]any); d["registrationId"] == answer["registrationId"] {
				destination = d["registrationId"].(string)
				consent := d["consent"].(map[string]any)
				for _, name := range []string{"ufrag", "pwd", "policy", "every", "expires"} {
					assert.Equal(t, mine[name], consent[name], name)
				}
				assert.NotContains(t, consent, "probes")
			}
		}
		source = group["groupSources"].([]any)[0].(map[string]any)["registrationId"].(string)
		require.NotEmpty(t, destination)

		report := func(body string) map[string]any {
			t.Helper()
			r := s.do(t, http.MethodPost, "/v1/gateways/"+h.home.gateway.String()+"/consents", body, gateway...)
			require.Equal(t, http.StatusOK, r.StatusCode)
			return object(t, r)
		}
		told := report(fmt.Sprintf(`{"sequence":1,"senders":[{"registrationId":%q,"port":40512}],
			"consents":[{"registrationId":%q,"sender":%[1]q,"state":"live","IPv4":"198.51.99.9","port":61022}]}`, source, destination))
		assert.Equal(t, map[string]any{"applied": true, "sequence": 1.0, "unknown": []any{}}, told)
		assert.Equal(t, false, report(`{"sequence":1}`)["applied"])

		registration := get("/v1/registrations/"+destination, phone...)
		assert.Equal(t, map[string]any{"state": "live", "policy": "learned"}, registration["consent"], "no secret where it is only read")
		sender := registration["senders"].([]any)[0].(map[string]any)
		assert.Equal(t, "live", sender["consent"])
		assert.Equal(t, "198.51.99.9", sender["learnedAddress"])
		assert.EqualValues(t, 61022, sender["learnedPort"])
		assert.EqualValues(t, 40512, sender["port"])

		for _, m := range get("/v1/groups/"+h.group, phone...)["members"].([]any) {
			m := m.(map[string]any)
			switch {
			case m["role"] == "source":
				assert.NotContains(t, m, "consent")
			case m["type"] == "Device":
				assert.Equal(t, "live", m["consent"])
			default:
				assert.Equal(t, "pending", m["consent"])
			}
		}
		assert.Equal(t, information["revision"], get("/v1/gateways/"+h.home.gateway.String()+"/groups", gateway...)["revision"])
		for bad, want := range map[string]int{
			`{"sequence":2,"consents":[{"registrationId":%q,"sender":%q,"state":"exempt"}]}`:                                              http.StatusBadRequest,
			`{"sequence":2,"consents":[{"registrationId":%q,"sender":%q,"state":"live","IPv4":"198.51.99.9"}]}`:                           http.StatusUnprocessableEntity,
			`{"sequence":2,"consents":[{"registrationId":%q,"sender":%q,"state":"live","IPv4":"198.51.99.9","IPv6":"2600::1","port":1}]}`: http.StatusUnprocessableEntity,
		} {
			r := s.do(t, http.MethodPost, "/v1/gateways/"+h.home.gateway.String()+"/consents", fmt.Sprintf(bad, destination, source), gateway...)
			assert.Equal(t, want, r.StatusCode, bad)
		}
	})
}
