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
	"slices"
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
	// many is from how many messages on a batch costs less than one after the other: for a batch the server within this process makes files of its
	// own. Where so many events came since the last look, the next one comes gather after that, so that a batch is worth it. 200 events a
	// second are not so many.
	many   = 16
	gather = 50 * time.Millisecond
	// batch bounds the events of one look.
	batch = 500
	// recordEvery is how long it may take until the database is told what the queue has. Whoever dies before that leaves it to be sent twice.
	recordEvery = 50 * time.Millisecond
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
	Publish(m eventqueue.Message) (jetstream.PubAckFuture, error)
	PublishTogether(ctx context.Context, all []eventqueue.Message) error
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

// leading is what a relay knows while it leads.
type leading struct {
	*Relay
	// published are the events that the queue has and the database hasn't been told of; recording are those that it is being told of, of which
	// recorded says what became. A look leaves both out.
	published, recording []int64
	recorded             chan error // nil while nothing is being told
	due                  *time.Timer
}

// lead publishes until the leadership or the context ends, or something fails.
func (r *Relay) lead(ctx context.Context, l *store.Leadership, working func()) (err error) {
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
	by := &leading{Relay: r, due: time.NewTimer(recordEvery)}
	defer by.due.Stop()
	// What was acknowledged is recorded in any case, or it would be sent again for nothing.
	defer func() { err = errors.Join(err, by.settle(ctx)) }()
	prepared := false
	for {
		if !prepared {
			if err := r.prepare(ctx); err != nil {
				return errors.Join(err, by.report(ctx))
			}
			prepared = true
		}
		began := time.Now()
		n, err := by.publishSome(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errors.Join(err, by.report(ctx))
		}
		working()
		for wait := n < batch; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-r.wake:
				wait = false
			case <-l.Woken:
				wait = false
			case err := <-by.recorded:
				if err := by.told(err); err != nil {
					return err
				}
			case <-by.due.C:
				by.record(ctx)
			case <-look.C:
				if err := by.report(ctx); err != nil {
					return err
				}
				wait = false
			case <-sweep.C:
				prepared = false // somebody may have removed the stream meanwhile
				if _, err := r.store.SweepEvents(ctx, sweepBatch); err != nil {
					return fmt.Errorf("remove old events: %w", err)
				}
				wait = false
			}
		}
		if n >= many && n < batch {
			sleep(ctx, gather-time.Since(began))
		}
	}
}

// acknowledged notes that the queue has events. It has the database told of them a little later, for many at once, and beside what is published.
func (l *leading) acknowledged(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	if len(l.published) == 0 {
		l.due.Reset(recordEvery)
	}
	l.published = append(l.published, ids...)
	l.metrics.published.Add(float64(len(ids)))
	if len(l.published) < batch {
		return nil
	}
	if l.recorded != nil {
		if err := l.told(<-l.recorded); err != nil {
			return err
		}
	}
	l.record(ctx)
	return nil
}

// record begins to tell the database, unless that is going on: then it happens again.
func (l *leading) record(ctx context.Context) {
	switch {
	case l.recorded != nil:
		l.due.Reset(recordEvery)
	case len(l.published) > 0:
		l.recording, l.published, l.recorded = l.published, nil, make(chan error, 1)
		go func(told chan<- error, ids []int64) { told <- l.store.MarkPublished(context.WithoutCancel(ctx), ids) }(l.recorded, l.recording)
	}
}

// told takes what became of telling.
func (l *leading) told(err error) error {
	if l.recording, l.recorded = nil, nil; err != nil {
		return fmt.Errorf("record what was published: %w", err)
	}
	return nil
}

