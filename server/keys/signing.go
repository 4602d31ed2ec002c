package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/groupcast/groupcast/server/store"
)

// The signature algorithms that a key can have. PS256, HS256 and none never (design: identity.md §4.4).
const (
	AlgEdDSA = "EdDSA" // RFC 8037, the default
	AlgES256 = "ES256"
	AlgRS256 = "RS256" // for consumers that know nothing else (RFC 9068 §2.1)
)

// Algs are the algorithms that a key can have.
func Algs() []string { return []string{AlgEdDSA, AlgES256, AlgRS256} }

const rsaBits = 2048

// Signer is the key that signs new tokens.
type Signer struct {
	// KID names the key: the first 16 characters of its RFC 7638 thumbprint.
	KID     string
	Alg     string
	Private crypto.Signer
}

// String and GoString keep the private key out of logs.
func (s Signer) String() string { return "signing key " + s.KID }

// GoString is like String.
func (s Signer) GoString() string { return s.String() }

// Public is a verification key with the one algorithm it may be used with.
type Public struct {
	Alg string
	Key crypto.PublicKey
}

func generate(alg string) (crypto.Signer, error) {
	switch alg {
	case AlgEdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case AlgES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case AlgRS256:
		return rsa.GenerateKey(rand.Reader, rsaBits)
	}
	return nil, fmt.Errorf("%q is no signature algorithm of this service", alg)
}

// fits tells whether a public key is of the type that the algorithm needs.
func fits(alg string, public crypto.PublicKey) bool {
	switch k := public.(type) {
	case ed25519.PublicKey:
		return alg == AlgEdDSA
	case *ecdsa.PublicKey:
		return alg == AlgES256 && k.Curve == elliptic.P256()
	case *rsa.PublicKey:
		return alg == AlgRS256 && k.N.BitLen() >= rsaBits
	}
	return false
}

// newSigningKey makes a key, sealed for the database.
func newSigningKey(kek *KEK, alg string, state store.SigningKeyState) (store.SigningKey, error) {
	private, err := generate(alg)
	if err != nil {
		return store.SigningKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	kid, err := KID(private.Public())
	if err != nil {
		return store.SigningKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return store.SigningKey{}, fmt.Errorf("encode a signing key: %w", err)
	}
	return store.SigningKey{KID: kid, Alg: alg, PrivateSealed: kek.Seal(signingPurpose(kid), der), State: state}, nil
}

func openSigningKey(kek *KEK, row store.SigningKey) (Signer, error) {
	der, err := kek.Open(signingPurpose(row.KID), row.PrivateSealed)
	if err != nil {
		return Signer{}, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return Signer{}, fmt.Errorf("signing key %s in the database is damaged: %w", row.KID, err)
	}
	private, ok := key.(crypto.Signer)
	if !ok || !fits(row.Alg, private.Public()) {
		return Signer{}, fmt.Errorf("signing key %s is for %s, which this version can't use", row.KID, row.Alg)
	}
	return Signer{KID: row.KID, Alg: row.Alg, Private: private}, nil
}

// KID is the name of a public key: the first 16 characters of its thumbprint (RFC 7638, RFC 8037).
func KID(public crypto.PublicKey) (string, error) {
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint of a public key: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)[:16], nil
}

func signingPurpose(kid string) string { return "groupcast signing key " + kid }
