package webhooks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/outbound"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// timeout bounds one delivery, answer included. It is shorter than store.WebhookLease.
	timeout = 15 * time.Second
	// maxAnswer bounds what is read of an answer, so that its connection may be used again.
	maxAnswer = 64 << 10
	// poll is how often the database is asked without being told to: for what failed, and what other replicas recorded.
	poll = time.Second
	// sweepEvery is how often what nobody waits for is removed.
	sweepEvery = time.Minute
	// atOnce bounds the deliveries to one webhook that one process makes at once; to one that failed, it is one.
	atOnce = 4
	// down is after how many failures in a row everything is tried again at the first success.
	down = 5
	// maxRest bounds the pause after failures in a row.
	maxRest = time.Minute
	// GiveUp is how long a webhook may fail until it is disabled.
	GiveUp = 5 * 24 * time.Hour
	// workTimeout bounds what is recorded after a delivery, even if the process is stopping.
	workTimeout = 5 * time.Second
)

// backOff is how long an event waits after each failure; the last goes on. Each is drawn from 80 to 120 %.
var backOff = []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour}

// maxAttempts is after how many failures an event is given up that is refused while others of its webhook are taken: about GiveUp.
var maxAttempts = len(backOff) + int(GiveUp/backOff[len(backOff)-1])

// Courier delivers events to webhooks. Several may work on one database.
type Courier struct {
	service *Service
	store   *store.Store
	client  *http.Client
	now     func() time.Time
	log     *slog.Logger
	wake    chan struct{}

	mu   sync.Mutex
	busy map[models.WebhookID]int
	work sync.WaitGroup

	deliveries *prometheus.CounterVec
}

// NewCourier makes one. now is the clock that signatures are dated by: whoever verifies compares it with their own. The registry may be nil.
func NewCourier(s *Service, now func() time.Time, log *slog.Logger, metrics prometheus.Registerer) *Courier {
	c := &Courier{
		service: s, store: s.store, client: outbound.NewClient(s.rules), now: now, log: log, wake: make(chan struct{}, 1), busy: map[models.WebhookID]int{},
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_webhook_deliveries_total", Help: "Tries to deliver an event to a webhook, by what became of them.",
		}, []string{"result"}),
	}
	if metrics != nil {
		metrics.MustRegister(c.deliveries)
	}
	return c
}

