package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

const (
	groupName  = "groupcast1"
	cameraName = "camera1"
)

// home is what the operator bootstraps: who there is, and the files with their credentials.
type home struct {
	gateway, camera           models.ID
	gatewayToken, cameraToken string
	receivers                 [3]*receiver
}

// bootstrap does by "groupcastctl admin" what an operator does by hand.
func (d *demo) bootstrap(ctx context.Context) error {
	b := bootstrapping{d: d, ctx: ctx}
	var account adminapi.Account
	b.create(&account, "account", "create", "demo")
	var premises adminapi.Premises
	b.create(&premises, "premises", "create", "home", "--account", string(account.AccountID))
	gateway, gatewayFile := b.device(premises.PremisesID, "gateway", models.DeviceGateway)
	camera, cameraFile := b.device(premises.PremisesID, cameraName, models.DeviceCamera)
	phone, phoneFile := b.device(premises.PremisesID, "phone", models.DevicePhone)
	if d.trigger() != models.TriggerOption {
		b.run("device", "set", camera.String(), "--trigger", string(d.trigger()))
	}
	d.home = home{
		gateway: gateway, gatewayToken: gatewayFile,
		camera: camera, cameraToken: cameraFile,
		receivers: [3]*receiver{
			b.service(account.AccountID, "upload"),
			b.service(account.AccountID, "thumbnail"),
			{name: "phone", kind: models.MemberDevice, id: phone, token: phoneFile},
		},
	}
	d.home.receivers[0].auto, d.home.receivers[2].auto = true, true
	b.joinPolicy(account.AccountID)
	for i, r := range d.home.receivers {
		r.at = d.place.media(d.place.world, byte(i+1))
	}
	return b.err
}

// bootstrapping stops at the first error.
type bootstrapping struct {
	d   *demo
	ctx context.Context
	err error
}

func (b *bootstrapping) run(args ...string) []byte {
	if b.err != nil {
		return nil
	}
	var out []byte
	out, b.err = ask(b.ctx, b.d.own("groupcastctl"), append([]string{"admin", "--json", "--data-dir", b.d.path("server")}, args...)...)
	return out
}

func (b *bootstrapping) create(document any, args ...string) {
	out := b.run(args...)
	if b.err != nil {
		return
	}
	if err := json.Unmarshal(out, document); err != nil {
		b.err = fmt.Errorf("groupcastctl admin %s answered %q: %w", strings.Join(args[:2], " "), out, err)
	}
}

// device enrols a device with a ticket: it makes a key of its own, and its tokens are bound to that.
func (b *bootstrapping) device(premises models.PremisesID, name string, kind models.DeviceType) (models.ID, string) {
	ticket, file := b.d.path(name+".ticket"), b.d.path(name+".credential")
	b.run("ticket", "--premises", string(premises), "--type", string(kind), "--name", name, "--out", ticket)
	out := b.program("enrol", "--json", "--ticket-file", ticket, "--out", file)
	var enrolled struct {
		DeviceID models.ID `json:"deviceId"`
	}
	if b.err == nil {
		if err := json.Unmarshal(out, &enrolled); err != nil {
			b.err = fmt.Errorf("groupcastctl enrol answered %q: %w", out, err)
		}
	}
	return enrolled.DeviceID, file
}

// program runs groupcastctl as a device or a service would.
func (b *bootstrapping) program(args ...string) []byte {
	if b.err != nil {
		return nil
	}
	var out []byte
	out, b.err = ask(b.ctx, b.d.own("groupcastctl"), append([]string{"--server", b.d.url()}, args...)...)
	return out
}

// service makes a service and the account's consent for it.
func (b *bootstrapping) service(account models.AccountID, name string) *receiver {
	id := "svc-" + name
	var service adminapi.Service
	b.create(&service, "service", "create", id, "--name", name)
	var link adminapi.Link
	b.create(&link, "link", "create", "--service", id, "--account", string(account))
	secret, file := b.d.path(name+".secret"), b.d.path(name+".credential")
	b.run("service", "credential", "create", id, "--out", secret)
	b.program("service-credential", "--service", id, "--secret-file", secret, "--out", file)
	return &receiver{name: name, kind: models.MemberService, id: link.ServiceAccountID, token: file}
}

// joinPolicy has the account holder sign up and say who joins every new group: all phones and tablets, and the upload service.
func (b *bootstrapping) joinPolicy(account models.AccountID) {
	var invitation adminapi.Invitation
	b.create(&invitation, "invite", "--account", string(account))
	const user = `"userName":"holder","password":"only for this demonstration"`
	b.call(http.MethodPost, "/v1/accounts", nil, fmt.Sprintf(`{%s,"accountName":"demo","invitation":%q}`, user, invitation.Invitation))
	session := b.call(http.MethodPost, "/v1/login", nil, "{"+user+"}")
	b.call(http.MethodPatch, "/v1/account", session, `{"joinPolicy":{"devices":[{"deviceType":"phone"},{"deviceType":"tablet"}],"services":["svc-upload"]}}`)
}

// call does what a browser does, and gives the cookies of the answer.
func (b *bootstrapping) call(method, path string, cookies []*http.Cookie, body string) []*http.Cookie {
	if b.err != nil {
		return nil
	}
	request, err := http.NewRequestWithContext(b.ctx, method, b.d.url()+path, strings.NewReader(body))
	if err != nil {
		b.err = err
		return nil
	}
	request.Header.Set("Content-Type", "application/json")
	for _, c := range cookies {
		request.Header.Add("Cookie", c.Name+"="+c.Value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		b.err = err
		return nil
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(response.Body) // only makes the error say more
		b.err = fmt.Errorf("%s %s was answered %s: %s", method, path, response.Status, text)
	}
	return response.Cookies()
}

// configureAgent writes the agent's configuration as a gateway engineer would.
func (d *demo) configureAgent() (string, error) {
	p, h := d.place, d.home
	text := fmt.Sprintf(`server: http://%s
credential: %s
gateway-id: %q
lan-interface: lo
lan-prefix: %s
lan-address: %s
uplink-address: %s
group-range: %s-%s
media-ports: [%d]
state-dir: %s
metrics-listen: ""
allow-loopback: true
`, p.server, h.gatewayToken, h.gateway.String(), p.lan(), host(p.home, hostGateway), uplink,
		host(p.home, hostFirstGroup), host(p.home, hostLastGroup), p.mediaPort, d.path("agent"))
	file := d.path("agent.yaml")
	return file, os.WriteFile(file, []byte(text), 0o600)
}
