package clientauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// The client ids of the programs that begin a device grant.
const (
	ClientDevice  = "gc-device"
	ClientGateway = "gc-gateway"
	ClientApp     = "gc-app"
)

// DeviceGrant is a request for access that waits for the account holder (RFC 8628).
type DeviceGrant struct {
	// UserCode is what the account holder types at VerificationURI.
	UserCode        string
	VerificationURI string
	// VerificationURIComplete holds the code too, for a QR code; it may be empty.
	VerificationURIComplete string
	// ExpiresAt is when the code ends, by the local clock.
	ExpiresAt time.Time

	code     string
	interval time.Duration
	path     string
	file     *file
	key      *key
	endpoint *endpoint
}

// AskApproval begins a device grant. clientID is one of ClientDevice, ClientGateway and ClientApp. The grant is bound to the device's key from
// the start: a stolen code is worthless.
func (n Enrolment) AskApproval(ctx context.Context, clientID, scope string) (*DeviceGrant, error) {
	f, k, e, err := n.prepare()
	if err != nil {
		return nil, err
	}
	var a struct {
		DeviceCode              string `json:"device_code"`
		UserCode                string `json:"user_code"`
		VerificationURI         string `json:"verification_uri"`
		VerificationURIComplete string `json:"verification_uri_complete"`
		ExpiresIn               int64  `json:"expires_in"`
		Interval                int64  `json:"interval"`
	}
	begun := e.opts.Now()
	err = e.post(ctx, "ask for a device code", "/oauth/device_authorization", k, func(r *http.Request, _ time.Time) error {
		form := url.Values{"client_id": {clientID}}
		for name, value := range map[string]string{"scope": scope, "device_type": n.Device.Type, "model": n.Device.Model, "serial": n.Device.Serial} {
			if value != "" {
				form.Set(name, value)
			}
		}
		setForm(r, form)
		return nil
	}, &a)
	if err != nil {
		return nil, err
	}
	if a.DeviceCode == "" || a.UserCode == "" || a.VerificationURI == "" || a.ExpiresIn <= 0 {
		return nil, errors.New("ask for a device code: the answer lacks a code: check that it is a groupcast server of the same release")
	}
	if a.Interval <= 0 {
		a.Interval = 5 // RFC 8628 §3.2
	}
	f.ClientID, f.Scope, f.DPoP = clientID, scope, true
	return &DeviceGrant{
		UserCode: clean(a.UserCode), VerificationURI: clean(a.VerificationURI), VerificationURIComplete: clean(a.VerificationURIComplete),
		ExpiresAt: begun.Add(seconds(a.ExpiresIn, 24*time.Hour)),
		code:      a.DeviceCode, interval: seconds(a.Interval, 5*time.Minute),
		path: n.Path, file: f, key: k, endpoint: e,
	}, nil
}

// Format keeps the codes and the key out of whatever prints the value.
func (g *DeviceGrant) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "device grant at %s", g.VerificationURI)
}

// LogValue keeps the codes out of structured logs.
func (g *DeviceGrant) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(g)) }

// slowDown is what RFC 8628 §3.5 adds to the interval, each time the server says so.
const slowDown = 5 * time.Second

// Wait polls until the account holder has decided, and writes the credential file. It ends with the code, or with the context.
func (g *DeviceGrant) Wait(ctx context.Context) (*Client, error) {
	e := g.endpoint
	interval := g.interval
	for {
		if !e.opts.Now().Add(interval).Before(g.ExpiresAt) {
			return nil, &Error{Doing: "wait for the approval", Status: http.StatusBadRequest, Code: "expired_token"}
		}
		if err := e.opts.Sleep(ctx, interval); err != nil {
			return nil, fmt.Errorf("wait for the approval: %w", err)
		}
		var a tokenAnswer
		asked := e.opts.Now()
		err := e.post(ctx, "wait for the approval", "/oauth/token", g.key, func(r *http.Request, _ time.Time) error {
			setForm(r, url.Values{
				"grant_type":  {"urn:ietf:params:oauth:grant-type:device_code"},
				"device_code": {g.code}, "client_id": {g.file.ClientID},
			})
			return nil
		}, &a)
		var refusal *Error
		switch {
		case err == nil:
			return g.approved(a, asked)
		case ctx.Err() != nil:
			return nil, err
		case errors.As(err, &refusal) && refusal.Code == "authorization_pending":
		case errors.As(err, &refusal) && refusal.Code == "slow_down":
			interval += slowDown
		case errors.Is(err, ErrRefused):
			return nil, err
		default: // the server is away or busy: RFC 8628 §3.5 wants exponential back-off
			interval = max(interval, min(2*interval, time.Minute))
		}
	}
}

func (g *DeviceGrant) approved(a tokenAnswer, asked time.Time) (*Client, error) {
	token, err := a.check(g.key, asked)
	if err != nil {
		return nil, err
	}
	if a.RefreshToken == "" {
		return nil, errors.New("wait for the approval: the answer has no refresh token: check that it is a groupcast server of the same release")
	}
	g.file.RefreshToken = a.RefreshToken
	c, err := finish(g.path, g.file, g.key, g.endpoint)
	if err != nil {
		return nil, err
	}
	c.token = token
	return c, nil
}
