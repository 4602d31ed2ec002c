package eventqueue

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// natsLog passes on what the server within this process has to say: its notices are details to us.
type natsLog struct{ log *slog.Logger }

// What clients do wrong is nothing an operator has to act on, and it comes with what they sent as their name, which may be a token in the wrong
// field, and with their address.
var (
	ofClient = regexp.MustCompile(`^\S+ - (cid|wid):\d+( - |$)`)
	named    = regexp.MustCompile(`"[^"]*"`)
)

// refusedByUs begins what the server says when server/queueaccess refused somebody, which has counted that.
const refusedByUs = "Auth callout service returned an error"

// theirs tells whether a message is about a client, and gives what is left of it.
func theirs(text string) (string, bool) {
	if strings.HasPrefix(text, refusedByUs) {
		return text, true
	}
	if at := ofClient.FindStringIndex(text); at != nil {
		return named.ReplaceAllString(text[at[1]:], `"…"`), true
	}
	return text, false
}

func (l natsLog) tell(level slog.Level, key, format string, v ...any) {
	text, client := theirs(fmt.Sprintf(format, v...))
	if client {
		level, key = slog.LevelDebug, "client"
	}
	l.log.Log(context.Background(), level, "event queue", key, text)
}

func (l natsLog) Noticef(format string, v ...any) { l.tell(slog.LevelDebug, "notice", format, v...) }

func (l natsLog) Warnf(format string, v ...any)  { l.tell(slog.LevelWarn, "warning", format, v...) }
func (l natsLog) Errorf(format string, v ...any) { l.tell(slog.LevelError, "error", format, v...) }
func (l natsLog) Fatalf(format string, v ...any) { l.tell(slog.LevelError, "error", format, v...) }
func (l natsLog) Debugf(string, ...any)          {}
func (l natsLog) Tracef(string, ...any)          {}
