package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/eventstreams"
)

const (
	mediaEvents = "text/event-stream"
	// heartbeat is how long a stream says nothing at most; proxies close what is silent for 60 s.
	heartbeat = 20 * time.Second
	// eventWriteTimeout is how long a client may take for a batch before it is cut off.
	eventWriteTimeout = 10 * time.Second
	// pollSettle is how long a long poll waits, if it has to, for a place to go on from.
	pollSettle = time.Second
	// A client comes back after reconnectAfter, or after up to reconnectSpread more, so that not all come at once.
	reconnectAfter  = time.Second
	reconnectSpread = 4 * time.Second
)

// Listen answers with all that the caller may hear (SPEC §7).
func (h handlers) Listen(ctx context.Context, r ginserver.ListenRequestObject) (ginserver.ListenResponseObject, error) {
	return h.listen(ctx, "", lastEvent(r.Params.LastEventIDHeader, r.Params.LastEventID), r.Params.Wait)
}

// ListenToGroup answers with what happens in one group (SPEC §7).
func (h handlers) ListenToGroup(ctx context.Context, r ginserver.ListenToGroupRequestObject) (ginserver.ListenToGroupResponseObject, error) {
	return h.listen(ctx, r.GroupID, lastEvent(r.Params.LastEventIDHeader, r.Params.LastEventID), r.Params.Wait)
}

func lastEvent(header, query *string) *string {
	if header != nil {
		return header
	}
	return query
}

// heard is the answer of both operations.
type heard interface {
	ginserver.ListenResponseObject
	ginserver.ListenToGroupResponseObject
}

func (h handlers) listen(ctx context.Context, group models.GroupID, cursor *string, wait *int32) (heard, error) {
	poll, onlyEvents := wants(ctx)
	ctx, p := caller(ctx)
	st, err := h.Streams.Open(ctx, eventstreams.Caller{Principal: p, IssuedAt: p.IssuedAt, ExpiresAt: p.ExpiresAt}, group, cursor)
	if refusal, ok := errors.AsType[*models.Error](err); ok && onlyEvents &&
		(refusal.Code == models.CodeUnavailable || refusal.Code == models.CodeOverloaded) {
		return comeBack{&eventstreams.EndedError{Reason: eventstreams.Unavailable, Detail: refusal.Detail}}, nil
	}
	if err != nil {
		return nil, err
	}
	if !poll {
		return eventStream{ctx, st}, nil
	}
	defer st.Close()
	return pollEvents(ctx, st, time.Duration(value(wait))*time.Second)
}

// wants tells a long poll from a stream, which is what a client gets that doesn't say, and whether the client takes nothing but a stream, as
// EventSource does.
func wants(ctx context.Context) (poll, onlyEvents bool) {
	g, ok := ctx.(*gin.Context)
	if !ok {
		return false, false
	}
	events, others := false, false
	for accepted := range strings.SplitSeq(strings.Join(g.Request.Header.Values("Accept"), ","), ",") {
		switch media, _, _ := mime.ParseMediaType(accepted); media {
		case mediaEvents:
			events = true
		case "*/*":
			events, others = true, true
		case mediaJSON:
			poll, others = true, true
		default:
			others = true
		}
	}
	return poll && !events, events && !others
}

// eventBatch is EventBatch of the contract, with events that are written already.
type eventBatch struct {
	LastEventID string            `json:"lastEventId"`
	Resync      string            `json:"resync,omitempty"`
	Events      []json.RawMessage `json:"events"`
}

// pollEvents makes the answer of a long poll.
func pollEvents(ctx context.Context, st *eventstreams.Stream, wait time.Duration) (heard, error) {
	answer := eventBatch{Events: []json.RawMessage{}}
	for {
		b, err := st.Next(ctx, wait)
		if end, ok := errors.AsType[*eventstreams.EndedError](err); ok {
			return answer.over(end)
		}
		if err != nil {
			return nil, err
		}
		if b.Resync != "" {
			answer.Resync = b.Resync
		}
		for _, e := range b.Events {
			answer.Events = append(answer.Events, e.JSON)
		}
		if answer.LastEventID = b.Cursor; b.Cursor != "" {
			return answer, nil
		}
		wait = max(wait, pollSettle)
	}
}

// over is the answer when the caller may not listen any more.
func (a eventBatch) over(end *eventstreams.EndedError) (heard, error) {
	switch end.Reason {
	case eventstreams.Stopping:
		return nil, models.Errorf(models.CodeUnavailable, "%s", end.Detail).With("retryAfter", 1)
	case eventstreams.TokenExpired, eventstreams.Revoked:
		return nil, unauthenticated(end.Detail)
	case eventstreams.Left:
		return nil, models.Errorf(models.CodeForbidden, "%s", end.Detail)
	default:
		return nil, models.NotFound()
	}
}

