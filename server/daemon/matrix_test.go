package daemon_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/authz"
)

// objects are what the requests of one cell of the matrix name.
type objects struct {
	account      models.AccountID
	premises     models.PremisesID
	device       models.ID // of the caller's kind
	phone        models.ID
	gateway      models.ID
	relay        models.ID
	upload       models.ID
	service      models.ServiceID
	registration string
	group        string
	groupIP      string
	webhook      string
}

// missing are objects that nobody has. The group IP is a real one.
func missing(like objects) objects {
	return objects{
		premises: models.NewPremisesID(), device: models.NewID(), phone: models.NewID(), gateway: models.NewID(), relay: models.NewID(), upload: models.NewID(), service: "svc-missing",
		registration: string(models.NewRegistrationID()), group: string(models.NewGroupID()), groupIP: like.groupIP,
		webhook: string(models.NewWebhookID()),
	}
}

// house is a home with a camera in a group, of which the phone and the upload service are members, and a user.
type house struct {
	home
	objects
	cookie       string
	node         relayNode // see withRelay
	registration map[models.Kind]string
}

func (s *service) house(t testing.TB, name string) house {
	t.Helper()
	h := house{home: s.home(t, name)}
	h.cookie = s.user(t, h.home, strings.ToLower(name))
	h.groupIP = s.source(t, h.home, "door")
	upload := s.join(t, h.home, "door", h.groupIP, "")
	status, joined := s.post(t, h.phoneToken, `{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","groupName":"door"}`, h.home.phone)
	require.Equal(t, http.StatusOK, status, "%v", joined)
	h.registration = map[models.Kind]string{models.KindDevice: joined["registrationId"].(string), models.KindService: upload, models.KindUser: upload, models.KindGateway: upload, models.KindRelay: upload}
	r := s.do(t, http.MethodGet, "/v1/groups", "", "Cookie", h.cookie)
	h.group = object(t, r)["groups"].([]any)[0].(map[string]any)["groupId"].(string)
	h.objects.account, h.objects.premises, h.objects.phone, h.objects.gateway = h.home.account, h.home.premises, h.home.phone, h.home.gateway
	created := s.do(t, http.MethodPost, "/v1/webhooks", matrixWebhook, "Authorization", "Bearer "+h.uploadToken)
	require.Equal(t, http.StatusCreated, created.StatusCode)
	h.webhook = object(t, created)["webhook"].(map[string]any)["webhookId"].(string)
	h.objects.upload, h.service = h.home.upload, models.ServiceID("svc-"+strings.ToLower(name))
	return h
}

// withRelay makes a house and a relay, which is nobody's.
func (s *service) withRelay(t testing.TB, name string) house {
	t.Helper()
	h := s.house(t, name)
	h.node = s.relayNode(t, "relay-"+name)
	h.relay = h.node.id
	status, declared, _ := h.node.do(t, http.MethodPut, h.node.path(""), body("declareRelay", models.KindRelay, objects{}))
	require.Equal(t, http.StatusOK, status, "%s", declared)
	return h
}

// as gives the header with which a kind of caller of the house comes.
func (h house) as(kind models.Kind) []string {
	switch kind {
	case models.KindDevice:
		return []string{"Authorization", "Bearer " + h.phoneToken}
	case models.KindGateway:
		return []string{"Authorization", "Bearer " + h.gatewayToken}
	case models.KindService:
		return []string{"Authorization", "Bearer " + h.uploadToken}
	case models.KindUser:
		return []string{"Cookie", h.cookie}
	default:
		return nil
	}
}

// of gives the house's objects for a kind of caller.
func (h house) of(kind models.Kind) objects {
	o := h.objects
	o.registration = h.registration[kind]
	o.device = o.phone
	if kind == models.KindGateway {
		o.device = o.gateway
	}
	return o
}

// matrixWebhook resolves to what may not be called.
const matrixWebhook = `{"url":"https://localhost/hook"}`

// bodies of the operations that have one. What names nothing is a constant.
func body(operation string, kind models.Kind, o objects) string {
	switch operation {
	case "register":
		if kind == models.KindService {
			return fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":"door","groupIP":%q}`, o.upload, o.groupIP)
		}
		return fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","groupName":"door"}`, o.phone)
	case "declareGateway":
		return declaration
	case "declareRelay":
		return fmt.Sprintf(`{"tunnelKey":%q,"endpointIPv4":"96.114.20.1","endpointPort":51820,"uplinkIPv4":"96.114.20.1"}`, tunnelKey('a'))
	case "declareTunnel":
		return fmt.Sprintf(`{"tunnelKey":%q,"privateIPv4":"192.168.8.5"}`, tunnelKey('m'))
	case "reportConsents", "reportRelayConsents":
		return fmt.Sprintf(`{"sequence":1,"consents":[{"registrationId":%q,"sender":%[1]q,"state":"live"}]}`, o.registration)
	case "changePassword":
		return fmt.Sprintf(`{"oldPassword":%q,"newPassword":"four other words it is"}`, goodPassword)
	case "confirm":
		return fmt.Sprintf(`{"password":%q}`, goodPassword)
	case "changeAccount":
		return fmt.Sprintf(`{"joinPolicy":{"devices":[{"deviceType":"phone"}],"services":[%q]}}`, o.service)
	case "createPremises", "changePremises":
		return `{"name":"Cabin"}`
	case "createWebhook":
		return matrixWebhook
	case "changeWebhook":
		return `{"eventTypes":["groupcast.group.created"]}`
	case "createTicket":
		return `{"deviceType":"camera"}`
	case "changeDevice":
		return `{"name":"Porch"}`
	}
	return ""
}

