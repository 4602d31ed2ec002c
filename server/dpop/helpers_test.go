package dpop_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/replay"
)

const (
	publicURL = "https://groupcast.example"
	path      = "/v1/registrations"
	token     = "header.payload.signature"
)

// now is far from the real clock, so that a test fails if the code reads that one.
var start = time.Unix(1_700_000_000, 0)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newVerifier(t testing.TB) (*dpop.Verifier, *dpop.Nonces, *clock) {
	t.Helper()
	c := &clock{now: start}
	return verifierAt(t, publicURL, c), noncesAt(t, c), c
}

func noncesAt(t testing.TB, c *clock) *dpop.Nonces {
	t.Helper()
	n, err := dpop.NewNonces(make([]byte, 32), c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func verifierAt(t testing.TB, url string, c *clock) *dpop.Verifier {
	t.Helper()
	m, err := replay.NewMemory(1<<16, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	v, err := dpop.NewVerifier(url, noncesAt(t, c), m, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signer makes proofs the way a client does; nothing of the package under test is in it.
type signer struct {
	ed  ed25519.PrivateKey
	ec  *ecdsa.PrivateKey
	jwk string
}

func newEd(t testing.TB) signer {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{ed: priv, jwk: fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, b64(pub))}
}

func newEC(t testing.TB) signer {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := priv.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return signer{ec: priv, jwk: fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))}
}

func (s signer) alg() string {
	if s.ec != nil {
		return "ES256"
	}
	return "EdDSA"
}

// thumbprint follows the text of RFC 7638 §3.
func (s signer) thumbprint() string {
	var m map[string]string
	_ = json.Unmarshal([]byte(s.jwk), &m)
	canonical := fmt.Sprintf(`{"crv":%q,"kty":%q,"x":%q}`, m["crv"], m["kty"], m["x"])
	if s.ec != nil {
		canonical = fmt.Sprintf(`{"crv":%q,"kty":%q,"x":%q,"y":%q}`, m["crv"], m["kty"], m["x"], m["y"])
	}
	sum := sha256.Sum256([]byte(canonical))
	return b64(sum[:])
}

// sign signs any two texts.
func (s signer) sign(header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	return signed + "." + b64(s.signature(signed))
}

func (s signer) signature(signed string) []byte {
	if s.ec == nil {
		return ed25519.Sign(s.ed, []byte(signed))
	}
	sum := sha256.Sum256([]byte(signed))
	r, ss, err := ecdsa.Sign(rand.Reader, s.ec, sum[:])
	if err != nil {
		panic(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	ss.FillBytes(out[32:])
	return out
}

func (s signer) header() string {
	return fmt.Sprintf(`{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, s.alg(), s.jwk)
}

func ath(token string) string {
	sum := sha256.Sum256([]byte(token))
	return b64(sum[:])
}

// payload is a good one for POST publicURL+path with token at start; pairs of old and new text change it.
func payload(changes ...string) string {
	p := fmt.Sprintf(`{"jti":%q,"htm":"POST","htu":%q,"iat":%d,"ath":%q}`, rand.Text(), publicURL+path, start.Unix(), ath(token))
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(p, changes[i]) {
			panic("the payload has no " + changes[i])
		}
		p = strings.Replace(p, changes[i], changes[i+1], 1)
	}
	return p
}

func (s signer) request(proofs ...string) dpop.Request {
	return dpop.Request{Proofs: proofs, Method: "POST", Path: path, Token: token, BoundTo: s.thumbprint()}
}

func refusal(t testing.TB, err error) *dpop.Error {
	t.Helper()
	var e *dpop.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal", err)
	}
	return e
}

func mustVerify(t testing.TB, v *dpop.Verifier, r dpop.Request) dpop.Result {
	t.Helper()
	res, err := v.Verify(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}