// VisitListenResponse writes the answer of a long poll.
func (a eventBatch) VisitListenResponse(w http.ResponseWriter) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pollWriteTimeout)) // a test's recorder has none
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", mediaJSON)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // a client that is gone can't be told
	return nil
}

// VisitListenToGroupResponse writes the answer of a long poll.
func (a eventBatch) VisitListenToGroupResponse(w http.ResponseWriter) error {
	return a.VisitListenResponse(w)
}

// eventStream writes Server-Sent Events (WHATWG HTML §9.2) until the stream or its client ends.
type eventStream struct {
	ctx context.Context //nolint:containedctx // the generated code gives none to who writes an answer
	*eventstreams.Stream
}

// VisitListenResponse writes the stream.
func (s eventStream) VisitListenResponse(w http.ResponseWriter) error {
	defer s.Close()
	out := begin(w)
	out.retry()
	for {
		if out.send() != nil {
			return nil // the client is gone, or took too long; it comes back with the last id that it has
		}
		b, err := s.Next(s.ctx, heartbeat)
		if end, ok := errors.AsType[*eventstreams.EndedError](err); ok {
			err := out.end(end)
			_ = out.send()
			return err
		}
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			return err // what has begun can't be refused; the edge logs it and the client comes back
		}
		if err := out.batch(b); err != nil {
			return err
		}
	}
}

// comeBack answers a client that takes nothing but a stream, and that can't have one now, with a stream that ends at once: EventSource never asks again
// after a 503 (WHATWG HTML §9.2.3).
type comeBack struct{ why *eventstreams.EndedError }

// VisitListenResponse says when to ask again.
func (c comeBack) VisitListenResponse(w http.ResponseWriter) error {
	out := begin(w)
	err := out.end(c.why)
	_ = out.send()
	return err
}

// VisitListenToGroupResponse does the same.
func (c comeBack) VisitListenToGroupResponse(w http.ResponseWriter) error {
	return c.VisitListenResponse(w)
}

// VisitListenToGroupResponse writes the stream.
func (s eventStream) VisitListenToGroupResponse(w http.ResponseWriter) error {
	return s.VisitListenResponse(w)
}

// sseWriter collects what is written at once, and holds nothing in between.
type sseWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buffer  bytes.Buffer
}

// begin answers with a stream.
func begin(w http.ResponseWriter) *sseWriter {
	h := w.Header()
	h.Set("Content-Type", mediaEvents)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	return &sseWriter{w: w, control: http.NewResponseController(w)}
}

func (o *sseWriter) send() error {
	_ = o.control.SetWriteDeadline(time.Now().Add(eventWriteTimeout)) // a test's recorder has none
	_, err := o.w.Write(o.buffer.Bytes())
	o.buffer = bytes.Buffer{}
	if err != nil {
		return err
	}
	return o.control.Flush()
}

func (o *sseWriter) retry() {
	fmt.Fprintf(&o.buffer, "retry: %d\n\n", (reconnectAfter + rand.N(reconnectSpread)).Milliseconds())
}

func (o *sseWriter) event(name, id string, data []byte) {
	fmt.Fprintf(&o.buffer, "event: %s\n", name)
	o.id(id)
	fmt.Fprintf(&o.buffer, "data: %s\n\n", data)
}

func (o *sseWriter) id(id string) {
	if id != "" {
		fmt.Fprintf(&o.buffer, "id: %s\n", id)
	}
}

// resync is the data of the event of that name.
type resync struct {
	Reason string            `json:"reason"`
	More   bool              `json:"more"`
	Events []json.RawMessage `json:"events"`
}

func (o *sseWriter) batch(b eventstreams.Batch) error {
	switch {
	case b.Resync != "":
		r := resync{Reason: b.Resync, More: b.More, Events: []json.RawMessage{}}
		for _, e := range b.Events {
			r.Events = append(r.Events, e.JSON)
		}
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		o.event("resync", b.Cursor, data)
	case len(b.Events) == 0: // an id without data moves the client's place without an event
		o.buffer.WriteString(":\n")
		o.id(b.Cursor)
		o.buffer.WriteString("\n")
	default:
		id := ""
		for _, e := range b.Events {
			name := "account"
			if e.OfGroup {
				name = "group"
			}
			o.event(name, e.Cursor, e.JSON)
			id = e.Cursor
		}
		if id != b.Cursor {
			o.id(b.Cursor)
			o.buffer.WriteString("\n")
		}
	}
	return nil
}

// end says why nothing more comes.
func (o *sseWriter) end(why *eventstreams.EndedError) error {
	if why.Reason == eventstreams.Stopping || why.Reason == eventstreams.Unavailable {
		o.retry()
	}
	data, err := json.Marshal(struct {
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}{why.Reason, why.Detail})
	if err != nil {
		return err
	}
	o.event("end", "", data)
	return nil
}
