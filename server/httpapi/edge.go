package httpapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/authz"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/idempotency"
	"github.com/groupcast/groupcast/server/longpoll"
	"github.com/groupcast/groupcast/server/problem"
)

const (
	// MaxBody is the largest request body that is read, in bytes.
	MaxBody = 16 << 10
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout = 10 * time.Second
	// answerTimeout bounds a request as a whole, the longest wait included: there is no WriteTimeout, which would end long polls.
	answerTimeout = longpoll.MaxWait + longpoll.MaxWait/16 + 30*time.Second
)

// Authenticator tells who sends a request. Its errors are CodeUnauthenticated, or faults.
type Authenticator func(*http.Request) (models.Principal, error)

// Options say which contract an edge serves, and to whom.
type Options struct {
	// Document is the contract, OpenAPI 3.0 in YAML.
	Document []byte
	// Authenticate is asked for every operation that isn't for anyone.
	Authenticate Authenticator
	// Nonce gives the value for the header DPoP-Nonce of the OAuth endpoints' answers; nil if the contract has none.
	Nonce func() string
	// CrossOrigin refuses what pages of other sites send with a user's cookie; nil if no user can log in here.
	CrossOrigin *http.CrossOriginProtection
	Limits      Limits
	// Answers keeps the answers of requests that carry an Idempotency-Key.
	Answers *idempotency.Keeper
	// Refused is told of every request that somebody was not allowed; nil tells nobody.
	Refused func(by audit.Caller, operation string, why models.Code)
	// TrustedProxies are those whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	Log            *slog.Logger
	Metrics        *Metrics
}

// Edge is the way of requests to the handlers of one contract.
type Edge struct {
	engine       *gin.Engine
	contract     *gin.RouterGroup
	authenticate Authenticator
	nonce        func() string
	crossOrigin  *http.CrossOriginProtection
	limits       Limits
	answers      *idempotency.Keeper
	refused      func(by audit.Caller, operation string, why models.Code)
	rules        authz.Table
	operations   map[string]*operation  // by method and gin's path
	pages        map[string]*servedPage // likewise
	log          *slog.Logger
	metrics      *Metrics
}

// New makes an edge. It fails if the contract isn't valid or leaves open who may call an operation.
func New(ctx context.Context, o Options) (*Edge, error) {
	doc, err := openapi3.NewLoader().LoadFromData(o.Document)
	if err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	if err := doc.Validate(ctx, openapi3.DisableExamplesValidation()); err != nil {
		return nil, fmt.Errorf("the contract is not valid: %w", err)
	}
	rules, err := authz.Load(doc)
	if err != nil {
		return nil, fmt.Errorf("the contract doesn't say who may do what: %w", err)
	}
	e := &Edge{
		authenticate: o.Authenticate, nonce: o.Nonce, crossOrigin: o.CrossOrigin, limits: o.Limits, answers: o.Answers, refused: o.Refused,
		rules: rules, operations: operations(doc), pages: map[string]*servedPage{},
		log: o.Log, metrics: o.Metrics,
	}

	gin.SetMode(gin.ReleaseMode)
	e.engine = gin.New()
	e.engine.ContextWithFallback = true // else a handler's context doesn't end with the request
	e.engine.HandleMethodNotAllowed = true
	e.engine.RedirectTrailingSlash = false
	e.engine.RedirectFixedPath = false
	e.engine.RemoteIPHeaders = []string{"X-Forwarded-For"}
	proxies := make([]string, len(o.TrustedProxies))
	for i, p := range o.TrustedProxies {
		proxies[i] = p.String()
	}
	if err := e.engine.SetTrustedProxies(proxies); err != nil {
		return nil, fmt.Errorf("trusted proxies: %w", err)
	}
	e.engine.Use(e.identify, e.recover, e.observe, e.limit)
	e.engine.NoRoute(e.unknownRoute)
	e.engine.NoMethod(e.unknownMethod)
	e.contract = e.engine.Group("", e.admit)
	return e, nil
}

// Contract is where the generated code registers the operations; every one of them is guarded.
func (e *Edge) Contract() gin.IRouter { return e.contract }

// Open is for pages that are no operations and for anyone.
func (e *Edge) Open() gin.IRouter { return e.engine }

// Handler gives what is to be served, once everything is registered. It fails if an operation of the contract has no handler.
func (e *Edge) Handler() (http.Handler, error) {
	routes := map[string]bool{}
	for _, r := range e.engine.Routes() {
		routes[r.Method+" "+r.Path] = true
	}
	for key, op := range e.operations {
		if !routes[key] {
			return nil, fmt.Errorf("operation %s of the contract has no handler", op.id)
		}
	}
	return e.engine, nil
}

func (e *Edge) unknownRoute(c *gin.Context) {
	e.refuse(c, models.Errorf(models.CodeUnknownRoute, "No operation has this path. Check it against the contract at /openapi.yaml."))
}

