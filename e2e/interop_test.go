package e2e

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// neighbourID differs from cameraID by one, which a double can't hold: whoever rounds ids confuses the two.
const neighbourID = cameraID + 1

func newNeighbours(t *testing.T) (e *example, neighbourToken string) {
	e = newExample(t, harness.Options{})
	e.declare(t)
	off, id := false, neighbourID
	e.Device(t, e.premises, adminapi.DeviceRequest{DeviceID: &id, Type: models.DeviceCamera, Name: "camera1's neighbour", Pop: &off})
	return e, e.DeviceToken(t, neighbourID)
}

// TestInteropGo uses the generated Go client as a partner would; e2e/interop/typescript/partner.ts does the same in TypeScript.
func TestInteropGo(t *testing.T) {
	t.Parallel()
	e, neighbourToken := newNeighbours(t)
	for path, want := range map[string]string{"/openapi.yaml": string(openapi.Public), "/docs": "openapi.yaml", "/docs/start.js": "SwaggerUIBundle"} {
		r, err := e.HTTP.Get(e.URL + path)
		require.NoError(t, err)
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		assert.Equal(t, 200, r.StatusCode, path)
		assert.Contains(t, string(body), want, "where a partner begins")
	}
	camera, neighbour := e.Client(t, e.cameraToken), e.Client(t, neighbourToken)
	service, gateway := e.Client(t, e.uploadToken), e.Client(t, e.gatewayToken)

	source := func(id models.ID, private string) api.RegistrationRequest {
		return api.RegistrationRequest{
			Type: models.MemberDevice, ID: id, Destination: false, GroupName: "groupcast1",
			PrivateIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(private)),
			PublicIPv4:  nullable.NewNullableWithValue(netip.MustParseAddr(phoneAddr)),
			IPv6:        nullable.NewNullNullable[netip.Addr](),
			GroupIP:     nullable.NewNullNullable[netip.Addr](),
		}
	}
	first, err := camera.RegisterWithResponse(t.Context(), source(cameraID, cameraAddr))
	require.NoError(t, err)
	require.NotNil(t, first.JSON200, "%s", first.Body)
	second, err := neighbour.RegisterWithResponse(t.Context(), source(neighbourID, "172.168.0.6"))
	require.NoError(t, err)
	require.NotNil(t, second.JSON200, "%s", second.Body)
	assert.Equal(t, first.JSON200.GroupIP, second.JSON200.GroupIP)

	wrong, err := camera.RegisterWithResponse(t.Context(), source(neighbourID, cameraAddr))
	require.NoError(t, err)
	require.NotNil(t, wrong.ApplicationProblemJSON4XX)
	assert.Equal(t, "/problems/contradicts-token", wrong.ApplicationProblemJSON4XX.Type)

	before, err := gateway.GetGroupInformationWithResponse(t.Context(), e.gateway, &api.GetGroupInformationParams{})
	require.NoError(t, err)
	require.NotNil(t, before.JSON200, "%s", before.Body)
	joined, err := service.RegisterWithResponse(t.Context(), api.RegistrationRequest{
		Type: models.MemberService, ID: uploadAccountID, Destination: true, GroupName: "groupcast1",
		PublicIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(uploadAddr)),
		GroupIP:    nullable.NewNullableWithValue(first.JSON200.GroupIP),
	})
	require.NoError(t, err)
	require.NotNil(t, joined.JSON200, "%s", joined.Body)
	assert.EqualValues(t, 1, joined.JSON200.State)

	groups, err := service.ListGroupsWithResponse(t.Context(), &api.ListGroupsParams{})
	require.NoError(t, err)
	require.NotNil(t, groups.JSON200, "%s", groups.Body)
	require.Len(t, groups.JSON200.Groups, 1)
	ids := []models.ID{}
	for _, m := range groups.JSON200.Groups[0].Members {
		ids = append(ids, m.ID)
	}
	assert.Equal(t, []models.ID{cameraID, neighbourID, uploadAccountID}, ids)

	wait := int32(20)
	etag := before.Headers200.ETag
	after, err := gateway.GetGroupInformationWithResponse(t.Context(), e.gateway, &api.GetGroupInformationParams{IfNoneMatch: &etag, Wait: &wait})
	require.NoError(t, err)
	require.NotNil(t, after.JSON200, "%s", after.Body)
	assert.Equal(t, uploadAddr, after.JSON200.Groups[0].GroupDestinations[0].DestinationIPv4.MustGet().String())
	same, err := gateway.GetGroupInformationWithResponse(t.Context(), e.gateway, &api.GetGroupInformationParams{IfNoneMatch: &after.Headers200.ETag})
	require.NoError(t, err)
	assert.Equal(t, 304, same.StatusCode())
	assert.Equal(t, after.Headers200.ETag, same.Headers304.ETag)
}

