// Package eventrelay publishes the events that the database holds to the queue: each at least once, those of one stream in their order, by
// one replica at a time (SPEC §7).
//
// The database is the truth and the queue follows it. What is not acknowledged stays unpublished and is sent again; while the queue is away
// the service goes on and the events wait. The relay never makes an event and never drops one.
package eventrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// lookEvery is how often the relay looks by itself: hints may get lost.
	lookEvery = time.Second
	// batch bounds the events of one look.
	batch = 500
	// retryAfter is how long it waits after something failed.
	retryAfter = 500 * time.Millisecond
	// notifyEvery spreads notifications of other replicas; one always follows the last event.
	notifyEvery = 2 * time.Millisecond
	// lateAfter is when events that wait are reported.
	lateAfter = 5 * time.Second
	// sweepEvery and sweepBatch bound how fast old events are removed.
	sweepEvery = 10 * time.Second
	sweepBatch = 5000
)

// Queue is what the relay publishes to.
type Queue interface {
	Prepare(ctx context.Context) (identity string, err error)
	Publish(subject, id string, body []byte) (jetstream.PubAckFuture, error)
	Forget(ctx context.Context, service models.ServiceID, serviceAccountID models.ID) error
	Kept(ctx context.Context, service models.ServiceID, serviceAccountID models.ID) ([]models.GroupID, error)
	ForgetGroup(ctx context.Context, service models.ServiceID, serviceAccountID models.ID, group models.GroupID) error
}

// Relay publishes events while it leads.
type Relay struct {
	store   *store.Store
	queue   Queue
	log     *slog.Logger
	metrics metrics
	wake    chan struct{}
	leads   atomic.Bool
	late    bool
}

type metrics struct {
	published, repeated prometheus.Counter
	waiting, oldest     prometheus.Gauge
	leads               prometheus.Gauge
}

// New makes the relay.
func New(st *store.Store, q Queue, log *slog.Logger, registry prometheus.Registerer) *Relay {
	r := &Relay{store: st, queue: q, log: log, wake: make(chan struct{}, 1), metrics: metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{Name: "groupcast_events_published_total", Help: "Events that the queue acknowledged."}),
		repeated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupcast_events_repeated_total", Help: "Messages that the queue had already when they were sent again.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_events_unpublished", Help: "Events that wait to be published."}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupcast_events_oldest_unpublished_seconds", Help: "How long the oldest event has been waiting to be published.",
		}),
		leads: prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_events_leader", Help: "1 if this process publishes events."}),
	}}
	if registry != nil {
		m := r.metrics
		registry.MustRegister(m.published, m.repeated, m.waiting, m.oldest, m.leads)
	}
	return r
}

// Wake says that there are events. It never blocks.
func (r *Relay) Wake() { nudge(r.wake) }

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // the one that is there will do
	}
}

// Run publishes events whenever this process may, until the context is done.
func (r *Relay) Run(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		waiting, stop := context.WithCancel(ctx)
		notified := make(chan struct{})
		go func() { defer close(notified); r.notify(waiting) }()
		l, err := r.store.LeadEvents(ctx)
		stop()
		<-notified
		if err == nil {
			err = r.lead(ctx, l, func() { failing = false })
			l.Close()
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			r.log.WarnContext(ctx, "events can't be published now; they wait in the database", "error", err)
		}
		failing = err != nil
		sleep(ctx, retryAfter)
	}
}

// notify tells the replica that leads of events of this one. What comes while it does is told right after.
func (r *Relay) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		if err := r.store.NotifyEvents(ctx); err != nil && ctx.Err() == nil {
			r.log.DebugContext(ctx, "the replica that publishes events couldn't be notified; it looks every second", "error", err)
		}
		sleep(ctx, notifyEvery)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// lead publishes until the leadership or the context ends, or something fails.
