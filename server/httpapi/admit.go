package httpapi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/ratelimit"
)

// operation is what the edge needs of one operation of the contract.
type operation struct {
	id    string
	route *routers.Route
	// query are the names of the query parameters that are declared.
	query []string
	// body is the schema of the JSON body; nil if the operation takes none.
	body *openapi3.Schema
	// form is the schema of a body that is a form; nil if the operation takes none.
	form *openapi3.Schema
	// oauth tells that refusals have the form of RFC 6749 §5.2.
	oauth bool
	// keyed tells that it takes an Idempotency-Key.
	keyed bool
	// bodyRequired tells whether the body may be left out.
	bodyRequired bool
}

// operations indexes a contract by method and gin's spelling of the path. Requests are routed by gin alone: a second router might
// disagree with it about which operation a request means.
func operations(doc *openapi3.T) map[string]*operation {
	ops := map[string]*operation{}
	spelling := strings.NewReplacer("{", ":", "}", "")
	for path, item := range doc.Paths.Map() {
		for method, declared := range item.Operations() {
			open := *declared
			open.Security = openapi3.NewSecurityRequirements() // decided before, by authz
			op := &operation{id: declared.OperationID, keyed: declared.Parameters.GetByInAndName("header", headerIdempotencyKey) != nil, route: &routers.Route{
				Spec: doc, Path: path, PathItem: item, Method: method, Operation: &open,
			}}
			for _, list := range []openapi3.Parameters{item.Parameters, declared.Parameters} {
				for _, p := range list {
					if p.Value.In == openapi3.ParameterInQuery {
						op.query = append(op.query, p.Value.Name)
					}
				}
			}
			if declared.RequestBody != nil {
				body := declared.RequestBody.Value
				op.bodyRequired = body.Required
				if media := body.Content[mediaJSON]; media != nil {
					op.body = media.Schema.Value
				}
				if media := body.Content[mediaForm]; media != nil {
					op.form = media.Schema.Value
				}
			}
			if refusal := declared.Responses.Value("4XX"); refusal != nil {
				op.oauth = refusal.Value.Content[mediaJSON] != nil
			}
			ops[method+" "+spelling.Replace(path)] = op
		}
	}
	return ops
}

// admit lets a request of the contract pass to its handler: authenticate, authorize, validate, in this order, so that whoever may not
// call an operation learns nothing about its input.
func (e *Edge) admit(c *gin.Context) {
	op := e.operations[c.Request.Method+" "+c.FullPath()]
	if op == nil {
		e.refuse(c, errors.New("a route that is registered as part of the contract isn't in it"))
		return
	}
	if op.oauth && e.nonce != nil {
		c.Header("DPoP-Nonce", e.nonce())
	}
	if err := e.take(c, op, e.limits.Source, ratelimit.BySource(callOf(c).remote)); err != nil {
		e.refuse(c, err)
		return
	}
	if err := e.authorize(c, op); err != nil {
		e.refuse(c, err)
		return
	}
	c.Request = c.Request.WithContext(audit.WithCaller(c.Request.Context(), callerOf(c)))
	if err := e.validate(c, op); err != nil {
		e.refuse(c, err)
		return
	}
	c.Next()
}

func (e *Edge) authorize(c *gin.Context, op *operation) error {
	// What comes with an access token was not made by a page of another site.
	if e.crossOrigin != nil && !op.oauth && len(c.Request.Header.Values("Authorization")) == 0 {
		if err := e.crossOrigin.Check(c.Request); err != nil {
			return models.Errorf(models.CodeCrossSite, "A page of another site sent this. Use the service's own pages, or an access token.").Because(err)
		}
	}
	if e.rules[op.id].Public {
		return nil
	}
	p, err := e.authenticate(c.Request)
	if err != nil {
		return err
	}
	if nonce := callOf(c).nonce; nonce != "" {
		c.Header("DPoP-Nonce", nonce)
	}
	callOf(c).principal = &p
	if err := e.take(c, op, e.limits.Principal, principalKey(p)); err != nil {
		return err
	}
	return e.rules.Decide(op.id, &p)
}

