// Package refusal turns an answer of either contract that isn't a success into an error that says what the service said: the
// problem document's title, detail and type (RFC 9457).
package refusal

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/openapi/api"
)

// Error is what the service refused. Both contracts describe problems in the same way.
type Error struct {
	api.Problem
	// RetryAfter is what the service asks to wait before the next try; 0 if it didn't say.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%d)", e.Title, e.Status)
	if e.Detail != nil {
		fmt.Fprintf(&b, ": %s", *e.Detail)
	}
	if e.Errors != nil && len(*e.Errors) > 1 { // a single one stands in the detail
		for _, field := range *e.Errors {
			b.WriteString("\n  ")
			if field.Pointer != nil {
				fmt.Fprintf(&b, "%s: ", *field.Pointer)
			}
			b.WriteString(field.Detail)
		}
	}
	fmt.Fprintf(&b, "\n  type: %s", e.Type)
	if e.Instance != nil {
		fmt.Fprintf(&b, "\n  request: %s", *e.Instance)
	}
	return b.String()
}

// Final tells whether asking again in the same way can't help before somebody changes something.
func (e *Error) Final() bool {
	return e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout
}

// Answer is what every response of the generated clients can tell.
type Answer interface {
	StatusCode() int
	GetBody() []byte
}

// Check gives nil for a success or a 304, else an *Error.
func Check(a Answer, header http.Header) error {
	status := a.StatusCode()
	if status >= 200 && status < 300 || status == http.StatusNotModified {
		return nil
	}
	e := &Error{}
	if seconds, err := strconv.Atoi(header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	if json.Unmarshal(a.GetBody(), &e.Problem) != nil || e.Title == "" {
		detail := "The answer is not a problem document: something between here and the service may have given it. Check the URL."
		e.Problem = api.Problem{Title: http.StatusText(status), Detail: &detail, Type: "about:blank"}
	}
	e.Status = int32(status)
	return e
}

// Value gives the document of a success, or the error that a call ended with.
func Value[T any](document *T, a Answer, header http.Header) (*T, error) {
	if err := Check(a, header); err != nil {
		return nil, err
	}
	if document == nil {
		return nil, fmt.Errorf("the service answered %d without the document that its contract promises: check that --server is a groupcast service", a.StatusCode())
	}
	return document, nil
}
