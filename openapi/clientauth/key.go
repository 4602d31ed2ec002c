package clientauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// key is a private key that signs proofs and assertions: Ed25519, or P-256 for a service that brought its own.
type key struct {
	signer crypto.Signer
	alg    string
	jwk    json.RawMessage // public, its members in the order of RFC 7638
}

func newKey() (*key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return keyOf(private)
}

func keyOf(signer crypto.Signer) (*key, error) {
	switch public := signer.Public().(type) {
	case ed25519.PublicKey:
		jwk := fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":"%s"}`, b64(public))
		return &key{signer: signer, alg: "EdDSA", jwk: json.RawMessage(jwk)}, nil
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			break
		}
		point, err := public.Bytes() // SEC 1 §2.3.3: 04, x, y
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		jwk := fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, b64(point[1:33]), b64(point[33:]))
		return &key{signer: signer, alg: "ES256", jwk: json.RawMessage(jwk)}, nil
	}
	return nil, errors.New("the private key is neither Ed25519 nor P-256; make one with: openssl genpkey -algorithm ed25519")
}

// parseKey reads a PKCS #8 private key in PEM, as marshal and openssl write it.
func parseKey(text string) (*key, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("the private key is not PEM with a PRIVATE KEY (PKCS #8) in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key can't be read as PKCS #8") // the cause could quote it
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key is not one that signs")
	}
	return keyOf(signer)
}

func (k *key) marshal() (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return "", fmt.Errorf("write the private key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// thumbprint names the public key (RFC 7638).
func (k *key) thumbprint() string {
	sum := sha256.Sum256(k.jwk)
	return b64(sum[:])
}

// Format keeps the private key out of whatever prints the value.
func (k *key) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key %s", k.thumbprint()) }

// LogValue keeps the private key out of structured logs.
func (k *key) LogValue() slog.Value { return slog.StringValue("key " + k.thumbprint()) }

// proofClaims are those of RFC 9449 §4.2.
type proofClaims struct {
	ID        string `json:"jti"`
	Method    string `json:"htm"`
	URI       string `json:"htu"`
	IssuedAt  int64  `json:"iat"`
	TokenHash string `json:"ath,omitempty"`
	Nonce     string `json:"nonce,omitempty"`
}

// proof makes a DPoP proof for one request. token is empty where a token is asked for; uri has neither query nor fragment.
func (k *key) proof(method, uri, token, nonce string, now time.Time) (string, error) {
	c := proofClaims{ID: rand.Text(), Method: method, URI: uri, IssuedAt: now.Unix(), Nonce: nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		c.TokenHash = b64(sum[:])
	}
	return k.sign(map[string]any{"typ": "dpop+jwt", "alg": k.alg, "jwk": k.jwk}, c)
}

// assertionLife is well below the two minutes that the server allows.
const assertionLife = time.Minute

// assertion makes a client assertion (RFC 7523 §3). The audience is the issuer and nothing else, so that it is worthless anywhere else.
func (k *key) assertion(clientID, issuer string, now time.Time) (string, error) {
	return k.sign(map[string]any{"typ": "client-authentication+jwt", "alg": k.alg}, map[string]any{
		"iss": clientID, "sub": clientID, "aud": issuer, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
}

// sign makes a JWS in compact form (RFC 7515).
func (k *key) sign(header, payload any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	p, err := json.Marshal(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	signed := b64(h) + "." + b64(p)
	var signature []byte
	switch private := k.signer.(type) {
	case ed25519.PrivateKey:
		signature = ed25519.Sign(private, []byte(signed))
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			return "", fmt.Errorf("sign: %w", err)
		}
		signature = make([]byte, 64) // RFC 7518 §3.4
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
	}
	return signed + "." + b64(signature), nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
