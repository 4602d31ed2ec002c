package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// PublishBefore is how long a key is published before it signs, so that whoever keeps our key set has it by then.
	PublishBefore = 24 * time.Hour
	// KeepAfter is how long a key stays after the last token it signed: the longest life of a token and five minutes. Tokens that
	// an operator mints live a day at most (tokens.MaxLife).
	KeepAfter = 24*time.Hour + 5*time.Minute
	// RotateAfter is how long a key signs.
	RotateAfter = 90 * 24 * time.Hour
	// MaxAge is how long others may keep our key set, well below PublishBefore.
	MaxAge = time.Hour
	// MaintainEvery is how often each replica looks at the keys.
	MaintainEvery = time.Minute
)

// Info describes a signing key to an operator.
type Info struct {
	KID   string
	Alg   string
	State store.SigningKeyState
	// Since is when it came to its state.
	Since time.Time
	// Until is when it comes to the next state by itself.
	Until time.Time
}

// Maintain does what is due with the signing keys: makes the first one, publishes a next one, lets it sign, removes one that has
// ended; and takes over what other replicas did.
func (r *Ring) Maintain(ctx context.Context) error {
	rows, now, err := r.store.SigningKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the signing keys: %w", err)
	}
	if r.plan(rows, now).empty() {
		return r.use(rows)
	}
	return r.change(ctx, r.plan)
}

// Rotate publishes a next key, which signs after PublishBefore by itself. If there is one already nothing happens. With force it signs
// at once: others that keep our key set may refuse its tokens for as long as MaxAge.
func (r *Ring) Rotate(ctx context.Context, force bool) error {
	return r.change(ctx, func(rows []store.SigningKey, now time.Time) plan {
		p := r.plan(rows, now)
		next := p.next
		for _, k := range rows {
			if k.State == store.SigningKeyNext && next == "" {
				next = k.KID
			}
		}
		if next == "" && p.make == "" {
			p.make = store.SigningKeyNext
		}
		if force {
			p.next, p.force = next, true
			if p.make != "" {
				p.make = store.SigningKeyActive
			}
		}
		return p
	})
}

// plan is what is to be done with the keys.
type plan struct {
	make  store.SigningKeyState // make a key in this state; empty makes none
	next  string                // the key that begins to sign
	force bool                  // whoever signs now stops, whatever next is
	gone  []string
}

func (p plan) empty() bool { return p.make == "" && p.next == "" && !p.force && len(p.gone) == 0 }

// plan tells what is due by itself.
func (r *Ring) plan(rows []store.SigningKey, now time.Time) (p plan) {
	active, next := false, false
	for _, k := range rows {
		age := now.Sub(k.StateSince)
		switch k.State {
		case store.SigningKeyActive:
			active = true
			if age >= RotateAfter-PublishBefore || k.Alg != r.alg {
				p.make = store.SigningKeyNext
			}
		case store.SigningKeyNext:
			next = true
			if age >= PublishBefore {
				p.next = k.KID
			}
		case store.SigningKeyRetiring:
			if age >= KeepAfter {
				p.gone = append(p.gone, k.KID)
			}
		}
	}
	switch {
	case !active && !next:
		p.make = store.SigningKeyActive // the first one: nobody has a key set of ours yet
	case next:
		p.make = ""
	}
	return p
}

// change does what the plan for the present state of the keys says, one replica after the other.
func (r *Ring) change(ctx context.Context, decide func([]store.SigningKey, time.Time) plan) error {
	var rows []store.SigningKey
	err := r.store.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockWatch(); err != nil { // the lock of what is true of the installation as a whole
			return err
		}
		keys, now, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		p := decide(keys, now)
		if p.empty() {
			rows = keys
			return nil
		}
		if err := r.apply(ctx, tx, keys, p); err != nil {
			return err
		}
		rows, _, err = tx.SigningKeys()
		return err
	})
	if err != nil {
		return fmt.Errorf("change the signing keys: %w", err)
	}
	return r.use(rows)
}

func (r *Ring) apply(ctx context.Context, tx *store.Tx, keys []store.SigningKey, p plan) error {
	var entries []audit.Entry
	note := func(did audit.Action, kid string) {
		entries = append(entries, audit.Entry{Action: did, Object: audit.OfKey(kid)})
	}
	if p.next != "" || p.make == store.SigningKeyActive {
		for _, k := range keys {
			if k.State == store.SigningKeyActive {
				if err := tx.SetSigningKeyState(k.KID, store.SigningKeyRetiring); err != nil {
					return err
				}
			}
		}
	}
	if p.next != "" {
		if err := tx.SetSigningKeyState(p.next, store.SigningKeyActive); err != nil {
			return err
		}
		note(audit.KeyRotate, p.next)
	}
	if p.make != "" {
		row, err := newSigningKey(r.kek, r.alg, p.make)
		if err != nil {
			return err
		}
		if err := tx.InsertSigningKey(row); err != nil {
			return err
		}
		if note(audit.KeyCreate, row.KID); p.make == store.SigningKeyActive {
			note(audit.KeyRotate, row.KID)
		}
	}
	for _, kid := range p.gone {
		if err := tx.DeleteSigningKey(kid); err != nil {
			return err
		}
		note(audit.KeyRemove, kid)
	}
	return audit.Note(ctx, tx, entries...)
}

// use opens the keys and takes them into use.
func (r *Ring) use(rows []store.SigningKey) error {
	s := &signing{public: make(map[string]Public, len(rows))}
	for _, row := range rows {
		signer, err := openSigningKey(r.kek, row)
		if err != nil {
			return err
		}
		s.public[row.KID] = Public{Alg: row.Alg, Key: signer.Private.Public()}
		s.order = append(s.order, row.KID)
		if row.State == store.SigningKeyActive {
			s.signer = signer
		}
	}
	if s.signer.Private == nil {
		return errors.New("no signing key in the database is active")
	}
	r.signing.Store(s)
	return nil
}

// List describes the signing keys, oldest first.
func (r *Ring) List(ctx context.Context) ([]Info, error) {
	rows, _, err := r.store.SigningKeys(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Info, len(rows))
	for i, k := range rows {
		all[i] = Info{KID: k.KID, Alg: k.Alg, State: k.State, Since: k.StateSince}
		switch k.State {
		case store.SigningKeyNext:
			all[i].Until = k.StateSince.Add(PublishBefore)
		case store.SigningKeyActive:
			all[i].Until = k.StateSince.Add(RotateAfter)
		case store.SigningKeyRetiring:
			all[i].Until = k.StateSince.Add(KeepAfter)
		}
	}
	return all, nil
}

// KeySet is the public keys as JWKs (RFC 7517), oldest first.
func (r *Ring) KeySet() ([]json.RawMessage, error) {
	s := r.signing.Load()
	all := make([]json.RawMessage, 0, len(s.order))
	for _, kid := range s.order {
		k := s.public[kid]
		b, err := (&jose.JSONWebKey{Key: k.Key, KeyID: kid, Algorithm: k.Alg, Use: "sig"}).MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("public key %s: %w", kid, err)
		}
		all = append(all, b)
	}
	return all, nil
}
