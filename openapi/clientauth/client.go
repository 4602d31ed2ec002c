package clientauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Client authorizes requests with one credential. It is safe for concurrent use.
type Client struct {
	path       string
	endpoint   *endpoint
	credential atomic.Pointer[credential]

	// lock guards token and the renewing of the credential. It is a channel, so that a caller whose context ends stops waiting for
	// somebody else's request.
	lock  chan struct{}
	token accessToken
	// refused is a token that the server did not accept; the next caller drops it.
	refused atomic.Pointer[string]
}

// credential is what the file holds; it is never changed, only replaced. With a bare token its file is zero.
type credential struct {
	file file
	key  *key
}

func (c *credential) bare() bool { return c.file.Version == 0 }

// accessToken is a token with what is needed to use it.
type accessToken struct {
	value   string
	scheme  string // of the Authorization header
	key     *key   // that it is bound to, if the scheme is DPoP
	renewAt time.Time
	expires time.Time
}

// renewable tells a token that the server gave us from a bare one that somebody put into the file.
func (t accessToken) renewable() bool { return !t.expires.IsZero() }

// Open reads a credential file, or a file with nothing but an access token. server is the server's public URL: a credential file must be
// for that server. It may be empty with a credential file, which names its server. No request is sent.
func Open(path, server string, o Options) (*Client, error) {
	cred, err := load(path)
	if err != nil {
		return nil, err
	}
	if cred.bare() {
		if server == "" {
			return nil, fmt.Errorf("%s holds an access token, which doesn't say for which server it is: give the server's URL", path)
		}
		e, err := newEndpoint(server, o)
		if err != nil {
			return nil, err
		}
		return newClient(path, e, cred), nil
	}
	e, err := newEndpoint(cred.file.Server, o)
	if err != nil {
		return nil, fmt.Errorf("credential file %s: %w", path, err)
	}
	if server != "" {
		want, err := normalServer(server, o.AllowPlainHTTP)
		if err != nil {
			return nil, err
		}
		if want != e.issuer {
			return nil, fmt.Errorf("the credential in %s is for %s and not for %s: enrol there, or use the other URL", path, e.issuer, want)
		}
	}
	return newClient(path, e, cred), nil
}

// load reads whatever kind of credential lies at the path.
func load(path string) (*credential, error) {
	b, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	if !isFile(b) {
		_, err := parseBareToken(path, b)
		return &credential{}, err
	}
	f, err := parseFile(path, b)
	if err != nil {
		return nil, err
	}
	if f.ClientID == "" {
		return nil, fmt.Errorf("credential file %s: the enrolment did not end: enrol again, the key is kept", path)
	}
	cred := &credential{file: *f}
	if f.PrivateKey != "" {
		if cred.key, err = parseKey(f.PrivateKey); err != nil {
			return nil, fmt.Errorf("credential file %s: %w", path, err)
		}
	}
	return cred, nil
}

func newClient(path string, e *endpoint, cred *credential) *Client {
	c := &Client{path: path, endpoint: e, lock: make(chan struct{}, 1)}
	c.credential.Store(cred)
	return c
}

// Server is the server's URL in its normal form.
func (c *Client) Server() string { return c.endpoint.issuer }

// ClientID names the client at the server; empty with a bare token.
func (c *Client) ClientID() string { return c.credential.Load().file.ClientID }

// DeviceID is the device's or gateway's own id in decimal, if the server told it at the enrolment; empty for a relay.
func (c *Client) DeviceID() string { return c.credential.Load().file.DeviceID }

// RelayID is the relay's own id in decimal; empty for everybody else.
func (c *Client) RelayID() string { return c.credential.Load().file.RelayID }

// PublicKey is the public half of the credential's key as a JWK; nil if it has none.
func (c *Client) PublicKey() []byte {
	k := c.credential.Load().key
	if k == nil {
		return nil
	}
	return append([]byte(nil), k.jwk...)
}

// Format keeps secrets out of whatever prints the value.
func (c *Client) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "credential of %q at %s", c.ClientID(), c.endpoint.issuer)
}

// LogValue keeps secrets out of structured logs.
func (c *Client) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

