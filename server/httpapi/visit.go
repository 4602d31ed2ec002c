package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/authz"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/ratelimit"
)

// Page is something for people with a browser: a page to look at (GET) or what a form of it sends (POST). It is guarded as the operations
// are: by the same rules, limits and schemas.
type Page struct {
	Method, Path string
	// Operation is what the page does or shows, by its operationId: its rule holds here, the path's parameters are held against its own, and
	// so are the fields of a form that its body has. A parameter that the page's path lacks is a field of the form.
	Operation string
	// Rule is for a page that does no operation of the contract; one of the two has to be there.
	Rule *authz.Rule
	// Fields are those of the form that Operation doesn't know.
	Fields []string
	// Does says what a form does, to go on with "password again"; empty if it needs no fresh session.
	Does string
	// Answer answers, or refuses.
	Answer func(*Visit) error
}

// Visit is one request for a Page.
type Visit struct {
	Writer  http.ResponseWriter
	Request *http.Request
	Page    *Page
	// Principal is the user with a session; the zero Principal where anyone may come.
	Principal models.Principal
	// Remote is where the request came from, with trusted proxies applied.
	Remote netip.Addr
	// ID names the request in the log.
	ID string
	// Confirming tells that a form waits for the password.
	Confirming bool
	// Again shows the page again with what is wrong; nil shows a page of its own.
	Again func(status int, refusal *models.Error) error

	fields url.Values
}

// Context is the request's.
func (v *Visit) Context() context.Context { return v.Request.Context() }

// Field is a field of the form or a parameter of the path; only what the page declares is there.
func (v *Visit) Field(name string) string { return v.fields.Get(name) }

