// Package keys owns the service's secret keys: those that sign access tokens, from their making to their end, and the AES-SIV key
// that seals the ids inside tokens. They lie in the database, sealed under a key-encryption key that lies in a file (design:
// identity.md §§4.4, 4.5).
//
// It never reads or writes a token, and never hands out a key in a form that could be logged.
package keys

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/daead/subtle"

	"github.com/groupcast/groupcast/server/store"
)

// Options say how new keys are made and how long they live. The zero value is good for production.
type Options struct {
	// Alg is the algorithm of new keys; empty means AlgEdDSA.
	Alg string
}

// Ring holds the keys of one installation, opened. It is safe for concurrent use.
type Ring struct {
	store   *store.Store
	kek     *KEK
	alg     string
	signing atomic.Pointer[signing]
	sealing byte // version of the key that new values are sealed with
	ids     map[byte]*subtle.AESSIV

	reload   sync.Mutex
	reloaded time.Time
}

// signing is one reading of the signing keys; it is never changed, only replaced.
type signing struct {
	signer Signer
	public map[string]Public
	order  []string // kids, oldest first
}

// Load opens the keys in the database. If there are none it makes them: of several replicas that start at once, all end up
// with the same ones.
func Load(ctx context.Context, st *store.Store, kek *KEK, o Options) (*Ring, error) {
	if o.Alg == "" {
		o.Alg = AlgEdDSA
	}
	r := &Ring{store: st, kek: kek, alg: o.Alg, ids: map[byte]*subtle.AESSIV{}}
	if err := r.Maintain(ctx); err != nil {
		return nil, err
	}
	if err := r.loadSealing(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Check tells whether the key-encryption key in a file opens all keys in a database, and changes nothing. A database that has none, because it
// was never served, needs no file.
func Check(ctx context.Context, st *store.Store, path string) error {
	signing, _, err := st.SigningKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the signing keys: %w", err)
	}
	sealing, err := st.SealingKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the sealing keys: %w", err)
	}
	if len(signing)+len(sealing) == 0 {
		return nil
	}
	kek, err := LoadKEK(path)
	if err != nil {
		return err
	}
	for _, row := range signing {
		if _, err := openSigningKey(kek, row); err != nil {
			return err
		}
	}
	for _, row := range sealing {
		if _, err := kek.Open(sealingPurpose(row.Version), row.KeySealed); err != nil {
			return err
		}
	}
	return nil
}

func (r *Ring) loadSealing(ctx context.Context) error {
	rows, err := r.store.SealingKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the sealing keys: %w", err)
	}
	if len(rows) == 0 {
		key := make([]byte, subtle.AESSIVKeySize)
		_, _ = rand.Read(key)
		const first = 1
		row := store.SealingKey{Version: first, KeySealed: r.kek.Seal(sealingPurpose(first), key)}
		if _, err := r.store.AddSealingKey(ctx, row); err != nil {
			return fmt.Errorf("store a sealing key: %w", err)
		}
		if rows, err = r.store.SealingKeys(ctx); err != nil {
			return fmt.Errorf("read the sealing keys: %w", err)
		}
	}
	for _, row := range rows {
		key, err := r.kek.Open(sealingPurpose(row.Version), row.KeySealed)
		if err != nil {
			return err
		}
		if row.Version < 1 || row.Version > 255 {
			return fmt.Errorf("sealing key %d in the database has a version that doesn't fit into a byte", row.Version)
		}
		siv, err := subtle.NewAESSIV(key)
		if err != nil {
			return fmt.Errorf("sealing key %d in the database is damaged: %w", row.Version, err)
		}
		r.sealing = byte(row.Version)
		r.ids[r.sealing] = siv
	}
	return nil
}

func sealingPurpose(version int) string { return fmt.Sprintf("groupcast sealing key %d", version) }

// Signer is the key that signs new tokens.
func (r *Ring) Signer() Signer { return r.signing.Load().signer }

// reloadPause is the least time between two looks at the database for a key that isn't known here.
const reloadPause = time.Second

// Public is the key with this name; false if there is none. A name that isn't known here may be that of a key that another
// replica has just made, so the database is asked, once a second at most.
func (r *Ring) Public(kid string) (Public, bool) {
	if key, ok := r.signing.Load().public[kid]; ok {
		return key, true
	}
	r.reload.Lock()
	defer r.reload.Unlock()
	if time.Since(r.reloaded) >= reloadPause {
		r.reloaded = time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if rows, _, err := r.store.SigningKeys(ctx); err == nil {
			_ = r.use(rows) // on an error the keys that were known stay
		}
	}
	key, ok := r.signing.Load().public[kid]
	return key, ok
}

// Seal seals a value for one claim of the tokens for one audience: base64url of the key's version and AES-SIV (RFC 5297). It is
// deterministic: the same value gives the same text.
func (r *Ring) Seal(claim, audience string, plain []byte) (string, error) {
	sealed, err := r.ids[r.sealing].EncryptDeterministically(plain, sealContext(claim, audience))
	if err != nil {
		return "", fmt.Errorf("seal the claim %s: %w", claim, err)
	}
	return base64.RawURLEncoding.EncodeToString(append([]byte{r.sealing}, sealed...)), nil
}

// ErrSealed is the error of Open for everything that Seal didn't make for this claim and audience.
var ErrSealed = errors.New("not a value that was sealed for this claim")

// Open opens what Seal made.
func (r *Ring) Open(claim, audience, text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 1 || r.ids[b[0]] == nil {
		return nil, ErrSealed
	}
	plain, err := r.ids[b[0]].DecryptDeterministically(b[1:], sealContext(claim, audience))
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}

// sealContext is the associated data that keeps a value of one claim from being used in another.
func sealContext(claim, audience string) []byte { return []byte(claim + "\x00" + audience) }
