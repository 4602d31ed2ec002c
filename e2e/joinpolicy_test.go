package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// setJoinPolicy does what the account holder does with a browser.
func setJoinPolicy(t *testing.T, s *harness.Server, account models.AccountID, policy string) {
	t.Helper()
	i, err := s.Admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: &account})
	require.NoError(t, err)
	require.NotNil(t, i.JSON200, "%s", i.Body)
	call := func(method, path, cookie, body string, want int) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json")
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.Equal(t, want, answer.StatusCode, "%s", text)
		return answer
	}
	const who = `"userName":"anna","password":"four words are enough"`
	call(http.MethodPost, "/v1/accounts", "", fmt.Sprintf(`{%s,"accountName":"x","invitation":%q}`, who, i.JSON200.Invitation), http.StatusCreated)
	cookie := call(http.MethodPost, "/v1/login", "", "{"+who+"}", http.StatusOK).Cookies()[0]
	call(http.MethodPatch, "/v1/account", cookie.Name+"="+cookie.Value, `{"joinPolicy":`+policy+`}`, http.StatusOK)
}

// TestJoinByPolicy: "all phones, and the upload service". They hear of a new group and join it by themselves; the camera begins to stream when both
// are there; a service that the policy doesn't name and a receiver don't come. It goes on through a restart of the service, and they leave in the end.
func TestJoinByPolicy(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		c := ctl{t: t, server: harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--allow-loopback"}}), tokens: t.TempDir()}
		s := c.server
		home := fmt.Sprintf("127.%d.%d.", 220+rand.N(30), rand.N(250))
		account := s.Account(t, "the Smiths")
		premises := s.Premises(t, account, "home", false)
		bare := false
		device := func(kind models.DeviceType, name string) (models.ID, string) {
			id := s.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: name, Pop: &bare})
			return id, c.token(name, "--device", id.String())
		}
		gateway, gatewayFile := device(models.DeviceGateway, "gateway")
		camera, cameraFile := device(models.DeviceCamera, "camera")
		phone, phoneFile := device(models.DevicePhone, "phone")
		receiver, receiverFile := device(models.DeviceReceiver, "receiver")
		files := map[string]string{}
		for _, name := range []string{"upload", "thumbnail"} {
			id := models.ServiceID("svc-" + name)
			s.Service(t, id, name)
			s.Link(t, id, account, 0)
			files[name] = c.token(name, "--service", string(id))
		}
		setJoinPolicy(t, s, account, `{"devices":[{"deviceType":"phone"}],"services":["svc-upload"]}`)
		token, err := os.ReadFile(gatewayFile)
		require.NoError(t, err)
		declaration, err := json.Marshal(map[string]string{"lanPrefix": home + "0/24", "gatewayIPv4": home + "1", "uplinkIPv4": "127.0.0.1"})
		require.NoError(t, err)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL+"/v1/gateways/"+gateway.String(), bytes.NewReader(declaration))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, http.StatusOK, answer.StatusCode)

		auto := func(name, file string, args ...string) *harness.Process {
			return harness.Start(t, nil, name, c.command(append([]string{
				"receive", "--auto", "--token-file", file, "--name", name,
				"--to", filepath.Join(c.tokens, name+"-{group}.ts"),
			}, args...)...))
		}
		all := map[string]*harness.Process{
			"upload":    auto("upload", files["upload"], "--type", "Service", "--listen", home+"101:5004"),
			"thumbnail": auto("thumbnail", files["thumbnail"], "--type", "Service", "--listen", home+"102:5004"),
			"phone":     auto("phone", phoneFile, "--id", phone.String(), "--listen", home+"103:5004"),
			"receiver":  auto("receiver", receiverFile, "--id", receiver.String(), "--listen", home+"104:5004"),
		}
		heard := harness.Start(t, nil, "events", c.command("events", "--token-file", phoneFile))
		// It listens once it hears of something; what was before, it would hear of as what is.
		require.Eventually(t, func() bool {
			s.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceTablet, Name: "another", Pop: &bare})
			return strings.Contains(heard.Log(), `"groupcast.device.added"`)
		}, 60*time.Second, 500*time.Millisecond)
		stream := func(group, at string) (*harness.Process, io.WriteCloser) {
			cmd := c.command("camera", "--token-file", cameraFile, "--id", camera.String(), "--group", group, "--private-ip", home+at, "--no-option", "--wait-for", "2")
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			return harness.Start(t, nil, "camera "+group, cmd), in
		}
		logged := func(p *harness.Process, times int, text string) {
			t.Helper()
			require.Eventually(t, func() bool { return strings.Count(p.Log(), text) >= times }, 60*time.Second, 50*time.Millisecond, "%d times %q in\n%s", times, text, p.Log())
		}
		first, in := stream("door", "5")
		logged(first, 1, "2 destinations are there: the stream begins")
		logged(all["upload"], 1, "registered as destination")
		logged(all["phone"], 1, "registered as destination")

		s.Kill()
		s.Start(t)
		second, in2 := stream("yard", "6")
		logged(second, 1, "2 destinations are there: the stream begins")
		logged(all["upload"], 2, "registered as destination")
		logged(all["phone"], 2, "registered as destination")
		logged(heard, 2, `"groupcast.group.created"`)
		require.NoError(t, in.Close())
		<-first.Done()
		logged(all["upload"], 1, "received 0 datagrams")
		logged(all["phone"], 1, "received 0 datagrams")
		require.NoError(t, all["phone"].Stop())
		var page api.GroupPage
		c.json(&page, "groups", "--token-file", cameraFile)
		require.Len(t, page.Groups, 1)
		require.Equal(t, "yard", page.Groups[0].GroupName)
		require.EqualValues(t, 1, page.Groups[0].State, "the phone has left")
		for _, name := range []string{"thumbnail", "receiver"} {
			require.NotContains(t, all[name].Log(), "registered", name)
		}
		require.Equal(t, 2, strings.Count(heard.Log(), `"groupcast.group.created"`), "each once, whatever cut the stream off")
		require.NoError(t, in2.Close())
		<-second.Done()
		for name, p := range all {
			if name != "phone" {
				require.NoError(t, p.Stop(), name)
			}
		}
	})
}