func (c *Client) acquire(ctx context.Context) error {
	select {
	case c.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) release() { <-c.lock }

const (
	// renewPause is how long a token that could not be renewed is used before the next try.
	renewPause = 10 * time.Second
	// maxTokenLife bounds what an answer may claim.
	maxTokenLife = 24 * time.Hour
)

// Token gives an access token that is good for a while yet, and the scheme for the Authorization header, DPoP or Bearer. Most callers
// want Transport, which makes the proofs too.
func (c *Client) Token(ctx context.Context) (scheme, token string, err error) {
	t, err := c.current(ctx)
	return t.scheme, t.value, err
}

func (c *Client) current(ctx context.Context) (accessToken, error) {
	if err := c.acquire(ctx); err != nil {
		return accessToken{}, fmt.Errorf("get an access token: %w", err)
	}
	defer c.release()
	if c.credential.Load().bare() {
		t, changed, err := c.readToken()
		if err != nil || !changed {
			return t, err
		}
	}
	now := c.endpoint.opts.Now()
	if refused := c.refused.Swap(nil); refused != nil && *refused == c.token.value {
		c.token = accessToken{}
	}
	if c.token.value != "" && now.Before(c.token.renewAt) {
		return c.token, nil
	}
	fresh, err := c.obtain(ctx)
	if errors.Is(err, ErrRefused) && c.reload() {
		fresh, err = c.obtain(ctx) // somebody enrolled anew meanwhile
	}
	switch {
	case err == nil:
		c.token = fresh
	case c.token.value != "" && now.Before(c.token.expires) && !errors.Is(err, ErrRefused):
		// The server is away or busy. The old token is still good; it is not asked again for a moment.
		c.token.renewAt = now.Add(renewPause)
	default:
		return accessToken{}, err
	}
	return c.token, nil
}

// readToken reads a bare token anew; changed tells that a credential file took its place.
func (c *Client) readToken() (t accessToken, changed bool, err error) {
	b, err := readSecret(c.path)
	if err != nil {
		return accessToken{}, false, err
	}
	if isFile(b) {
		if !c.reload() {
			return accessToken{}, false, fmt.Errorf("credential file %s is damaged or for another server than %s: enrol anew", c.path, c.endpoint.issuer)
		}
		return accessToken{}, true, nil
	}
	token, err := parseBareToken(c.path, b)
	return accessToken{value: token, scheme: "Bearer"}, false, err
}

// reload takes over a credential file that changed on the disk. The lock is held.
func (c *Client) reload() bool {
	cred, err := load(c.path)
	if err != nil || cred.bare() || cred.file == c.credential.Load().file || cred.file.Server != c.endpoint.issuer {
		return false
	}
	c.credential.Store(cred)
	c.token = accessToken{}
	return true
}

// forget makes the next caller get another token, unless that has happened already.
func (c *Client) forget(token string) {
	c.refused.Store(&token)
}

// tokenAnswer is that of RFC 6749 §5.1.
type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	RefreshToken string `json:"refresh_token"`
}

// obtain asks for a new token, by the way that the credential allows. The lock is held.
func (c *Client) obtain(ctx context.Context) (accessToken, error) {
	cred := c.credential.Load()
	var a tokenAnswer
	asked := c.endpoint.opts.Now()
	err := c.endpoint.post(ctx, "get an access token", "/oauth/token", cred.proofKey(), func(r *http.Request, now time.Time) error {
		form := url.Values{}
		if cred.file.Scope != "" {
			form.Set("scope", cred.file.Scope)
		}
		if cred.file.RefreshToken != "" {
			form.Set("grant_type", "refresh_token")
			form.Set("refresh_token", cred.file.RefreshToken)
			form.Set("client_id", cred.file.ClientID)
		} else {
			form.Set("grant_type", "client_credentials")
			if err := cred.authenticate(r, form, c.endpoint.issuer, now); err != nil {
				return err
			}
		}
		setForm(r, form)
		return nil
	}, &a)
	if err != nil {
		return accessToken{}, err
	}
	if old := cred.file.RefreshToken; old != "" && a.RefreshToken != "" && a.RefreshToken != old {
		// Ours are not rotated, but RFC 6749 §6 lets a server do so.
		f := cred.file
		f.RefreshToken = a.RefreshToken
		if err := f.write(c.path); err != nil {
			return accessToken{}, err
		}
		c.credential.Store(&credential{file: f, key: cred.key})
	}
	return a.check(cred.proofKey(), asked)
}

// proofKey is the key that tokens are bound to; nil if they are not.
func (c *credential) proofKey() *key {
	if !c.file.DPoP {
		return nil
	}
	return c.key
}

// authenticate adds the client's own credential to a request for a token (RFC 6749 §2.3, RFC 7523 §2.2).
func (c *credential) authenticate(r *http.Request, form url.Values, issuer string, now time.Time) error {
	if c.file.ClientSecret != "" {
		r.SetBasicAuth(url.QueryEscape(c.file.ClientID), url.QueryEscape(c.file.ClientSecret))
		return nil
	}
	assertion, err := c.key.assertion(c.file.ClientID, issuer, now)
	if err != nil {
		return err
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
	return nil
}

// check takes an answer for a token that was asked for at the given time, to be bound to the key if there is one.
func (a tokenAnswer) check(bound *key, asked time.Time) (accessToken, error) {
	scheme := "Bearer"
	if bound != nil {
		scheme = "DPoP"
	}
	if a.AccessToken == "" || strings.ContainsFunc(a.AccessToken, func(c rune) bool { return c <= ' ' || c > '~' }) || a.ExpiresIn <= 0 {
		return accessToken{}, errors.New("get an access token: the answer has no token with a lifetime: check that it is a groupcast server of the same release")
	}
	if !strings.EqualFold(a.TokenType, scheme) {
		// RFC 9449 §5: where a bound token was asked for, an unbound one must not be used. The other way round it could not be.
		return accessToken{}, fmt.Errorf("get an access token: the server gave a token of type %q and not %s: check whether the client is registered with proof of possession", clean(a.TokenType), scheme)
	}
	life := seconds(a.ExpiresIn, maxTokenLife)
	return accessToken{value: a.AccessToken, scheme: scheme, key: bound, renewAt: asked.Add(life * 3 / 4), expires: asked.Add(life)}, nil
}

// seconds makes a duration of an answer's number, at most the given one.
func seconds(n int64, most time.Duration) time.Duration {
	return time.Duration(min(n, int64(most/time.Second))) * time.Second
}
