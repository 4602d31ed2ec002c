package httpapi

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/server/problem"
)

// bindForm reads a form more strictly than net/http: no field twice, none that the contract doesn't have, no control characters, and never
// merged with the query. What generated code binds afterwards is what was validated here.
func bindForm(r *http.Request, data []byte, schema *openapi3.Schema) error {
	fields, err := parseForm(data)
	if err != nil {
		return err
	}
	value := make(map[string]any, len(fields))
	for name, values := range fields {
		value[name] = values[0]
	}
	err = schema.VisitJSON(value, openapi3.VisitAsRequest(), openapi3.MultiErrors(), openapi3.WithStringFormatValidators(formats))
	if err != nil {
		return badRequest(fieldErrors(err)...)
	}
	// With both set, ParseForm reads neither body nor query.
	r.Form, r.PostForm, r.Body = fields, fields, http.NoBody
	return nil
}

// parseForm reads the fields of a form, of which each stands once.
func parseForm(data []byte) (url.Values, error) {
	fields, err := url.ParseQuery(string(data))
	if err != nil || !utf8.Valid(data) {
		return nil, badRequest(problem.FieldError{Detail: "The form can't be read: write name=value with & in between, and percent-encode other characters."})
	}
	var faults []problem.FieldError
	for name, values := range fields {
		switch {
		case len(values) > 1:
			faults = append(faults, problem.FieldError{Pointer: pointer([]string{name}), Detail: "This field stands twice; send it once."})
		case !utf8.ValidString(values[0]) || strings.ContainsFunc(values[0], func(c rune) bool { return c < ' ' || c == 0x7f }):
			faults = append(faults, problem.FieldError{Pointer: pointer([]string{name}), Detail: "Leave out control characters."})
		}
	}
	if len(faults) > 0 {
		return nil, badRequest(faults...)
	}
	return fields, nil
}