// TestInteropGoSendsAKey creates something, loses the answer and sends the request again with its key, as partner.ts does.
func TestInteropGoSendsAKey(t *testing.T) {
	t.Parallel()
	e := newExample(t, harness.Options{})
	service := e.Client(t, e.uploadToken)
	key := rand.Text()
	params := &api.CreateWebhookParams{IdempotencyKey: &key}
	first, err := service.CreateWebhookWithResponse(t.Context(), params, api.WebhookRequest{URL: webhookURL})
	require.NoError(t, err)
	require.NotNil(t, first.JSON201, "%s", first.Body)
	require.NotEmpty(t, first.JSON201.Secret)
	again, err := service.CreateWebhookWithResponse(t.Context(), params, api.WebhookRequest{URL: webhookURL})
	require.NoError(t, err)
	assert.Equal(t, 201, again.StatusCode())
	assert.Equal(t, string(first.Body), string(again.Body), "the first answer, secret included")
	other, err := service.CreateWebhookWithResponse(t.Context(), params, api.WebhookRequest{URL: webhookURL + "/other"})
	require.NoError(t, err)
	require.NotNil(t, other.ApplicationProblemJSON4XX, "%s", other.Body)
	assert.Equal(t, "/problems/idempotency-key-reused", other.ApplicationProblemJSON4XX.Type)
	all, err := service.ListWebhooksWithResponse(t.Context(), &api.ListWebhooksParams{})
	require.NoError(t, err)
	require.NotNil(t, all.JSON200, "%s", all.Body)
	assert.Len(t, all.JSON200.Webhooks, 1)
}

// TestInteropTypeScript runs the program that `make interop` has compiled.
func TestInteropTypeScript(t *testing.T) {
	t.Parallel()
	if os.Getenv("INTEROP") == "" {
		t.Skip("needs node and a compiled client: run `make interop`")
	}
	e, neighbourToken := newNeighbours(t)
	type member struct {
		ID    models.ID `json:"id"`
		Token string    `json:"token"`
	}
	world, err := json.Marshal(map[string]any{
		"url":     e.URL,
		"gateway": member{e.gateway, e.gatewayToken},
		"cameras": []member{{cameraID, e.cameraToken}, {neighbourID, neighbourToken}},
		"service": member{uploadAccountID, e.uploadToken},
	})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "world.json")
	require.NoError(t, os.WriteFile(file, world, 0o600))
	out, err := exec.CommandContext(t.Context(), "node", "interop/typescript/build/partner.js", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "typescript: the worked example holds\n", string(out))
	assert.Equal(t, map[string][]string{
		"172.168.0.233": {cameraAddr, "172.168.0.6"},
	}, e.sources(t), "what the program did is there for everybody")
}

// sources fetches the gateway's group information and gives, by group IP, the addresses of the sources.
func (e *example) sources(t *testing.T) map[string][]string {
	t.Helper()
	r, err := e.Client(t, e.gatewayToken).GetGroupInformationWithResponse(t.Context(), e.gateway, &api.GetGroupInformationParams{})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	got := map[string][]string{}
	for _, g := range r.JSON200.Groups {
		for _, s := range g.GroupSources {
			got[g.GroupIP.String()] = append(got[g.GroupIP.String()], s.SourceIPv4.String())
		}
	}
	return got
}
