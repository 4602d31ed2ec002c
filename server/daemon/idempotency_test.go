package daemon_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestIdempotencyKeyOverHTTP sends requests again, as a client does that lost the answer.
func TestIdempotencyKeyOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t)))
	one, two := s.house(t, "One"), s.house(t, "Two")
	const key = "3f1d3a6e-1b1f-4a4e-9a49-2f2c8f0f3b11"
	post := func(cookie, path, body string, header ...string) (int, http.Header, map[string]any) {
		t.Helper()
		r := s.do(t, http.MethodPost, path, body, append([]string{"Cookie", cookie}, header...)...)
		h := r.Header
		return r.StatusCode, h, object(t, r)
	}
	premises := func(h house) int {
		t.Helper()
		return len(object(t, s.do(t, http.MethodGet, "/v1/premises", "", "Cookie", h.cookie))["premises"].([]any))
	}
	before := premises(one)
	status, _, first := post(one.cookie, "/v1/premises", `{"name":"Cabin"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusCreated, status, "%v", first)
	for _, again := range []string{key, `"` + key + `"`} {
		status, header, answer := post(one.cookie, "/v1/premises", ` { "name" : "Cabin" } `, "Idempotency-Key", again)
		require.Equal(t, http.StatusCreated, status)
		require.Equal(t, first, answer)
		require.Equal(t, "application/json", header.Get("Content-Type"))
	}
	require.Equal(t, before+1, premises(one))
	status, _, answer := post(one.cookie, "/v1/premises", `{"name":"Boat"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusUnprocessableEntity, status)
	require.Equal(t, "/problems/idempotency-key-reused", answer["type"])
	status, _, answer = post(two.cookie, "/v1/premises", `{"name":"Boat"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusCreated, status, "%v: another caller's key is another key", answer)
	for _, bad := range []string{"short", `"` + key, key + " ", key + "ä"} {
		status, _, answer = post(one.cookie, "/v1/premises", `{"name":"Cabin"}`, "Idempotency-Key", bad)
		if bad == key+" " { // spaces around a header's value are no part of it
			require.Equal(t, http.StatusCreated, status)
			continue
		}
		require.Equal(t, http.StatusBadRequest, status, bad)
		require.Equal(t, "/problems/bad-request", answer["type"])
	}
	for range 2 { // without a key it is done each time
		status, _, _ = post(one.cookie, "/v1/premises", `{"name":"Cabin"}`)
		require.Equal(t, http.StatusCreated, status)
	}
	require.Equal(t, before+3, premises(one))

	tickets := fmt.Sprintf("/v1/premises/%s/enrolments", one.home.premises)
	status, header, ticket := post(one.cookie, tickets, `{"deviceType":"camera"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusCreated, status, "%v", ticket)
	require.Equal(t, "no-store", header.Get("Cache-Control"))
	status, header, again := post(one.cookie, tickets, `{"deviceType":"camera"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusCreated, status)
	require.Equal(t, ticket, again, "the secret too")
	require.Equal(t, "no-store", header.Get("Cache-Control"))
	status, _, answer = post(one.cookie, fmt.Sprintf("/v1/premises/%s/enrolments", first["premisesId"]), `{"deviceType":"camera"}`, "Idempotency-Key", key)
	require.Equal(t, http.StatusUnprocessableEntity, status, "%v: another path is another request", answer)
	// Nobody gets an answer again who may not have it any more.
	require.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodPost, tickets, `{"deviceType":"camera"}`, "Idempotency-Key", key).StatusCode)
	// What was refused is not kept.
	const other = "another-key-of-16-or-more"
	for range 2 {
		status, _, answer = post(one.cookie, fmt.Sprintf("/v1/premises/%s/enrolments", two.home.premises), `{"deviceType":"camera"}`, "Idempotency-Key", other)
		require.Equal(t, http.StatusNotFound, status, "%v", answer)
	}
}
