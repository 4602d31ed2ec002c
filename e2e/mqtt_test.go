package e2e

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

func mqttServer(t *testing.T, databaseURL string) (identityHome, string) {
	t.Helper()
	addr := harness.FreePort(t)
	return newIdentityHome(t, harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--mqtt-listen", addr}}), "Smith"), addr
}

// TestMQTTWithAProofOfPossession: a device whose token is bound to its key shows the proof as its user name, once, and is refused without.
func TestMQTTWithAProofOfPossession(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		h, addr := mqttServer(t, databaseURL)
		c := h.enrol(t, models.DeviceCamera)
		connect := func(username, password string) error {
			o := paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID("camera").SetUsername(username).SetPassword(password).
				SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(time.Minute)
			m := paho.NewClient(o)
			token := m.Connect()
			token.Wait()
			if token.Error() == nil {
				m.Disconnect(0)
			}
			return token.Error()
		}
		username, password, err := c.MQTT(t.Context())
		require.NoError(t, err)
		require.NoError(t, connect(username, password))
		require.ErrorIs(t, connect(username, password), packets.ErrorRefusedNotAuthorised, "a proof is good once")
		require.ErrorIs(t, connect("device", password), packets.ErrorRefusedNotAuthorised, "a bound token is worth nothing without its key")
		other, stolen := h.enrol(t, models.DeviceCamera), password
		username, _, err = other.MQTT(t.Context())
		require.NoError(t, err)
		require.ErrorIs(t, connect(username, stolen), packets.ErrorRefusedNotAuthorised, "another device's key")
		username, password, err = c.MQTT(t.Context())
		require.NoError(t, err)
		require.NoError(t, connect(username, password), "again with a new proof")

		// Only devices: not gateways, not services.
		gateway := h.enrol(t, models.DeviceGateway)
		username, password, err = gateway.MQTT(t.Context())
		require.NoError(t, err)
		require.ErrorIs(t, connect(username, password), packets.ErrorRefusedNotAuthorised)
		h.Service(t, "svc-upload", "Upload")
		require.ErrorIs(t, connect("device", h.ServiceToken(t, "svc-upload")), packets.ErrorRefusedNotAuthorised)
	})
}

// TestMosquittoSubHears: somebody else's client hears the state first and then the change, at both levels of service.
func TestMosquittoSubHears(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("mosquitto_sub")
	if err != nil && os.Geteuid() != 0 {
		t.Skip("mosquitto_sub is missing; .ci/install test installs it")
	}
	require.NoError(t, err)
	h, addr := mqttServer(t, "")
	bare := false
	device := func(kind models.DeviceType) (models.ID, string) {
		id := h.Device(t, h.premises, adminapi.DeviceRequest{Type: kind, Name: string(kind), Pop: &bare})
		return id, h.DeviceToken(t, id)
	}
	gateway, gatewayToken := device(models.DeviceGateway)
	status, answer := h.Send(t, "PUT", "/v1/gateways/"+gateway.String(), "Bearer "+gatewayToken,
		`{"lanPrefix":"192.168.1.0/24","gatewayIPv4":"192.168.1.1","uplinkIPv4":"203.0.113.1","groupRange":"192.168.1.230-192.168.1.240"}`)
	require.Equal(t, 200, status, answer)
	camera, cameraToken := device(models.DeviceCamera)
	status, answer = h.Post(t, "/v1/registrations", "Bearer "+cameraToken,
		`{"type":"Device","id":"`+camera.String()+`","destination":false,"privateIPv4":"192.168.1.5","publicIPv4":"203.0.113.1","groupName":"door"}`)
	require.Equal(t, 200, status, answer)
	_, listed := h.Send(t, "GET", "/v1/groups", "Bearer "+cameraToken, "")
	_, rest, ok := strings.Cut(listed, `"groupId":"`)
	require.True(t, ok, listed)
	group, _, _ := strings.Cut(rest, `"`)

	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	arguments := func(version, qos string) []string {
		return []string{
			"-h", host, "-p", port, "-V", version, "-q", qos, "-i", "camera", "-u", "device", "-P", cameraToken, "-t", "gc/v1/groups/" + group + "/state",
			"-C", "2", "-W", "30", "-F", "%q %r %p",
		}
	}
	for i, qos := range []string{"0", "1"} {
		sub := exec.Command(program, arguments("mqttv311", qos)...)
		out, err := sub.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, sub.Start())
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		require.True(t, lines.Scan(), "the state")
		require.True(t, strings.HasPrefix(lines.Text(), qos+" 1 {"), lines.Text())
		phone, phoneToken := device(models.DevicePhone)
		status, answer = h.Post(t, "/v1/registrations", "Bearer "+phoneToken,
			`{"type":"Device","id":"`+phone.String()+`","destination":true,"publicIPv4":"198.51.99.9","groupName":"door"}`)
		require.Equal(t, 200, status, answer)
		require.True(t, lines.Scan(), "the change")
		require.True(t, strings.HasPrefix(lines.Text(), qos+" 0 {"), lines.Text())
		require.Contains(t, lines.Text(), `"type":"groupcast.member.joined"`)
		require.Contains(t, lines.Text(), `"state":`+string('1'+rune(i)))
		require.NoError(t, sub.Wait())
	}
	out, err := exec.Command(program, arguments("mqttv5", "1")...).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, strings.ToLower(string(out)), "protocol version")
}
