// Package idempotency answers a request that is sent again with what it was answered the first time, if both carry the same
// Idempotency-Key (draft-ietf-httpapi-idempotency-key-header). The answer is kept in the transaction of the change that it tells about,
// so either both are there or neither is: after a crash, and on every replica.
//
// It knows nothing of HTTP but that an answer has a status, headers and a body; which operations take a key says the contract.
package idempotency

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store"
)

// Keep is how long an answer is kept.
const Keep = 24 * time.Hour

// Request is one that carries a key.
type Request struct {
	Key       string
	Principal models.Principal
	Operation string
	// Path and Body are what has to be the same each time; the body as it was validated, nil if there is none.
	Path string
	Body any
}

// Answer is what a request is answered.
type Answer struct {
	Status int
	Header map[string][]string
	Body   []byte
}

// Keeper keeps answers.
type Keeper struct {
	store *store.Store
	kek   *keys.KEK
}

// New makes a keeper. All replicas have the same key-encryption key.
func New(st *store.Store, kek *keys.KEK) *Keeper { return &Keeper{store: st, kek: kek} }

// Once gives the answer that was kept for the request, or else does it and keeps its answer. What do changes through the store with its
// context is committed with the answer. An error is not kept and undoes all of it, so the request may be sent again. Of several
// requests with one key at once one is done and the others wait for its answer. do may run more than once.
//
// Another request with a key that was used is CodeIdempotencyKeyReused.
func (k *Keeper) Once(ctx context.Context, r Request, do func(ctx context.Context) (Answer, error)) (a Answer, err error) {
	s, err := k.secret(r)
	if err != nil {
		return Answer{}, err
	}
	body, err := json.Marshal(r.Body) // members in order
	if err != nil {
		return Answer{}, fmt.Errorf("write the body of %s: %w", r.Operation, err)
	}
	id, fingerprint := s.digest("id"), s.digest("request\x00"+r.Path+"\x00"+string(body))
	err = k.store.Around(ctx, func(ctx context.Context, tx *store.Tx) error {
		claimed, err := tx.ClaimAnswer(id, fingerprint, Keep)
		if err != nil {
			return err
		}
		if !claimed {
			a, err = s.kept(tx, id, fingerprint)
			return err
		}
		if a, err = do(ctx); err != nil {
			return err
		}
		sealed, err := s.seal(a)
		if err != nil {
			return err
		}
		return tx.KeepAnswer(id, sealed)
	})
	if err != nil {
		return Answer{}, err
	}
	return a, nil
}

func (s secret) kept(tx *store.Tx, id, fingerprint []byte) (Answer, error) {
	was, found, err := tx.KeptAnswer(id)
	switch {
	case err != nil:
		return Answer{}, err
	case !found: // its time ended between the two statements
		return Answer{}, store.ErrAgain
	case !hmac.Equal(was.Fingerprint, fingerprint):
		return Answer{}, models.Errorf(models.CodeIdempotencyKeyReused,
			"This Idempotency-Key came with another request before. Use a new key for each new request, and the same one only to send a request again.")
	}
	return s.open(was.Answer)
}

// secret is what identifies and seals the answer to one key. It is made of the client's key, which is kept nowhere, and of ours: so
// neither a reader of the database nor one who has the key-encryption key as well learns a secret that an answer holds.
type secret []byte

func (k *Keeper) secret(r Request) (secret, error) {
	p := r.Principal
	who := []string{string(p.Kind), string(p.AccountID), string(p.Service.ID), p.UserID, ""}
	if p.Device.ID.Valid() {
		who[4] = p.Device.ID.String()
	}
	b, err := k.kek.Derive("idempotency " + strings.Join(append(who, r.Operation, r.Key), "\x00"))
	return b, err
}

func (s secret) digest(text string) []byte {
	h := hmac.New(sha256.New, s)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func (s secret) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(s.digest("seal"))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s secret) seal(a Answer) ([]byte, error) {
	plain, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("keep an answer: %w", err)
	}
	aead, err := s.aead()
	if err != nil {
		return nil, fmt.Errorf("seal an answer: %w", err)
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

func (s secret) open(sealed []byte) (a Answer, err error) {
	aead, err := s.aead()
	if err != nil {
		return a, fmt.Errorf("open an answer: %w", err)
	}
	plain, err := aead.Open(nil, nil, sealed, nil)
	if err != nil {
		return a, fmt.Errorf("open an answer: %w", err)
	}
	return a, json.Unmarshal(plain, &a)
}
