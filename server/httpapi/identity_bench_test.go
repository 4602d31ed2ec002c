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
	"runtime"
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

	issuer := tokens.NewIssuer(benchURL, ring, now)
	camera := newBenchDevice(b)
	token := camera.token(b, issuer)
	message := []byte(token[:600]) // about what is signed of a token
	signature := ed25519.Sign(camera.private, message)

	const rounds, each = 15, 200
	ctx := context.Background()
	request := func(v httpapi.TokenVerifier, token, proof string) {
		s, err := v.Verify(token)
		if err == nil {
			_, err = proofs.Verify(ctx, dpop.Request{Proofs: []string{proof}, Method: "POST", Path: "/v1/registrations", Token: token, BoundTo: s.JKT})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var base, full, first, again, repeated []float64
	for range rounds {
		var made, strange [each]struct{ token, proof string }
		var more [each]string
		for i := range each {
			made[i].token = camera.token(b, issuer)
			made[i].proof = camera.proof(b, made[i].token)
			stranger := newBenchDevice(b)
			strange[i].token = stranger.token(b, issuer)
			strange[i].proof = stranger.proof(b, strange[i].token)
			more[i] = camera.proof(b, token)
		}
		runtime.GC() // what the preparation left is not what is measured
		var took [5]time.Duration
		// One after the other, each time: what else the machine does then falls on all of them.
		for i := range each {
			for j, f := range []func(){
				func() { _ = ed25519.Verify(camera.public, message, signature) },
				func() { request(verifier, made[i].token, made[i].proof) },
				func() { request(verifier, strange[i].token, strange[i].proof) },
				func() { request(cache, token, more[i]) },
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
		first = append(first, float64(took[2])/one)
		again = append(again, float64(took[3])/one)
		repeated = append(repeated, float64(took[4])/one)
	}
	fmt.Printf("ed25519.Verify takes %.1f µs here and now\n", median(base))
	figure("identity_dpop_request", median(full), 2.5)
	figure("identity_dpop_request_new_device", median(first), 2.5)
	figure("identity_dpop_request_repeated_token", median(again), 2.5)
	figure("identity_repeated_token", median(repeated), 0.1)
}

// benchDevice is a camera with a key of its own.
type benchDevice struct {
	models.Device
	public  ed25519.PublicKey
	private ed25519.PrivateKey
	jkt     string
}

func newBenchDevice(b *testing.B) benchDevice {
	b.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(b, err)
	key, err := dpop.ParseKey(fmt.Appendf(nil, `{"kty":"OKP","crv":"Ed25519","x":%q}`, base64.RawURLEncoding.EncodeToString(public)))
	require.NoError(b, err)
	return benchDevice{
		Device: models.Device{ID: models.NewID(), AccountID: models.NewAccountID(), PremisesID: models.NewPremisesID(), Type: models.DeviceCamera},
		public: public, private: private, jkt: key.Thumbprint,
	}
}

func (d benchDevice) token(b *testing.B, issuer *tokens.Issuer) string {
	b.Helper()
	token, err := issuer.Device(d.Device, tokens.Grant{Life: time.Hour, JKT: d.jkt})
	require.NoError(b, err)
	return token
}

func (d benchDevice) proof(b *testing.B, token string) string {
	b.Helper()
	sum := sha256.Sum256([]byte(token))
	p := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"jti": rand.Text(), "htm": "POST", "htu": benchURL + "/v1/registrations", "iat": time.Now().Unix(), "ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	})
	p.Header["typ"] = "dpop+jwt"
	p.Header["jwk"] = map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(d.public)}
	text, err := p.SignedString(d.private)
	require.NoError(b, err)
	return text
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
