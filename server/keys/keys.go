// Package keys owns the service's secret keys: the Ed25519 key that signs access tokens, and the AES-SIV key that seals the ids
// inside them. They lie in the database, sealed under a key-encryption key that lies in a file (design: identity.md §§4.4, 4.5).
//
// It never reads or writes a token, and never hands out a key in a form that could be logged.
package keys

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/tink-crypto/tink-go/v2/daead/subtle"

	"github.com/groupcast/groupcast/server/store"
)

// AlgEdDSA is the signature algorithm of the keys that are made (RFC 8037).
const AlgEdDSA = "EdDSA"

// Ring holds the keys of one installation, opened. It is safe for concurrent use.
type Ring struct {
	signer  Signer
	public  map[string]ed25519.PublicKey
	sealing byte // version of the key that new values are sealed with
	ids     map[byte]*subtle.AESSIV
}

// Signer is the key that signs new tokens.
type Signer struct {
	// KID names the key: the first 16 characters of its RFC 7638 thumbprint.
	KID     string
	Private ed25519.PrivateKey
}

// String and GoString keep the private key out of logs.
func (s Signer) String() string { return "signing key " + s.KID }

// GoString is like String.
func (s Signer) GoString() string { return s.String() }

// Load opens the keys in the database. If there are none it makes them: of several replicas that start at once, all end up
// with the same ones.
func Load(ctx context.Context, st *store.Store, kek *KEK) (*Ring, error) {
	r := &Ring{public: map[string]ed25519.PublicKey{}, ids: map[byte]*subtle.AESSIV{}}
	if err := r.loadSigning(ctx, st, kek); err != nil {
		return nil, err
	}
	if err := r.loadSealing(ctx, st, kek); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Ring) loadSigning(ctx context.Context, st *store.Store, kek *KEK) error {
	rows, err := st.SigningKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the signing keys: %w", err)
	}
	if len(rows) == 0 {
		row, err := newSigningKey(kek)
		if err != nil {
			return err
		}
		if _, err := st.AddSigningKey(ctx, row); err != nil {
			return fmt.Errorf("store a signing key: %w", err)
		}
		if rows, err = st.SigningKeys(ctx); err != nil {
			return fmt.Errorf("read the signing keys: %w", err)
		}
	}
	for _, row := range rows {
		der, err := kek.open(signingPurpose(row.KID), row.PrivateSealed)
		if err != nil {
			return err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return fmt.Errorf("signing key %s in the database is damaged: %w", row.KID, err)
		}
		private, ok := key.(ed25519.PrivateKey)
		if !ok || row.Alg != AlgEdDSA {
			return fmt.Errorf("signing key %s is for %s, which this version can't use", row.KID, row.Alg)
		}
		public, ok := private.Public().(ed25519.PublicKey)
		if !ok {
			return fmt.Errorf("signing key %s has no public key", row.KID)
		}
		r.public[row.KID] = public
		r.signer = Signer{KID: row.KID, Private: private} // the newest signs
	}
	return nil
}

func newSigningKey(kek *KEK) (store.SigningKey, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return store.SigningKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	kid, err := KID(public)
	if err != nil {
		return store.SigningKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return store.SigningKey{}, fmt.Errorf("encode a signing key: %w", err)
	}
	return store.SigningKey{
		KID: kid, Alg: AlgEdDSA, PrivateSealed: kek.seal(signingPurpose(kid), der),
	}, nil
}

func (r *Ring) loadSealing(ctx context.Context, st *store.Store, kek *KEK) error {
	rows, err := st.SealingKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the sealing keys: %w", err)
	}
	if len(rows) == 0 {
		key := make([]byte, subtle.AESSIVKeySize)
		_, _ = rand.Read(key)
		const first = 1
		row := store.SealingKey{Version: first, KeySealed: kek.seal(sealingPurpose(first), key)}
		if _, err := st.AddSealingKey(ctx, row); err != nil {
			return fmt.Errorf("store a sealing key: %w", err)
		}
		if rows, err = st.SealingKeys(ctx); err != nil {
			return fmt.Errorf("read the sealing keys: %w", err)
		}
	}
	for _, row := range rows {
		key, err := kek.open(sealingPurpose(row.Version), row.KeySealed)
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

func signingPurpose(kid string) string  { return "groupcast signing key " + kid }
func sealingPurpose(version int) string { return fmt.Sprintf("groupcast sealing key %d", version) }

// KID is the name of a public key: the first 16 characters of its thumbprint (RFC 7638, RFC 8037).
func KID(public ed25519.PublicKey) (string, error) {
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint of a public key: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)[:16], nil
}

// Signer is the key that signs new tokens.
func (r *Ring) Signer() Signer { return r.signer }

// Public is the key with this name; false if there is none.
func (r *Ring) Public(kid string) (ed25519.PublicKey, bool) {
	key, ok := r.public[kid]
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
