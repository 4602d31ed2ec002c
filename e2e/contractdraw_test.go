package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"pgregory.net/rapid"
)

// verdict is what the contract says about a request.
type verdict int

const (
	accept verdict = iota // it fits; only a rule of the domain may refuse it
	refuse                // it doesn't fit, or nobody may send it so
	either                // the contract leaves it open, or the test can't tell
)

// sent is one request as it goes out, with what was done to it.
type sent struct {
	caller caller
	path   map[string]string
	query  url.Values
	header http.Header
	media  string
	body   []byte
	// chunked sends the body without its length.
	chunked bool
	want    verdict
	how     string
}

// draw draws a request that fits the contract and, half of the time, breaks it in one way.
func (o *operation) draw(t *rapid.T, w *world) *sent {
	s := &sent{path: map[string]string{}, query: url.Values{}, header: http.Header{}, how: "as the contract wants it"}
	s.caller = rapid.SampledFrom(w.callers).Draw(t, "caller")
	if allowed := o.allowed(w.callers); len(allowed) > 0 && !rarely(t, "anybody") {
		s.caller = rapid.SampledFrom(allowed).Draw(t, "allowed caller")
		if name := mostly[o.OperationID]; name != "" && !rarely(t, "anybody else") {
			s.caller = w.called(name)
		}
	}
	for _, p := range o.parameters() {
		if !p.Required && rapid.Bool().Draw(t, "without "+p.Name) {
			continue
		}
		text := fmt.Sprint(w.value(t, s.caller, p.Name, p.Schema.Value))
		switch p.In {
		case openapi3.ParameterInPath:
			s.path[p.Name] = text
		case openapi3.ParameterInQuery:
			s.query.Set(p.Name, text)
		case openapi3.ParameterInHeader:
			s.header.Set(p.Name, printable(text))
		}
	}
	var members map[string]any
	if schema := o.body(); schema != nil {
		members = w.value(t, s.caller, "body", schema).(map[string]any)
		if _, has := members["type"]; has && s.caller.member != "" && !rarely(t, "as anybody") {
			members["id"], members["type"], members["destination"] = s.caller.id, s.caller.member, s.caller.name != "camera"
			if rapid.Bool().Draw(t, "to the group") {
				members["groupName"], members["groupIP"], members["privateIPv4"] = "groupcast1", w.groupIP, cameraAddr
			}
		}
		s.media, s.body = "application/json", encode(members)
	}
	if s.query.Has("pageToken") {
		s.want = either // opaque: one that fits the pattern need not be one that we gave
	}
	w.neverWait(s)
	if rapid.Bool().Draw(t, "broken") {
		rapid.SampledFrom(o.breakages(members)).Draw(t, "breakage")(t, s)
	}
	if s.want == accept && o.beyondTheSchema(s.body) || o.RequestBody != nil && !o.RequestBody.Value.Required && len(bytes.TrimSpace(s.body)) == 0 {
		s.want = either
	}
	if why := o.deniedFor(s.caller); why != "" {
		s.want, s.how = refuse, s.how+", "+why
	}
	return s
}

// rarely is one time out of eight. (Ranges of numbers are no dice: rapid prefers small ones.)
func rarely(t *rapid.T, label string) bool {
	return !slices.Contains(rapid.SliceOfN(rapid.Bool(), 3, 3).Draw(t, label), false)
}

