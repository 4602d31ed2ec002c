package dpop_test

import (
	"context"
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/groupcast/groupcast/server/dpop"
)

// BenchmarkVerify sets a whole verification beside the bare signature check that it contains, over the same bytes.
func BenchmarkVerify(b *testing.B) {
	s, ec := newEd(b), newEC(b)
	proof := s.sign(s.header(), payload())
	i := strings.LastIndexByte(proof, '.')
	signed, sig, pub := []byte(proof[:i]), s.signature(proof[:i]), s.ed.Public().(ed25519.PublicKey)

	b.Run("bare-ed25519", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !ed25519.Verify(pub, signed, sig) {
				b.Fatal("wrong signature")
			}
		}
	})
	for _, k := range []signer{s, ec} {
		b.Run(k.alg(), func(b *testing.B) {
			const n = 20_000 // a proof is good once
			var v *dpop.Verifier
			requests := make([]dpop.Request, n)
			for i := range requests {
				requests[i] = k.request(k.sign(k.header(), payload()))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%n == 0 {
					v, _, _ = newVerifier(b)
				}
				if _, err := v.Verify(context.Background(), requests[i%n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
