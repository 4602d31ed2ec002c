package exactjson_test

import (
	stdjson "encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4/json"
	"github.com/stretchr/testify/assert"

	"github.com/groupcast/groupcast/server/exactjson"
)

func TestPlain(t *testing.T) {
	for text, want := range map[string]bool{
		`{}`:                                true,
		`{"a":1,"b":"B","c":["D",{"e":1}]}`: true,
		`{"a":"a\":\"A"}`:                   true,
		`{"a" : 1, "b"	:2}`:                 true,
		`{"a":1,"a":1}`:                     false,
		`{"a":1,"b":{"a":1}}`:               false,
		`{"A":1}`:                           false,
		`{"Z":1}`:                           false,
		`{"\u0061":1}`:                      false,
		"{\"\u017fcope\":1}":                false, // which folds to an s
		`{"a`:                               false,
		`{"a\`:                              false,
		"{" + strings.Repeat(`"x":1,`, 40):  false,
	} {
		assert.Equal(t, want, exactjson.Plain([]byte(text)), text)
	}
	many := "{"
	for i := range 33 {
		many += `"` + strings.Repeat("x", i+1) + `":1,`
	}
	assert.False(t, exactjson.Plain([]byte(many[:len(many)-1]+"}")), "more members than are compared")
}

// FuzzPlain looks for an object that is plain, and that the two decoders read differently.
func FuzzPlain(f *testing.F) {
	for _, seed := range []string{
		`{"scope":"a","exp":1}`, `{"scope":"a","SCOPE":"b"}`, `{"exp":1.5e3,"cnf":{"jkt":"x"}}`, `{"aud":["x"],"aud":null}`, "{\"\u017fcope\":\"x\"}", `{"scope":"\ud800"}`, ` {"exp" : null}`,
	} {
		f.Add([]byte(seed))
	}
	type claims struct {
		Scope string            `json:"scope"`
		Exp   *float64          `json:"exp"`
		Aud   []string          `json:"aud"`
		Cnf   map[string]string `json:"cnf"`
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		if !exactjson.Plain(object) {
			return
		}
		var fast, exact claims
		a, b := stdjson.Unmarshal(object, &fast), json.Unmarshal(object, &exact)
		if a == nil && (b != nil || !reflect.DeepEqual(fast, exact)) {
			t.Fatalf("%q: %+v, but exactly it is %+v, %v", object, fast, exact, b)
		}
	})
}
