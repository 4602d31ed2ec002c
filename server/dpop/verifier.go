package dpop

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/groupcast/groupcast/server/replay"
)

const (
	// MaxSize is the longest proof that is read, in bytes.
	MaxSize = 4096
	// MaxID is the longest jti, in bytes.
	MaxID = 64
	// Window is how far the iat of a proof without a nonce may be from the server's clock, to either side.
	Window = time.Minute
	// NonceLife is how long a nonce is accepted. A proof with a valid nonce needs no right clock: its iat is not compared.
	NonceLife = 5 * time.Minute
)

// Code is the OAuth error code of a refusal (RFC 9449 §5, §7.1, §8, §9).
type Code string

// The codes of this package. At the token endpoint they stand in the body with status 400, elsewhere in WWW-Authenticate with 401.
const (
	InvalidProof Code = "invalid_dpop_proof"
	UseNonce     Code = "use_dpop_nonce"
	InvalidToken Code = "invalid_token" // the proof is right, but the access token is bound to another key
)

// Error is a refusal. Detail is a sentence for the client; nothing of the proof is in it.
type Error struct {
	Code   Code
	Detail string
	// Nonce is the value for the DPoP-Nonce header, with code UseNonce only.
	Nonce string
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

func invalid(detail string) *Error { return &Error{Code: InvalidProof, Detail: detail} }

// Replays remembers which proofs were used: replay.Memory for one node, a table of the database for several. Use fails with
// replay.ErrUsed, replay.ErrForgotten, or because the memory can't be reached.
type Replays interface {
	Use(ctx context.Context, key string, until time.Time) error
}

// Verifier checks proofs. It is safe for concurrent use.
type Verifier struct {
	base    string
	nonces  *Nonces
	replays Replays
	now     func() time.Time
	headers *headers
}

// NewVerifier makes a verifier for the service at publicURL: scheme, host and an optional path prefix, as clients see it. The Host header
// of a request never matters. now is the clock that iat is compared with.
func NewVerifier(publicURL string, nonces *Nonces, replays Replays, now func() time.Time) (*Verifier, error) {
	base, err := normalise(publicURL)
	if err != nil || strings.ContainsAny(publicURL, "?#") {
		return nil, errors.New("the public URL must be like https://groupcast.example, without query and fragment")
	}
	return &Verifier{base: strings.TrimSuffix(base, "/"), nonces: nonces, replays: replays, now: now, headers: newHeaders()}, nil
}

// Request is what a proof has to fit.
type Request struct {
	// Proofs are the values of all DPoP header fields of the request.
	Proofs []string
	Method string
	// Path is the escaped path of the request below the public URL, with its leading slash.
	Path string
	// Token is the access token that came with the proof; empty where a token is asked for.
	Token string
	// BoundTo is the thumbprint in the token's cnf.jkt; it is compared if Token is set.
	BoundTo string
}

// Result is what a valid proof says.
type Result struct {
	// Thumbprint names the key that made the proof (RFC 7638): the jkt.
	Thumbprint string
	// Key is that key.
	Key Key
	// Nonce is a new value for the DPoP-Nonce header of the answer, when the one that was used gets old; else empty.
	Nonce string
}

// claims are the members of a proof's payload that RFC 9449 §4.2 defines.
type claims struct {
	ID        string   `json:"jti"`
	Method    string   `json:"htm"`
	URI       string   `json:"htu"`
	IssuedAt  *float64 `json:"iat"`
	TokenHash string   `json:"ath"`
	Nonce     string   `json:"nonce"`
}

// Verify does the checks of RFC 9449 §4.3, in an order that leaves what costs most to the end, and marks the proof as used. A refusal is an
// *Error; any other error means that the replay memory could not be asked.
func (v *Verifier) Verify(ctx context.Context, r Request) (Result, error) {
	if len(r.Proofs) != 1 {
		return Result{}, invalid("Send exactly one DPoP header field.")
	}
	proof := r.Proofs[0]
	if len(proof) > MaxSize {
		return Result{}, invalid(fmt.Sprintf("The proof is longer than %d bytes; leave out what RFC 9449 does not define.", MaxSize))
	}
	header, rest, _ := strings.Cut(proof, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") {
		return Result{}, invalid("The proof is not a JWS in compact form: three parts with dots between them.")
	}
	key, seen, err := v.headers.read(header)
	if err != nil {
		return Result{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return Result{}, err
	}
	if c.Method != r.Method {
		return Result{}, invalid("htm is not the method of this request.")
	}
	if !v.targets(c.URI, r.Path) {
		return Result{}, invalid("htu is not the URL of this request; build it from the public URL " + v.base + " and the path.")
	}
	if r.Token != "" && subtle.ConstantTimeCompare([]byte(c.TokenHash), []byte(Hash(r.Token))) != 1 {
		return Result{}, invalid("ath is not the hash of the access token; it is the SHA-256 of the token in base64url.")
	}
	until, next, err := v.timely(c)
	if err != nil {
		return Result{}, err
	}
	sig, err := decode(signature)
	if err != nil || key.Verify(proof[:len(header)+1+len(payload)], sig) != nil {
		return Result{}, invalid("The signature is wrong; sign with the private key that belongs to the proof's jwk.")
	}
	if !seen {
		v.headers.keep(header, key)
	}
	if r.Token != "" && subtle.ConstantTimeCompare([]byte(key.Thumbprint), []byte(r.BoundTo)) != 1 {
		return Result{}, &Error{Code: InvalidToken, Detail: "The access token is bound to another key; ask for a token with the key that signs the proofs."}
	}
	switch err := v.replays.Use(ctx, "dpop "+key.Thumbprint+" "+c.ID, until); {
	case errors.Is(err, replay.ErrUsed):
		return Result{}, invalid("This jti was used before; make a new proof for every request.")
	case errors.Is(err, replay.ErrForgotten):
		return Result{}, v.useNonce()
	case err != nil:
		return Result{}, fmt.Errorf("remember a DPoP proof: %w", err)
	}
	return Result{Thumbprint: key.Thumbprint, Key: key, Nonce: next}, nil
}

// Hash is the ath of an access token (RFC 9449 §4.2).
func Hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func parseHeader(segment string) (Key, error) {
	raw, err := decode(segment)
	if err != nil {
		return Key{}, invalid("The proof's header is not base64url without padding.")
	}
	var h struct {
		Type  string         `json:"typ"`
		Alg   string         `json:"alg"`
		JWK   jsontext.Value `json:"jwk"`
		KeyID jsontext.Value `json:"kid"` // says nothing beside a jwk
	}
	switch err := json.Unmarshal(raw, &h, json.RejectUnknownMembers(true)); {
	case errors.Is(err, json.ErrUnknownName):
		// Above all no crit, b64, jku, x5u or x5c: nothing that changes what is signed or fetches a key.
		return Key{}, invalid("The proof's header has a member other than typ, alg, jwk and kid.")
	case err != nil:
		return Key{}, invalid("The proof's header is not a JSON object with each member once and of the right type.")
	}
	if h.Type != "dpop+jwt" {
		return Key{}, invalid(`The proof's typ is not "dpop+jwt".`)
	}
	if h.Alg != "EdDSA" && h.Alg != algEd25519 && h.Alg != "ES256" {
		return Key{}, invalid("The proof's alg is neither EdDSA nor ES256.")
	}
	key, err := ParseKey(h.JWK)
	if err != nil {
		return Key{}, invalid("The proof's jwk is not usable: " + err.Error() + ".")
	}
	if !key.Fits(h.Alg) {
		return Key{}, invalid("The proof's alg does not fit its jwk.")
	}
	return key, nil
}

func parseClaims(segment string) (claims, error) {
	raw, err := decode(segment)
	if err != nil {
		return claims{}, invalid("The proof's payload is not base64url without padding.")
	}
	var c claims
	if err := json.Unmarshal(raw, &c); err != nil {
		return claims{}, invalid("The proof's payload is not a JSON object with each claim once and of the right type.")
	}
	if c.ID == "" || len(c.ID) > MaxID {
		return claims{}, invalid(fmt.Sprintf("The proof needs a jti of 1 to %d bytes.", MaxID))
	}
	if c.IssuedAt == nil || math.Abs(*c.IssuedAt) > 1<<52 {
		return claims{}, invalid("The proof needs an iat in seconds since 1970; any number does for a client without a clock.")
	}
	return c, nil
}

// targets tells whether the claimed URI is that of the request.
func (v *Verifier) targets(claimed, path string) bool {
	want := v.base + path
	if claimed == want && !strings.ContainsAny(claimed, "?#%") && !strings.Contains(claimed, "/.") {
		return true // the form that every client of ours sends
	}
	c, err := normalise(claimed)
	if err != nil {
		return false
	}
	w, err := normalise(want)
	return err == nil && c == w
}

// timely checks when the proof was made, by its nonce or else by its iat. It returns until when the proof stays valid, and the nonce to
// hand out if the one that was used is past half of its life.
func (v *Verifier) timely(c claims) (until time.Time, next string, err error) {
	now := v.now()
	if c.Nonce == "" {
		issued := time.UnixMilli(int64(*c.IssuedAt * 1000))
		if now.Sub(issued).Abs() > Window {
			return time.Time{}, "", v.useNonce()
		}
		return issued.Add(Window), "", nil
	}
	made, ok := v.nonces.MadeAt(c.Nonce)
	age := now.Sub(made)
	if !ok || age > NonceLife || age < -Window { // a replica's clock may be ahead
		return time.Time{}, "", v.useNonce()
	}
	if age > NonceLife/2 {
		next = v.nonces.Current()
	}
	return made.Add(NonceLife), next, nil
}

func (v *Verifier) useNonce() *Error {
	return &Error{
		Code:   UseNonce,
		Detail: "Put the value of the DPoP-Nonce header into the nonce claim of a new proof and send the request again.",
		Nonce:  v.nonces.Current(),
	}
}