// value draws one that fits the schema; mostly one that means something to the service.
func (w *world) value(t *rapid.T, c caller, name string, s *openapi3.Schema) any {
	known := w.known(c, name)
	if !s.Nullable {
		known = slices.DeleteFunc(known, func(v any) bool { return v == nil })
	}
	if len(known) > 0 && !rarely(t, name+" unknown") {
		return rapid.SampledFrom(known).Draw(t, name)
	}
	if s.Nullable && rarely(t, name+" null") {
		return nil
	}
	label := name
	switch {
	case len(s.Enum) > 0:
		v := rapid.SampledFrom(s.Enum).Draw(t, label).(string)
		if s.Extensions["x-gc-accept"] == "any-case" && rapid.Bool().Draw(t, name+" upper") {
			v = strings.ToUpper(v)
		}
		return v
	case s.Type.Is("object"):
		m := map[string]any{}
		for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
			if slices.Contains(s.Required, k) || rapid.Bool().Draw(t, "with "+k) {
				m[k] = w.value(t, c, k, s.Properties[k].Value)
			}
		}
		for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
			if _, drawn := m[k]; !drawn && len(m) < int(s.MinProps) {
				m[k] = w.value(t, c, k, s.Properties[k].Value)
			}
		}
		return m
	case s.Type.Is("array"):
		most := 4
		if s.MaxItems != nil {
			most = min(int(*s.MaxItems), most)
		}
		items := make([]any, rapid.IntRange(int(s.MinItems), most).Draw(t, label+" length"))
		for i := range items {
			items[i] = w.value(t, c, name+" item", s.Items.Value)
		}
		return items
	case s.Format == "date-time":
		return time.Unix(rapid.Int64Range(1e9, 4e9).Draw(t, label), 0).UTC().Format(time.RFC3339)
	case s.Type.Is("boolean"):
		return rapid.Bool().Draw(t, label)
	case s.Type.Is("integer"):
		return rapid.Int64Range(int64(*s.Min), int64(*s.Max)).Draw(t, label)
	case s.Format == "decimal-id":
		id := fmt.Sprint(rapid.Int64Range(1, 1<<63-1).Draw(t, label))
		if name == "id" && rapid.Bool().Draw(t, name+" bare") {
			return json.Number(id)
		}
		return id
	case s.Format == "ipv4":
		b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)
		return netip.AddrFrom4([4]byte(b)).String()
	case s.Format == "ipv6":
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
		if a := netip.AddrFrom16([16]byte(b)); !a.Is4In6() {
			return a.String()
		}
		return "::"
	case s.Pattern != "":
		return rapid.StringMatching(s.Pattern).Filter(func(v string) bool { return s.VisitJSON(v) == nil }).Draw(t, label)
	default:
		return rapid.StringN(int(s.MinLength), int(*s.MaxLength), -1).Draw(t, label)
	}
}

// hostile values have hurt a service before.
func hostile(t *rapid.T) any {
	return rapid.OneOf(
		rapid.SampledFrom([]any{
			nil, true,
			[]any{},
			map[string]any{},
			"", " ", "\x00", "null", "١٢٣", "' OR 1=1 --", "%s%n", "../..", "\u202e", "0", "-1", "01", "1e3", "+1",
			"0x10", "9223372036854775808", "999.1.1.1", "1.2.3", "127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "::ffff:10.0.0.1",
			"fe80::1%eth0", strings.Repeat("9", 400), json.Number("0"), json.Number("-0"), json.Number("-1"), json.Number("1e3"),
			json.Number("3600.0"), json.Number("1.5"), json.Number("1e400"), json.Number("2147483648"), json.Number("9223372036854775808"),
		}),
		rapid.Map(rapid.String(), func(s string) any { return s }),
		rapid.Map(rapid.Int64(), func(i int64) any { return json.Number(fmt.Sprint(i)) }),
	).Draw(t, "hostile")
}

type breakage func(t *rapid.T, s *sent)

