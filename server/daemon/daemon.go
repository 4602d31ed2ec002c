// Package daemon assembles the service from its parts, runs it and stops it in good order. cmd/groupcastd is a command line around
// it, and tests may start it within their process.
//
// It holds no rules of the domain: it decides which part gets which setting, and what starts and stops before what.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/adminapi"
	"github.com/groupcast/groupcast/server/apidocs"
	"github.com/groupcast/groupcast/server/backup"
	"github.com/groupcast/groupcast/server/config"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/eventhub"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay"
	"github.com/groupcast/groupcast/server/eventstreams"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/hints"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/idempotency"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/longpoll"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/outbound"
	"github.com/groupcast/groupcast/server/pages"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/stunport"
	"github.com/groupcast/groupcast/server/telemetry"
	"github.com/groupcast/groupcast/server/webhooks"
)

const (
	// startTimeout bounds what a start needs of the database, migrations aside.
	startTimeout = 30 * time.Second
	// stopTimeout bounds the answers that are still being made after all waits have ended.
	stopTimeout = 10 * time.Second
	// wakeSpread is over how long those who wait are woken when hints were lost.
	wakeSpread = 2 * time.Second
	// readyTimeout bounds what readiness asks the database.
	readyTimeout = 2 * time.Second
)

// Daemon is a running service.
type Daemon struct {
	cfg   config.Config
	log   *slog.Logger
	store *store.Store
	hub   *longpoll.Hub
	// listeners are those who wait for events, and streams what they hear.
	listeners *eventhub.Hub
	queue     *eventqueue.Queue
	queueKeys *eventqueue.Keys
	relay     *eventrelay.Relay
	streams   *eventstreams.Service

	public, admin, metrics listening

	// stun is nil if it is off.
	stun *net.UDPConn

	// mqtt is nil if it is off.
	mqtt         *mqtt.Edge
	mqttListener net.Listener

	draining atomic.Bool
	failed   chan error
	stop     context.CancelFunc // ends the background work
	work     sync.WaitGroup
	// background runs until the stop.
	background []func(context.Context)
}

// Open opens the database that the settings name; it is up to the caller to close it.
func Open(ctx context.Context, cfg config.Config, log *slog.Logger) (*store.Store, error) {
	if err := cfg.CheckStorage(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	return store.Open(ctx, store.Options{DatabaseURL: cfg.DatabaseURL, DataDir: cfg.DataDir, Logger: log, MaxConns: cfg.DatabaseMaxConns})
}

// Start starts the service. When it returns without an error the service answers.
func Start(ctx context.Context, cfg config.Config, version string, log *slog.Logger) (_ *Daemon, err error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	for _, w := range cfg.Warnings() {
		log.WarnContext(ctx, "a setting weakens the service", "setting", w)
	}
	// What runs after the start is not ended by the start's context, but by Stop.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d := &Daemon{cfg: cfg, log: log, listeners: eventhub.New(), failed: make(chan error, 4), stop: stop}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.store, err = Open(ctx, cfg, log); err != nil {
		return nil, err
	}
	if err := d.prepareSchema(ctx); err != nil {
		return nil, err
	}
	changed, err := d.store.SetMaxStale(ctx, cfg.MaxStale, addresspool.Cooldown(0))
	if err != nil {
		return nil, err
	}
	if changed {
		log.InfoContext(ctx, "max-stale has changed: every gateway is told", "max_stale", cfg.MaxStale)
	}
	kek, err := keys.LoadOrCreateKEK(cfg.KEKFile())
	if err != nil {
		return nil, fmt.Errorf("key-encryption-key-file: %w", err)
	}
	if err := d.readCertificate(); err != nil {
		return nil, err
	}
	if d.queue, err = d.openQueue(kek); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ring, err := keys.Load(ctx, d.store, kek, keys.Options{Alg: cfg.SigningAlg})
	if err != nil {
		return nil, err
	}
	if err := d.listen(ctx); err != nil {
		return nil, err
	}
	registry := telemetry.NewRegistry(version)
	handlers, err := d.assemble(ctx, background, ring, kek, registry, version)
	if err != nil {
		return nil, err
	}
	d.serve(background, handlers, registry)
	log.InfoContext(ctx, "groupcastd is ready", "version", version, "url", cfg.URL(d.public.Addr()), "database", d.store.Dialect(),
		"listen", d.public.Addr().String(), "admin", d.admin.Addr().String())
	return d, nil
}

