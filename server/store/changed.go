package store

import (
	"slices"

	"github.com/groupcast/groupcast/models"
)

// Changed is what a committed transaction changed that somebody may be waiting for.
type Changed struct {
	// Gateways have new group information, or a token that they may be waiting with has ended; then any device can stand here.
	Gateways []models.ID
	// Events were recorded.
	Events []models.EventPlace
}

// OnCommit has f called after each transaction that changed something of the kind, by the goroutine that committed it and before its
// caller goes on; so f must not block. It is for wiring, before the store is used.
func (s *Store) OnCommit(f func(Changed)) { s.onCommit = append(s.onCommit, f) }

func (s *Store) committed(c Changed) {
	if len(c.Gateways) == 0 && len(c.Events) == 0 {
		return
	}
	for _, f := range s.onCommit {
		f(c)
	}
}

// raised notes that a gateway's revision was raised.
func (c *Changed) raised(id models.ID) {
	if !slices.Contains(c.Gateways, id) {
		c.Gateways = append(c.Gateways, id)
	}
}
