package dpop_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/server/dpop"
)

// FuzzVerify looks for a proof that is accepted though the key never signed it, or that has a second spelling. Everything is fixed, so
// that all of the fuzzer's processes agree on what is good.
func FuzzVerify(f *testing.F) {
	priv := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	s := signer{ed: priv, jwk: fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, b64(priv.Public().(ed25519.PublicKey)))}
	ours := s.sign(s.header(), fmt.Sprintf(`{"jti":"1","htm":"POST","htu":%q,"iat":%d,"ath":%q}`, publicURL+path, start.Unix(), ath(token)))
	rfc := &clock{now: time.Unix(1562262616, 0)}
	theirs := dpop.Request{Method: "GET", Path: "/protectedresource", Token: rfc9449Token, BoundTo: rfc9449JKT}

	for _, p := range []string{ours, rfc9449ResourceProof} {
		f.Add(p)
		parts := strings.Split(p, ".")
		f.Add(parts[0] + "." + parts[1] + ".")
		f.Add(parts[1] + "." + parts[0] + "." + parts[2])
		f.Add(p + "\n")
	}
	f.Add(s.sign(`{"alg":"none"}`, payload()))
	f.Add("..")
	f.Fuzz(func(t *testing.T, proof string) {
		v, _, _ := newVerifier(t)
		if _, err := v.Verify(context.Background(), s.request(proof)); err == nil && proof != ours {
			t.Fatalf("accepted, though never signed: %q", proof)
		} else if err != nil {
			refusal(t, err)
		}
		theirs.Proofs = []string{proof}
		if _, err := verifierAt(t, "https://resource.example.org", rfc).Verify(context.Background(), theirs); err == nil && proof != rfc9449ResourceProof {
			// ECDSA gives every signature a twin; nobody finds it by flipping bits without knowing.
			t.Fatalf("accepted, though never signed: %q", proof)
		}
	})
}

// FuzzParseKey looks for a key that is accepted with anything private in it, or that doesn't come back the same.
func FuzzParseKey(f *testing.F) {
	f.Add(newEd(f).jwk)
	f.Add(newEC(f).jwk)
	f.Add(`{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}`)
	f.Add(`{"kty":"RSA","n":"AA","e":"AQAB"}`)
	f.Fuzz(func(t *testing.T, jwk string) {
		key, err := dpop.ParseKey([]byte(jwk))
		if err != nil {
			return
		}
		var members map[string]any
		if err := json.Unmarshal([]byte(jwk), &members); err != nil {
			t.Fatalf("accepted what the standard library can't read: %q", jwk)
		}
		for _, private := range []string{"d", "k", "p", "q"} {
			if _, ok := members[private]; ok {
				t.Fatalf("accepted with member %s: %q", private, jwk)
			}
		}
		if len(key.Thumbprint) != 43 {
			t.Fatalf("thumbprint %q", key.Thumbprint)
		}
	})
}

// FuzzTarget looks for an htu that is accepted for another target.
func FuzzTarget(f *testing.F) {
	for _, u := range []string{publicURL + path, "https://groupcast.example:443/v1/%72egistrations?x#y", "https://groupcast.example@evil/v1", "https:groupcast.example", "%", "http://[::1", "https://groupcast.example/v1/registrations/%2e%2e/x"} {
		f.Add(u)
	}
	s := newEd(f)
	f.Fuzz(func(t *testing.T, htu string) {
		quoted, err := json.Marshal(htu)
		if err != nil {
			t.Skip()
		}
		v, _, _ := newVerifier(t)
		if _, err := v.Verify(context.Background(), s.request(s.sign(s.header(), payload(`"`+publicURL+path+`"`, string(quoted))))); err != nil {
			return
		}
		// Whatever was accepted names our host and the path, in some spelling.
		low := strings.ToLower(htu)
		if !strings.HasPrefix(low, "https://groupcast.example") || strings.Contains(low, "@") || strings.Contains(low, "/.") {
			t.Fatalf("accepted %q", htu)
		}
	})
}