// Fields are the names and values of the form, sorted, without the password.
func (v *Visit) Fields() (all [][2]string) {
	for name := range v.fields {
		if name != FieldPassword && !strings.Contains(v.Page.Path, ":"+name) {
			all = append(all, [2]string{name, v.fields.Get(name)})
		}
	}
	slices.SortFunc(all, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return all
}

// FieldPassword is the field with which every form may confirm.
const FieldPassword = "password"

// Site are the pages of an edge.
type Site struct {
	Pages []Page
	// Confirm makes a session fresh, if the password is right.
	Confirm func(ctx context.Context, p models.Principal, password string) error
	// Refuse shows people why something was refused. It writes the whole answer but for the headers about the request itself.
	Refuse func(v *Visit, status int, refusal *models.Error) error
}

// servedPage is a Page with what the edge found about it.
type servedPage struct {
	Page
	site *Site
	rule authz.Rule
	// op is the operation it does; nil if there is none.
	op *operation
}

// pageMethods are what browsers send without a script.
var pageMethods = []string{http.MethodGet, http.MethodPost}

// Serve adds pages. It fails if it isn't known who may come to one of them.
func (e *Edge) Serve(s Site) error {
	if e.crossOrigin == nil {
		return errors.New("pages need a check of where their forms come from")
	}
	byID := map[string]*operation{}
	for _, op := range e.operations {
		byID[op.id] = op
	}
	for _, p := range s.Pages {
		full := &servedPage{Page: p, site: &s, op: byID[p.Operation]}
		rule, ok := e.rules[p.Operation]
		switch {
		case !slices.Contains(pageMethods, p.Method):
			return fmt.Errorf("page %s: browsers don't send %s", p.Path, p.Method)
		case p.Operation != "" && p.Rule == nil && ok && (rule.Public || slices.Contains(rule.Kinds, models.KindUser)):
			full.rule = rule
		case p.Operation == "" && p.Rule != nil && (p.Rule.Public || slices.Equal(p.Rule.Kinds, []models.Kind{models.KindUser})):
			full.rule = *p.Rule
		default:
			return fmt.Errorf("page %s %s: nobody would be allowed to come: give the operation that it does, or a rule for users", p.Method, p.Path)
		}
		if full.rule.Fresh && p.Does == "" {
			return fmt.Errorf("page %s %s: say what it does, for who has to type the password first", p.Method, p.Path)
		}
		e.pages[p.Method+" "+p.Path] = full
		e.engine.Handle(p.Method, p.Path, e.visit)
	}
	return nil
}

// visit lets a request for a page pass to its answer, in the order of admit.
func (e *Edge) visit(c *gin.Context) {
	info := callOf(c)
	p, v := info.page, info.visit
	err := e.enter(c, p, v)
	if err == nil {
		err = p.Answer(v)
	}
	if err != nil {
		e.refuse(c, err)
	}
}

func (e *Edge) enter(c *gin.Context, p *servedPage, v *Visit) error {
	counted := &operation{id: p.Path}
	if err := e.take(c, counted, e.limits.Source, ratelimit.BySource(v.Remote)); err != nil {
		return err
	}
	if err := e.crossOrigin.Check(c.Request); err != nil {
		return models.Errorf(models.CodeCrossSite, "A page of another site sent this. Open the page here, and use the form there.").Because(err)
	}
	if !p.rule.Public {
		if err := e.session(c, p, v, counted); err != nil {
			return err
		}
	}
	by := audit.Caller{Principal: v.Principal, Source: v.Remote, RequestID: v.ID}
	c.Request = c.Request.WithContext(audit.WithCaller(c.Request.Context(), by))
	v.Request = c.Request
	if err := p.read(c, v); err != nil {
		return err
	}
	if p.rule.Public || !p.rule.Fresh || v.Principal.Fresh {
		return nil
	}
	v.Confirming = true
	if !v.fields.Has(FieldPassword) {
		return models.Errorf(models.CodeConfirmFirst, "Type your password again, because this can't be undone or lets somebody in.")
	}
	if err := p.site.Confirm(v.Context(), v.Principal, v.Field(FieldPassword)); err != nil {
		return err
	}
	v.Principal.Fresh, v.Confirming = true, false
	return nil
}

// session tells who comes, by the cookie alone, and whether they may. Whether the session is fresh is asked when the form has been read.
func (e *Edge) session(c *gin.Context, p *servedPage, v *Visit, counted *operation) error {
	if sessionToken(c.Request) == "" {
		return unauthenticated("Log in first.")
	}
	r := c.Request.Clone(c.Request.Context())
	r.Header.Del("Authorization")
	who, err := e.authenticate(r)
	if err != nil {
		return err
	}
	v.Principal = who
	callOf(c).principal = &v.Principal
	if err := e.take(c, counted, e.limits.Principal, principalKey(who)); err != nil {
		return err
	}
	rule := p.rule
	rule.Fresh = false
	return authz.Table{p.Path: rule}.Decide(p.Path, &who)
}

// read reads the form, and holds it and the path against the operation.
func (p *servedPage) read(c *gin.Context, v *Visit) error {
	v.fields = url.Values{}
	if c.Request.Method == http.MethodPost {
		if c.Request.ContentLength != 0 {
			if err := checkMedia(c.Request.Header, mediaForm, "a form"); err != nil {
				return err
			}
		}
		data, err := readBody(c)
		if err != nil {
			return err
		}
		if v.fields, err = parseForm(data); err != nil {
			return err
		}
	}
	parameters := map[string]string{}
	for _, param := range c.Params {
		parameters[param.Key] = param.Value
	}
	body := map[string]any{}
	var faults []problem.FieldError
	for name, values := range v.fields {
		if !p.secret(name) {
			values[0] = strings.TrimSpace(values[0]) // keyboards of phones put spaces after words
		}
		switch {
		case p.op != nil && p.op.body != nil && p.op.body.Properties[name] != nil:
			if value := formValue(p.op.body.Properties[name].Value, values[0]); value != "" || slices.Contains(p.op.body.Required, name) {
				body[name] = value
			}
		case slices.Contains(p.Fields, name), p.rule.Fresh && name == FieldPassword:
			if len(values[0]) > maxField {
				faults = append(faults, problem.FieldError{Pointer: name, Detail: "This is too long."})
			}
			parameters[name] = values[0]
		default:
			faults = append(faults, problem.FieldError{Pointer: short(name), Detail: "There is no such field here; leave it out."})
		}
	}
	if len(faults) > 0 {
		return badRequest(faults...)
	}
	for _, param := range c.Params {
		v.fields.Set(param.Key, param.Value)
	}
	if p.op == nil || c.Request.Method == http.MethodGet {
		return nil
	}
	return p.validate(c.Request, parameters, body)
}

// secret tells whether a field is a password.
func (p *servedPage) secret(name string) bool {
	if p.op != nil && p.op.body != nil && p.op.body.Properties[name] != nil {
		return p.op.body.Properties[name].Value.Format == FieldPassword
	}
	return name == FieldPassword
}

// maxField is how long a field may be that no schema bounds, in bytes.
const maxField = 1024

// formValue is a field as its schema wants it: a form knows text only.
func formValue(schema *openapi3.Schema, text string) any {
	if schema.Type.Is(openapi3.TypeBoolean) && (text == "true" || text == "false") {
		return text == "true"
	}
	return text
}

// validate holds the path against the operation's, and the body that the form stands for. What isn't even an id is nothing that is here.
func (p *servedPage) validate(r *http.Request, parameters map[string]string, body map[string]any) error {
	err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: &http.Request{Method: p.op.route.Method, URL: &url.URL{Path: p.op.route.Path}, Header: http.Header{}},
		Route:   p.op.route, PathParams: parameters, QueryParams: url.Values{},
		Options: &openapi3filter.Options{
			ExcludeRequestBody: true, SkipSettingDefaults: true,
			SchemaValidationOptions: []openapi3.SchemaValidationOption{openapi3.WithStringFormatValidators(formats)},
		},
	})
	if err != nil {
		return models.NotFound()
	}
	if p.op.body == nil {
		return nil
	}
	err = p.op.body.VisitJSON(body, openapi3.VisitAsRequest(), openapi3.MultiErrors(), openapi3.WithStringFormatValidators(formats))
	if err != nil {
		return badRequest(fieldErrors(err)...)
	}
	return nil
}

// SetSession gives the browser a session, or takes it back if the token is empty.
func (v *Visit) SetSession(token string) { http.SetCookie(v.Writer, Cookie(token)) }

// refusePage shows people what was refused, or that we failed at that too.
func (e *Edge) refusePage(c *gin.Context, info *call, refusal *models.Error) {
	v := info.visit
	if v.Request == nil { // it never came to the page
		v.Request = c.Request
	}
	if wait := problem.Wait(refusal); wait > 0 {
		c.Header("Retry-After", strconv.Itoa(wait))
	}
	err := info.page.site.Refuse(v, problem.Status(refusal.Code), refusal)
	if err == nil {
		return
	}
	e.log.Error("a request failed", "request", info.id, "page", info.page.Path, "error", err)
	v.Again, v.Confirming = nil, false
	if err := info.page.site.Refuse(v, http.StatusInternalServerError, internal()); err != nil {
		problem.Write(c.Writer, internal(), info.id)
	}
}
