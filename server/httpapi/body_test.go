package httpapi_test

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/httpapi"
)

// TestBodies sends bodies to an operation of the small contract: what is refused names the place, what is accepted reaches the
// handler in its canonical form.
func TestBodies(t *testing.T) {
	var got any
	s := newSmallEdge(t, nil, nil, func(c *gin.Context) {
		got = c.Request.Body.(interface{ ValidatedValue() any }).ValidatedValue()
	})
	deep := strings.Repeat(`[`, 40) + strings.Repeat(`]`, 40)
	n := func(s string) json.Number { return json.Number(s) }
	type object = map[string]any
	for _, c := range []struct {
		body    string
		want    any    // what the handler gets; nil: refused
		pointer string // of the fault
		detail  string // part of it
	}{
		{body: `{"id":"1"}`, want: object{"id": "1"}},
		{body: ` {"id" : "9223372036854775807"} ` + "\n", want: object{"id": "9223372036854775807"}},
		{body: `{"id":2908757376510572177}`, want: object{"id": "2908757376510572177"}},
		{body: `{"id":9007199254740993}`, want: object{"id": "9007199254740993"}},
		{body: `{"id":"1","kind":"device"}`, want: object{"id": "1", "kind": "Device"}},
		{body: `{"id":"1","kind":"SERVICE"}`, want: object{"id": "1", "kind": "Service"}},
		{body: `{"id":"1","size":null}`, want: object{"id": "1", "size": nil}},
		{body: `{"id":"1","size":100}`, want: object{"id": "1", "size": n("100")}},
		{body: `{"id":"1","list":[1,"2",9223372036854775807]}`, want: object{"id": "1", "list": []any{"1", "2", "9223372036854775807"}}},
		{body: `{"id":"1","text":"äöü ✓"}`, want: object{"id": "1", "text": "äöü ✓"}},
		{body: `{"id":"1","v4":"192.0.2.1","v6":"2001:db8::1"}`, want: object{"id": "1", "v4": "192.0.2.1", "v6": "2001:db8::1"}},

		{body: `{`, detail: "ends too early"},
		{body: `{"id":"1"`, detail: "ends too early"},
		{body: `{"id":"1`, detail: "not JSON"},
		{body: `{"id":"1",}`, detail: "not JSON"},
		{body: `{'id':'1'}`, detail: "not JSON"},
		{body: `{id:"1"}`, detail: "not JSON"},
		{body: `{"id":01}`, detail: "not JSON"},
		{body: `{"id":+1}`, detail: "not JSON"},
		{body: `{"id":NaN}`, detail: "not JSON"},
		{body: `{"id":"1"} {}`, detail: "data after"},
		{body: `{"id":"1"}x`, detail: "data after"},
		{body: `{"id":"1"}]`, detail: "data after"},
		{body: "{\"id\":\"1\"}\x00", detail: "data after"},
		{body: "\ufeff{\"id\":\"1\"}", detail: "not JSON"},
		{body: "{\"id\":\"1\",\"text\":\"\xff\"}", detail: "not UTF-8"},
		{body: `{"id":"1","text":"a\u0000"}`, pointer: "/text", detail: "control characters"},
		{body: `{"id":"1","text":"a\nb"}`, pointer: "/text", detail: "control characters"},
		{body: `{"id":"1","text":"123456789"}`, pointer: "/text", detail: "0 to 8 characters"},
		{body: `[]`, detail: "a JSON object"},
		{body: `"id"`, detail: "a JSON object"},
		{body: `null`, detail: "a JSON object"},
		{body: `1e400`, detail: "a JSON object"},
		{body: `{}`, pointer: "/id", detail: "required"},
		{body: `{"id":"1","id":"2"}`, pointer: "/id", detail: "twice"},
		{body: `{"id":"1","kind":"Device","kind":"Device"}`, pointer: "/kind", detail: "twice"},
		{body: `{"id":"1","\u0069d":"2"}`, pointer: "/id", detail: "twice"},
		{body: `{"ID":"1","id":"1"}`, pointer: "/ID", detail: "no such member"},
		{body: `{"id":"1","a/b~c":1}`, pointer: "/a~1b~0c", detail: "no such member"},
		{body: `{"id":"1","` + strings.Repeat("x", 500) + `":1}`, pointer: "/" + strings.Repeat("x", 64) + "…", detail: "no such member"},
		{body: `{"id":"1","kind":` + deep + `}`, pointer: "/kind/0/0/0", detail: "deeper than 32"},
		{body: `{"id":"0"}`, pointer: "/id", detail: "from 1 to 9223372036854775807"},
		{body: `{"id":0}`, pointer: "/id", detail: "from 1 to 9223372036854775807"},
		{body: `{"id":-1}`, pointer: "/id", detail: "without sign"},
		{body: `{"id":"-1"}`, pointer: "/id", detail: "without sign"},
		{body: `{"id":-0}`, pointer: "/id", detail: "without sign"},
		{body: `{"id":"01"}`, pointer: "/id", detail: "leading zero"},
		{body: `{"id":1.0}`, pointer: "/id", detail: "point and exponent"},
		{body: `{"id":6.64e17}`, pointer: "/id", detail: "point and exponent"},
		{body: `{"id":1E3}`, pointer: "/id", detail: "point and exponent"},
		{body: `{"id":"1e3"}`, pointer: "/id", detail: "point and exponent"},
		{body: `{"id":9223372036854775808}`, pointer: "/id", detail: "9223372036854775807"},
		{body: `{"id":"9223372036854775808"}`, pointer: "/id", detail: "9223372036854775807"},
		{body: `{"id":"99999999999999999999"}`, pointer: "/id", detail: "9223372036854775807"},
		{body: `{"id":" 1"}`, pointer: "/id"},
		{body: `{"id":""}`, pointer: "/id"},
		{body: `{"id":null}`, pointer: "/id", detail: "can't be null"},
		{body: `{"id":true}`, pointer: "/id"},
		{body: `{"id":{}}`, pointer: "/id"},
		{body: `{"id":["1"]}`, pointer: "/id"},
		{body: `{"id":"1","kind":"Gateway"}`, pointer: "/kind", detail: "one of: Device Service"},
		{body: `{"id":"1","kind":null}`, pointer: "/kind"},
		{body: `{"id":"1","size":1.0}`, pointer: "/size", detail: "without point"},
		{body: `{"id":"1","size":1e2}`, pointer: "/size", detail: "without point"},
		{body: `{"id":"1","size":"1"}`, pointer: "/size", detail: "integer from 0 to 100"},
		{body: `{"id":"1","size":101}`, pointer: "/size", detail: "integer from 0 to 100"},
		{body: `{"id":"1","size":-1}`, pointer: "/size", detail: "integer from 0 to 100"},
		{body: `{"id":"1","size":99999999999999999999999}`, pointer: "/size", detail: "integer from 0 to 100"},
		{body: `{"id":"1","list":[1,2,3,4]}`, pointer: "/list"},
		{body: `{"id":"1","list":["1","x"]}`, pointer: "/list/1"},
		{body: `{"id":"1","list":{"0":"1"}}`, pointer: "/list", detail: "JSON array"},
		{body: `{"id":"1","v4":"192.0.2.256"}`, pointer: "/v4", detail: "IPv4 address"},
		{body: `{"id":"1","v4":"192.0.2.01"}`, pointer: "/v4"},
		{body: `{"id":"1","v4":"192.0.2"}`, pointer: "/v4"},
		{body: `{"id":"1","v4":"::1"}`, pointer: "/v4"},
		{body: `{"id":"1","v4":""}`, pointer: "/v4"},
		{body: `{"id":"1","v6":"192.0.2.1"}`, pointer: "/v6", detail: "IPv6 address"},
		{body: `{"id":"1","v6":"::ffff:192.0.2.1"}`, pointer: "/v6", detail: "not an IPv4 address"},
		{body: `{"id":"1","v6":"fe80::1%eth0"}`, pointer: "/v6", detail: "zone"},
	} {
		got = nil
		r := s.do(t, "POST", "/things/a", "device a", c.body)
		if c.want != nil {
			require.Equal(t, http.StatusOK, r.StatusCode, "%s", c.body)
			assert.Equal(t, c.want, got, "%s", c.body)
			continue
		}
		require.Equal(t, http.StatusBadRequest, r.StatusCode, "%s", c.body)
		assert.Nil(t, got, "the handler was called")
		d := problemOf(t, r)
		assert.Equal(t, "/problems/bad-request", d.Type)
		require.Len(t, d.Errors, 1, "%s: %+v", c.body, d.Errors)
		assert.Equal(t, c.pointer, d.Errors[0].Pointer, "%s", c.body)
		assert.Contains(t, d.Errors[0].Detail, c.detail, "%s", c.body)
		assert.Contains(t, d.Detail, c.detail, "%s", c.body)
	}
}

