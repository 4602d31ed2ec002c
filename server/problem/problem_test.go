package problem_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/docs/problems"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/problem"
)

// codes reads the constants of type Code out of the source of package models, so that a new one can't be forgotten here.
func codes(t *testing.T) []models.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../models/error.go", nil, 0)
	require.NoError(t, err)
	var found []models.Code
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		found = append(found, models.Code(value))
		return true
	})
	require.Greater(t, len(found), 20)
	return found
}

func TestEveryCodeHasARowAndAPage(t *testing.T) {
	for _, code := range codes(t) {
		w := httptest.NewRecorder()
		problem.Write(w, models.Errorf(code, "what to do"), "r1")
		var doc map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &doc))
		assert.Equal(t, "/problems/"+string(code), doc["type"], "no row in the catalogue")
		assert.EqualValues(t, w.Code, doc["status"])
		assert.NotEmpty(t, doc["title"])
		assert.GreaterOrEqual(t, w.Code, 400)

		page, ok := problems.Page(string(code))
		if assert.True(t, ok, "docs/problems/%s.md is missing", code) {
			assert.Contains(t, string(page), "**"+strconv.Itoa(w.Code)+"**", "the page of %s names another status", code)
			assert.True(t, strings.HasPrefix(string(page), "# "+string(code)+"\n"), "the page of %s begins with its code", code)
			assert.Contains(t, string(page), "## What to do")
		}
	}
}

func TestNoPageWithoutACode(t *testing.T) {
	for _, code := range problems.Codes() {
		assert.True(t, slices.Contains(codes(t), models.Code(code)), "docs/problems/%s.md belongs to no code", code)
	}
}

func TestDocument(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set("ETag", `"must not be cached"`)
	e := models.Errorf(models.CodePoolExhausted, "All 25 are taken.").With("poolSize", 25).With("status", 200).
		With(problem.FieldErrors, []problem.FieldError{{Pointer: "/id", Detail: "too small"}}).Because(assert.AnError)
	problem.Write(w, e, "abc")
	assert.Equal(t, 409, w.Code)
	assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	assert.Empty(t, w.Header().Get("ETag"))
	assert.Empty(t, w.Header().Get("Retry-After"))
	assert.JSONEq(t, `{"type":"/problems/pool-exhausted","title":"No group IP is free","status":409,"detail":"All 25 are taken.",
		"instance":"abc","poolSize":25,"errors":[{"pointer":"/id","detail":"too small"}]}`, w.Body.String())
}

func TestNotNowSaysWhen(t *testing.T) {
	for _, code := range []models.Code{models.CodeUnavailable, models.CodeOverloaded} {
		w := httptest.NewRecorder()
		problem.Write(w, models.Errorf(code, "later"), "")
		assert.Equal(t, 503, w.Code)
		assert.NotEmpty(t, w.Header().Get("Retry-After"))
	}
	w := httptest.NewRecorder()
	problem.Write(w, models.Errorf(models.CodePoolExhausted, "later").With(problem.RetryAfter, 17), "")
	assert.Equal(t, "17", w.Header().Get("Retry-After"))
}

func TestWhatTheCatalogueDoesNotKnowIsOurFault(t *testing.T) {
	w := httptest.NewRecorder()
	problem.Write(w, (&models.Error{Code: "made-up", Detail: "d"}).With("f", func() {}), "i")
	assert.Equal(t, 500, w.Code)
	assert.JSONEq(t, `{"type":"/problems/internal","title":"A fault of the service","status":500,"detail":"d","instance":"i"}`, w.Body.String())
}