// breakages are the ways in which a request of this operation can be wrong.
func (o *operation) breakages(members map[string]any) []breakage {
	list := []breakage{
		func(t *rapid.T, s *sent) {
			s.query.Set("undeclared", rapid.StringN(0, 5, -1).Draw(t, "value"))
			s.want, s.how = refuse, "an undeclared query parameter"
		},
	}
	for _, p := range o.parameters() {
		switch p.In {
		case openapi3.ParameterInQuery:
			list = append(list, func(t *rapid.T, s *sent) {
				text := fmt.Sprint(hostile(t))
				s.query.Set(p.Name, text)
				s.want, s.how = max(s.want, fitsText(p.Schema.Value, text)), fmt.Sprintf("the query parameter %s is %.50q", p.Name, text)
				if p.Name == "pageToken" && s.want == accept {
					s.want = either
				}
			}, func(_ *rapid.T, s *sent) {
				s.query[p.Name] = []string{"1", "1"}
				s.want, s.how = refuse, "the query parameter "+p.Name+" twice"
			})
		case openapi3.ParameterInPath:
			list = append(list, func(t *rapid.T, s *sent) {
				text := strings.ReplaceAll(fmt.Sprint(hostile(t)), "/", "_") // a slash would make it another path
				s.path[p.Name] = text
				s.want, s.how = fitsText(p.Schema.Value, text), fmt.Sprintf("the path parameter %s is %.50q", p.Name, text)
			})
		}
	}
	if members == nil {
		return append(list, func(_ *rapid.T, s *sent) {
			s.media, s.body = "application/json", []byte(`{}`)
			s.want, s.how = either, "a body that nobody asked for"
		})
	}
	schema := o.body()
	text := func(how string, want verdict, edit func(t *rapid.T, body []byte) []byte) breakage {
		return func(t *rapid.T, s *sent) { s.body, s.want, s.how = edit(t, s.body), want, how }
	}
	names := slices.Sorted(maps.Keys(schema.Properties))
	if len(schema.Required) > 0 {
		list = append(list, func(t *rapid.T, s *sent) {
			name := rapid.SampledFrom(schema.Required).Draw(t, "member")
			changed := maps.Clone(members)
			delete(changed, name)
			s.body, s.want, s.how = encode(changed), refuse, "without "+name
		})
	}
	return append(list,
		func(t *rapid.T, s *sent) {
			name := rapid.SampledFrom(names).Draw(t, "member")
			changed, value := maps.Clone(members), hostile(t)
			changed[name] = value
			s.body, s.want, s.how = encode(changed), fits(schema.Properties[name].Value, value), fmt.Sprintf("%s is %.50q", name, fmt.Sprint(value))
		},
		func(t *rapid.T, s *sent) {
			changed := maps.Clone(members)
			name := rapid.SampledFrom([]string{"undeclared", "", "ID", "Type", "groupname", "__proto__"}).Draw(t, "member")
			changed[name] = rapid.SampledFrom([]any{nil, "1", true}).Draw(t, "value")
			s.body, s.want, s.how = encode(changed), refuse, fmt.Sprintf("with the unknown member %q", name)
		},
		text("a member twice", refuse, func(_ *rapid.T, body []byte) []byte {
			twice := `{"` + names[0] + `":"1","` + names[0] + `":"1"`
			if string(body) == "{}" {
				return []byte(twice + "}")
			}
			return append([]byte(twice+","), body[1:]...)
		}),
		text("something after the end", refuse, func(t *rapid.T, body []byte) []byte {
			return append(body, rapid.SampledFrom([]string{"{}", "null", "]", "x", "\x00"}).Draw(t, "end")...)
		}),
		text("cut off", refuse, func(t *rapid.T, body []byte) []byte {
			return body[:rapid.IntRange(0, len(body)-1).Draw(t, "length")]
		}),
		text("no object", refuse, func(t *rapid.T, body []byte) []byte {
			return []byte(rapid.SampledFrom([]string{"", " ", "null", "[]", "1", `"x"`, "nan", "{", "\xff\xfe{}", "[" + string(body) + "]"}).Draw(t, "body"))
		}),
		text("too deep", refuse, func(*rapid.T, []byte) []byte {
			return []byte(`{"name":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`)
		}),
		text("a byte changed", either, func(t *rapid.T, body []byte) []byte {
			body = slices.Clone(body)
			body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			return body
		}),
		func(t *rapid.T, s *sent) {
			s.body = append(bytes.Repeat([]byte(" "), 20<<10), s.body...)
			s.chunked = rapid.Bool().Draw(t, "chunked")
			s.want, s.how = refuse, "20 KiB too large"
		},
		func(t *rapid.T, s *sent) {
			s.media = rapid.SampledFrom([]string{"", "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/json-patch+json", "/"}).Draw(t, "media")
			s.want, s.how = refuse, fmt.Sprintf("as %q", s.media)
		},
	)
}

// fits tells whether a value fits a schema, with what the service accepts beyond it.
func fits(s *openapi3.Schema, v any) verdict {
	switch x := v.(type) {
	case json.Number:
		literal := regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`).MatchString(x.String())
		if s.Extensions["x-gc-accept"] == "integer" && literal {
			v = x.String()
			break
		}
		f, err := x.Float64()
		if err != nil {
			return refuse
		}
		if s.Type.Is("integer") && !literal && f == float64(int64(f)) {
			return either // 3600.0: whether that is an integer depends on the version of JSON Schema
		}
		v = f
	case string:
		for _, e := range s.Enum {
			if s.Extensions["x-gc-accept"] == "any-case" && strings.EqualFold(x, e.(string)) {
				v = e
			}
		}
	}
	if s.VisitJSON(v) != nil {
		return refuse
	}
	return accept
}

// fitsText is fits for a parameter.
func fitsText(s *openapi3.Schema, text string) verdict {
	if !s.Type.Is("integer") {
		if s.VisitJSON(text) != nil {
			return refuse
		}
		return accept
	}
	if strings.HasPrefix(text, "+") || regexp.MustCompile(`^-?0[0-9x]|[.eE]`).MatchString(text) {
		return either // other spellings of integers
	}
	return fits(s, json.Number(text))
}

func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // the values are our own
	}
	return bytes.TrimSpace(b.Bytes())
}

// printable is what Go's client is willing to send in a header.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s))
}