func (e *Edge) unknownMethod(c *gin.Context) {
	e.refuse(c, models.Errorf(models.CodeMethodNotAllowed, "This path doesn't have the method %s; it has: %s.",
		printable(c.Request.Method), c.Writer.Header().Get("Allow")))
}

// identify gives the request its id, and knows from here on where it came from.
func (e *Edge) identify(c *gin.Context) {
	remote, _ := netip.ParseAddr(c.ClientIP())
	info := &call{id: strings.ToLower(rand.Text()), remote: remote.Unmap().WithZone("")}
	if op := e.operations[c.Request.Method+" "+c.FullPath()]; op != nil {
		info.operation = op.id
	}
	if p := e.pages[c.Request.Method+" "+c.FullPath()]; p != nil {
		info.page = p
		info.visit = &Visit{Writer: c.Writer, Page: &p.Page, Remote: info.remote, ID: info.id}
	}
	c.Request = c.Request.WithContext(withCall(c.Request.Context(), info))
	c.Header("X-Request-Id", info.id)
	// Connections live on between requests, so each request sets its own deadline. A test's recorder has none.
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(answerTimeout))
	c.Next()
}

// recover turns a panic into an answer, or ends the connection if the answer has begun.
func (e *Edge) recover(c *gin.Context) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if err, ok := r.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(r)
		}
		e.log.Error("a handler panicked", "request", callOf(c).id, "operation", callOf(c).operation,
			"panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		if c.Writer.Written() {
			panic(http.ErrAbortHandler) // a half answer must not look like a whole one
		}
		e.refuse(c, internal())
	}()
	c.Next()
}

// observe writes one line per request and counts it. Neither holds the query, a header or an address.
func (e *Edge) observe(c *gin.Context) {
	began := time.Now()
	panicked := true
	defer func() {
		info, status := callOf(c), c.Writer.Status()
		if info.parked {
			return // whoever answers it observes it
		}
		if panicked {
			status = http.StatusInternalServerError
		}
		e.observed(c.Request.Context(), observationOf(c, info, began), status)
	}()
	c.Next()
	panicked = false
}

// observation is what is noted of a request. It holds nothing of the request itself.
type observation struct {
	id, operation, method, route string
	began                        time.Time
	kind                         models.Kind
	device                       models.ID
	service                      models.ServiceID
	user                         string
}

func observationOf(c *gin.Context, info *call, began time.Time) observation {
	o := observation{id: info.id, operation: info.operation, method: printable(c.Request.Method), route: c.FullPath(), began: began}
	if p := info.principal; p != nil {
		o.kind, o.device, o.service, o.user = p.Kind, p.Device.ID, p.Service.ID, p.UserID
	}
	return o
}

// observed notes an answered request.
func (e *Edge) observed(ctx context.Context, o observation, status int) {
	took := time.Since(o.began)
	e.metrics.observe(o.operation, status, took)
	level := slog.LevelDebug
	if status >= http.StatusBadRequest || o.method != http.MethodGet && !o.kind.Machine() {
		level = slog.LevelInfo // what machines do right comes by the thousand: the events and the metrics tell of it
	}
	if !e.log.Enabled(ctx, level) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 9), slog.String("request", o.id), slog.String("method", o.method), slog.String("route", o.route),
		slog.Int("status", status), slog.Duration("took", took))
	if o.kind != "" {
		attrs = append(attrs, slog.String("kind", string(o.kind)))
	}
	if o.device.Valid() {
		attrs = append(attrs, slog.String("device", o.device.String()))
	}
	if o.service != "" {
		attrs = append(attrs, slog.String("service", string(o.service)))
	}
	if o.user != "" {
		attrs = append(attrs, slog.String("user", o.user))
	}
	e.log.LogAttrs(ctx, level, "request", attrs...)
}

// limit refuses a body that says it is too large, and stops reading one that turns out to be.
func (e *Edge) limit(c *gin.Context) {
	if c.Request.ContentLength > MaxBody {
		c.Header("Connection", "close") // rather than reading what nobody wants
		e.refuse(c, tooLarge())
		return
	}
	if c.Request.Body != http.NoBody {
		c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, MaxBody)
	}
	c.Next()
}

func tooLarge() *models.Error {
	return models.Errorf(models.CodeTooLarge, "The body is larger than %d bytes. Send only the members that the contract describes.", MaxBody)
}

func internal() *models.Error {
	return models.Errorf(models.CodeInternal, "The service failed. Try again later; if it persists, give the operator the instance of this document.")
}

