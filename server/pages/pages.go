package pages

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/authz"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/users"
)

// Services are what the pages ask.
type Services struct {
	Users         *users.Service
	Accounts      *accounts.Service
	Grants        *devicegrant.Service
	Enrolment     *enrolment.Service
	Groups        *groups.Service
	Registrations *registrations.Service
	// URL is what people and devices reach the service at.
	URL string
}

var (
	//go:embed templates
	templateFiles embed.FS
	//go:embed style.css
	style []byte
	//go:embed icon.svg
	icon []byte

	templates = template.Must(template.ParseFS(templateFiles, "templates/*.html"))
)

// policy lets a page load this service's style sheet and icon, and send forms to this service; nothing else.
const policy = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// The pages that one can come back to.
const (
	pathLogin    = "/login"
	pathSignUp   = "/sign-up"
	pathDevice   = "/device"
	pathAccount  = "/account"
	pathPassword = "/account/password"
)

type site struct{ Services }

// Register adds the pages to the public edge.
func Register(e *httpapi.Edge, s Services) error {
	return e.Serve(httpapi.Site{Pages: All(s), Confirm: s.Users.Confirm, Refuse: site{s}.refuse})
}

// All are the pages, with who may come to each.
func All(s Services) []httpapi.Page {
	p := site{s}
	anyone := &authz.Rule{Public: true}
	// Who may approve stands in no operation of the contract: a device grant is approved here, or by the operator. That the session is fresh is
	// asked with the grant, because of where it comes from, and not for a refusal.
	approver := &authz.Rule{Kinds: []models.Kind{models.KindUser}, Scope: "gc:devices"}
	all := []httpapi.Page{
		{Method: http.MethodGet, Path: "/pages/style.css", Rule: anyone, Answer: file("text/css; charset=utf-8", style)},
		{Method: http.MethodGet, Path: "/pages/icon.svg", Rule: anyone, Answer: file("image/svg+xml", icon)},

		{Method: http.MethodGet, Path: pathLogin, Rule: anyone, Answer: p.loginPage},
		{Method: http.MethodPost, Path: pathLogin, Operation: "login", Fields: []string{fieldNext}, Answer: p.login},
		{Method: http.MethodPost, Path: "/logout", Operation: "logout", Answer: p.logout},

		{Method: http.MethodGet, Path: pathDevice, Rule: approver, Answer: p.devicePage},
		{Method: http.MethodPost, Path: pathDevice, Rule: approver, Fields: []string{fieldCode}, Answer: p.lookUp},
		{
			Method: http.MethodPost, Path: "/device/decision", Rule: approver, Answer: p.decide,
			Fields: []string{fieldCode, fieldDecision, fieldPremises, fieldName, httpapi.FieldPassword},
		},

		{Method: http.MethodGet, Path: pathAccount, Operation: "getAccount", Answer: p.account},
		{Method: http.MethodPost, Path: "/account/premises", Operation: "createPremises", Answer: p.createPremises},
		{Method: http.MethodPost, Path: "/account/premises/:premisesId", Operation: "changePremises", Answer: p.changePremises},
		{Method: http.MethodPost, Path: "/account/premises/:premisesId/remove", Operation: "deletePremises", Does: "remove a premises", Answer: p.removePremises},
		{Method: http.MethodPost, Path: "/account/premises/:premisesId/enrolments", Operation: "createTicket", Does: "make a ticket for a device", Answer: p.ticket},
		{Method: http.MethodPost, Path: "/account/devices/:deviceId", Operation: "changeDevice", Answer: p.changeDevice},
		{Method: http.MethodPost, Path: "/account/devices/:deviceId/remove", Operation: "removeDevice", Does: "remove a device", Answer: p.removeDevice},
		{Method: http.MethodPost, Path: "/account/links", Operation: "linkService", Fields: []string{"serviceId"}, Does: "let a service receive", Answer: p.link},
		{Method: http.MethodPost, Path: "/account/links/:serviceId/end", Operation: "unlinkService", Does: "end the link with a service", Answer: p.unlink},
		{Method: http.MethodPost, Path: "/account/registrations/:registrationId/end", Operation: "leave", Answer: p.end},
		{Method: http.MethodGet, Path: pathPassword, Operation: "getAccount", Answer: p.passwordPage},
		{Method: http.MethodPost, Path: pathPassword, Operation: "changePassword", Answer: p.changePassword},
	}
	if s.Users.SignUp() != users.SignUpClosed {
		all = append(all,
			httpapi.Page{Method: http.MethodGet, Path: pathSignUp, Rule: anyone, Answer: p.signUpPage},
			httpapi.Page{Method: http.MethodPost, Path: pathSignUp, Operation: "signUp", Answer: p.signUp})
	}
	return all
}

