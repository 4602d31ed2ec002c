// Package hints tells the other replicas what a commit changed, over NATS without storage, so that those who wait there needn't wait for the
// next look at the database (SPEC §7).
//
// A hint is never the truth and may get lost: whoever is woken reads the database, and looks every two seconds without one.
package hints

import (
	"encoding/json"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/groupcast/groupcast/server/store"
)

// Subject is where hints are. It is in no stream.
const Subject = "gc.hint"

// hint is one on the wire.
type hint struct {
	From string
	store.Changed
}

// Hints tells and hears hints.
type Hints struct {
	conn *nats.Conn
	own  string // names this process, which needs no hints of its own
	log  *slog.Logger
}

// New begins to hear hints of other replicas; heard must not block.
func New(conn *nats.Conn, heard func(store.Changed), log *slog.Logger) (*Hints, error) {
	h := &Hints{conn: conn, own: nuid.Next(), log: log}
	_, err := conn.Subscribe(Subject, func(m *nats.Msg) {
		var v hint
		if err := json.Unmarshal(m.Data, &v); err != nil {
			log.Debug("a hint that isn't one", "error", err)
			return
		}
		if v.From != h.own {
			heard(v.Changed)
		}
	})
	return h, err
}

// Tell tells the others what a commit changed. It never blocks; while the connection is away nobody is told.
func (h *Hints) Tell(c store.Changed) {
	body, err := json.Marshal(hint{From: h.own, Changed: c})
	if err == nil {
		err = h.conn.Publish(Subject, body)
	}
	if err != nil {
		h.log.Debug("a hint couldn't be told", "error", err)
	}
}
