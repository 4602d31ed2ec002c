package daemon_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/server/eventqueue"
)

// TestServicesReadTheQueue: with the token they have for HTTP, over TLS; other tokens are refused, and the end of the token's credential ends the connection.
func TestServicesReadTheQueue(t *testing.T) {
	dir := dataDir(t)
	cert, key := certify(t, dir, "groupcast")
	s := start(t, settings(t, dir, "--tls-cert", cert, "--tls-key", key, "--public-url", "https://localhost:8443", "--nats-listen", "127.0.0.1:0"))
	h := s.home(t, "Smith")
	service := models.ServiceID("svc-smith")
	credential, err := s.admin.CreateServiceCredentialWithResponse(t.Context(), service, nil, adminapi.ServiceCredentialRequest{})
	require.NoError(t, err)
	require.NotNil(t, credential.JSON200, "%s", credential.Body)
	token := s.token(t, adminapi.TokenRequest{ServiceID: &service})

	connect := func(o ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("tls://"+s.QueueAddr().String(), append([]nats.Option{nats.NoReconnect(), nats.Timeout(waitLong), nats.Secure(&tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // the certificate is the test's own
			VerifyConnection: func(state tls.ConnectionState) error {
				assert.Equal(t, "groupcast", state.PeerCertificates[0].Subject.CommonName)
				return nil
			},
		})}, o...)...)
	}
	r := object(t, s.do(t, http.MethodPost, "/oauth/token", "grant_type=client_credentials&scope=gc%3Aregister", "Content-Type", "application/x-www-form-urlencoded",
		"Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(string(service)+":"+*credential.JSON200.ClientSecret))))
	few, ok := r["access_token"].(string)
	require.True(t, ok, "%v", r)
	for name, o := range map[string]nats.Option{
		"nothing": nats.Name("x"), "a camera's token": nats.Token(h.cameraToken), "no token": nats.Token("abc"), "a token without the scope": nats.Token(few),
		"a damaged token": nats.Token(token + "x"), "the token as a user name": nats.UserInfo(token, "password"),
	} {
		_, err := connect(o)
		require.Error(t, err, name)
	}
	plain, err := nats.Connect("nats://"+s.QueueAddr().String(), nats.Token(token), nats.TLSHandshakeFirst())
	if err == nil {
		plain.Close()
	}
	require.Error(t, err, "a certificate that nobody vouches for")

	lost := make(chan struct{})
	c, err := connect(nats.Token(token), nats.ClosedHandler(func(*nats.Conn) { close(lost) }))
	require.NoError(t, err)
	js, err := jetstream.New(c)
	require.NoError(t, err)
	consumer, err := js.Consumer(t.Context(), eventqueue.StreamName, string(service))
	require.NoError(t, err)
	s.source(t, h, "door")
	var types []string
	for range 2 {
		m, err := consumer.Next(jetstream.FetchMaxWait(time.Minute))
		require.NoError(t, err)
		var e struct{ Type string }
		require.NoError(t, json.Unmarshal(m.Data(), &e))
		types = append(types, e.Type)
		require.NoError(t, m.Ack())
	}
	assert.Equal(t, []string{"groupcast.link.granted", "groupcast.group.created"}, types)
	assert.Equal(t, "1", s.metric(t, `groupcast_queue_logins_total{result="admitted"}`))
	assert.Equal(t, "6", s.metric(t, `groupcast_queue_logins_total{result="not-authenticated"}`))

	_, err = s.admin.DeleteServiceCredentialWithResponse(t.Context(), service, credential.JSON200.CredentialID)
	require.NoError(t, err)
	<-lost
	_, err = connect(nats.Token(token))
	require.Error(t, err)
	require.Eventually(t, func() bool { return s.metric(t, `groupcast_queue_ended_total{reason="revoked"}`) == "1" }, time.Minute, 10*time.Millisecond)
	for _, secret := range []string{token, few, h.cameraToken} {
		assert.NotContains(t, s.log.String(), secret)
	}
	assert.NotContains(t, s.log.String(), "level=ERROR", "what clients do wrong is no error of ours")
}