// prepareSchema brings the schema up to date where that is safe or was asked for, and refuses any other but ours.
func (d *Daemon) prepareSchema(ctx context.Context) error {
	if d.cfg.DatabaseURL == "" || d.cfg.Migrate {
		return d.store.Migrate(ctx)
	}
	return d.store.CheckSchema(ctx)
}

// edges are the two ways in.
type edges struct{ public, admin http.Handler }

// assemble wires the services to each other and to the edges. ctx is that of the start, life that of the service.
func (d *Daemon) assemble(ctx, life context.Context, ring *keys.Ring, kek *keys.KEK, registry *prometheus.Registry, version string) (edges, error) {
	consentKey, err := kek.Derive("consent of destinations")
	if err != nil {
		return edges{}, err
	}
	credentials := consents.NewCredentials(consentKey)
	groupService := groups.New(d.store, credentials)
	d.hub = longpoll.New(longpoll.Options{
		Epoch:       d.store.Epoch,
		Standings:   d.store.StandingsOf,
		Information: groupService.Information,
		Render:      httpapi.RenderInformation,
		Record:      d.store.RecordPolls,
		MaxWaiters:  d.cfg.LongPollMaxWaiters,
		Log:         d.log,
		Metrics:     registry,
	})
	d.relay = eventrelay.New(d.store, d.queue, d.log, registry)
	hooks := webhooks.New(d.store, kek, d.webhookRules())
	courier := webhooks.NewCourier(hooks, d.log, registry)
	d.background = append(d.background, courier.Run)
	tail := eventstreams.NewTail(d.store, d.listeners, d.log)
	d.background = append(d.background, tail.Run)
	if err := d.tellWaiters(courier, tail); err != nil { //nolint:contextcheck // what a commit wakes outlives its request
		return edges{}, err
	}
	accountService := accounts.New(d.store, d.cfg.Quotas)
	issuer := d.cfg.URL(d.public.Addr())
	proxies, err := d.cfg.Proxies()
	if err != nil {
		return edges{}, err
	}
	metrics := httpapi.NewMetrics(registry)
	nodes := relays.New(d.store, relays.Options{AllowLoopback: d.cfg.AllowLoopback, Settle: relays.Settle, Log: d.log})
	d.background = append(d.background, nodes.Run)
	id, err := d.newIdentity(life, issuer, ring, kek, accountService, nodes)
	if err != nil {
		return edges{}, err
	}
	d.background = append(d.background, id.run...)
	cursorKey, err := kek.Derive("event cursors")
	if err != nil {
		return edges{}, err
	}
	d.streams, err = eventstreams.New(eventstreams.Options{
		Store: d.store, Groups: groupService, Hub: d.listeners, Tail: tail, SessionLives: id.users.SessionLives, CursorKey: cursorKey,
		Now: time.Now, MaxStreams: d.cfg.LongPollMaxWaiters, Log: d.log, Metrics: registry,
	})
	if err != nil {
		return edges{}, err
	}
	d.background = append(d.background, d.streams.Run)

	limits, err := d.newLimits()
	if err != nil {
		return edges{}, err
	}
	d.newMQTT(id.access, limits, proxies, registry)
	d.newQueueAccess(id.access, limits, registry)
	if d.stun != nil {
		port, err := stunport.New(time.Now, d.log, registry)
		if err != nil {
			return edges{}, err
		}
		d.background = append(d.background, func(ctx context.Context) { port.Serve(ctx, d.stun) })
	}
	crossOrigin := http.NewCrossOriginProtection()
	if err := crossOrigin.AddTrustedOrigin(issuer); err != nil {
		return edges{}, fmt.Errorf("public-url: %w", err)
	}
	answers := idempotency.New(d.store, kek)
	public, err := httpapi.New(ctx, httpapi.Options{
		Document:       openapi.Public,
		Authenticate:   id.access.Authenticate,
		Nonce:          id.nonces.Current,
		CrossOrigin:    crossOrigin,
		Limits:         limits,
		Answers:        answers,
		Refused:        id.refusals.Add,
		TrustedProxies: proxies, Log: d.log, Metrics: metrics,
	})
	if err != nil {
		return edges{}, fmt.Errorf("openapi.yaml: %w", err)
	}
	registrationService := registrations.New(d.store, registrations.Options{
		AllowLoopback: d.cfg.AllowLoopback, Quotas: d.cfg.Quotas, Credentials: credentials,
	})
	httpapi.Mount(public, httpapi.Services{ //nolint:contextcheck // each request has its own
		Registrations: registrationService,
		Accounts:      accountService,
		Users:         id.users,
		Enrolment:     id.Enrolment,
		Groups:        groupService,
		Consents:      consents.New(d.store),
		STUN:          d.stunAddress(),
		Gateways:      gateways.New(d.store, gateways.Options{AllowLoopback: d.cfg.AllowLoopback}),
		Relays:        nodes,
		Polls:         d.hub,
		Webhooks:      hooks,
		Courier:       courier,
		Streams:       d.streams,
		Parking:       d.public.parking,
		OAuth:         id.OAuth,
		Keys:          ring,
		Ready:         d.ready,
		Version:       version,
	})
	apidocs.Register(public.Open())
	public.ServeProblemPages()
	if err := pages.Register(public, pages.Services{
		Users: id.users, Accounts: accountService, Grants: id.Grants, Enrolment: id.Enrolment, Groups: groupService,
		Registrations: registrationService, URL: issuer,
	}); err != nil {
		return edges{}, err
	}

	admin, err := httpapi.New(ctx, httpapi.Options{Document: openapi.Admin, Authenticate: httpapi.Operator, Answers: answers, Log: d.log, Metrics: metrics})
	if err != nil {
		return edges{}, fmt.Errorf("admin.yaml: %w", err)
	}
	adminserver.RegisterHandlersWithOptions(admin.Contract(),
		adminserver.NewStrictHandlerWithOptions(adminapi.New(accountService, id.Identity, id.users, d.store, backup.NewRotator(d.store, d.log), d.queueKeys, nodes),
			[]adminserver.StrictMiddlewareFunc{httpapi.Once[adminserver.StrictHandlerFunc](admin)}, adminserver.StrictGinServerOptions{
				RequestErrorHandlerFunc: admin.RequestError, HandlerErrorFunc: admin.HandlerError, ResponseErrorHandlerFunc: admin.ResponseError,
			}),
		adminserver.GinServerOptions{ErrorHandler: admin.ParameterError})

	var e edges
	if e.public, err = public.Handler(); err != nil {
		return edges{}, fmt.Errorf("openapi.yaml: %w", err)
	}
	if e.admin, err = admin.Handler(); err != nil {
		return edges{}, fmt.Errorf("admin.yaml: %w", err)
	}
	return e, nil
}