// view is what every template gets.
type view struct {
	Title    string
	Here     string
	LoggedIn bool
	Narrow   bool
	// Alert is what went wrong, and Done what was done.
	Alert string
	Done  string
	Body  any
}

// show writes a page.
func (p site) show(v *httpapi.Visit, status int, name string, w view) error {
	w.LoggedIn = v.Principal.Kind == models.KindUser
	if w.Here == "" {
		w.Here = v.Request.URL.Path
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name+".html", w); err != nil {
		return fmt.Errorf("write the page %s: %w", name, err)
	}
	headers(v.Writer.Header())
	h := v.Writer.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	v.Writer.WriteHeader(status)
	_, _ = v.Writer.Write(b.Bytes()) // a browser that is gone can't be told
	return nil
}

func headers(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	// Not no-referrer, which makes browsers say "Origin: null" with a form: some send nothing else to tell that it is ours.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// seeOther goes on with a GET (RFC 9110 §15.4.4).
func seeOther(v *httpapi.Visit, to string) error {
	headers(v.Writer.Header())
	v.Writer.Header().Set("Location", to)
	v.Writer.WriteHeader(http.StatusSeeOther)
	return nil
}

// refuse says to people why something was refused.
func (p site) refuse(v *httpapi.Visit, status int, e *models.Error) error {
	switch {
	case e.Code == models.CodeUnauthenticated && v.Page.Path != pathLogin:
		query := url.Values{}
		if next := returnTo(v); next != pathAccount {
			query.Set(fieldNext, next)
		}
		return seeOther(v, join(pathLogin, query))
	case v.Confirming && status < http.StatusInternalServerError:
		w := view{Title: "Your password again", Narrow: true, Body: map[string]any{
			"Action": v.Request.URL.Path, "Fields": v.Fields(), "Does": v.Page.Does, "Back": pathAccount,
		}}
		if e.Code != models.CodeConfirmFirst {
			w.Alert = sentence(e)
		}
		return p.show(v, status, "confirm", w)
	case v.Again != nil && status < http.StatusInternalServerError:
		return v.Again(status, e)
	default:
		body := map[string]any{"Sentence": sentence(e), "Back": returnTo(v)}
		if all := faults(e); len(all) > 1 {
			body["Faults"] = all
		}
		if status >= http.StatusInternalServerError {
			body["Request"] = v.ID
		}
		return p.show(v, status, "error", view{Title: title(e.Code), Narrow: true, Body: body})
	}
}

// title heads the page of a refusal.
func title(c models.Code) string {
	switch c {
	case models.CodeNotFound:
		return "Not found"
	case models.CodeRateLimited:
		return "Too many tries"
	case models.CodeInternal, models.CodeUnavailable, models.CodeOverloaded:
		return "That didn’t work"
	default:
		return "Not done"
	}
}

// returnTo is where somebody goes on who had to log in first: the page itself, or that of the form.
func returnTo(v *httpapi.Visit) string {
	query := url.Values{}
	if code := v.Request.URL.Query().Get(fieldCode); v.Request.Method == http.MethodGet && isCode(code) {
		query.Set(fieldCode, code)
	}
	switch {
	case v.Request.URL.Path == pathDevice, path.Dir(v.Request.URL.Path) == pathDevice:
		return join(pathDevice, query)
	case v.Request.URL.Path == pathPassword:
		return pathPassword
	case v.Request.URL.Path == pathLogin, v.Request.URL.Path == pathSignUp:
		return v.Request.URL.Path
	}
	return pathAccount
}

// known gives a place to go on that is one of ours, whatever was asked for.
func known(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil {
		return pathAccount
	}
	switch u.Path {
	case pathPassword:
		return u.Path
	case pathDevice:
		query := url.Values{}
		if code := u.Query().Get(fieldCode); isCode(code) {
			query.Set(fieldCode, code)
		}
		return join(pathDevice, query)
	}
	return pathAccount
}

func join(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

// file serves a part of the pages. Its path stays when the program is updated, so a browser asks each time; mostly the answer is 304.
func file(media string, content []byte) func(*httpapi.Visit) error {
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(v *httpapi.Visit) error {
		h := v.Writer.Header()
		headers(h)
		h.Set("Content-Type", media)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		http.ServeContent(v.Writer, v.Request, "", time.Time{}, bytes.NewReader(content))
		return nil
	}
}
