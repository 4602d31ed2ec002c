package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/openapi/api"
)

// partner is a partner's HTTPS server. The service trusts its certificate if it is started with trusted.
type partner struct {
	*httptest.Server
	// trusted is for the service's environment.
	trusted string
	mu      sync.Mutex
	bodies  [][]byte
	heads   []http.Header
	status  int
}

func newPartner(t *testing.T) *partner {
	t.Helper()
	v := &partner{status: http.StatusNoContent}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.status < 300 {
			v.bodies, v.heads = append(v.bodies, body), append(v.heads, r.Header.Clone())
		}
		w.WriteHeader(v.status)
	}))
	t.Cleanup(v.Close)
	file := filepath.Join(t.TempDir(), "partner.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o600))
	v.trusted = "SSL_CERT_FILE=" + file
	return v
}

func (v *partner) answers(status int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = status
}

// taken gives the revs that were taken, by group.
func (v *partner) taken(t *testing.T) map[string][]int {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	all := map[string][]int{}
	for _, b := range v.bodies {
		var e struct {
			Data struct {
				GroupID string
				Rev     int
			}
		}
		require.NoError(t, json.Unmarshal(b, &e))
		all[e.Data.GroupID] = append(all[e.Data.GroupID], e.Data.Rev)
	}
	return all
}

// TestDrillWebhooksSurviveKills: the service is killed again and again while things happen and its partner is away or not. In the end the
// partner has every event of the group, none before an older one.
func TestDrillWebhooksSurviveKills(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		partner := newPartner(t)
		e := newExample(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--allow-loopback"}, Env: []string{partner.trusted}})
		e.declare(t)
		created, err := e.Client(t, e.uploadToken).CreateWebhookWithResponse(t.Context(), nil, api.WebhookRequest{URL: partner.URL + "/hook"})
		require.NoError(t, err)
		require.NotNil(t, created.JSON201, "%s", created.Body)
		harness.Secret("webhook secret", created.JSON201.Secret)
		join := func(instance int) {
			e.post(t, e.phoneToken, fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"publicIPv4":"71.230.36.162","groupName":"groupcast1","instance":"%d"}`, e.phone, instance))
		}
		e.post(t, e.cameraToken, `{"type":"Device","id":"664123086043511412","destination":false,"privateIPv4":"172.168.0.5","groupName":"groupcast1","groupIP":null}`)
		n := 1
		for round := range 3 {
			partner.answers([]int{http.StatusNoContent, http.StatusInternalServerError, http.StatusNoContent}[round])
			for range 5 {
				join(n)
				n++
			}
			e.Kill()
			e.Start(t)
		}
		// What was on its way when the service was killed is due again after its claim has ended.
		require.Eventually(t, func() bool {
			seen := map[int]bool{}
			for _, list := range partner.taken(t) {
				for _, rev := range list {
					seen[rev] = true
				}
			}
			return len(seen) == n
		}, 100*time.Second, 100*time.Millisecond, "%d events: %v", n, partner.taken(t))
		groups := partner.taken(t)
		require.Len(t, groups, 1)
		for _, list := range groups {
			last := 0
			for _, rev := range list {
				require.Contains(t, []int{last, last + 1}, rev, "in order, at most once more after a kill: %v", list)
				last = rev
			}
			require.Equal(t, n, last)
		}
	})
}

// TestWebhooksByHand: groupcastctl, and the verifiers of docs/webhooks.md as they are printed there.
func TestWebhooksByHand(t *testing.T) {
	t.Parallel()
	partner := newPartner(t)
	e := newExample(t, harness.Options{Args: []string{"--allow-loopback"}, Env: []string{partner.trusted}})
	e.declare(t)
	c := ctl{t: t, server: e.Server, tokens: t.TempDir()}
	as := c.token("upload", "--service", "svc-upload")
	var created api.WebhookSecret
	c.json(&created, "--token-file", as, "webhooks", "create", partner.URL+"/hook")
	harness.Secret("webhook secret", created.Secret)
	id := string(created.Webhook.WebhookID)
	var rotated api.WebhookSecret
	c.json(&rotated, "--token-file", as, "webhooks", "rotate", id)
	harness.Secret("webhook secret", rotated.Secret)
	require.NotNil(t, rotated.Webhook.OldSecretUntil)

	var tested api.WebhookTest
	c.json(&tested, "--token-file", as, "webhooks", "test", id)
	require.True(t, tested.Delivered, "%v", tested)
	e.post(t, e.cameraToken, `{"type":"Device","id":"664123086043511412","destination":false,"privateIPv4":"172.168.0.5","groupName":"groupcast1","groupIP":null}`)
	require.Eventually(t, func() bool { return len(partner.taken(t)) == 2 }, time.Minute, 10*time.Millisecond)

	doc, err := os.ReadFile("../docs/webhooks.md")
	require.NoError(t, err)
	snippet := func(language string) string {
		found := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(string(doc))
		require.NotNil(t, found, language)
		return found[1]
	}
	programs := map[string][]string{
		"python3": {"-c", snippet("python") + "\nimport json, sys\nc = json.load(sys.stdin)\nprint(json.dumps([verify(x['secret'], x['headers'], x['body'].encode()) for x in c]))"},
		"node": {"-e", snippet("js") + `
let text = ""; process.stdin.on("data", (d) => text += d).on("end", () =>
  console.log(JSON.stringify(JSON.parse(text).map((x) => verify(x.secret, x.headers, Buffer.from(x.body))))));`},
	}
	type check struct {
		Secret  string            `json:"secret"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	headers := map[string]string{}
	for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		headers[name] = partner.heads[1].Get(name)
	}
	late := map[string]string{"webhook-id": headers["webhook-id"], "webhook-timestamp": "1600000000", "webhook-signature": headers["webhook-signature"]}
	body := string(partner.bodies[1])
	checks, err := json.Marshal([]check{
		{created.Secret, headers, body},
		{rotated.Secret, headers, body},
		{created.Secret, headers, body + " "},
		{"whsec_" + strings.Repeat("A", 44), headers, body},
		{created.Secret, late, body},
	})
	require.NoError(t, err)
	for name, args := range programs {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath(name)
			if err != nil {
				t.Skipf("needs %s", name)
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Stdin = strings.NewReader(string(checks))
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.JSONEq(t, `[true,true,false,false,false]`, string(out))
		})
	}

	out, _, code := c.run("--token-file", as, "webhooks", "list")
	require.Zero(t, code)
	assert.Regexp(t, id+` .* ok +0 `, out)
	out, _, code = c.run("--token-file", as, "webhooks", "set", id, "--enabled=false")
	require.Zero(t, code)
	assert.Contains(t, out, "disabled: paused")
	_, errs, code := c.run("--token-file", as, "webhooks", "create", "https://10.0.0.1/")
	assert.NotZero(t, code)
	assert.Contains(t, errs, "may not be called")
	_, _, code = c.run("--token-file", as, "webhooks", "delete", id)
	require.Zero(t, code)
	_, errs, code = c.run("--token-file", as, "webhooks", "test", id)
	assert.NotZero(t, code)
	assert.Contains(t, errs, "no such object")
	_, errs, _ = c.run("--token-file", c.token("thumbnail", "--device", cameraID.String()), "webhooks", "list")
	assert.Contains(t, errs, "forbidden")
}
