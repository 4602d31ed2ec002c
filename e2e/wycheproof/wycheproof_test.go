package wycheproof_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/tink-crypto/tink-go/v2/daead/subtle"

	"github.com/groupcast/groupcast/server/dpop"
)

type vector struct {
	ID      int `json:"tcId"`
	Comment string
	Result  string
	Flags   []string

	Msg, Sig, Key, AAD, Ct string
	JWS                    json.RawMessage
}

type group struct {
	Comment         string
	KeySize         int
	Public, Private json.RawMessage
	PublicKeyJWK    json.RawMessage `json:"publicKeyJwk"`
	Tests           []vector
}

// load reads a file of vectors and checks that it holds as many as it says.
func load(t *testing.T, name string) []group {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+"_test.json"))
	require.NoError(t, err)
	var f struct {
		NumberOfTests int
		TestGroups    []group
	}
	require.NoError(t, json.Unmarshal(b, &f))
	n := 0
	for _, g := range f.TestGroups {
		n += len(g.Tests)
	}
	require.Equal(t, f.NumberOfTests, n)
	return f.TestGroups
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

// tally counts, so that a test can't pass by looking at nothing.
type tally struct{ valid, invalid int }

func (c *tally) judge(t *testing.T, g group, v vector, err error) {
	t.Helper()
	assert.Equal(t, v.Result == "valid", err == nil, "%s %d: %s %v: %v", g.Comment, v.ID, v.Comment, v.Flags, err)
	if err == nil {
		c.valid++
	} else {
		c.invalid++
	}
}

// Signatures of clients' keys, from the JWK to the signature: what DPoP proofs and client assertions rest on.
func TestSignaturesOfClientKeys(t *testing.T) {
	for name, want := range map[string]tally{"ed25519": {valid: 88, invalid: 62}, "ecdsa_secp256r1_sha256_p1363": {valid: 169, invalid: 83}} {
		t.Run(name, func(t *testing.T) {
			var got tally
			for _, g := range load(t, name) {
				key, keyErr := dpop.ParseKey(g.PublicKeyJWK)
				for _, v := range g.Tests {
					err := keyErr
					if err == nil {
						err = key.Verify(string(unhex(t, v.Msg)), unhex(t, v.Sig))
					}
					got.judge(t, g, v, err)
				}
			}
			assert.Equal(t, want, got)
		})
	}
}

// verify reads a JWS in compact form as our verifiers do: strict base64, known header members only, the algorithm that belongs to the key.
func verify(jws, alg string, check func(signed string, signature []byte) error) error {
	parts := strings.Split(jws, ".")
	if len(parts) != 3 || strings.ContainsAny(jws, "\r\n") {
		return errors.New("not three parts")
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return err
		}
	}
	var header struct{ Alg, Kid, Typ string }
	d := json.NewDecoder(bytes.NewReader(decoded[0]))
	d.DisallowUnknownFields()
	if err := d.Decode(&header); err != nil {
		return err
	}
	if header.Alg != alg {
		return errors.New("alg does not belong to the key")
	}
	return check(parts[0]+"."+parts[1], decoded[2])
}

func (v vector) jws() string {
	var s string
	if json.Unmarshal(v.JWS, &s) != nil {
		s = string(v.JWS) // JSON serialisation
	}
	return s
}

// keysOf gives the keys of a group, whether it has one or a set.
func keysOf(raw json.RawMessage) []json.RawMessage {
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(raw, &set) == nil && set.Keys != nil {
		return set.Keys
	}
	return []json.RawMessage{raw}
}

// Whole JWSs and JWKs. Keys of kinds that clients may not have are refused: RSA, other curves, symmetric and private ones.
func TestJWSOfClientKeys(t *testing.T) {
	for name, want := range map[string]struct {
		tally
		refused int
	}{
		"json_web_signature": {tally{valid: 2, invalid: 39}, 19},
		"json_web_key":       {tally{valid: 0, invalid: 4}, 23},
	} {
		t.Run(name, func(t *testing.T) {
			var got tally
			refused := 0
			for _, g := range load(t, name) {
				raw := g.Public
				if raw == nil {
					raw = g.Private
				}
				keys := keysOf(raw)
				for _, jwk := range keys {
					var k struct {
						Kty, Crv string
						D, K     json.RawMessage
					}
					require.NoError(t, json.Unmarshal(jwk, &k))
					key, err := dpop.ParseKey(jwk)
					if k.Kty != "EC" || k.Crv != "P-256" || k.D != nil || k.K != nil {
						require.Error(t, err, "%s", jwk)
						refused++
						continue
					}
					if len(keys) > 1 {
						continue // those vectors are about choosing from a set
					}
					for _, v := range g.Tests {
						verr := err
						if verr == nil {
							verr = verify(v.jws(), key.Alg, key.Verify)
						}
						got.judge(t, g, v, verr)
					}
				}
			}
			assert.Equal(t, want.tally, got)
			assert.Equal(t, want.refused, refused, "keys refused for their kind")
		})
	}
}

// RS256 is for issuers whose tokens others verify; the key is the issuer's own or from its JWKS.
func TestRS256(t *testing.T) {
	var got tally
	for _, g := range load(t, "json_web_signature") {
		var kind struct{ Kty, Alg, Use string }
		if g.Public == nil || json.Unmarshal(g.Public, &kind) != nil || kind.Alg != "RS256" {
			continue
		}
		var key jose.JSONWebKey
		require.NoError(t, key.UnmarshalJSON(g.Public))
		for _, v := range g.Tests {
			got.judge(t, g, v, verify(v.jws(), kind.Alg, func(signed string, signature []byte) error {
				return jwt.SigningMethodRS256.Verify(signed, signature, key.Key)
			}))
		}
	}
	assert.Equal(t, tally{valid: 8, invalid: 225}, got)
}

// AES-SIV seals the ids inside tokens.
func TestAESSIV(t *testing.T) {
	var got tally
	refused := 0
	for _, g := range load(t, "aes_siv_cmac") {
		for _, v := range g.Tests {
			siv, err := subtle.NewAESSIV(unhex(t, v.Key))
			if g.KeySize != 512 {
				require.Error(t, err, "a key of %d bits", g.KeySize)
				refused++
				continue
			}
			require.NoError(t, err)
			plain, err := siv.DecryptDeterministically(unhex(t, v.Ct), unhex(t, v.AAD))
			if err == nil && !bytes.Equal(plain, unhex(t, v.Msg)) {
				err = errors.New("another plain text")
			}
			got.judge(t, g, v, err)
			if v.Result == "valid" {
				sealed, err := siv.EncryptDeterministically(unhex(t, v.Msg), unhex(t, v.AAD))
				require.NoError(t, err)
				assert.Equal(t, v.Ct, hex.EncodeToString(sealed), "%d", v.ID)
			}
		}
	}
	assert.Equal(t, tally{valid: 39, invalid: 108}, got)
	assert.Equal(t, 295, refused, "keys of other sizes")
}
