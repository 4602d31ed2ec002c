package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// TestInteropOAuth lets a foreign OAuth client, e2e/interop/oauth/client.mjs with two packages of others, get tokens and use them. The test is
// the operator beside it.
func TestInteropOAuth(t *testing.T) {
	t.Parallel()
	if os.Getenv("INTEROP") == "" {
		t.Skip("needs node and its packages: make interop")
	}
	s := harness.StartServer(t, harness.Options{})
	h := newIdentityHome(t, s, "Smith")
	cmd := exec.Command("node", "client.mjs", s.URL)
	cmd.Dir = filepath.Join("interop", "oauth")
	answers, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	var passed []string
	services := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if done, ok := strings.CutPrefix(line, "ok "); ok {
			passed = append(passed, done)
			continue
		}
		rest, ok := strings.CutPrefix(line, "ASK ")
		require.True(t, ok, line)
		name, value, _ := strings.Cut(rest, " ")
		answer := "done"
		switch name {
		case "service":
			services++
			answer = fmt.Sprint("svc-interop-", services)
			s.Service(t, models.ServiceID(answer), answer)
			var jwk adminapi.PublicKey
			require.NoError(t, json.Unmarshal([]byte(value), &jwk))
			r, err := s.Admin.CreateServiceCredentialWithResponse(t.Context(), models.ServiceID(answer), nil,
				adminapi.ServiceCredentialRequest{Jwks: &adminapi.KeySet{Keys: []adminapi.PublicKey{jwk}}})
			require.NoError(t, err)
			require.NotNil(t, r.JSON200, "%s", r.Body)
		case "approve":
			r, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{UserCode: value, Approve: true, PremisesID: h.premises})
			require.NoError(t, err)
			require.NotNil(t, r.JSON200, "%s", r.Body)
		default:
			t.Fatalf("the client asks for %q", name)
		}
		_, err := io.WriteString(answers, answer+"\n")
		require.NoError(t, err)
	}
	err = cmd.Wait()
	require.NoError(t, err, "%s", faults.String())
	assert.Equal(t, []string{
		"client_credentials with private_key_jwt, ES256", "client_credentials with private_key_jwt, Ed25519",
		"device grant with DPoP, ES256", "device grant with DPoP, Ed25519",
	}, passed)
}