// Wake says that there may be something to deliver. It never blocks.
func (c *Courier) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run delivers until the context is done. Deliveries that are being made then are broken off and made again later.
func (c *Courier) Run(ctx context.Context) {
	defer c.work.Wait()
	tick, sweep := time.NewTicker(poll), time.NewTicker(sweepEvery)
	defer tick.Stop()
	defer sweep.Stop()
	failing := false
	for {
		err := c.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != failing {
			if failing = err != nil; failing {
				c.log.WarnContext(ctx, "Webhooks can't be served now; it is tried again every second.", "error", err)
			} else {
				c.log.InfoContext(ctx, "webhooks are being served again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			if _, err := c.store.SweepWebhookStreams(ctx); err != nil && ctx.Err() == nil {
				c.log.WarnContext(ctx, "What webhooks don't wait for any more could not be removed; it is tried again.", "error", err)
			}
		case <-tick.C:
		case <-c.wake:
		}
	}
}

// look begins the deliveries that are due and that there is room for.
func (c *Courier) look(ctx context.Context) error {
	due, err := c.store.DueWebhooks(ctx)
	if err != nil {
		return err
	}
	for _, d := range due {
		room := atOnce
		if d.Failing {
			room = 1
		}
		if room -= c.count(d.ID, 0); room <= 0 {
			continue
		}
		streams, err := c.store.ClaimWebhookStreams(ctx, d.ID, room)
		if err != nil {
			return err
		}
		for _, v := range streams {
			c.count(d.ID, 1)
			c.work.Go(func() {
				defer c.Wake() // there is room
				defer c.count(d.ID, -1)
				c.serve(ctx, v)
			})
		}
	}
	return nil
}

// count changes how many deliveries are being made to a webhook, and tells it.
func (c *Courier) count(id models.WebhookID, more int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.busy[id] + more
	if c.busy[id] = n; n == 0 {
		delete(c.busy, id)
	}
	return n
}

// serve delivers the next event of a stream and records what became of it.
func (c *Courier) serve(ctx context.Context, v models.WebhookStream) {
	err := c.step(ctx, v)
	if err != nil && ctx.Err() == nil {
		c.log.WarnContext(ctx, "What became of a delivery could not be recorded; it may be made again.", "webhook", v.WebhookID, "error", err)
	}
}

func (c *Courier) step(ctx context.Context, v models.WebhookStream) error {
	d, found, err := c.store.NextWebhookEvent(ctx, v)
	if err != nil {
		return err
	}
	to := events.Listener{ServiceID: d.Webhook.ServiceID, ServiceAccountID: v.ServiceAccountID}
	switch {
	case !found: // the link or the webhook has ended, or there is nothing that it wants
		return c.store.Write(ctx, func(tx *store.Tx) error { return tx.AdvanceWebhookStream(v, v.NewestRev) })
	case !to.Concerns(d.Event): // another service's link
		return c.store.Write(ctx, func(tx *store.Tx) error { return tx.AdvanceWebhookStream(v, d.Event.Rev) })
	}
	body, err := events.JSON(d.Event, to)
	if err != nil {
		return err
	}
	outcome, err := c.send(ctx, d.Webhook, to.EventID(d.Event), body)
	if err != nil {
		return err
	}
	// It was delivered, or not: that is recorded even if the process is to stop.
	record, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTimeout)
	defer cancel()
	switch {
	case outcome.Delivered:
		c.deliveries.WithLabelValues("delivered").Inc()
		return c.store.Write(record, func(tx *store.Tx) error {
			if err := tx.WebhookSucceeded(d.Webhook, down); err != nil {
				return err
			}
			return tx.AdvanceWebhookStream(v, d.Event.Rev)
		})
	case ctx.Err() != nil:
		return c.store.Write(record, func(tx *store.Tx) error { return tx.RetryWebhookStream(v, 0, 0) })
	default:
		c.deliveries.WithLabelValues("failed").Inc()
		return c.failed(record, v, d, outcome)
	}
}

// failed records a failure and decides what follows from it.
func (c *Courier) failed(ctx context.Context, v models.WebhookStream, d store.WebhookDelivery, o Outcome) error {
	gaveUp := v.Attempts+1 >= maxAttempts
	disabled := models.WebhookDisabled("")
	err := c.store.Write(ctx, func(tx *store.Tx) error {
		failing, err := tx.WebhookFailed(v.WebhookID, o.Problem, rest(d.Webhook.Failures+1))
		if err != nil {
			return err
		}
		disabled = ""
		switch {
		case o.Status == http.StatusGone:
			disabled = models.WebhookGone
		case failing >= GiveUp:
			disabled = models.WebhookFailing
		case gaveUp:
			return tx.AdvanceWebhookStream(v, d.Event.Rev)
		default:
			return tx.RetryWebhookStream(v, 1, after(v.Attempts))
		}
		done, err := tx.DisableWebhook(v.WebhookID, disabled)
		if err != nil || !done {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Actor: audit.System, Action: audit.WebhookDisable, Object: audit.OfWebhook(v.WebhookID)})
	})
	switch {
	case err != nil:
	case disabled != "":
		c.log.WarnContext(ctx, "A webhook was disabled: it answered 410, or failed for days. Its service may enable it again.",
			"webhook", v.WebhookID, "service", d.Webhook.ServiceID, "why", disabled, "problem", o.Problem)
	case gaveUp:
		c.log.WarnContext(ctx, "An event was given up: its webhook refuses it and takes others.",
			"webhook", v.WebhookID, "service", d.Webhook.ServiceID, "group", v.GroupID, "rev", d.Event.Rev, "problem", o.Problem)
	}
	return err
}

