package longpoll

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
)

const (
	// saveEvery is the longest time for which a poll is known only here. It is short against the time after which a gateway
	// counts as dead, which is at least thirty seconds.
	saveEvery = 10 * time.Second
	// saveSoon is the wait for further ones when an acknowledgement advances: somebody may wait for an address to become free.
	saveSoon = 100 * time.Millisecond
)

// acknowledge remembers that a gateway or a relay asked and what it holds; revision 0 acknowledges nothing.
func (h *Hub) acknowledge(r Request, c Cursor) {
	h.mu.Lock()
	g := h.gatewayLocked(r.Gateway)
	g.polled, g.unsaved, g.relay = time.Now(), true, r.Relay
	advances := c.Epoch != g.acked.Epoch || c.Revision > g.acked.Revision
	if advances {
		g.acked = c
	}
	h.mu.Unlock()
	if advances && c.Revision > 0 || r.Relay {
		select {
		case h.flush <- struct{}{}:
		default:
		}
	}
}

// saveAcknowledgements writes them in batches until the context is done.
func (h *Hub) saveAcknowledgements(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.flush:
			select {
			case <-ctx.Done():
				return
			case <-time.After(saveSoon):
			}
		}
		if err := h.Flush(ctx); err != nil && ctx.Err() == nil {
			h.o.Log.WarnContext(ctx, "what gateways acknowledged can't be stored; trying again", "error", err)
		}
	}
}

// Flush writes the acknowledgements that are known only here. Call it once more after the last poll.
func (h *Hub) Flush(ctx context.Context) error {
	h.mu.Lock()
	var polls []models.Poll
	for id, g := range h.gateways {
		if g.unsaved {
			polls = append(polls, models.Poll{GatewayID: id, Relay: g.relay, Epoch: g.acked.Epoch, Revision: g.acked.Revision, Ago: time.Since(g.polled)})
			g.unsaved = false
		}
	}
	h.mu.Unlock()
	if len(polls) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err := h.o.Record(ctx, polls)
	if err != nil {
		h.mu.Lock()
		for _, p := range polls {
			if g := h.gateways[p.GatewayID]; g != nil {
				g.unsaved = true
			}
		}
		h.mu.Unlock()
	}
	return err
}
