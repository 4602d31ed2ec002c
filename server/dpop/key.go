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
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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

// jwkMembers are the members of a JWK that are known: RFC 7517 §4, RFC 7518 §6 and RFC 8037 §2.
type jwkMembers struct {
	Type  string    `json:"kty"`
	Curve string    `json:"crv"`
	X     string    `json:"x"`
	Y     string    `json:"y"`
	Alg   string    `json:"alg"`
	Use   string    `json:"use"`
	Ops   *[]string `json:"key_ops"`
	// These say nothing that matters here.
	KeyID       jsontext.Value `json:"kid"`
	Extractable jsontext.Value `json:"ext"`
	// These are of RSA keys, of private and of shared ones.
	N    jsontext.Value `json:"n"`
	E    jsontext.Value `json:"e"`
	D    jsontext.Value `json:"d"`
	P    jsontext.Value `json:"p"`
	Q    jsontext.Value `json:"q"`
	DP   jsontext.Value `json:"dp"`
	DQ   jsontext.Value `json:"dq"`
	QI   jsontext.Value `json:"qi"`
	Oth  jsontext.Value `json:"oth"`
	K    jsontext.Value `json:"k"`
	Priv jsontext.Value `json:"priv"`
}

func isThere(member jsontext.Value) bool { return member != nil }

// ParseKey reads a public JWK (RFC 7517) of type OKP/Ed25519 (RFC 8037) or EC/P-256 (RFC 7518 §6.2). It refuses every other type
// and curve, private members, members it doesn't know, members given twice, points that are not on the curve and Ed25519 points of
// low order. The error's text is for the client.
func ParseKey(jwk []byte) (Key, error) {
	var m jwkMembers
	switch err := json.Unmarshal(jwk, &m, json.RejectUnknownMembers(true)); {
	case errors.Is(err, json.ErrUnknownName):
		return Key{}, errors.New("the JWK has a member other than kty, crv, x, y, alg, use, kid, key_ops and ext")
	case err != nil || jsontext.Value(jwk).Kind() != '{':
		return Key{}, errors.New("the JWK is not a JSON object with each member once and of the right type")
	case slices.ContainsFunc([]jsontext.Value{m.D, m.P, m.Q, m.DP, m.DQ, m.QI, m.Oth, m.K, m.Priv}, isThere):
		return Key{}, errors.New("the JWK holds private members; send the public key only, and replace this key: it is no longer secret")
	case isThere(m.N) || isThere(m.E):
		return Key{}, errors.New("RSA keys are not accepted; use Ed25519 (EdDSA) or P-256 (ES256)")
	}
	if m.Ops != nil && !slices.Contains(*m.Ops, "verify") {
		return Key{}, errors.New(`the JWK's key_ops is not a list with "verify" in it`)
	}
	if m.Use != "" && m.Use != "sig" {
		return Key{}, errors.New(`the JWK's use is not "sig"`)
	}
	var k Key
	switch {
	case m.Type == "OKP" && m.Curve == "Ed25519":
		b, err := decode(m.X)
		if err != nil || len(b) != ed25519.PublicKeySize || m.Y != "" {
			return Key{}, errors.New("the JWK's x is not an Ed25519 public key of 32 bytes in base64url")
		}
		k = Key{Public: ed25519.PublicKey(b), Alg: jwt.SigningMethodEdDSA.Alg()}
	case m.Type == "EC" && m.Curve == "P-256":
		point := make([]byte, 1, 1+2*32)
		point[0] = 4 // uncompressed, SEC 1 §2.3.3
		for _, c := range []string{m.X, m.Y} {
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
	if m.Alg != "" && !k.Fits(m.Alg) {
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

// Verify checks a signature over what was signed, with the one algorithm that belongs to the key. signature is decoded.
func (k Key) Verify(signed string, signature []byte) error {
	if k.Alg == jwt.SigningMethodEdDSA.Alg() {
		return jwt.SigningMethodEdDSA.Verify(signed, signature, k.Public)
	}
	return jwt.SigningMethodES256.Verify(signed, signature, k.Public)
}