func TestSeveralFaultsAreToldAtOnce(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	d := problemOf(t, s.do(t, "POST", "/things/a", "device a", `{"id":"0","size":101,"more":1}`))
	assert.Equal(t, "The request has 3 faults; errors says where and what to do.", d.Detail)
	var pointers []string
	for _, e := range d.Errors {
		pointers = append(pointers, e.Pointer)
	}
	assert.Equal(t, []string{"/id", "/more", "/size"}, pointers)
}

func TestParameters(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	for _, c := range []struct{ path, pointer, detail string }{
		{"/things/a?n=0", "n", "integer from 1 to 9"},
		{"/things/a?n=10", "n", "integer from 1 to 9"},
		{"/things/a?n=x", "n", "integer from 1 to 9"},
		{"/things/a?n=1.0", "n", "integer from 1 to 9"},
		{"/things/a?n=99999999999", "n", "integer from 1 to 9"},
		{"/things/a?n=", "n", "integer from 1 to 9"},
		{"/things/a?n", "n", "integer from 1 to 9"},
		{"/things/a?n=1&n=1", "n", "more than once"},
		{"/things/a?N=1", "N", "no such query parameter"},
		{"/things/a?n=1&m=1", "m", "no such query parameter"},
		{"/things/a?access_token=x", "access_token", "no such query parameter"},
		{"/things/a?n=1;m=2", "", "can't be read"},
		{"/things/a?n=%zz", "", "can't be read"},
		{"/things/A", "name", "matches ^[a-z]+$"},
		{"/things/abcdefghi", "name", "0 to 8 characters"},
		{"/things/a%20b", "name", "matches ^[a-z]+$"},
	} {
		r := s.do(t, "POST", c.path, "device a", `{"id":"1"}`)
		require.Equal(t, http.StatusBadRequest, r.StatusCode, c.path)
		d := problemOf(t, r)
		require.Len(t, d.Errors, 1, c.path)
		assert.Equal(t, c.pointer, d.Errors[0].Pointer, c.path)
		assert.Contains(t, d.Errors[0].Detail, c.detail, c.path)
	}
}

