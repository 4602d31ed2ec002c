package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

const (
	groupName  = "groupcast1"
	cameraName = "camera1"
)

// home is what the operator bootstraps: who there is, and the files with their tokens.
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
	gateway := b.device(premises.PremisesID, "gateway", models.DeviceGateway, models.TriggerOption)
	camera := b.device(premises.PremisesID, cameraName, models.DeviceCamera, d.trigger())
	phone := b.device(premises.PremisesID, "phone", models.DevicePhone, models.TriggerOption)
	d.home = home{
		gateway: gateway, gatewayToken: b.token("gateway", "--device", gateway.String()),
		camera: camera, cameraToken: b.token("camera", "--device", camera.String()),
		receivers: [3]*receiver{
			b.service(account.AccountID, "upload"),
			b.service(account.AccountID, "thumbnail"),
			{name: "phone", kind: models.MemberDevice, id: phone, token: b.token("phone", "--device", phone.String())},
		},
	}
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

// device makes a device that presents its bare token.
func (b *bootstrapping) device(premises models.PremisesID, name string, kind models.DeviceType, trigger models.Trigger) models.ID {
	var device adminapi.Device
	b.create(&device, "device", "create", name, "--premises", string(premises), "--type", string(kind),
		"--trigger", string(trigger), "--pop", "off")
	return device.DeviceID
}

// service makes a service and the account's consent for it.
func (b *bootstrapping) service(account models.AccountID, name string) *receiver {
	id := "svc-" + name
	var service adminapi.Service
	b.create(&service, "service", "create", id, "--name", name)
	var link adminapi.Link
	b.create(&link, "link", "create", "--service", id, "--account", string(account))
	return &receiver{name: name, kind: models.MemberService, id: link.ServiceAccountID, token: b.token(name, "--service", id)}
}

func (b *bootstrapping) token(name string, who ...string) string {
	file := b.d.path(name + ".token")
	b.run(append([]string{"token", "--out", file}, who...)...)
	return file
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
