// Package telemetry sets up what an operator sees of a process: the structured log, and the Prometheus registry with its own
// listener.
//
// It never decides what is worth logging or counting, and its redaction is a belt only: no caller may hand it a secret.
package telemetry

import (
	"io"
	"log/slog"
	"regexp"
	"strings"
)

const redacted = "[redacted]"

// secretKeys are attributes whose value never reaches the log, whatever it is.
var secretKeys = map[string]bool{
	"authorization": true, "cookie": true, "dpop": true, "key": true, "password": true, "secret": true, "token": true,
	"access_token": true, "accesstoken": true, "client_secret": true, "database_url": true,
}

// What is taken out of any text: three base64url parts with dots between them, the first of which begins a JSON object, which is a
// token; the password of a URL; and the address in what net/http says about a client, who may be a destination.
var (
	tokenPattern    = regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`)
	passwordPattern = regexp.MustCompile(`(://[^/\s:@]*):[^/\s@]+@`)
	clientPattern   = regexp.MustCompile(`^(http: .* (?:from|serving)) \S+:`)
)

// NewLogger writes text or JSON to w from the given level on.
func NewLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: redact}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

func redact(_ []string, a slog.Attr) slog.Attr {
	if secretKeys[strings.ToLower(strings.ReplaceAll(a.Key, "-", "_"))] {
		return slog.String(a.Key, redacted)
	}
	text := ""
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			text = err.Error()
		}
	default:
	}
	if strings.Contains(text, "eyJ") || strings.Contains(text, "://") || strings.HasPrefix(text, "http: ") {
		clean := tokenPattern.ReplaceAllString(text, redacted)
		clean = passwordPattern.ReplaceAllString(clean, "$1:"+redacted+"@")
		clean = clientPattern.ReplaceAllString(clean, "$1 "+redacted+":")
		if clean != text {
			return slog.String(a.Key, clean)
		}
	}
	return a
}
