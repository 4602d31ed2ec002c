package daemon

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/queueaccess"
	"github.com/groupcast/groupcast/server/ratelimit"
	"github.com/groupcast/groupcast/server/store"
)

// openQueue opens what events are published to.
func (d *Daemon) openQueue(kek *keys.KEK) (_ *eventqueue.Queue, err error) {
	if d.queueKeys, err = eventqueue.NewKeys(kek.Derive); err != nil {
		return nil, err
	}
	o := eventqueue.Options{
		DataDir: d.cfg.DataDir, URL: d.cfg.NATSURL, Credentials: d.cfg.NATSCredentials, CA: d.cfg.NATSCA, Cert: d.cfg.NATSCert, Key: d.cfg.NATSKey,
		Replicas: d.cfg.NATSReplicas, MaxBytes: int64(d.cfg.EventQueueSize) << 20, Listen: d.cfg.NATSListen, TLS: d.public.tls, Log: d.log,
		// Hints may have been lost meanwhile. Nobody should read all at the same moment.
		Back: func() { go d.listeners.WakeAll(wakeSpread) },
	}
	// A cluster that isn't configured for it doesn't know our keys.
	if d.cfg.NATSURL == "" || d.cfg.NATSServices {
		o.Keys = d.queueKeys
	}
	return eventqueue.Open(o)
}

// newQueueAccess lets services read the queue, if that is on.
func (d *Daemon) newQueueAccess(access httpapi.Access, limits httpapi.Limits, registry prometheus.Registerer) {
	if !d.queue.Readable() {
		return
	}
	a := queueaccess.New(queueaccess.Options{
		Queue: d.queue,
		Authenticate: func(ctx context.Context, token, user string) (eventqueue.Reader, error) {
			p, s, err := access.AuthenticateConnection(ctx, httpapi.NATS, token, user)
			return eventqueue.Reader{Service: p.Service.ID, IssuedAt: s.IssuedAt, ExpiresAt: s.ExpiresAt}, err
		},
		NotBefore: func(ctx context.Context, services []models.ServiceID) (map[models.ServiceID]time.Time, error) {
			all, err := d.store.NotBefore(ctx, store.HeldBy{Services: services})
			of := make(map[models.ServiceID]time.Time, len(all))
			for id, at := range all {
				of[models.ServiceID(id)] = at
			}
			return of, err
		},
		AllowSource: func(a netip.Addr) bool {
			return limits.Source == nil || limits.Source.Take(ratelimit.BySource(a)).Allowed
		},
		AllowService: func(id models.ServiceID) bool {
			return limits.Principal == nil || limits.Principal.Take(ratelimit.ByPrincipal(models.KindService, string(id))).Allowed
		},
		Now: d.now, Log: d.log, Metrics: registry,
	})
	d.background = append(d.background, a.Run)
}
