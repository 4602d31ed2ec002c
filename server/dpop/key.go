package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/golang-jwt/jwt/v5"
)

// Key is a client's public key.
type Key struct {
	// Public is an ed25519.PublicKey or an *ecdsa.PublicKey on P-256.
	Public crypto.PublicKey
	// Alg is the only signature algorithm the key may be used with: EdDSA or ES256.
	Alg string
	// Thumbprint is the RFC 7638 thumbprint with SHA-256 in base64url: the jkt of a bound token.
	Thumbprint string
}

// decode reads base64url that has one spelling only: no padding, no stray bits at the end and, what Go's decoder would skip, no
// line breaks.
func decode(s string) ([]byte, error) {
	if strings.IndexByte(s, '\r') >= 0 || strings.IndexByte(s, '\n') >= 0 {
		return nil, errors.New("line break in base64url")
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// ParseKey reads a public JWK (RFC 7517) of type OKP/Ed25519 (RFC 8037) or EC/P-256 (RFC 7518 §6.2). It refuses every other type
// and curve, private members, members it doesn't know, members given twice, points that are not on the curve and Ed25519 points of
// low order. The error's text is for the client.
func ParseKey(jwk []byte) (Key, error) {
	// Decoding to a map makes the decoder refuse duplicates, and lets us refuse what we don't know.
	var members map[string]json.RawMessage
	if err := exactly(jwk, &members); err != nil || members == nil {
		return Key{}, errors.New("the JWK is not a JSON object with each member once")
	}
	var kty, crv, alg, use, x, y string
	for name, raw := range members {
		var to *string
		switch name {
		case "kty":
			to = &kty
		case "crv":
			to = &crv
		case "alg":
			to = &alg
		case "use":
			to = &use
		case "x":
			to = &x
		case "y":
			to = &y
		case "key_ops":
			var ops []string
			if json.Unmarshal(raw, &ops) != nil || !slices.Contains(ops, "verify") {
				return Key{}, errors.New(`the JWK's key_ops is not a list with "verify" in it`)
			}
			continue
		case "kid", "ext": // says nothing that matters here
			continue
		case "d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv":
			return Key{}, errors.New("the JWK holds private members; send the public key only, and replace this key: it is no longer secret")
		case "n", "e":
			return Key{}, errors.New("RSA keys are not accepted; use Ed25519 (EdDSA) or P-256 (ES256)")
		default:
			return Key{}, errors.New("the JWK has a member other than kty, crv, x, y, alg, use, kid, key_ops and ext")
		}
		if !plainString(raw, to) {
			return Key{}, fmt.Errorf("the JWK's %s is not a string", name)
		}
	}
	if use != "" && use != "sig" {
		return Key{}, errors.New(`the JWK's use is not "sig"`)
	}
	var k Key
	switch {
	case kty == "OKP" && crv == "Ed25519":
		b, err := decode(x)
		if err != nil || len(b) != ed25519.PublicKeySize || y != "" {
			return Key{}, errors.New("the JWK's x is not an Ed25519 public key of 32 bytes in base64url")
		}
		k = Key{Public: ed25519.PublicKey(b), Alg: jwt.SigningMethodEdDSA.Alg()}
	case kty == "EC" && crv == "P-256":
		point := make([]byte, 1, 1+2*32)
		point[0] = 4 // uncompressed, SEC 1 §2.3.3
		for _, c := range []string{x, y} {
			b, err := decode(c)
			if err != nil || len(b) != 32 {
				return Key{}, errors.New("the JWK's x or y is not a coordinate of 32 bytes in base64url")
			}
			point = append(point, b...)
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			return Key{}, errors.New("the JWK's x and y are not a point of P-256")
		}
		k = Key{Public: pub, Alg: jwt.SigningMethodES256.Alg()}
	default:
		return Key{}, errors.New("the JWK is neither OKP/Ed25519 nor EC/P-256")
	}
	if alg != "" && !k.Fits(alg) {
		return Key{}, fmt.Errorf("the JWK's alg does not fit its type; it must be %s or absent", k.Alg)
	}
	sum, err := (&jose.JSONWebKey{Key: k.Public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return Key{}, errors.New("the JWK's x is a point of low order, not a public key")
	}
	k.Thumbprint = base64.RawURLEncoding.EncodeToString(sum)
	return k, nil
}

// algEd25519 is the fully specified name of what EdDSA means here (RFC 9864 §2.2); some clients send it.
const algEd25519 = "Ed25519"

// Fits tells whether alg is a name of the algorithm that belongs to the key.
func (k Key) Fits(alg string) bool {
	return alg == k.Alg || alg == algEd25519 && k.Alg == jwt.SigningMethodEdDSA.Alg()
}

// JWK is the key as JSON (RFC 7517), with the members that name it and no others.
func (k Key) JWK() (string, error) {
	b, err := (&jose.JSONWebKey{Key: k.Public}).MarshalJSON()
	if err != nil {
		return "", fmt.Errorf("write a public key: %w", err)
	}
	return string(b), nil
}

// plainString decodes a JSON string that stood in a JSON object. Unlike json.Unmarshal it takes no null for one.
func plainString(raw []byte, to *string) bool {
	if len(raw) < 2 || raw[0] != '"' {
		return false
	}
	for _, c := range raw {
		if c == '\\' || c > '~' {
			return json.Unmarshal(raw, to) == nil
		}
	}
	*to = string(raw[1 : len(raw)-1]) // nothing in it has to be decoded
	return true
}

// Verify checks a signature over what was signed, with the one algorithm that belongs to the key. signature is decoded.
func (k Key) Verify(signed string, signature []byte) error {
	if k.Alg == jwt.SigningMethodEdDSA.Alg() {
		return jwt.SigningMethodEdDSA.Verify(signed, signature, k.Public)
	}
	return jwt.SigningMethodES256.Verify(signed, signature, k.Public)
}
