package daemon_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// TestTunnelOverHTTP: a camera in a premises without a gateway declares a tunnel, registers and polls; a destination that joins is an answer to the poll that
// waits, and doesn't stand in it; another's camera looks like none.
func TestTunnelOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--public-url", ""))
	h := s.home(t, "Mobile")
	p, err := s.admin.CreatePremisesWithResponse(t.Context(), nil, adminapi.PremisesRequest{AccountID: h.account, Name: "car"})
	require.NoError(t, err)
	require.NotNil(t, p.JSON200, "%s", p.Body)
	bare := false
	camera := func(name string) (models.ID, string, []string) {
		d, err := s.admin.CreateDeviceWithResponse(t.Context(), nil, adminapi.DeviceRequest{PremisesID: p.JSON200.PremisesID, Type: models.DeviceCamera, Name: name, Pop: &bare})
		require.NoError(t, err)
		require.NotNil(t, d.JSON200, "%s", d.Body)
		token := s.token(t, adminapi.TokenRequest{DeviceID: &d.JSON200.DeviceID})
		return d.JSON200.DeviceID, token, []string{"Authorization", "Bearer " + token}
	}
	id, token, as := camera("dash")
	_, _, other := camera("other")
	path := "/v1/devices/" + id.String() + "/tunnel"
	r := s.do(t, http.MethodGet, path, "", as...)
	require.Equal(t, http.StatusNotFound, r.StatusCode)
	require.Contains(t, text(t, r), "PUT its declaration first")
	body := fmt.Sprintf(`{"tunnelKey":%q,"privateIPv4":"192.168.8.5"}`, tunnelKey('c'))
	r = s.do(t, http.MethodPut, path, body, as...)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", text(t, r))
	for _, method := range []string{http.MethodPut, http.MethodGet} {
		of := ""
		if method == http.MethodPut {
			of = body
		}
		assert.Equal(t, http.StatusNotFound, s.do(t, method, path, of, other...).StatusCode)
		assert.Equal(t, http.StatusForbidden, s.do(t, method, path, of, "Authorization", "Bearer "+h.gatewayToken).StatusCode)
	}
	refused := s.do(t, http.MethodPut, "/v1/devices/"+h.camera.String()+"/tunnel", body, "Authorization", "Bearer "+h.cameraToken)
	require.Equal(t, http.StatusConflict, refused.StatusCode)
	require.Contains(t, text(t, refused), "range-conflict")

	status, a := s.post(t, token, `{"type":"Device","id":"%s","destination":false,"privateIPv4":"192.168.8.5","groupName":"drive"}`, id)
	require.Equal(t, http.StatusOK, status, "%v", a)
	r = s.do(t, http.MethodGet, path, "", as...)
	require.Equal(t, http.StatusOK, r.StatusCode)
	etag := r.Header.Get("ETag")
	require.JSONEq(t, `"home"`, string(field(t, text(t, r), "fanout")))
	require.Equal(t, http.StatusNotModified, s.do(t, http.MethodGet, path, "", append([]string{"If-None-Match", etag}, as...)...).StatusCode)
	answers := make(chan *http.Response, 1)
	waiting := s.request(t, http.MethodGet, path+"?wait=30", "", append([]string{"If-None-Match", etag}, as...)...)
	go func() {
		r, err := s.client.Do(waiting)
		if assert.NoError(t, err) {
			answers <- r
		}
		close(answers)
	}()
	s.waitForWaiters(t, 1)
	status, a = s.post(t, h.phoneToken, `{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","groupName":"drive","premisesId":%q}`, h.phone, p.JSON200.PremisesID)
	require.Equal(t, http.StatusOK, status, "%v", a)
	r = <-answers
	require.NotNil(t, r)
	defer r.Body.Close()
	changed := text(t, r)
	require.JSONEq(t, "true", string(field(t, changed, "needed")))
	require.NotContains(t, changed, "198.51.99.9")
}

func field(t *testing.T, document, name string) json.RawMessage {
	t.Helper()
	var all map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(document), &all), "%s", document)
	return all[name]
}
