package store

import (
	"context"
	"sync"
)

// gather lets requests that come while a statement is under way share the next one: one round trip and one commit for all of them
// (docs/adr/0018). Nobody waits for company: the first of an idle gather goes at once. Nobody is answered before the statement that
// he was in is over, and that began after he asked. One statement is under way at a time: two halve the company, and the second
// passes by the leases that the first has locked.
type gather[Q, A any] struct {
	// run answers questions in their order. Its error is everybody's.
	run func(context.Context, []Q) ([]A, error)
	// same tells questions apart that must not be in one statement: those with the same key go one after the other.
	same func(Q) any

	// max bounds the questions of one statement.
	max int

	mu      sync.Mutex
	waiting []*question[Q, A]
	running bool
	asked   int // questions of the statement under way
}

type question[Q, A any] struct {
	ctx      context.Context //nolint:containedctx // it is the asker's, who waits
	ask      Q
	answered chan struct{}
	answer   A
	err      error
}

// ask gives the answer to a question, or the error of its statement. A caller that goes away doesn't stop the others'.
func (g *gather[Q, A]) ask(ctx context.Context, ask Q) (answer A, err error) {
	q := &question[Q, A]{ctx: ctx, ask: ask, answered: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, q)
	if !g.running {
		g.running = true
		go g.work() //nolint:contextcheck // it works for others too, each with his own context
	}
	g.mu.Unlock()
	select {
	case <-q.answered:
		return q.answer, q.err
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
}

// work runs statements until nobody waits.
func (g *gather[Q, A]) work() {
	for {
		batch := g.next()
		if len(batch) == 0 {
			return
		}
		asks := make([]Q, len(batch))
		for i, q := range batch {
			asks[i] = q.ask
		}
		// Not the context of one of them, who may go away: the store bounds it.
		answers, err := g.run(context.WithoutCancel(batch[0].ctx), asks)
		for i, q := range batch {
			if q.err = err; err == nil {
				q.answer = answers[i]
			}
			close(q.answered)
		}
		g.mu.Lock()
		g.asked -= len(batch)
		g.mu.Unlock()
	}
}

// next takes the questions of the next statement, and ends the worker if there are none.
func (g *gather[Q, A]) next() (batch []*question[Q, A]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.same == nil { // else every statement would look at all who wait, and they may be very many
		for len(g.waiting) > 0 && len(batch) < g.max {
			if q := g.waiting[0]; q.ctx.Err() == nil {
				batch = append(batch, q)
			}
			g.waiting[0], g.waiting = nil, g.waiting[1:]
		}
		return g.took(batch)
	}
	var rest []*question[Q, A]
	seen := map[any]bool{}
	for _, q := range g.waiting {
		key := g.same(q.ask)
		switch {
		case q.ctx.Err() != nil: // nobody waits for it any more
		case len(batch) == g.max, seen[key]:
			rest = append(rest, q)
		default:
			seen[key] = true
			batch = append(batch, q)
		}
	}
	g.waiting = rest
	return g.took(batch)
}

// took counts the questions of the next statement; g.mu is held.
func (g *gather[Q, A]) took(batch []*question[Q, A]) []*question[Q, A] {
	g.asked += len(batch)
	g.running = len(batch) > 0
	return batch
}
