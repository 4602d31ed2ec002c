package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	stdsync "sync"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/admission"
	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// ErrConfiguration is wrapped by errors of Run that a restart won't mend: somebody has to change the configuration or a file that
// it names.
var ErrConfiguration = errors.New("configuration")

// Agent is a gateway agent that copies.
type Agent struct {
	config    config.Config
	version   string
	log       *slog.Logger
	started   time.Time
	forwarder *forwarder
	poller    *sync.Poller
	place     place
	remember  *tunnelState    // only in a relay
	gate      *admission.Gate // nil without uplink-rate
	closers   []func() error  // in the order of opening
}

// Run is the whole life of an agent: it returns when ctx ends, or with the reason why it can't start.
func Run(ctx context.Context, c config.Config, version string, log *slog.Logger) error {
	a := &Agent{config: c, version: version, log: log, started: time.Now()}
	err := a.open(ctx)
	if err == nil {
		where := []any{"lan", c.Gateway.LANPrefix, "groupRange", c.Gateway.Range}
		if c.Mode == config.ModeRelay {
			where = []any{"endpoint", c.Relay.Endpoint}
		}
		log.With(where...).Info("gateway-agent runs", "version", version, "mode", c.Mode, "id", c.NodeID(), "server", c.Server.Redacted())
		a.work(ctx)
		log.Info("gateway-agent stops")
	}
	return errors.Join(err, a.close())
}

// open builds everything up to copying by the last snapshot, before the server is asked.
func (a *Agent) open(ctx context.Context) error {
	c := a.config
	if !tunnel.Built && c.Mode == config.ModeRelay {
		return fmt.Errorf("%w: mode: %w", ErrConfiguration, tunnel.Possible())
	}
	if c.AllowLoopback {
		a.log.Warn("allow-loopback is set: addresses of 127.0.0.0/8 are allowed, for a demonstration on one machine")
	}
	if c.AllowPlainHTTP && c.Server.Scheme == "http" {
		a.log.Warn("allow-plain-http is set: tokens go to the server without TLS")
	}
	transport, err := sync.NewTransport(c.CA)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	credential, err := clientauth.Open(c.Credential, c.Server.String(), clientauth.Options{Base: transport, AllowPlainHTTP: c.AllowPlainHTTP})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	store, err := state.Open(c.StateDir, c.NodeID())
	if err != nil {
		return err
	}
	a.closers = append(a.closers, store.Close)
	key, err := a.tunnelKey(store)
	if err != nil {
		return err
	}
	node := sync.Config{Server: c.Server.String(), Gateway: c.Gateway, Transport: transport, Authorized: credential.Transport(), Log: a.log}
	if key.Valid() {
		node.TunnelKey = key.Public()
	}
	if tunnel.Built && c.Mode == config.ModeRelay {
		a.remember = openTunnelState(store.Path(tunnelFile), a.log)
		node.Relay = sync.NewRelay(sync.Relay{
			ID: c.Relay.ID, Key: key.Public(), Endpoint: c.Relay.Endpoint, Uplink: c.Gateway.Uplink, Address: a.remember.setAddress,
		})
	}
	asking := newConsents(c, store.Path(portsFile), a.log)
	asking.resume(time.Now(), store)
	a.closers = append(a.closers, asking.ports.Close)
	node.Located = asking.find
	if a.poller, err = sync.New(node); err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	var where place
	if tunnel.Built && c.Mode == config.ModeRelay {
		where = a.openNetwork(key, asking)
	} else if where, err = a.openHome(key, asking); err != nil {
		return err
	}
	a.place = where
	db, err := table.Open()
	if err != nil {
		return err
	}
	a.forwarder = &forwarder{
		log: a.log, server: c.Server.String(), decode: a.poller.Decode, store: store, db: db, place: where,
		consents: asking, reporter: newReporter(a.poller.ReportConsents, a.log), uptime: state.Uptime, answers: make(chan delivered),
	}
	a.forwarder.view.Store(&view{})
	if err := a.forwarder.restore(); err != nil {
		a.log.Error("the kept group information could not be put into force", "err", err)
	}
	return a.listen(ctx, store.Path(socketFile))
}

