package httpapi_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/replay"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/tokens"
)

const benchURL = "https://groupcast.example"

// BenchmarkIdentityFigures prints the figures of docs/benchmarks.md: each is a ratio of medians of rounds that alternate within one run, so
// that a busy machine disturbs both sides alike.
func BenchmarkIdentityFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("set BENCH_FIGURES=1, as make bench-identity does")
	}
	kek, err := keys.LoadOrCreateKEK(filepath.Join(b.TempDir(), "kek"))
	require.NoError(b, err)
	ring, err := keys.Load(context.Background(), storetest.SQLite(b).Store, kek, keys.Options{})
	require.NoError(b, err)
	now := time.Now
	verifier := tokens.NewVerifier(benchURL, ring, now)
	cache := tokens.NewCache(verifier, now)
	memory, err := replay.NewMemory(1_000_000, now)
	require.NoError(b, err)
	nonces, err := dpop.NewNonces(make([]byte, 32), now)
	require.NoError(b, err)
	proofs, err := dpop.NewVerifier(benchURL, nonces, memory, now)
	require.NoError(b, err)

	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(b, err)
	key, err := dpop.ParseKey(fmt.Appendf(nil, `{"kty":"OKP","crv":"Ed25519","x":%q}`, base64.RawURLEncoding.EncodeToString(public)))
	require.NoError(b, err)
	token, err := tokens.NewIssuer(benchURL, ring, now).Device(models.Device{
		ID: 664123086043511412, AccountID: models.NewAccountID(), PremisesID: models.NewPremisesID(), Type: models.DeviceCamera,
	}, tokens.Grant{Life: time.Hour, JKT: key.Thumbprint})
	require.NoError(b, err)
	sum := sha256.Sum256([]byte(token))
	proof := func() string {
		p := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"jti": rand.Text(), "htm": "POST", "htu": benchURL + "/v1/registrations", "iat": now().Unix(), "ath": base64.RawURLEncoding.EncodeToString(sum[:]),
		})
		p.Header["typ"] = "dpop+jwt"
		p.Header["jwk"] = map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)}
		text, err := p.SignedString(private)
		require.NoError(b, err)
		return text
	}
	message := []byte(token[:600]) // about what is signed of a token
	signature := ed25519.Sign(private, message)

	const rounds, each = 15, 300
	var plain, full, cached, again []float64
	measure := func(into *[]float64, f func(i int)) {
		began := time.Now()
		for i := range each {
			f(i)
		}
		*into = append(*into, float64(time.Since(began).Nanoseconds())/each)
	}
	ctx := context.Background()
	whole := func(v interface {
		Verify(string) (tokens.Subject, error)
	}, fresh []string,
	) func(int) {
		return func(i int) {
			s, err := v.Verify(token)
			if err == nil {
				_, err = proofs.Verify(ctx, dpop.Request{Proofs: fresh[i : i+1], Method: "POST", Path: "/v1/registrations", Token: token, BoundTo: s.JKT})
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	for range rounds {
		first, second := make([]string, each), make([]string, each)
		for i := range each {
			first[i], second[i] = proof(), proof()
		}
		measure(&plain, func(int) {
			if !ed25519.Verify(public, message, signature) {
				b.Fatal("the signature is wrong")
			}
		})
		measure(&full, whole(verifier, first))
		measure(&again, whole(cache, second))
		measure(&cached, func(int) {
			if _, err := cache.Verify(token); err != nil {
				b.Fatal(err)
			}
		})
	}
	base := median(plain)
	fmt.Printf("ed25519.Verify: %.1f µs; DPoP device request: %.1f µs, with a token that was seen before: %.1f µs; repeated token: %.2f µs\n",
		base/1000, median(full)/1000, median(again)/1000, median(cached)/1000)
	figure("identity_dpop_request", median(full)/base, 2.5)
	figure("identity_dpop_request_repeated_token", median(again)/base, 2.5)
	figure("identity_repeated_token", median(cached)/base, 0.1)
}

// figure prints one line for the one who reads or compares them.
func figure(name string, value, target float64) {
	verdict := "ok"
	if value > target {
		verdict = "short"
	}
	fmt.Printf("figure %s %.3f ed25519_verify want <= %.1f %s\n", name, value, target, verdict)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