// tellWaiters sees to it that whoever waits for a change hears of it, in this process and in the other replicas.
func (d *Daemon) tellWaiters(courier *webhooks.Courier, tail *eventstreams.Tail) error {
	wake := func(c store.Changed) {
		for _, id := range c.Gateways {
			d.hub.Wake(id)
		}
		for _, p := range c.Events {
			d.listeners.Wake(p)
			if d.mqtt != nil {
				d.mqtt.Wake(p)
			}
		}
		if len(c.Events) > 0 {
			tail.Nudge()
		}
	}
	var others *hints.Hints
	if d.cfg.NATSURL != "" {
		var err error
		if others, err = hints.New(d.queue.Conn(), wake, d.log); err != nil {
			return fmt.Errorf("nats-url: listen for hints: %w", err)
		}
	}
	d.store.OnCommit(func(c store.Changed) {
		wake(c)
		if len(c.Events) > 0 {
			d.relay.Wake()
			courier.Wake()
		}
		if others != nil {
			others.Tell(c)
		}
	})
	return nil
}

// webhookRules says what webhooks may be.
func (d *Daemon) webhookRules() outbound.Rules {
	r := outbound.Rules{AllowLoopback: d.cfg.AllowLoopback}
	for _, p := range d.cfg.WebhookPorts {
		r.Ports = append(r.Ports, uint16(p)) //nolint:gosec // config.Check bounds it
	}
	return r
}

