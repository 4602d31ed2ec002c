package clientauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Options are what the caller's surroundings decide. The zero value is good for production with TLS.
type Options struct {
	// Base carries all requests, with the caller's TLS settings; nil means http.DefaultTransport.
	Base http.RoundTripper
	// AllowPlainHTTP lets secrets cross a network without TLS to a server that is not on loopback.
	AllowPlainHTTP bool
	// Now is the local clock; nil means time.Now. It may be wrong: the server's answers correct it.
	Now func() time.Time
	// Sleep waits between two polls; nil means a timer. It returns early, with the context's error, if the context ends.
	Sleep func(context.Context, time.Duration) error
}

func (o Options) withDefaults() Options {
	if o.Base == nil {
		o.Base = http.DefaultTransport
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Sleep == nil {
		o.Sleep = func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-t.C:
				return nil
			}
		}
	}
	return o
}

const (
	// requestTimeout bounds one request for a token.
	requestTimeout = 30 * time.Second
	maxAnswer      = 64 << 10
	// clockTolerance is how wrong the local clock may be before the server's is used.
	clockTolerance = 20 * time.Second
)

// endpoint talks to one server's OAuth endpoints and remembers what its answers teach: the nonce for proofs and the time.
type endpoint struct {
	issuer string // the public URL in its normal form, without a slash at the end
	origin string // its scheme and host
	opts   Options
	http   *http.Client

	mu sync.Mutex
	knowledge
}

func newEndpoint(server string, o Options) (*endpoint, error) {
	issuer, err := normalServer(server, o.AllowPlainHTTP)
	if err != nil {
		return nil, err
	}
	scheme, rest, _ := strings.Cut(issuer, "://")
	host, _, _ := strings.Cut(rest, "/")
	o = o.withDefaults()
	return &endpoint{issuer: issuer, origin: scheme + "://" + host, opts: o, http: &http.Client{
		Transport: o.Base,
		Timeout:   requestTimeout,
		// A redirection would carry the secret to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// normalServer checks a server's URL and brings it to the form in which servers name themselves.
func normalServer(server string, allowPlain bool) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", errors.New("the server's URL must be like https://groupcast.example, without user, query and fragment")
	}
	if u.Scheme == "http" && !allowPlain && !loopback(u.Hostname()) {
		return "", fmt.Errorf("the credential would cross the network readably to %s: use https, or set --allow-plain-http if the way there is protected otherwise", u.Host)
	}
	host := strings.ToLower(u.Host)
	host = strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[u.Scheme])
	return u.Scheme + "://" + host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// knowledge is what the server's answers have taught.
type knowledge struct {
	nonce string        // for proofs
	skew  time.Duration // the server's clock minus ours
}

func (e *endpoint) known() knowledge {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.knowledge
}

// now is the server's time as far as its answers told it.
func (e *endpoint) now(k knowledge) time.Time { return e.opts.Now().Add(k.skew) }

// learn keeps the nonce of an answer, and the server's time if the local clock is off: a gateway that has just started, or a camera
// without a clock, could sign no assertion otherwise.
func (e *endpoint) learn(h http.Header) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := h.Get("DPoP-Nonce"); n != "" {
		e.nonce = n
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil && h.Get("Age") == "" { // not a cache's answer
		if skew := date.Sub(e.opts.Now()); (skew - e.skew).Abs() > clockTolerance {
			e.skew = skew
		}
	}
}

// mends tells whether a request that was refused with the code may succeed with what is known now instead of what it was made with.
func (e *endpoint) mends(code string, madeWith knowledge) bool {
	now := e.known()
	switch code {
	case "use_dpop_nonce":
		return now != madeWith
	case "invalid_client", "invalid_dpop_proof": // an assertion or a proof that seemed too old or not yet valid
		return now.skew != madeWith.skew
	}
	return false
}

// post sends a request to an OAuth endpoint and decodes the answer. body is asked anew for each attempt, with the server's time, since
// assertions and proofs are good once. With a key the request carries a proof. doing names the request in errors.
func (e *endpoint) post(ctx context.Context, doing, path string, k *key, body func(*http.Request, time.Time) error, answer any) error {
	const attempts = 3 // the first, one with a nonce, one with the right time
	for attempt := 1; ; attempt++ {
		madeWith := e.known()
		status, raw, err := e.once(ctx, path, k, madeWith, body)
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		if status >= 200 && status < 300 {
			if err := json.Unmarshal(raw, answer); err != nil {
				return fmt.Errorf("%s: %s%s did not answer with the JSON that was expected: check that it is a groupcast server of the same release", doing, e.issuer, path)
			}
			return nil
		}
		var refusal struct {
			Code        string `json:"error"`
			Description string `json:"error_description"`
			Detail      string `json:"detail"` // of a problem document, RFC 9457
		}
		_ = json.Unmarshal(raw, &refusal) // a proxy's page has neither
		if attempt < attempts && e.mends(refusal.Code, madeWith) {
			continue
		}
		if refusal.Description == "" {
			refusal.Description = refusal.Detail
		}
		return &Error{Doing: doing, Status: status, Code: clean(refusal.Code), Description: clean(refusal.Description)}
	}
}

func (e *endpoint) once(ctx context.Context, path string, k *key, madeWith knowledge, body func(*http.Request, time.Time) error) (int, []byte, error) {
	target := e.issuer + path
	now := e.now(madeWith)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, nil)
	if err != nil {
		return 0, nil, err
	}
	if err := body(r, now); err != nil {
		return 0, nil, err
	}
	if k != nil {
		proof, err := k.proof(http.MethodPost, target, "", madeWith.nonce, now)
		if err != nil {
			return 0, nil, err
		}
		r.Header.Set("DPoP", proof)
	}
	r.Header.Set("Accept", "application/json")
	resp, err := e.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	e.learn(resp.Header)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer of %s: %w", target, err)
	}
	return resp.StatusCode, raw, nil
}

// setForm and setJSON put a body on a request.
func setForm(r *http.Request, form url.Values) {
	setBody(r, "application/x-www-form-urlencoded", form.Encode())
}

func setJSON(r *http.Request, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	setBody(r, "application/json", string(b))
	return nil
}

func setBody(r *http.Request, contentType, body string) {
	r.Header.Set("Content-Type", contentType)
	r.ContentLength = int64(len(body))
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	r.Body, _ = r.GetBody()
}