func (r *Relay) lead(ctx context.Context, l *store.Leadership, working func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.Lost != nil {
		go func() {
			select {
			case <-l.Lost:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	r.leads.Store(true)
	r.metrics.leads.Set(1)
	defer func() { r.leads.Store(false); r.metrics.leads.Set(0) }()
	look, sweep := time.NewTicker(lookEvery), time.NewTicker(sweepEvery)
	defer look.Stop()
	defer sweep.Stop()
	prepared := false
	for {
		if !prepared {
			if err := r.prepare(ctx); err != nil {
				return errors.Join(err, r.report(ctx))
			}
			prepared = true
		}
		n, err := r.publishSome(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errors.Join(err, r.report(ctx))
		}
		working()
		if n == batch {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-l.Woken:
		case <-look.C:
			if err := r.report(ctx); err != nil {
				return err
			}
		case <-sweep.C:
			prepared = false // somebody may have removed the stream meanwhile
			if _, err := r.store.SweepEvents(ctx, sweepBatch); err != nil {
				return fmt.Errorf("remove old events: %w", err)
			}
		}
	}
}

// prepare makes sure of the stream, and begins again with all events that are still there if it is a new one.
func (r *Relay) prepare(ctx context.Context) error {
	identity, err := r.queue.Prepare(ctx)
	if err != nil {
		return err
	}
	again, err := r.store.PublishTo(ctx, identity)
	if err != nil {
		return fmt.Errorf("record the stream: %w", err)
	}
	if again > 0 {
		r.log.WarnContext(ctx, "the queue has a new stream, so events are published to it again", "events", again, "stream", identity)
	}
	return nil
}

// report tells how many events wait, and says so aloud if they do for long.
func (r *Relay) report(ctx context.Context) error {
	b, err := r.store.EventBacklog(ctx)
	if err != nil {
		return fmt.Errorf("count the events that wait: %w", err)
	}
	r.metrics.waiting.Set(float64(b.Count))
	r.metrics.oldest.Set(b.Oldest.Seconds())
	late := b.Oldest > lateAfter
	if late && !r.late {
		r.log.ErrorContext(ctx, "events have been waiting to be published for too long; is the queue away or full?", "waiting", b.Count, "oldest", b.Oldest)
	}
	r.late = late
	return nil
}

// message is one of the messages that an event becomes: one for the account, and one for each service it concerns.
type message struct {
	subject, id string
	body        []byte
}

// publishSome publishes the oldest events that wait, at most a batch of them.
//
// It goes in waves with at most one event of each stream, so that the next is not on its way before the last was acknowledged: a queue
// that changes its leader would swap them.
func (r *Relay) publishSome(ctx context.Context) (int, error) {
	waiting, err := r.store.UnpublishedEvents(ctx, batch)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	links, err := r.links(ctx, waiting)
	if err != nil {
		return 0, err
	}
	for rest := waiting; len(rest) > 0; {
		var wave, later []store.StoredEvent
		on := map[models.EventStream]bool{}
		for _, e := range rest {
			if on[e.EventStream] {
				later = append(later, e)
				continue
			}
			on[e.EventStream] = true
			wave = append(wave, e)
		}
		acknowledged, err := r.publish(ctx, wave, links)
		// What was acknowledged is recorded in any case, or it would be sent again for nothing.
		if e := r.store.MarkPublished(context.WithoutCancel(ctx), acknowledged); e != nil {
			return 0, errors.Join(err, fmt.Errorf("record what was published: %w", e))
		}
		if err != nil {
			return 0, err
		}
		r.metrics.published.Add(float64(len(acknowledged)))
		rest = later
	}
	return len(waiting), nil
}

// links reads who may hear the events. It comes after the events were read: an event that comes after the end of a link is published after that
// was, to whoever is linked then.
func (r *Relay) links(ctx context.Context, waiting []store.StoredEvent) (map[models.AccountID][]models.Link, error) {
	var accounts []models.AccountID
	of := map[models.AccountID][]models.Link{}
	for _, e := range waiting {
		if _, known := of[e.AccountID]; !known {
			of[e.AccountID] = nil
			accounts = append(accounts, e.AccountID)
		}
	}
	all, err := r.store.LinksOf(ctx, accounts)
	for _, l := range all {
		of[l.AccountID] = append(of[l.AccountID], l)
	}
	return of, err
}

// publish sends the messages of events of different streams, and gives the ids of those whose messages were all acknowledged.
func (r *Relay) publish(ctx context.Context, wave []store.StoredEvent, links map[models.AccountID][]models.Link) (acknowledged []int64, err error) {
	futures := make([][]jetstream.PubAckFuture, len(wave))
	for i, e := range wave {
		messages, err := r.messages(ctx, e.Event, links[e.AccountID])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			f, err := r.queue.Publish(m.subject, m.id, m.body)
			if err != nil {
				return nil, fmt.Errorf("publish event %d: %w", e.ID, err)
			}
			futures[i] = append(futures[i], f)
		}
	}
	// The deadline is for all: an acknowledgement that got lost never comes.
	ctx, cancel := context.WithTimeout(ctx, eventqueue.AckTimeout)
	defer cancel()
	for i, e := range wave {
		if failed := r.await(ctx, futures[i]); failed != nil {
			err = errors.Join(err, fmt.Errorf("publish event %d: %w", e.ID, failed))
			continue
		}
		acknowledged = append(acknowledged, e.ID)
	}
	return acknowledged, err
}

func (r *Relay) await(ctx context.Context, futures []jetstream.PubAckFuture) error {
	for _, f := range futures {
		select {
		case ack := <-f.Ok():
			if ack.Duplicate {
				r.metrics.repeated.Inc()
			}
		case err := <-f.Err():
			return err
		case <-ctx.Done():
			return fmt.Errorf("no acknowledgement: %w", ctx.Err())
		}
	}
	return nil
}

// messages writes an event for those whom it concerns. When a link ends, what its service could read goes first.
func (r *Relay) messages(ctx context.Context, e models.Event, links []models.Link) ([]message, error) {
	body, err := events.JSON(e, events.Listener{})
	if err != nil {
		return nil, err
	}
	stream := string(e.GroupID)
	if stream == "" {
		stream = "account"
	}
	all := []message{{eventqueue.AccountSubject(e.EventStream), fmt.Sprintf("%s/%s/%d", e.AccountID, stream, e.Rev), body}}
	if e.Type == models.EventLinkRevoked {
		if err := r.queue.Forget(ctx, e.Link.ServiceID, e.Link.ServiceAccountID); err != nil {
			return nil, fmt.Errorf("remove what %s could read: %w", e.Link.ServiceID, err)
		}
		links = []models.Link{e.Link.Link}
	}
	if e.Type == models.EventLinkGranted {
		if err := r.forgetUncovered(ctx, e, links); err != nil {
			return nil, fmt.Errorf("remove what %s may not read any more: %w", e.Link.ServiceID, err)
		}
	}
	for _, l := range links {
		if !events.Hears(l, e) {
			continue
		}
		to := events.Listener{ServiceID: l.ServiceID, ServiceAccountID: l.ServiceAccountID}
		if body, err = events.JSON(e, to); err != nil {
			return nil, err
		}
		rev := e.Rev
		if e.Group == nil {
			rev, stream = events.LinkPlace(e), "link"
		}
		all = append(all, message{
			eventqueue.LinkSubject(l.ServiceID, l.ServiceAccountID, e.GroupID), fmt.Sprintf("%s/%s/%s/%d", l.ServiceID, l.ServiceAccountID, stream, rev), body,
		})
	}
	return all, nil
}

// forgetUncovered removes what a service hasn't fetched of groups that its consent, which has changed, doesn't let it hear of any more. It goes
// by the consent as it is now: if that is another one again, another event follows.
func (r *Relay) forgetUncovered(ctx context.Context, e models.Event, links []models.Link) error {
	for _, l := range links {
		if l.ServiceID != e.Link.ServiceID || l.ServiceAccountID != e.Link.ServiceAccountID || l.Premises == nil && l.Grants(models.ScopeEvents) {
			continue
		}
		kept, err := r.queue.Kept(ctx, l.ServiceID, l.ServiceAccountID)
		if err != nil {
			return err
		}
		of := make([]models.EventStream, len(kept))
		for i, g := range kept {
			of[i] = models.EventStream{AccountID: e.AccountID, GroupID: g}
		}
		newest, err := r.store.NewestEvents(ctx, of)
		if err != nil {
			return err
		}
		hears := map[models.GroupID]bool{}
		for _, p := range newest {
			last, err := r.store.EventsAfter(ctx, p.EventStream, p.Rev-1, 1)
			if err != nil {
				return err
			}
			hears[p.GroupID] = len(last) == 1 && events.Hears(l, last[0])
		}
		for _, g := range kept {
			if hears[g] {
				continue
			}
			if err := r.queue.ForgetGroup(ctx, l.ServiceID, l.ServiceAccountID, g); err != nil {
				return err
			}
		}
	}
	return nil
}
