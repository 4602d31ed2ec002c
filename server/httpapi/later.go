package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/server/parking"
	"github.com/groupcast/groupcast/server/problem"
)

// waiter is a request that may be answered long after its handler has returned.
type waiter interface {
	// Leave is called when the client is gone. It never blocks.
	Leave()
	// Answer waits and answers, or gives why there is no answer.
	Answer(ctx context.Context, to http.ResponseWriter) error
	// Pause holds a client that has its answer back for a moment, if others should be answered first.
	Pause()
}

// late is such a request. There may be very many, so it holds little.
type late struct {
	edge   *Edge
	conn   *parking.Conn
	waits  waiter
	header string // what was decided before the wait
	observation
}

// park takes the connection of a request that waits, and tells whether it did: then somebody else answers, and the handler must not. ctx is
// that of the handler.
func (e *Edge) park(ctx context.Context, lot *parking.Lot, w waiter) bool {
	c, ok := ctx.(*gin.Context)
	if !ok || lot == nil {
		return false
	}
	info := callOf(ctx)
	l := &late{edge: e, waits: w, observation: observationOf(c, info, time.Now())}
	var header bytes.Buffer
	_ = c.Writer.Header().Write(&header) // to a buffer
	if l.conn = lot.Park(c.Writer, c.Request, w.Leave); l.conn == nil {
		return false
	}
	l.header = header.String()
	info.parked = true
	go l.run() //nolint:contextcheck // net/http ends the request's context with the handler; the lot's watch takes its place
	return true
}

// run waits and answers. While it waits its stack should stay as small as it began.
func (l *late) run() {
	ctx := context.Background()
	a := &lateAnswer{header: http.Header{}}
	defer l.recover(ctx)
	err := l.waits.Answer(ctx, a)
	l.finish(ctx, a, err)
}

// lateTimeout is how long an answer may take to be written.
const lateTimeout = pollWriteTimeout

func (l *late) finish(ctx context.Context, a *lateAnswer, err error) {
	conn := l.conn
	switch {
	case errors.Is(err, context.Canceled):
		_ = conn.Close() // nobody is there to be told
		l.edge.observed(ctx, l.observation, statusClientGone)
		return
	case err != nil:
		*a = lateAnswer{header: http.Header{}}
		refusal := l.edge.told(l.id, l.operation, err)
		challenge(a.header, []string{""}, refusal) // there was a token: somebody waited
		problem.Write(a, refusal, l.id)
	}
	keep := conn.Keeps() && a.header.Get("Connection") != "close"
	if !keep {
		a.header.Set("Connection", "close")
	}
	l.conn = nil // it is not ours any more, whatever comes
	l.edge.observed(ctx, l.observation, a.status)
	_ = conn.Answer(a.text(l.header), lateTimeout, keep, l.waits.Pause) // a client that is gone can't be told
}

// recover keeps a panic from ending the process. The client sees its connection end.
func (l *late) recover(ctx context.Context) {
	r := recover()
	if r == nil {
		return
	}
	l.edge.log.Error("a handler panicked", "request", l.id, "operation", l.operation, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.edge.observed(ctx, l.observation, http.StatusInternalServerError)
}

// lateAnswer keeps an answer until it is written as a whole.
type lateAnswer struct {
	status int
	header http.Header
	body   []byte
}

// Header is that of the answer.
func (a *lateAnswer) Header() http.Header { return a.header }

// WriteHeader sets the status; the first one counts.
func (a *lateAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

// Write keeps the bytes.
func (a *lateAnswer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, b...)
	return len(b), nil
}

// text is the answer as HTTP/1.1 wants it (RFC 9112 §4), with header lines that were decided before.
func (a *lateAnswer) text(header string) []byte {
	b := bytes.NewBuffer(make([]byte, 0, 512+len(header)+len(a.body)))
	b.WriteString("HTTP/1.1 " + strconv.Itoa(a.status) + " " + http.StatusText(a.status) + "\r\n")
	a.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	_ = a.header.Write(b) // to a buffer
	b.WriteString(header)
	b.WriteString("\r\n")
	b.Write(a.body)
	return b.Bytes()
}
