package daemon_test

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/mqtt"
)

// TestMQTTOverTLS: the listener has the service's certificate, its metrics are among the others, and a stop ends the connections.
func TestMQTTOverTLS(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	cert, key := certify(t, dir, "groupcast")
	s := start(t, settings(t, dir, "--tls-cert", cert, "--tls-key", key, "--public-url", "https://localhost:8443", "--mqtt-listen", "127.0.0.1:0"))
	h := s.home(t, "Smith")
	groupIP := s.source(t, h, "door")
	r := s.do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+h.cameraToken)
	var listed struct{ Groups []struct{ GroupID string } }
	require.NoError(t, json.Unmarshal([]byte(text(t, r)), &listed))
	require.Len(t, listed.Groups, 1)

	heard, lost := make(chan string, 10), make(chan struct{})
	var connected atomic.Int32
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + s.MQTTAddr().String()).SetClientID("camera").SetUsername("device").SetPassword(h.cameraToken).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(time.Minute).SetTLSConfig(&tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // the certificate is the test's own
		VerifyConnection: func(state tls.ConnectionState) error {
			assert.Equal(t, "groupcast", state.PeerCertificates[0].Subject.CommonName)
			connected.Add(1)
			return nil
		},
	}).SetConnectionLostHandler(func(paho.Client, error) { close(lost) }))
	token := c.Connect()
	token.Wait()
	require.NoError(t, token.Error())
	require.EqualValues(t, 1, connected.Load())
	for _, topic := range []string{"gc/v1/groups/" + listed.Groups[0].GroupID + "/state", mqtt.EventsTopic} {
		sub := c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { heard <- string(m.Payload()) })
		sub.Wait()
		require.NoError(t, sub.Error())
	}
	require.Contains(t, <-heard, `"groupcast.group.created"`)
	s.join(t, h, "door", groupIP, "")
	require.Contains(t, <-heard, `"groupcast.member.joined"`)
	assert.Equal(t, "1", s.metric(t, "groupcast_mqtt_connections"))
	assert.Equal(t, "2", s.metric(t, "groupcast_mqtt_subscriptions"))
	require.Eventually(t, func() bool { return s.metric(t, `groupcast_mqtt_deliveries_total{topic="state"}`) == "2" }, time.Minute, time.Millisecond)

	require.NoError(t, s.Stop(t.Context()))
	<-lost
	assert.NotContains(t, s.log.String(), h.cameraToken)
}

// TestMQTTIsOffUnlessAskedFor: there is no listener by default.
func TestMQTTIsOffUnlessAskedFor(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	assert.Nil(t, s.MQTTAddr())
	assert.Empty(t, s.metric(t, "groupcast_mqtt_connections"))
}
