package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/server/problem"
)

// maxDepth is how deep a body may be nested; the contract needs two.
const maxDepth = 32

// validated is a body that has been read and validated; the generated code binds the value instead of decoding the bytes again with
// encoding/json, which ignores the case of names.
type validated struct {
	io.ReadCloser
	value any
}

// ValidatedValue is what the generated code looks for.
func (b validated) ValidatedValue() any { return b.value }

// decodeBody reads one JSON value (RFC 8259) more strictly than encoding/json: valid UTF-8, no member twice, nothing after the value,
// bounded depth, no control characters in strings. What the contract marks with x-gc-accept is brought to its canonical form
// on the way, so that validation sees that. Errors are CodeBadRequest with a pointer.
func decodeBody(data []byte, schema *openapi3.Schema) (any, error) {
	if !utf8.Valid(data) {
		return nil, badRequest(problem.FieldError{Detail: "The body is not UTF-8."})
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	b := bodyReader{dec: d}
	value, err := b.value(nil, 0, schema)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = b.fault(nil, "There is data after the JSON value; send exactly one JSON object.")
		}
	}
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return value, nil
	case errors.As(err, &syntax):
		return nil, badRequest(problem.FieldError{Detail: fmt.Sprintf("The body is not JSON: %s at byte %d.", syntax.Error(), syntax.Offset)})
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nil, badRequest(problem.FieldError{Detail: "The body is not JSON: it ends too early."})
	}
	return nil, err
}

type bodyReader struct{ dec *json.Decoder }

func (b bodyReader) fault(path []string, format string, args ...any) error {
	return badRequest(problem.FieldError{Pointer: pointer(path), Detail: fmt.Sprintf(format, args...)})
}

// value reads the next value. The schema is that of the contract for this place, nil where it has none.
func (b bodyReader) value(path []string, depth int, schema *openapi3.Schema) (any, error) {
	token, err := b.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		if depth == maxDepth {
			return nil, b.fault(path[:4], "The body is nested deeper than %d levels; the contract needs two.", maxDepth)
		}
		if t == '{' {
			return b.object(path, depth, schema)
		}
		return b.array(path, depth, schema)
	case string:
		if strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, b.fault(path, "Leave out control characters.")
		}
		return canonical(t, schema), nil
	case json.Number:
		return b.number(path, t, schema)
	default:
		return token, nil
	}
}

func (b bodyReader) object(path []string, depth int, schema *openapi3.Schema) (any, error) {
	members := map[string]any{}
	for b.dec.More() {
		token, err := b.dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := token.(string)
		if !ok {
			return nil, b.fault(path, "A member's name is not a string.")
		}
		at := below(path, name)
		if _, twice := members[name]; twice {
			return nil, b.fault(at, "This member stands twice; send it once.")
		}
		var member *openapi3.Schema
		if schema != nil && schema.Properties[name] != nil {
			member = schema.Properties[name].Value
		}
		if members[name], err = b.value(at, depth+1, member); err != nil {
			return nil, err
		}
	}
	_, err := b.dec.Token() // the closing brace
	return members, err
}

func (b bodyReader) array(path []string, depth int, schema *openapi3.Schema) (any, error) {
	items := []any{}
	var item *openapi3.Schema
	if schema != nil && schema.Items != nil {
		item = schema.Items.Value
	}
	for b.dec.More() {
		value, err := b.value(below(path, strconv.Itoa(len(items))), depth+1, item)
		if err != nil {
			return nil, err
		}
		items = append(items, value)
	}
	_, err := b.dec.Token() // the closing bracket
	return items, err
}

// below gives the path of a part. It copies, because faults keep paths.
func below(path []string, name string) []string { return append(slices.Clip(path), name) }

// The values of x-gc-accept: what a request body may hold in place of the canonical form.
const (
	acceptExtension = "x-gc-accept"
	acceptInteger   = "integer"  // a JSON integer for a decimal string
	acceptAnyCase   = "any-case" // a value of the enum in any case
)

func accepts(schema *openapi3.Schema) string {
	if schema == nil {
		return ""
	}
	how, _ := schema.Extensions[acceptExtension].(string)
	return how
}

// number keeps every digit. Where the contract takes an integer for a string, the literal becomes that string.
func (b bodyReader) number(path []string, n json.Number, schema *openapi3.Schema) (any, error) {
	whole := !strings.ContainsAny(n.String(), ".eE")
	switch {
	case accepts(schema) == acceptInteger && whole:
		return n.String(), nil
	case accepts(schema) == acceptInteger:
		return nil, b.fault(path, "%s", describe(schema))
	case schema != nil && schema.Type.Is(openapi3.TypeInteger) && !whole:
		return nil, b.fault(path, "Give an integer without point and exponent.")
	}
	return n, nil
}

// canonical gives the contract's spelling of an enum value that was written in another case.
func canonical(s string, schema *openapi3.Schema) string {
	if accepts(schema) == acceptAnyCase {
		for _, v := range schema.Enum {
			if text, ok := v.(string); ok && strings.EqualFold(text, s) {
				return text
			}
		}
	}
	return s
}

// pointer writes a path as a JSON Pointer (RFC 6901).
func pointer(path []string) string {
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(short(p)))
	}
	return b.String()
}

// short keeps a name that a client made up from filling the answer.
func short(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
