package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	stdsync "sync"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	reportEvery       = time.Second // but for what somebody waits for
	firstReportRetry  = time.Second
	lastReportRetry   = 30 * time.Second
	longestRetryAfter = 5 * time.Minute // of what the server asks for
	sendersAtOnce     = 25              // as the contract says
	consentsAtOnce    = 50
)

// standing is how one destination's consent stands at one sender.
type standing struct {
	state models.ConsentState
	lease consent.Lease // Until isn't reported
}

func (s standing) same(o standing) bool { return s.state == o.state && s.lease.At == o.lease.At }

// reporter tells the server where copies come from and who consents. It tells what has changed since the server last took a report, so nothing is
// lost while the server is away, and only the newest is told when it is back.
type reporter struct {
	post func(context.Context, api.ConsentReport) (api.ConsentReportAnswer, error)
	log  *slog.Logger
	wake chan struct{} // holds one

	mu       stdsync.Mutex
	senders  map[string]api.ReportedSender // as it is now, by the source's registration id
	consents map[consent.Key]standing
	afresh   bool // what the server was told counts no more

	// Those belong to run.
	sequence      int32 // the newest that the server took; -1: not known
	knownSenders  map[string]api.ReportedSender
	knownConsents map[consent.Key]standing
	reported      map[reportedConsent]consent.Key // in the report that next gave
}

// reportedConsent is how a report names a consent.
type reportedConsent struct{ destination, sender models.RegistrationID }

func newReporter(post func(context.Context, api.ConsentReport) (api.ConsentReportAnswer, error), log *slog.Logger) *reporter {
	return &reporter{
		post: post, log: log, wake: make(chan struct{}, 1), sequence: -1,
		knownSenders: map[string]api.ReportedSender{}, knownConsents: map[consent.Key]standing{},
	}
}

// is takes over how things are now.
func (r *reporter) is(senders map[string]api.ReportedSender, consents map[consent.Key]standing) {
	r.mu.Lock()
	r.senders, r.consents = senders, consents
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// forget has everything told again.
func (r *reporter) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.afresh = true
}

// next gives what the server has not been told yet, as much as fits, and whether somebody waits for it.
func (r *reporter) next() (report api.ConsentReport, urgent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.afresh {
		r.afresh, r.sequence = false, -1
		clear(r.knownSenders)
		clear(r.knownConsents)
	}
	maps.DeleteFunc(r.knownSenders, func(id string, _ api.ReportedSender) bool { _, ok := r.senders[id]; return !ok })
	maps.DeleteFunc(r.knownConsents, func(k consent.Key, _ standing) bool { _, ok := r.consents[k]; return !ok })
	var senders []api.ReportedSender
	var consents []api.ReportedConsent
	r.reported = map[reportedConsent]consent.Key{}
	for id, s := range r.senders {
		if before, ok := r.knownSenders[id]; len(senders) < sendersAtOnce && (!ok || !equal(before, s)) {
			senders = append(senders, s)
			urgent = true
		}
	}
	for key, s := range r.consents {
		before, ok := r.knownConsents[key]
		if ok && before.same(s) || len(consents) == consentsAtOnce {
			continue
		}
		urgent = urgent || s.state == models.ConsentLive && before.state != models.ConsentLive
		c := api.ReportedConsent{
			RegistrationID: models.RegistrationID(key.Destination), Sender: models.RegistrationID(key.Source), State: api.ReportedConsentState(s.state),
		}
		if s.state == models.ConsentLive {
			at := nullable.NewNullableWithValue(s.lease.At.Addr())
			c.Port = nullable.NewNullableWithValue(int32(s.lease.At.Port()))
			if s.lease.At.Addr().Is4() {
				c.IPv4 = at
			} else {
				c.IPv6 = at
			}
		}
		consents = append(consents, c)
		r.reported[reportedConsent{c.RegistrationID, c.Sender}] = key
	}
	if len(senders) > 0 {
		report.Senders = &senders
	}
	if len(consents) > 0 {
		report.Consents = &consents
	}
	return report, urgent
}

// equal compares what is said, not how: null or nothing.
func equal(a, b api.ReportedSender) bool {
	type said struct {
		port              int32
		mapped, ipv6      netip.Addr
		mappedPort, port6 int32
	}
	of := func(s api.ReportedSender) said {
		v := said{port: s.Port} // what isn't there is zero
		v.mapped, _ = s.MappedIPv4.Get()
		v.mappedPort, _ = s.MappedPort.Get()
		v.ipv6, _ = s.IPv6.Get()
		v.port6, _ = s.PortIPv6.Get()
		return v
	}
	return of(a) == of(b)
}

// run reports until ctx ends.
func (r *reporter) run(ctx context.Context) {
	var last time.Time
	retry := firstReportRetry
	for {
		report, urgent := r.next()
		if report.Senders == nil && report.Consents == nil {
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
				continue
			}
		}
		if pause := reportEvery - time.Since(last); !urgent && pause > 0 {
			if !sleep(ctx, pause) {
				return
			}
			continue
		}
		last = time.Now()
		if err := r.tell(ctx, report); err != nil {
			pause := retry/2 + rand.N(retry)
			if refusal, ok := errors.AsType[*sync.ServerError](err); ok {
				pause += min(refusal.RetryAfter, longestRetryAfter)
			}
			r.log.Debug("the server was not told who consents; trying again", "err", err, "in", pause)
			if !sleep(ctx, pause) {
				return
			}
			retry = min(2*retry, lastReportRetry)
			continue
		}
		retry = firstReportRetry
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// tell sends one report. Of one that the server didn't take, because it took a newer one or this one's answer was lost, it learns the number.
func (r *reporter) tell(ctx context.Context, report api.ConsentReport) error {
	if r.sequence < 0 {
		answer, err := r.post(ctx, api.ConsentReport{})
		if err != nil {
			return err
		}
		r.sequence = answer.Sequence
	}
	report.Sequence = r.sequence + 1
	answer, err := r.post(ctx, report)
	if err != nil {
		return err
	}
	r.sequence = answer.Sequence
	if !answer.Applied {
		return nil // what it says is still unknown to the server, and goes out again with the next number
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if report.Senders != nil {
		for _, s := range *report.Senders {
			r.knownSenders[string(s.RegistrationID)] = s
		}
	}
	if report.Consents != nil {
		for _, c := range *report.Consents {
			key := r.reported[reportedConsent{c.RegistrationID, c.Sender}]
			if s, ok := r.consents[key]; ok && told(c, s) {
				r.knownConsents[key] = s
			}
		}
	}
	return nil
}

// told tells whether a report says what is so still.
func told(c api.ReportedConsent, s standing) bool {
	if c.State != api.ReportedConsentState(s.state) {
		return false
	}
	if s.state != models.ConsentLive {
		return true
	}
	at, err := c.IPv4.Get()
	if err != nil {
		at, _ = c.IPv6.Get()
	}
	port, _ := c.Port.Get()
	return at == s.lease.At.Addr() && uint16(port) == s.lease.At.Port()
}