// refuse answers with the problem document of an error and ends the request. It is the one place that does.
func (e *Edge) refuse(c *gin.Context, err error) {
	c.Abort()
	info := callOf(c)
	if c.Writer.Written() {
		e.log.Error("an answer could not be finished", "request", info.id, "operation", info.operation, "error", err)
		return
	}
	refusal, ours := errors.AsType[*models.Error](err)
	fault := !ours || problem.Status(refusal.Code) >= http.StatusInternalServerError
	if fault && c.Request.Context().Err() != nil {
		// What failed because the client is gone is nobody's fault, and nobody reads the answer. The status is for log and metrics.
		c.Status(statusClientGone)
		return
	}
	refusal = e.told(info.id, info.operation, err)
	challenge(c.Writer.Header(), c.Request.Header.Values("Authorization"), refusal)
	op := e.operations[c.Request.Method+" "+c.FullPath()]
	wanted := op
	if info.page != nil {
		wanted = info.page.op
	}
	if wanted != nil && e.refused != nil && denied(c, refusal) && !audit.Noted(c.Request.Context()) {
		e.refused(callerOf(c), wanted.id, refusal.Code)
	}
	if info.page != nil {
		e.refusePage(c, info, refusal)
		return
	}
	if op != nil && op.oauth {
		problem.WriteOAuth(c.Writer, refusal, info.id)
		return
	}
	problem.Write(c.Writer, refusal, info.id)
}

// told logs what went wrong with a request, and gives what its client may know of it.
func (e *Edge) told(id, operation string, err error) *models.Error {
	refusal, ours := errors.AsType[*models.Error](err)
	switch {
	case !ours:
		e.log.Error("a request failed", "request", id, "operation", operation, "error", err)
		return internal()
	case problem.Status(refusal.Code) >= http.StatusInternalServerError && refusal.Cause != nil:
		e.log.Warn("a request could not be served", "request", id, "operation", operation, "error", err)
	}
	return refusal
}

// denied tells whether a refusal is one that the audit log keeps: somebody wanted what is not theirs to do. What is a step of a protocol, or a
// token that ended with its time, is none; nor is a read without a good token, which tells of nobody.
func denied(c *gin.Context, refusal *models.Error) bool {
	reads := c.Request.Method == http.MethodGet || c.Request.Method == http.MethodHead
	switch refusal.Code {
	case models.CodeForbidden, models.CodeNotFound, models.CodeContradictsToken:
		return !reads || callOf(c).principal != nil
	case models.CodeUnauthenticated:
		proof, isProof := errors.AsType[*dpop.Error](refusal.Cause)
		return !reads && !errors.Is(refusal.Cause, jwt.ErrTokenExpired) && (!isProof || proof.Code != dpop.UseNonce)
	case models.CodeCrossSite, models.CodeInvalidClient, models.CodeInvalidGrant, models.CodeInvalidDPoPProof, models.CodeUnauthorizedClient:
		return true
	}
	return false
}

// statusClientGone is what the log and the metrics show when nobody waited for the answer.
const statusClientGone = 499

// challenge tells how to authenticate (RFC 9110 §11.6.1, RFC 6750 §3, RFC 9449 §7.1).
func challenge(h http.Header, authorization []string, refusal *models.Error) {
	const (
		bearer = `Bearer realm="groupcast"`
		bound  = `DPoP realm="groupcast", algs="EdDSA ES256"`
	)
	scope, _ := refusal.Fields["scope"].(string)
	var proof *dpop.Error
	switch {
	case errors.As(refusal.Cause, &proof):
		h.Set("WWW-Authenticate", bound+`, error="`+string(proof.Code)+`"`)
		if proof.Nonce != "" {
			h.Set("DPoP-Nonce", proof.Nonce)
		}
	case refusal.Code == models.CodeUnauthenticated && len(authorization) == 0:
		h["Www-Authenticate"] = []string{bearer, bound}
	case refusal.Code == models.CodeUnauthenticated:
		h.Set("WWW-Authenticate", bearer+`, error="invalid_token"`)
	case refusal.Code == models.CodeForbidden && scope != "":
		h.Set("WWW-Authenticate", bearer+`, error="insufficient_scope", scope="`+scope+`"`)
	case refusal.Code == models.CodeInvalidClient && len(authorization) > 0:
		h.Set("WWW-Authenticate", `Basic realm="groupcast", charset="UTF-8"`)
	}
}

// The hooks of the generated code. All of them end in refuse.

// ParameterError is called for a parameter that generated code can't bind.
func (e *Edge) ParameterError(c *gin.Context, err error, _ int) {
	e.refuse(c, badRequest(problem.FieldError{Detail: err.Error()}))
}

// RequestError is called for a body that generated code can't bind.
func (e *Edge) RequestError(c *gin.Context, err error) {
	e.refuse(c, badRequest(problem.FieldError{Detail: "The body doesn't fit the contract."}).Because(err))
}

// HandlerError is called for what a handler refuses, or fails with.
func (e *Edge) HandlerError(c *gin.Context, err error) { e.refuse(c, err) }

// ResponseError is called for an answer that can't be written.
func (e *Edge) ResponseError(c *gin.Context, err error) { e.refuse(c, err) }

// printable keeps what a client made up from being more than a word in a log or an answer.
func printable(s string) string {
	if len(s) > 16 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
		return "?"
	}
	return s
}