// after draws how long an event waits that failed so often before.
func after(attempts int) time.Duration {
	d := backOff[min(attempts, len(backOff)-1)]
	return d*4/5 + rand.N(d*2/5)
}

// rest is how long a webhook is left alone after so many failures in a row. The first costs only the event that failed: it may be the event's
// fault.
func rest(failures int) time.Duration {
	if failures < 2 {
		return 0
	}
	return min(time.Second<<min(failures-2, 10), maxRest)
}

// Outcome is what became of one try.
type Outcome struct {
	Delivered bool
	// Status is the answer's; 0 if there was none.
	Status int
	// Problem says in a word what went wrong: status NNN, timeout, address, name, tls or connection.
	Problem string
}

// send makes one try. Its error is a fault of ours.
func (c *Courier) send(ctx context.Context, w models.Webhook, id string, body []byte) (Outcome, error) {
	secrets, err := c.service.secrets(w)
	if err != nil {
		return Outcome{}, err
	}
	now := c.now()
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		signer, err := standardwebhooks.NewWebhook(secret.text)
		if err != nil {
			return Outcome{}, fmt.Errorf("the secret of webhook %s isn't one", w.ID)
		}
		if signatures[i], err = signer.Sign(id, now, body); err != nil {
			return Outcome{}, fmt.Errorf("sign for webhook %s: %w", w.ID, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return Outcome{}, fmt.Errorf("the URL of webhook %s isn't one", w.ID)
	}
	r.Header.Set("Content-Type", events.ContentType)
	r.Header.Set("User-Agent", "groupcast-webhooks/1")
	r.Header.Set(standardwebhooks.HeaderWebhookID, id)
	r.Header.Set(standardwebhooks.HeaderWebhookTimestamp, fmt.Sprint(now.Unix()))
	r.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	answer, err := c.client.Do(r)
	if err != nil {
		return Outcome{Problem: problemOf(err)}, nil
	}
	defer answer.Body.Close()
	// What it says is of no interest. Reading it lets the connection be used again.
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer)
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return Outcome{Status: answer.StatusCode, Problem: fmt.Sprintf("status %d", answer.StatusCode)}, nil
	}
	return Outcome{Delivered: true, Status: answer.StatusCode}, nil
}

// problemOf says in a word what an error of the client was. The error itself may name addresses.
func problemOf(err error) string {
	var network net.Error
	var name *net.DNSError
	var record tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.Is(err, outbound.ErrRefused):
		return "address"
	case errors.As(err, &name):
		return "name"
	case errors.As(err, &certificate), errors.As(err, &unknown), errors.As(err, &record), errors.As(err, &alert):
		return "tls"
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	}
	return "connection"
}

// testEvent is what Test sends.
type testEvent struct {
	Specversion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Time            time.Time      `json:"time"`
	Datacontenttype string         `json:"datacontenttype"`
	Data            map[string]any `json:"data"`
}

// Test sends a webhook an event of the type groupcast.webhook.test now, once, enabled or not, and tells what became of it. It changes nothing.
func (c *Courier) Test(ctx context.Context, service models.ServiceID, id models.WebhookID) (Outcome, error) {
	w, err := c.service.Get(ctx, service, id)
	if err != nil {
		return Outcome{}, err
	}
	now := c.now().UTC()
	e := testEvent{
		Specversion: "1.0", ID: fmt.Sprintf("%s/test-%d", id, now.UnixNano()), Source: "/v1/webhooks/" + string(id), Type: events.TypePrefix + "webhook.test",
		Time: now, Datacontenttype: "application/json", Data: map[string]any{},
	}
	body, err := json.Marshal(e)
	if err != nil {
		return Outcome{}, fmt.Errorf("write the test event: %w", err)
	}
	return c.send(ctx, w, e.ID, body)
}
