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
	"github.com/groupcast/groupcast/server/httpapi"
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

	const rounds, each = 15, 200
	ctx := context.Background()
	request := func(v httpapi.TokenVerifier, proof string) {
		s, err := v.Verify(token)
		if err == nil {
			_, err = proofs.Verify(ctx, dpop.Request{Proofs: []string{proof}, Method: "POST", Path: "/v1/registrations", Token: token, BoundTo: s.JKT})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var base, full, again, repeated []float64
	for range rounds {
		made := make([]string, 2*each)
		for i := range made {
			made[i] = proof()
		}
		var took [4]time.Duration
		// One after the other, each time: what else the machine does then falls on all of them.
		for i := range each {
			for j, f := range []func(){
				func() { _ = ed25519.Verify(public, message, signature) },
				func() { request(verifier, made[2*i]) },
				func() { request(cache, made[2*i+1]) },
				func() { _, _ = cache.Verify(token) },
			} {
				began := time.Now()
				f()
				took[j] += time.Since(began)
			}
		}
		one := float64(took[0])
		base = append(base, one/each/1000)
		full = append(full, float64(took[1])/one)
		again = append(again, float64(took[2])/one)
		repeated = append(repeated, float64(took[3])/one)
	}
	fmt.Printf("ed25519.Verify takes %.1f µs here and now\n", median(base))
	figure("identity_dpop_request", median(full), 2.5)
	figure("identity_dpop_request_repeated_token", median(again), 2.5)
	figure("identity_repeated_token", median(repeated), 0.1)
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