// ready tells whether the service can do its work.
func (d *Daemon) ready(ctx context.Context) error {
	if d.draining.Load() {
		return models.Errorf(models.CodeUnavailable, "The service is stopping. Ask another replica, or wait until it has started again.")
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := d.store.CheckSchema(ctx)
	var known *models.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return models.Errorf(models.CodeUnavailable, "The database doesn't have the schema of this version. The operator's log says more.").Because(err)
}

// serve starts everything that runs.
func (d *Daemon) serve(ctx context.Context, e edges, registry *prometheus.Registry) {
	reaper := expiry.New(d.store, d.log)
	d.work.Go(func() { d.hub.Run(ctx) })
	d.work.Go(func() { reaper.Run(ctx) })
	d.work.Go(func() { d.relay.Run(ctx) })
	d.work.Go(func() { d.listeners.Run(ctx, d.store.NewestEvents, d.log) })
	for _, run := range d.background {
		d.work.Go(func() { run(ctx) })
	}
	if d.mqtt != nil {
		d.work.Go(func() { d.mqtt.Run(ctx) })
		d.serveMQTT() //nolint:contextcheck // connections end by Drain
	}
	d.public.serve(d.httpServer(e.public), d.failed)
	d.admin.serve(d.httpServer(e.admin), d.failed)
	if d.metrics.Listener != nil {
		d.metrics.serve(telemetry.NewMetricsServer(registry, d.log), d.failed)
	}
}

// URL is what clients reach the service at.
func (d *Daemon) URL() string { return d.cfg.URL(d.public.Addr()) }

// Addr is what the public interface listens on.
func (d *Daemon) Addr() net.Addr { return d.public.Addr() }

// MetricsAddr is where the metrics are; nil if they are off.
func (d *Daemon) MetricsAddr() net.Addr {
	if d.metrics.Listener == nil {
		return nil
	}
	return d.metrics.Addr()
}

// Wake tells a waiting gateway of a change that was made in the database beside the service, at once instead of within two seconds.
func (d *Daemon) Wake(gateway models.ID) { d.hub.Wake(gateway) }

// stunAddress is what gateways reach the STUN port at; empty if there is none.
func (d *Daemon) stunAddress() string {
	if d.stun == nil || d.cfg.STUNAddress != "" {
		return d.cfg.STUNAddress
	}
	_, port, _ := net.SplitHostPort(d.stun.LocalAddr().String()) // which is made of both
	u, _ := url.Parse(d.URL())                                   // config.Check has seen it
	return net.JoinHostPort(u.Hostname(), port)
}

// MQTTAddr is where devices connect over MQTT; nil if that is off.
func (d *Daemon) MQTTAddr() net.Addr {
	if d.mqttListener == nil {
		return nil
	}
	return d.mqttListener.Addr()
}

// QueueAddr is where services read the event queue within this process; nil if they don't.
func (d *Daemon) QueueAddr() net.Addr { return d.queue.Addr() }

// Failed gives the error of a listener that ended by itself: the service doesn't do its work any more.
func (d *Daemon) Failed() <-chan error { return d.failed }

// Stop stops the service: it isn't ready any more, waiting gateways and devices are told to come back, requests are finished, and what gateways
// acknowledged is stored. The context bounds it.
func (d *Daemon) Stop(ctx context.Context) error {
	d.log.InfoContext(ctx, "stopping")
	d.draining.Store(true)
	drain, cancel := context.WithTimeout(ctx, d.cfg.DrainTime+time.Second)
	var drained sync.WaitGroup
	if d.mqtt != nil {
		drained.Go(func() { d.mqtt.Drain(drain, d.cfg.DrainTime) })
	}
	drained.Go(func() { d.hub.Drain(drain, d.cfg.DrainTime) })
	drained.Go(func() { d.streams.Drain(drain, d.cfg.DrainTime) })
	drained.Wait()
	cancel()
	finish, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	d.public.parking.Close(finish.Done()) // those who waited have their answers
	err := errors.Join(d.public.shutdown(finish), d.admin.shutdown(finish))
	d.stop()
	d.work.Wait()
	if e := d.hub.Flush(finish); e != nil {
		err = errors.Join(err, fmt.Errorf("store acknowledgements: %w", e))
	}
	d.queue.Close()
	// The metrics come last, so that the stop itself can be watched.
	err = errors.Join(err, d.metrics.shutdown(finish), d.store.Close())
	d.log.InfoContext(ctx, "stopped")
	return err
}

// close gives up a start that failed.
func (d *Daemon) close() {
	d.stop()
	for _, l := range []listening{d.public, d.admin, d.metrics} {
		if l.Listener != nil {
			_ = l.Close() // the start's own error says what happened
		}
	}
	gone := make(chan struct{})
	close(gone)
	d.public.parking.Close(gone)
	if d.queue != nil {
		d.queue.Close()
	}
	if d.mqttListener != nil {
		_ = d.mqttListener.Close()
	}
	if d.stun != nil {
		_ = d.stun.Close()
	}
	if d.store != nil {
		_ = d.store.Close()
	}
}

// Run runs the service until the context is done, and stops it then.
func Run(ctx context.Context, cfg config.Config, version string, log *slog.Logger) error {
	ballast := Ballast()
	defer runtime.KeepAlive(ballast)
	d, err := Start(ctx, cfg, version, log)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err = <-d.Failed():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.DrainTime+2*stopTimeout)
	defer cancel()
	return errors.Join(err, d.Stop(stop))
}