// TestMatrix calls every operation as every kind of caller, on what is the caller's own, another's, and nobody's. Who the table lets in is
// let in; everybody else is refused; and another's is answered as nobody's, to the letter.
func TestMatrix(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	table, err := authz.Load(doc)
	require.NoError(t, err)
	databases := each
	if raced { // two thousand requests, one after the other
		databases = onSQLite
	}
	databases(t, func(t *testing.T, s *service) {
		shared, other := s.withRelay(t, "Shared"), s.withRelay(t, "Other")
		n, reader := 0, s.withRelay(t, "Reader")
		for path, item := range doc.Paths.Map() {
			for method, op := range item.Operations() {
				rule := table[op.OperationID]
				send := func(h house, kind models.Kind, o objects) *http.Response {
					filled := strings.NewReplacer("{premisesId}", string(o.premises), "{deviceId}", o.device.String(), "{gatewayId}", o.gateway.String(), "{relayId}", o.relay.String(),
						"{serviceId}", string(o.service), "{registrationId}", o.registration, "{groupId}", o.group, "{webhookId}", o.webhook).Replace(path)
					header := h.as(kind)
					if strings.HasPrefix(op.OperationID, "listen") { // else it would be a stream, which has no end
						header = append(header, "Accept", "application/json")
					}
					if kind == models.KindRelay {
						return h.node.send(t, method, filled, body(op.OperationID, kind, o), header...)
					}
					return s.do(t, method, filled, body(op.OperationID, kind, o), header...)
				}
				for _, kind := range []models.Kind{"", models.KindDevice, models.KindGateway, models.KindUser, models.KindService, models.KindRelay} {
					t.Run(op.OperationID+"/"+string(kind), func(t *testing.T) {
						switch {
						case rule.Public:
							anonymous, r := send(shared, "", shared.of("")), send(shared, kind, shared.of(kind))
							assert.Equal(t, anonymous.StatusCode, r.StatusCode, "who asks makes no difference")
							return
						case kind == "":
							r := send(shared, kind, shared.of(models.KindUser))
							assert.Equal(t, http.StatusUnauthorized, r.StatusCode)
							return
						case !slices.Contains(rule.Kinds, kind):
							for _, o := range []objects{shared.of(kind), other.of(kind), missing(other.objects)} {
								r := send(shared, kind, o)
								assert.Equal(t, http.StatusForbidden, r.StatusCode)
								assert.Equal(t, "forbidden", code(t, r))
							}
							return
						}
						own := reader
						if method != http.MethodGet { // what changes something is done in a house of its own
							n++
							own = s.withRelay(t, fmt.Sprintf("Own%d", n))
						}
						named := strings.Contains(path, "{") || op.OperationID == "register"
						if named {
							foreign, none := send(own, kind, other.of(kind)), send(own, kind, missing(other.objects))
							a, b := object(t, foreign), object(t, none)
							delete(a, "instance")
							delete(b, "instance")
							if op.OperationID == "linkService" { // everybody may link every service
								assert.Equal(t, http.StatusOK, foreign.StatusCode)
							} else {
								assert.Equal(t, a, b, "another's is as nobody's")
								if op.OperationID == "register" && kind == models.KindDevice {
									assert.Equal(t, "/problems/contradicts-token", a["type"])
								} else {
									assert.Equal(t, "/problems/not-found", a["type"])
								}
							}
							assert.GreaterOrEqual(t, none.StatusCode, 400)
						}
						r := send(own, kind, own.of(kind))
						answer := text(t, r)
						if strings.Contains(op.OperationID, "Tunnel") { // the device of the matrix is a phone; TestTunnelOverHTTP has a camera
							assert.Equal(t, http.StatusForbidden, r.StatusCode)
							assert.Contains(t, answer, "Only a camera")
							return
						}
						if op.OperationID == "deletePremises" {
							assert.Contains(t, answer, "not-empty")
							return
						}
						assert.Less(t, r.StatusCode, 300, "%s", answer)
						for _, secret := range []string{other.relay.String(), string(other.objects.account), string(other.objects.premises), other.objects.phone.String(), other.group, other.webhook} {
							assert.NotContains(t, answer, secret)
						}
					})
				}
			}
		}
	}, "--public-url", "") // relays sign the address that they call
}
