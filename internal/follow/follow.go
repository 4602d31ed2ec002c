// Package follow hears events over a stream that it keeps open, and goes on where it was after whatever cuts it off. Where something on the way holds a stream
// back it asks by long poll. Reading Server-Sent Events is forty lines; reconnecting with our tokens and refusals is what is left of it, and is ours anyway.
package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// silence is how long a stream may say nothing: the service speaks every 20 s.
	silence = 50 * time.Second
	// pollWait is in seconds, the most that the contract knows.
	pollWait = 50
)

// beginning is how long a stream that begins anew may say nothing: the service speaks at once.
var beginning = 10 * time.Second

// errHeldBack says that a stream is open and doesn't get through.
var errHeldBack = errors.New("nothing of the stream comes through; asking by long poll")

// Event is one that was heard.
type Event struct {
	Type string
	// Group is set for events of groups.
	Group *api.GroupEventData
	// JSON is the CloudEvent as it came.
	JSON json.RawMessage
}

// Heard is what came at once.
type Heard struct {
	Events []Event
	// Resync tells that the events are how everything is, because what happened before isn't known; More that they go on in the next Heard.
	Resync, More bool
}

// Events calls heard with all that happens in a group, or in all that the caller may hear if group is empty, until ctx is done, heard fails or the
// service refuses for good. It begins with how everything is.
func Events(ctx context.Context, c *client.ClientWithResponses, group models.GroupID, log *slog.Logger, heard func(Heard) error) error {
	f := follower{client: c, group: group, heard: heard, retry: firstRetry}
	pause := firstRetry
	for {
		before := f.last
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the caller wanted the end
		}
		if failed, ok := errors.AsType[*stopped](err); ok {
			return failed.err
		}
		if refused, ok := errors.AsType[*refusal.Error](err); ok {
			if refused.Final() && refused.Status != http.StatusUnauthorized { // a token may be replaced
				return fmt.Errorf("hear events: %w", refused)
			}
			pause = max(pause, refused.RetryAfter)
		}
		if f.last != before { // it worked for a while
			pause = f.retry
		}
		wait := pause + rand.N(pause)
		log.Warn("the stream of events ended; going on after a pause", "why", err, "in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		pause = min(2*pause, lastRetry)
	}
}

// stopped is the error of the one who hears.
type stopped struct{ err error }

func (s *stopped) Error() string { return s.err.Error() }

type follower struct {
	client *client.ClientWithResponses
	group  models.GroupID
	heard  func(Heard) error
	last   string
	retry  time.Duration
	poll   bool // streams don't get through
}

// follow hears one connection to its end, or polls until that fails.
func (f *follower) follow(ctx context.Context) error {
	if f.poll {
		f.poll = false // what is in the way may be gone
		return f.polls(ctx)
	}
	err := f.stream(ctx)
	f.poll = errors.Is(err, errHeldBack)
	return err
}

func (f *follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := silence
	if f.last == "" {
		first = beginning
	}
	quiet := time.AfterFunc(first, func() { cancel(errHeldBack) })
	defer func() { quiet.Stop() }()
	r, err := f.open(ctx, "text/event-stream", nil)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return refused(r)
	}
	stream := newReader(r.Body)
	stream.last = f.last
	for {
		m, err := stream.next()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		quiet.Stop()
		quiet = time.AfterFunc(silence, func() { cancel(fmt.Errorf("nothing came for %v", silence)) })
		if err := f.take(m); err != nil {
			return err
		}
		if stream.retry > 0 {
			f.retry = stream.retry
		}
		f.last = stream.last
	}
}

// polls asks by long poll until that fails.
func (f *follower) polls(ctx context.Context) error {
	for {
		batch, err := f.ask(ctx)
		if err != nil {
			return err
		}
		if len(batch.Events) > 0 || batch.Resync != nil {
			if err := f.tell(batch.Events, batch.Resync != nil, false); err != nil {
				return err
			}
		}
		f.last = batch.LastEventID
	}
}

type batch struct {
	LastEventID string            `json:"lastEventId"`
	Events      []json.RawMessage `json:"events"`
	Resync      *string           `json:"resync"`
}

func (f *follower) ask(ctx context.Context) (b batch, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollWait*time.Second+beginning)
	defer cancel()
	wait := int32(pollWait)
	r, err := f.open(ctx, "application/json", &wait)
	if err != nil {
		return b, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return b, refused(r)
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxMessage)).Decode(&b); err != nil {
		return b, fmt.Errorf("read events: %w", err)
	}
	return b, nil
}

func (f *follower) open(ctx context.Context, accept string, wait *int32) (*http.Response, error) {
	accepting := func(_ context.Context, r *http.Request) error {
		r.Header.Set("Accept", accept)
		return nil
	}
	var last *string
	if f.last != "" {
		last = &f.last
	}
	if f.group != "" {
		return f.client.ListenToGroup(ctx, f.group, &api.ListenToGroupParams{LastEventIDHeader: last, Wait: wait}, accepting)
	}
	return f.client.Listen(ctx, &api.ListenParams{LastEventIDHeader: last, Wait: wait}, accepting)
}

// refused makes an error of an answer that is no stream.
func refused(r *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxMessage))
	if err != nil {
		return err
	}
	return refusal.Check(answer{r.StatusCode, body}, r.Header)
}

// answer is what refusal wants to know of one.
type answer struct {
	status int
	body   []byte
}

func (a answer) StatusCode() int { return a.status }
func (a answer) GetBody() []byte { return a.body }

func (f *follower) take(m message) error {
	switch m.event {
	case "group", "account":
		return f.tell([]json.RawMessage{m.data}, false, false)
	case "resync":
		var all struct {
			More   bool              `json:"more"`
			Events []json.RawMessage `json:"events"`
		}
		if err := json.Unmarshal(m.data, &all); err != nil {
			return fmt.Errorf("read a resync: %w", err)
		}
		return f.tell(all.Events, true, all.More)
	case "end":
		var end struct{ Reason, Detail string }
		if err := json.Unmarshal(m.data, &end); err != nil {
			return fmt.Errorf("read the end: %w", err)
		}
		return fmt.Errorf("%s: %s", end.Reason, end.Detail)
	default: // of a newer service
		return nil
	}
}

// tell gives the listener what came at once.
func (f *follower) tell(events []json.RawMessage, resync, more bool) error {
	h := Heard{Resync: resync, More: more}
	for _, data := range events {
		e, err := read(data)
		if err != nil {
			return err
		}
		h.Events = append(h.Events, e)
	}
	if err := f.heard(h); err != nil {
		return &stopped{err}
	}
	return nil
}

func read(data []byte) (Event, error) {
	e := Event{JSON: slices.Clone(data)}
	var envelope struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(data, &envelope); err != nil {
		return e, fmt.Errorf("read an event: %w", err)
	}
	e.Type = envelope.Type
	var group api.GroupEventData
	if err := json.Unmarshal(envelope.Data, &group); err != nil {
		return e, fmt.Errorf("read an event %s: %w", e.Type, err)
	}
	if group.GroupID != "" {
		e.Group = &group
	}
	return e, nil
}
