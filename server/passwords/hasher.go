package passwords

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/alexedwards/argon2id"
)

// Cost is what one hash costs (RFC 9106 §3.1).
type Cost struct {
	MemoryKiB   uint32
	Iterations  uint32
	Parallelism uint8
}

// Recommended takes 19 MiB and two passes, about 20 ms on one core: the OWASP Password Storage Cheat Sheet's first choice where
// logins share a machine with other work.
var Recommended = Cost{MemoryKiB: 19 * 1024, Iterations: 2, Parallelism: 1}

// most bounds the cost of a stored hash, so that a damaged row can't take the memory of the machine.
var most = Cost{MemoryKiB: 1 << 20, Iterations: 64, Parallelism: 16}

func (c Cost) valid() bool {
	return c.MemoryKiB >= 8*uint32(c.Parallelism) && c.MemoryKiB <= most.MemoryKiB &&
		c.Iterations >= 1 && c.Iterations <= most.Iterations && c.Parallelism >= 1 && c.Parallelism <= most.Parallelism
}

const (
	saltBytes = 16
	keyBytes  = 32
)

// Hasher hashes and checks passwords. It is safe for concurrent use.
type Hasher struct {
	params *argon2id.Params
	dummy  string
	slots  chan struct{}
	hashes atomic.Uint64
}

// NewHasher makes a hasher that gives new hashes the cost and runs at most concurrent hashes at once; 0 means two for each core, so memory
// stays below twice the cost for each core. It fails if the cost is out of range.
func NewHasher(cost Cost, concurrent int) (*Hasher, error) {
	if !cost.valid() {
		return nil, fmt.Errorf("password hashing with %d KiB, %d iterations and parallelism %d is out of range (RFC 9106 §3.1)", cost.MemoryKiB, cost.Iterations, cost.Parallelism)
	}
	if concurrent <= 0 {
		concurrent = 2 * runtime.GOMAXPROCS(0)
	}
	h := &Hasher{
		params: &argon2id.Params{
			Memory: cost.MemoryKiB, Iterations: cost.Iterations, Parallelism: cost.Parallelism, SaltLength: saltBytes, KeyLength: keyBytes,
		},
		slots: make(chan struct{}, concurrent),
	}
	dummy, err := argon2id.CreateHash(rand.Text(), h.params)
	if err != nil {
		return nil, fmt.Errorf("hash a password: %w", err)
	}
	h.dummy = dummy
	return h, nil
}

// Hash checks that the password may be one and gives its encoded hash, which holds salt and cost (PHC string format). A refusal is a
// *models.Error; the context's error means that it ended while other hashes were running.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	prepared, err := check(password)
	if err != nil {
		return "", err
	}
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer h.leave()
	encoded, err := argon2id.CreateHash(prepared, h.params)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return encoded, nil
}

// Outcome is the result of a check.
type Outcome struct {
	Match bool
	// Rehash says that the password matches a hash of another cost than new ones have: the caller hashes it again and stores that.
	Rehash bool
}

// errStored never says what is stored.
var errStored = errors.New("the stored password hash can't be read: set a new password for the account")

// Check compares a password with a stored hash. An empty hash stands for an unknown name: it costs one hash like any other and never
// matches.
func (h *Hasher) Check(ctx context.Context, password, encoded string) (Outcome, error) {
	unknown := encoded == ""
	if unknown {
		encoded = h.dummy
	}
	params, _, key, err := argon2id.DecodeHash(encoded)
	if err != nil || len(key) < 16 || !(Cost{params.Memory, params.Iterations, params.Parallelism}).valid() {
		return Outcome{}, errStored
	}
	// What can't be a password matches nothing. That says nothing of the name, so it may cost less.
	prepared, ok := prepare(password)
	if !ok {
		return Outcome{}, nil
	}
	if err := h.enter(ctx); err != nil {
		return Outcome{}, err
	}
	defer h.leave()
	match, _, err := argon2id.CheckHash(prepared, encoded)
	if err != nil {
		return Outcome{}, errStored
	}
	match = match && !unknown
	return Outcome{Match: match, Rehash: match && *params != *h.params}, nil
}

// Hashes is how many hashes were made since the start.
func (h *Hasher) Hashes() uint64 { return h.hashes.Load() }

// Running is how many hashes are being made now.
func (h *Hasher) Running() int { return len(h.slots) }

func (h *Hasher) enter(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait to hash a password: %w", ctx.Err())
	}
	if err := ctx.Err(); err != nil { // both were ready: the caller has gone
		<-h.slots
		return fmt.Errorf("wait to hash a password: %w", err)
	}
	h.hashes.Add(1)
	return nil
}

func (h *Hasher) leave() { <-h.slots }