// validate holds a request against the contract. The body that the handler binds afterwards is the very value that was validated.
func (e *Edge) validate(c *gin.Context, op *operation) error {
	r := c.Request
	query, err := parseQuery(r, op)
	if err != nil {
		return err
	}
	path := make(map[string]string, len(c.Params))
	for _, p := range c.Params {
		path[p.Key] = p.Value
	}
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, PathParams: path, QueryParams: query, Route: op.route, Options: &openapi3filter.Options{
			MultiError:              true,
			ExcludeRequestBody:      true, // below
			SkipSettingDefaults:     true, // the contract has none
			SchemaValidationOptions: []openapi3.SchemaValidationOption{openapi3.WithStringFormatValidators(formats)},
		},
	})
	if err != nil {
		return badRequest(fieldErrors(err)...)
	}
	return e.validateBody(c, op)
}

func parseQuery(r *http.Request, op *operation) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(problem.FieldError{Detail: "The query can't be read: write name=value with & in between, and percent-encode other characters."})
	}
	var faults []problem.FieldError
	for name, values := range query {
		switch {
		case !slices.Contains(op.query, name):
			faults = append(faults, problem.FieldError{Pointer: short(name), Detail: "There is no such query parameter here; leave it out."})
		case len(values) > 1:
			faults = append(faults, problem.FieldError{Pointer: name, Detail: "The parameter stands more than once; send it once."})
		}
	}
	if len(faults) > 0 {
		return nil, badRequest(faults...)
	}
	return query, nil
}

const (
	mediaJSON = "application/json"
	mediaForm = "application/x-www-form-urlencoded"
)

func (e *Edge) validateBody(c *gin.Context, op *operation) error {
	r := c.Request
	if r.Body == http.NoBody {
		if op.bodyRequired {
			return noBody(op)
		}
		return nil
	}
	if r.ContentLength != 0 && (op.body != nil || op.form != nil) {
		media, name := mediaJSON, "JSON"
		if op.form != nil {
			media, name = mediaForm, "a form"
		}
		if err := checkMedia(r.Header, media, name); err != nil {
			return err
		}
	}
	data, err := readBody(c)
	switch {
	case err != nil:
		return err
	case len(data) == 0 && op.bodyRequired:
		return noBody(op)
	case len(data) == 0:
		return nil
	case op.form != nil:
		return bindForm(r, data, op.form)
	case op.body == nil:
		return badRequest(problem.FieldError{Detail: "This operation takes no body; leave it out."})
	}
	value, err := decodeBody(data, op.body)
	if err != nil {
		return err
	}
	err = op.body.VisitJSON(value, openapi3.VisitAsRequest(), openapi3.MultiErrors(), openapi3.WithStringFormatValidators(formats))
	if err != nil {
		return badRequest(fieldErrors(err)...)
	}
	r.Body = validated{http.NoBody, value}
	return nil
}

func noBody(op *operation) *models.Error {
	if op.form != nil {
		return badRequest(problem.FieldError{Detail: "A form is needed."})
	}
	return badRequest(problem.FieldError{Detail: "A JSON body is needed."})
}

// checkMedia accepts one media type in UTF-8 and nothing else.
func checkMedia(h http.Header, want, name string) error {
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset, has := params["charset"]
	switch {
	case len(h.Values("Content-Type")) != 1, err != nil, media != want, has && !strings.EqualFold(charset, "utf-8"):
		return models.Errorf(models.CodeUnsupportedMedia, "The body has to be %s: send it with Content-Type: %s.", name, want)
	case h.Get("Content-Encoding") != "" && !strings.EqualFold(h.Get("Content-Encoding"), "identity"):
		return models.Errorf(models.CodeUnsupportedMedia, "The body must not be compressed: send it without Content-Encoding.")
	}
	return nil
}

// readBody reads the whole body, which limit has bounded, in bounded time.
func readBody(c *gin.Context) ([]byte, error) {
	control := http.NewResponseController(c.Writer)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // a test's recorder has none
	data, err := io.ReadAll(c.Request.Body)
	if err == nil {
		// Else the deadline would later end the request's context, which watches the connection.
		_ = control.SetReadDeadline(time.Time{})
		return data, nil
	}
	c.Header("Connection", "close")
	if _, tooMuch := errors.AsType[*http.MaxBytesError](err); tooMuch {
		return nil, tooLarge()
	}
	return nil, badRequest(problem.FieldError{Detail: "The body did not arrive whole; send it again."}).Because(err)
}
