package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/ratelimit"
)

// newMQTT makes the edge for devices that hear events over MQTT, if that is on.
func (d *Daemon) newMQTT(access httpapi.Access, limits httpapi.Limits, trusted []netip.Prefix, registry prometheus.Registerer) {
	if d.mqttListener == nil {
		return
	}
	read := events.New(d.store)
	d.mqtt = mqtt.New(mqtt.Options{
		Authenticate: func(ctx context.Context, token, user string) (mqtt.Client, error) {
			p, s, err := access.AuthenticateConnection(ctx, httpapi.MQTT, token, user)
			return mqtt.Client{
				Device: p.Device.ID, Account: p.AccountID, Premises: p.PremisesID, Bound: s.JKT != "", IssuedAt: s.IssuedAt, ExpiresAt: s.ExpiresAt,
			}, err
		},
		Devices: d.store.DevicesAmong,
		State:   read.State,
		After:   read.After,
		Revs:    d.store.RevsOf,
		News:    d.store.NewsOf,
		AllowSource: func(a netip.Addr) bool {
			return limits.Source == nil || limits.Source.Take(ratelimit.BySource(a)).Allowed
		},
		AllowDevice: func(id models.ID) bool {
			return limits.Principal == nil || limits.Principal.Take(ratelimit.ByPrincipal(models.KindDevice, id.String())).Allowed
		},
		Trusted:        trusted,
		MaxConnections: d.cfg.MQTTMaxConns, MaxPerAccount: d.cfg.MQTTMaxPerAccount, MaxPerSource: d.cfg.MQTTMaxPerSource,
		Now: d.now, Log: d.log, Metrics: registry,
	})
}

// serveMQTT takes connections until they are drained.
func (d *Daemon) serveMQTT() {
	l := d.mqttListener
	if d.public.tls != nil {
		l = tls.NewListener(l, d.public.tls)
	}
	go func() {
		if err := d.mqtt.Serve(l); err != nil {
			d.failed <- fmt.Errorf("the listener on %s failed: %w", l.Addr(), err)
		}
	}()
}