// tunnelKey gives this host's key in the tunnels; none if it can't have one or needn't.
func (a *Agent) tunnelKey(store *state.Store) (tunnel.PrivateKey, error) {
	c := a.config
	if c.Mode == config.ModeGateway {
		if !c.Tunnel || c.Gateway.LANAddr.IsLoopback() {
			return tunnel.PrivateKey{}, nil
		}
		if err := tunnel.Possible(); err != nil {
			a.log.Info("no relay can copy for this gateway", "why", err)
			return tunnel.PrivateKey{}, nil
		}
	}
	return tunnel.LoadKey(store.Path(keyFile))
}

// openNetwork opens nothing yet: where the tunnel is says the service.
func (a *Agent) openNetwork(key tunnel.PrivateKey, asking *consents) place {
	c := a.config
	n := &network{
		key: key, port: c.Relay.Endpoint.Port(), remember: a.remember, log: a.log,
		copier: func(inside duplicator.Inside) (duplicator.Network, error) { return openRelay(c, inside, asking, a.log) },
	}
	a.closers = append(a.closers, n.close)
	return n
}

func (a *Agent) openHome(key tunnel.PrivateKey, asking *consents) (place, error) {
	c := a.config
	iface, err := lan.Find(c.LANInterface, c.Gateway.LANAddr)
	if err != nil {
		return nil, err
	}
	backend, err := openDuplicator(c, iface, asking, a.log)
	if err != nil {
		return nil, err
	}
	loaded(a.log)
	copier, gate := admit(c, backend, a.log)
	a.gate = gate
	a.closers = append(a.closers, copier.Close)
	guard, err := lan.Open(iface, c.Gateway.Range)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, guard.Close)
	way := &forwarding{
		key: key, enabled: key.Valid(), iface: iface, log: a.log,
		config: duplicator.Config{
			GroupRange: c.Gateway.Range, Uplink: c.Gateway.Uplink, Ports: c.MediaPorts, AnyPort: c.AnyPort, MaxStale: sync.MaxStaleLimit, Log: a.log,
		},
	}
	a.closers = append(a.closers, way.close)
	h := &home{duplicator: copier, backend: backend, guard: guard, way: way}
	return h, nil
}

// listen opens what an operator looks through.
func (a *Agent) listen(ctx context.Context, socket string) error {
	if len(socket) > maxSocketPath {
		a.log.Warn("nobody can ask for the status: the path of state-dir is too long for a socket in it", "bytes", len(socket), "limit", maxSocketPath)
	} else {
		l, err := listenUnix(ctx, socket)
		if err != nil {
			return err
		}
		a.serve(l, "GET /status", a.serveStatus)
	}
	if !a.config.MetricsListen.IsValid() {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.config.MetricsListen.String())
	if err != nil {
		return fmt.Errorf("metrics-listen: %w", err)
	}
	a.serve(l, "GET /metrics", a.serveMetrics)
	return nil
}

func (a *Agent) serve(l net.Listener, pattern string, handler http.HandlerFunc) {
	mux := http.NewServeMux()
	mux.HandleFunc(pattern, handler)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	var done stdsync.WaitGroup
	done.Go(func() { _ = server.Serve(l) })
	a.closers = append(a.closers, func() error {
		err := server.Close()
		done.Wait()
		return err
	})
}

// work polls and applies until ctx ends.
func (a *Agent) work(ctx context.Context) {
	held := a.forwarder.acknowledged() // before the forwarder belongs to run
	var done stdsync.WaitGroup
	done.Go(func() { a.forwarder.run(ctx) })
	done.Go(func() { a.forwarder.reporter.run(ctx) })
	if tunnel.Built && a.remember != nil {
		done.Go(func() { a.remember.run(ctx) })
	}
	done.Go(func() { a.poller.Run(ctx, held, a.forwarder.deliver) })
	done.Wait()
	if err := a.forwarder.consents.leave(time.Now(), a.forwarder.store); err != nil {
		a.log.Warn("whoever consented has to do so again after a restart", "err", err)
	}
}

// close takes down what open built, the last first: cameras stop finding the group IPs before nobody listens there.
func (a *Agent) close() error {
	var errs []error
	for _, closer := range slices.Backward(a.closers) {
		errs = append(errs, closer())
	}
	return errors.Join(errs...)
}