func TestMediaTypes(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	for _, c := range []struct {
		header http.Header
		status int
	}{
		{http.Header{"Content-Type": {"application/json"}}, 200},
		{http.Header{"Content-Type": {"Application/JSON; charset=UTF-8"}}, 200},
		{http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"identity"}}, 200},
		{http.Header{}, 415},
		{http.Header{"Content-Type": {""}}, 415},
		{http.Header{"Content-Type": {"text/json"}}, 415},
		{http.Header{"Content-Type": {"application/problem+json"}}, 415},
		{http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, 415},
		{http.Header{"Content-Type": {"application/json; charset=latin1"}}, 415},
		{http.Header{"Content-Type": {";;;"}}, 415},
		{http.Header{"Content-Type": {"application/json", "text/plain"}}, 415},
		{http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, 415},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/things/a", strings.NewReader(`{"id":"1"}`))
		require.NoError(t, err)
		req.Header = c.header
		req.Header.Set("Authorization", "device a")
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.Equal(t, c.status, r.StatusCode, "%v", c.header)
		if c.status == 415 {
			assert.Equal(t, "/problems/unsupported-media", problemOf(t, r).Type)
		}
		r.Body.Close()
	}
}

// reader hides its length, so that the client sends chunks.
type reader struct{ *strings.Reader }

func TestBodiesOfTheWrongSize(t *testing.T) {
	s := newSmallEdge(t, nil, nil, nil)
	large := `{"id":"1","text":"` + strings.Repeat("x", httpapi.MaxBody) + `"}`
	for _, c := range []struct {
		why, method, path, body string
		chunked                 bool
		status                  int
		want                    string
	}{
		{"declared too large", "POST", "/things/a", large, false, 413, "too-large"},
		{"chunked too large", "POST", "/things/a", large, true, 413, "too-large"},
		{"too large where nothing is", "POST", "/nothing", large, false, 413, "too-large"},
		{"just small enough", "POST", "/things/a", `{"id":"1"}` + strings.Repeat(" ", httpapi.MaxBody-10), true, 200, ""},
		{"one more", "POST", "/things/a", `{"id":"1"}` + strings.Repeat(" ", httpapi.MaxBody-9), true, 413, "too-large"},
		{"chunked", "POST", "/things/a", `{"id":"1"}`, true, 200, ""},
		{"none", "POST", "/things/a", "", false, 400, "bad-request"},
		{"none, chunked", "POST", "/things/a", "", true, 400, "bad-request"},
		{"where none belongs", "GET", "/open", `{}`, false, 400, "bad-request"},
		{"chunked where none belongs", "GET", "/open", `{}`, true, 400, "bad-request"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, strings.NewReader(c.body))
		if c.chunked {
			req, err = http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, reader{strings.NewReader(c.body)})
		}
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "device a")
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err, c.why)
		require.Equal(t, c.status, r.StatusCode, c.why)
		if c.want != "" {
			assert.Equal(t, "/problems/"+c.want, problemOf(t, r).Type, c.why)
		}
		r.Body.Close()
	}
}

// FuzzBody holds the decoder against encoding/json: what it accepts, that accepts as well and reads the same, apart from what the contract
// lets it rewrite; and whatever it refuses is a refusal with something to do.
func FuzzBody(f *testing.F) {
	doc, err := openapi3.NewLoader().LoadFromData([]byte(small))
	require.NoError(f, err)
	schema := doc.Paths.Value("/things/{name}").Post.RequestBody.Value.Content["application/json"].Schema.Value
	for _, seed := range []string{
		`{"id":1,"kind":"device","size":null,"list":[1]}`, `{"a":{"a":{"a":[]}}}`, `{"a":1,"a":2}`, `[[[[]]]]`, `"\ud800"`, `1e5`, "{\"\xff\":1}", `{} {}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		value, err := httpapi.DecodeBody(data, nil)
		if err != nil {
			var refusal *models.Error
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, models.CodeBadRequest, refusal.Code)
			require.NotEmpty(t, refusal.Detail)
			_, err = httpapi.DecodeBody(data, schema)
			require.Error(t, err)
			return
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.UseNumber()
		var plain any
		require.NoError(t, d.Decode(&plain))
		require.True(t, reflect.DeepEqual(plain, value), "%#v %#v", plain, value)
		_, _ = httpapi.DecodeBody(data, schema)
	})
}
