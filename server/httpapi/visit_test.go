package httpapi_test

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/authz"
	"github.com/groupcast/groupcast/server/httpapi"
)

// TestPagesNeedARule keeps a page from existing that nobody decided about.
func TestPagesNeedARule(t *testing.T) {
	serve := func(crossOrigin *http.CrossOriginProtection, p httpapi.Page) error {
		e, err := httpapi.New(t.Context(), httpapi.Options{
			Document: openapi.Public, CrossOrigin: crossOrigin, Log: slog.New(slog.DiscardHandler), Metrics: httpapi.NewMetrics(prometheus.NewRegistry()),
		})
		require.NoError(t, err)
		p.Answer = func(*httpapi.Visit) error { return nil }
		return e.Serve(httpapi.Site{Pages: []httpapi.Page{p}})
	}
	check := http.NewCrossOriginProtection()
	require.NoError(t, serve(check, httpapi.Page{Method: http.MethodGet, Path: "/x", Operation: "getAccount"}))
	require.NoError(t, serve(check, httpapi.Page{Method: http.MethodGet, Path: "/x", Rule: &authz.Rule{Public: true}}))
	require.NoError(t, serve(check, httpapi.Page{Method: http.MethodGet, Path: "/x", Rule: &authz.Rule{Kinds: []models.Kind{models.KindUser}}}))
	assert.ErrorContains(t, serve(nil, httpapi.Page{Method: http.MethodGet, Path: "/x", Operation: "getAccount"}), "where their forms come from")
	for name, p := range map[string]httpapi.Page{
		"no rule":            {Method: http.MethodGet},
		"empty rule":         {Method: http.MethodGet, Rule: &authz.Rule{}},
		"unknown operation":  {Method: http.MethodGet, Operation: "getEverything"},
		"both":               {Method: http.MethodGet, Operation: "getAccount", Rule: &authz.Rule{Public: true}},
		"not for users":      {Method: http.MethodGet, Rule: &authz.Rule{Kinds: []models.Kind{models.KindUser, models.KindDevice}}},
		"operation, no user": {Method: http.MethodGet, Operation: "declareGateway"},
		"fresh, for what?":   {Method: http.MethodPost, Operation: "removeDevice"},
		"no form sends this": {Method: http.MethodDelete, Operation: "removeDevice"},
	} {
		p.Path = "/x"
		assert.Error(t, serve(check, p), name)
	}
}