// settle tells the database all, and waits for it.
func (l *leading) settle(ctx context.Context) error {
	var before error
	if l.recorded != nil {
		before = l.told(<-l.recorded)
	}
	l.record(ctx)
	if l.recorded == nil {
		return before
	}
	return errors.Join(before, l.told(<-l.recorded))
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
func (l *leading) report(ctx context.Context) error {
	if err := l.settle(ctx); err != nil {
		return err
	}
	b, err := l.store.EventBacklog(ctx)
	if err != nil {
		return fmt.Errorf("count the events that wait: %w", err)
	}
	l.metrics.waiting.Set(float64(b.Count))
	l.metrics.oldest.Set(b.Oldest.Seconds())
	late := b.Oldest > lateAfter
	if late && !l.late {
		l.log.ErrorContext(ctx, "events have been waiting to be published for too long; is the queue away or full?", "waiting", b.Count, "oldest", b.Oldest)
	}
	l.late = late
	return nil
}

// pending is an event with the messages that it becomes: one for the account, and one for each service that hears it.
type pending struct {
	store.WaitingEvent
	messages []eventqueue.Message
}

// publishSome publishes the oldest events that wait, at most a batch of them.
func (l *leading) publishSome(ctx context.Context) (int, error) {
	waiting, err := l.store.UnpublishedEvents(ctx, batch, slices.Concat(l.recording, l.published))
	if err != nil {
		return 0, err
	}
	var part []pending
	size := 0
	for _, e := range waiting {
		messages, err := l.messages(ctx, e)
		if err != nil {
			return 0, err
		}
		if len(part) > 0 && size+len(messages) > eventqueue.MaxTogether {
			if err := l.publish(ctx, part, size); err != nil {
				return 0, err
			}
			part, size = nil, 0
		}
		part, size = append(part, pending{e, messages}), size+len(messages)
	}
	return len(waiting), l.publish(ctx, part, size)
}

// publish sends events as one batch, which the queue takes as it is, or else in waves with at most one event of each stream, so that the next is
// not on its way before the last was acknowledged: a queue that changes its leader would swap them.
func (l *leading) publish(ctx context.Context, all []pending, messages int) error {
	if messages >= many {
		together := make([]eventqueue.Message, 0, messages)
		ids := make([]int64, len(all))
		for i, e := range all {
			ids[i] = e.ID
			together = append(together, e.messages...)
		}
		bounded, cancel := context.WithTimeout(ctx, eventqueue.AckTimeout)
		err := l.queue.PublishTogether(bounded, together)
		cancel()
		if err == nil {
			return l.acknowledged(ctx, ids)
		}
		if !errors.Is(err, eventqueue.ErrOneByOne) {
			return fmt.Errorf("publish %d events: %w", len(all), err)
		}
	}
	for rest := all; len(rest) > 0; {
		var wave, later []pending
		on := map[models.EventStream]bool{}
		for _, e := range rest {
			if on[e.EventStream] {
				later = append(later, e)
				continue
			}
			on[e.EventStream] = true
			wave = append(wave, e)
		}
		ids, err := l.send(ctx, wave)
		if err := errors.Join(err, l.acknowledged(ctx, ids)); err != nil {
			return err
		}
		rest = later
	}
	return nil
}

// send sends the messages of events of different streams, and gives the ids of those whose messages were all acknowledged.
func (l *leading) send(ctx context.Context, wave []pending) (acknowledged []int64, err error) {
	futures := make([][]jetstream.PubAckFuture, len(wave))
	for i, e := range wave {
		for _, m := range e.messages {
			f, err := l.queue.Publish(m)
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
		if failed := l.await(ctx, futures[i]); failed != nil {
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
func (r *Relay) messages(ctx context.Context, e store.WaitingEvent) ([]eventqueue.Message, error) {
	body, err := events.JSON(e.Event, events.Listener{})
	if err != nil {
		return nil, err
	}
	stream := string(e.GroupID)
	if stream == "" {
		stream = "account"
	}
	all := []eventqueue.Message{{Subject: eventqueue.AccountSubject(e.EventStream), ID: fmt.Sprintf("%s/%s/%d", e.AccountID, stream, e.Rev), Body: body}}
	hearers := e.Hearers
	if e.Type == models.EventLinkRevoked {
		if err := r.queue.Forget(ctx, e.Link.ServiceID, e.Link.ServiceAccountID); err != nil {
			return nil, fmt.Errorf("remove what %s could read: %w", e.Link.ServiceID, err)
		}
		hearers = []models.Link{e.Link.Link}
	}
	if e.Type == models.EventLinkGranted {
		if err := r.forgetUncovered(ctx, e.Link.Link); err != nil {
			return nil, fmt.Errorf("remove what %s may not read any more: %w", e.Link.ServiceID, err)
		}
	}
	for _, l := range hearers {
		to := events.Listener{ServiceID: l.ServiceID, ServiceAccountID: l.ServiceAccountID}
		if !to.Concerns(e.Event) {
			continue
		}
		if body, err = events.JSON(e.Event, to); err != nil {
			return nil, err
		}
		rev := e.Rev
		if e.Group == nil {
			rev, stream = events.LinkPlace(e.Event), "link"
		}
		all = append(all, eventqueue.Message{
			Subject: eventqueue.LinkSubject(l.ServiceID, l.ServiceAccountID, e.GroupID),
			ID:      fmt.Sprintf("%s/%s/%s/%d", l.ServiceID, l.ServiceAccountID, stream, rev), Body: body,
		})
	}
	return all, nil
}

// forgetUncovered removes what a service hasn't fetched of groups that its consent, which has changed, doesn't let it hear of any more. It goes
// by the consent as it is now: if that is another one again, another event follows.
func (r *Relay) forgetUncovered(ctx context.Context, l models.Link) error {
	kept, err := r.queue.Kept(ctx, l.ServiceID, l.ServiceAccountID)
	if err != nil || len(kept) == 0 {
		return err
	}
	heard, err := r.store.HeardGroups(ctx, l, kept)
	if err != nil {
		return err
	}
	for _, g := range kept {
		if slices.Contains(heard, g) {
			continue
		}
		if err := r.queue.ForgetGroup(ctx, l.ServiceID, l.ServiceAccountID, g); err != nil {
			return err
		}
	}
	return nil
}
