package telemetry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/telemetry"
)

const token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJkZXY6MSJ9.c2lnbmF0dXJl"

func TestSecretsDoNotReachTheLog(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		log := telemetry.NewLogger(&b, slog.LevelDebug, format)
		log.Info("sent "+token, "Authorization", "Bearer abc.def.ghi", "access-token", "s3cret", "path", "/v1?t="+token)
		log.With("token", "s3cret").WithGroup("g").Error("failed", "error", fmt.Errorf("dial postgres://u:s3cret@h/d: %w", io.EOF),
			"headers", slog.GroupValue(slog.String("cookie", "s3cret"), slog.String("accept", "*/*")))
		log.Debug("http: TLS handshake error from 198.51.100.7:4711: EOF")
		log.Debug("http: panic serving [2001:db8::7]:4711: boom")
		assert.NotContains(t, b.String(), "s3cret")
		assert.NotContains(t, b.String(), "198.51.100.7")
		assert.NotContains(t, b.String(), "2001:db8::7")
		assert.Contains(t, b.String(), "http: TLS handshake error from [redacted]: EOF")
		assert.NotContains(t, b.String(), token)
		assert.NotContains(t, b.String(), "abc.def.ghi")
		assert.Contains(t, b.String(), "postgres://u:[redacted]@h/d: EOF")
		assert.Contains(t, b.String(), "*/*")
	}
}

func TestFormatAndLevel(t *testing.T) {
	var b bytes.Buffer
	log := telemetry.NewLogger(&b, slog.LevelWarn, "json")
	log.Info("hidden")
	log.Warn("shown", "n", 1)
	var line map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &line))
	assert.Equal(t, "shown", line["msg"])
	assert.EqualValues(t, 1, line["n"])
}

func TestMetricsListener(t *testing.T) {
	s := httptest.NewServer(telemetry.NewMetricsServer(telemetry.NewRegistry("v1.2.3"), slog.New(slog.DiscardHandler)).Handler)
	defer s.Close()
	r, err := http.Get(s.URL + "/metrics")
	require.NoError(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), `groupcast_build_info{goversion="go`)
	assert.Contains(t, string(body), `version="v1.2.3"`)
	assert.Contains(t, string(body), "go_goroutines")
	other, err := http.Get(s.URL + "/")
	require.NoError(t, err)
	defer other.Body.Close()
	assert.Equal(t, http.StatusNotFound, other.StatusCode)
}
