package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// TestAttackABoundTokenAtTheQueue: a token that is bound to a key needs a proof of it, made for this, each time another one.
func TestAttackABoundTokenAtTheQueue(t *testing.T) {
	queue := harness.FreePort(t)
	s := harness.StartServer(t, harness.Options{Args: []string{"--nats-listen", queue}})
	s.Service(t, "svc-smith", "Smith")
	client, err := clientauth.CreateService(filepath.Join(t.TempDir(), "credential"), clientauth.Service{Server: s.URL, ClientID: "svc-smith", DPoP: true}, clientauth.Options{})
	require.NoError(t, err)
	keys := &adminapi.KeySet{}
	require.NoError(t, json.Unmarshal(fmt.Appendf(nil, `{"keys":[%s]}`, client.PublicKey()), keys))
	credential, err := s.Admin.CreateServiceCredentialWithResponse(t.Context(), "svc-smith", nil, adminapi.ServiceCredentialRequest{Jwks: keys})
	require.NoError(t, err)
	require.NotNil(t, credential.JSON200, "%s", credential.Body)
	connect := func(user, password string) error {
		c, err := nats.Connect(queue, nats.UserInfo(user, password), nats.NoReconnect(), nats.Timeout(time.Minute))
		if err == nil {
			c.Close()
		}
		return err
	}
	proof, token, err := client.NATS(t.Context())
	require.NoError(t, err)
	require.NoError(t, connect(proof, token))
	require.Error(t, connect(proof, token), "the same proof again")
	require.Error(t, connect("anybody", token), "no proof")
	proof, token, err = client.MQTT(t.Context())
	require.NoError(t, err)
	require.Error(t, connect(proof, token), "a proof for another protocol")
	proof, token, err = client.NATS(t.Context())
	require.NoError(t, err)
	require.NoError(t, connect(proof, token), "the token itself is good")
	require.NotContains(t, s.Log(), proof)
}
