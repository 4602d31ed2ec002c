// Package queueaccess decides which services may read the event queue (SPEC §7): who logs in there shows the access token that it would show over
// HTTP, and the same verifier checks it. A reader's connection ends with its token, and when the token was withdrawn.
//
// What a reader may do in NATS is server/eventqueue's, and what is published for it server/eventrelay's: nothing here looks at links.
package queueaccess

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventqueue"
)

const (
	// lookEvery is how often it is asked who is connected and still may be.
	lookEvery = 2 * time.Second
	// lookTimeout bounds that.
	lookTimeout = 10 * time.Second
	// MaxPerService is how many connections a service may have. Those since the last look count on one replica only.
	MaxPerService = 64
)

// Queue is what services read.
type Queue interface {
	Logins(ctx context.Context, decide func(context.Context, eventqueue.Login) *eventqueue.Reader) error
	Admit(ctx context.Context, service models.ServiceID) error
	Admitted(ctx context.Context) ([]models.ServiceID, error)
	Connections(ctx context.Context, services []models.ServiceID) ([]eventqueue.Connection, error)
	Disconnect(ctx context.Context, c eventqueue.Connection) error
}

// Options say whom to ask.
type Options struct {
	Queue Queue
	// Authenticate tells which service presents a token under a user name, which may be a proof of possession.
	Authenticate func(ctx context.Context, token, user string) (eventqueue.Reader, error)
	// NotBefore reads since when the tokens of services count; a service that is gone is missing.
	NotBefore func(context.Context, []models.ServiceID) (map[models.ServiceID]time.Time, error)
	// AllowSource and AllowService count logins.
	AllowSource  func(netip.Addr) bool
	AllowService func(models.ServiceID) bool
	// Now is the clock that tokens end by.
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Access answers logins and ends connections. It is safe for concurrent use.
type Access struct {
	o           Options
	logins      *prometheus.CounterVec
	ended       *prometheus.CounterVec
	connections prometheus.Gauge

	mu sync.Mutex
	// readers are how many connections each service has, as of the last look and the logins since.
	readers map[models.ServiceID]int
}

// What became of a login.
const (
	admitted         = "admitted"
	notAuthenticated = "not-authenticated"
	rateLimited      = "rate-limited"
	tooMany          = "too-many"
	unavailable      = "unavailable"
)

// Why a connection was ended.
const (
	tokenExpired = "token-expired"
	revoked      = "revoked"
)

// New makes it. Run has to run.
func New(o Options) *Access {
	a := &Access{
		o: o, readers: map[models.ServiceID]int{},
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_queue_logins_total", Help: "Logins of services to the event queue that this process answered.",
		}, []string{"result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_queue_ended_total", Help: "Connections to the event queue that this process ended, by reason.",
		}, []string{"reason"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_queue_connections", Help: "Connections of services to the event queue."}),
	}
	o.Metrics.MustRegister(a.logins, a.ended, a.connections)
	return a
}

// Run answers logins, and looks every two seconds who is connected, until the context is done.
func (a *Access) Run(ctx context.Context) {
	var answering sync.WaitGroup
	defer answering.Wait()
	answering.Go(func() {
		if err := a.o.Queue.Logins(ctx, a.decide); err != nil {
			a.o.Log.ErrorContext(ctx, "services can't log in to the event queue", "error", err)
		}
	})
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.Look(ctx)
		if ctx.Err() == nil && (err != nil) != failing {
			if failing = err != nil; failing {
				a.o.Log.WarnContext(ctx, "It can't be asked who reads the event queue, so nobody is disconnected whose token was withdrawn; it is tried again.", "error", err)
			} else {
				a.o.Log.InfoContext(ctx, "it is known again who reads the event queue")
			}
		}
	}
}

// decide answers a login.
func (a *Access) decide(ctx context.Context, l eventqueue.Login) *eventqueue.Reader {
	r, result := a.admit(ctx, l)
	a.logins.WithLabelValues(result).Inc()
	if result != admitted {
		return nil
	}
	return &r
}

func (a *Access) admit(ctx context.Context, l eventqueue.Login) (eventqueue.Reader, string) {
	// An address that can't be read counts as one network.
	from, _ := netip.ParseAddr(l.Source)
	if !a.o.AllowSource(from.Unmap()) {
		return eventqueue.Reader{}, rateLimited
	}
	token := l.Token
	if token == "" {
		token = l.Password
	}
	r, err := a.o.Authenticate(ctx, token, l.User)
	if err != nil {
		known, ok := errors.AsType[*models.Error](err)
		if ok && (known.Code == models.CodeUnauthenticated || known.Code == models.CodeForbidden) {
			a.o.Log.DebugContext(ctx, "a login to the event queue was refused", "reason", err)
			return eventqueue.Reader{}, notAuthenticated
		}
		a.o.Log.WarnContext(ctx, "a login to the event queue could not be checked", "error", err)
		return eventqueue.Reader{}, unavailable
	}
	if !a.o.AllowService(r.Service) {
		return eventqueue.Reader{}, rateLimited
	}
	if !a.enter(r.Service) {
		return eventqueue.Reader{}, tooMany
	}
	if err := a.o.Queue.Admit(ctx, r.Service); err != nil {
		a.o.Log.WarnContext(ctx, "a service can't read the event queue", "service", r.Service, "error", err)
		return eventqueue.Reader{}, unavailable
	}
	return r, admitted
}

// enter counts a connection, or tells that there may not be one more.
func (a *Access) enter(service models.ServiceID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.readers[service] >= MaxPerService {
		return false
	}
	a.readers[service]++
	return true
}

// Look ends the connections of those whose token has expired or was withdrawn, whichever replica let them in, and makes the consumers of the
// others anew if the stream was lost.
func (a *Access) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	services, err := a.o.Queue.Admitted(ctx)
	if err != nil {
		return err
	}
	consumers := services
	a.mu.Lock()
	for s := range a.readers {
		if !slices.Contains(consumers, s) {
			services = append(services, s)
		}
	}
	a.mu.Unlock()
	connections, err := a.o.Queue.Connections(ctx, services)
	if err != nil {
		return err
	}
	notBefore, err := a.o.NotBefore(ctx, services)
	if err != nil {
		return err
	}
	readers := map[models.ServiceID]int{}
	var faults []error
	for _, c := range connections {
		if why := a.overdue(c.Reader, notBefore); why != "" {
			if err := a.o.Queue.Disconnect(ctx, c); err != nil {
				faults = append(faults, err)
				continue
			}
			a.ended.WithLabelValues(why).Inc()
			a.o.Log.InfoContext(ctx, "a connection to the event queue was ended", "service", c.Service, "reason", why)
			continue
		}
		readers[c.Service]++
	}
	for s := range readers {
		if !slices.Contains(consumers, s) {
			faults = append(faults, a.o.Queue.Admit(ctx, s))
		}
	}
	a.connections.Set(float64(len(connections)))
	a.mu.Lock()
	a.readers = readers
	a.mu.Unlock()
	return errors.Join(faults...)
}

// overdue tells why a reader's connection has to end; "" if it needn't.
func (a *Access) overdue(r eventqueue.Reader, notBefore map[models.ServiceID]time.Time) string {
	since, there := notBefore[r.Service]
	switch {
	case !a.o.Now().Before(r.ExpiresAt):
		return tokenExpired
	case !there || r.IssuedAt.Before(since):
		return revoked
	}
	return ""
}
