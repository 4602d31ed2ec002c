// Package problem is the one place where a refusal becomes HTTP: it maps each models.Code to a status and a title, and writes
// application/problem+json (RFC 9457).
//
// It never decides what is refused, and never shows the cause of an error: that is for the log.
package problem

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// MediaType is that of a problem document.
const MediaType = "application/problem+json"

// TypePrefix begins the type of every problem; the code follows. It is relative to the service, which serves the pages itself.
const TypePrefix = "/problems/"

// FieldError says which part of a request is wrong.
type FieldError struct {
	// Pointer is a JSON Pointer into the body (RFC 6901) or the name of a parameter; empty for the body as a whole.
	Pointer string `json:"pointer,omitempty"`
	Detail  string `json:"detail"`
}

// Members of models.Error.Fields that mean something here.
const (
	// FieldErrors holds a []FieldError.
	FieldErrors = "errors"
	// RetryAfter holds an int, the seconds after which trying again may help. It becomes the header of that name as well.
	RetryAfter = "retryAfter"
)

// row is what a code means in HTTP.
type row struct {
	status int
	title  string
	// retryAfter, in seconds, is sent with answers that say "not now", unless the error knows better.
	retryAfter int
}

var catalogue = map[models.Code]row{
	models.CodeBadRequest:           {status: http.StatusBadRequest, title: "The request can't be read"},
	models.CodeUnauthenticated:      {status: http.StatusUnauthorized, title: "No valid access token"},
	models.CodeForbidden:            {status: http.StatusForbidden, title: "Not allowed"},
	models.CodeConfirmFirst:         {status: http.StatusForbidden, title: "The password is needed again"},
	models.CodeCrossSite:            {status: http.StatusForbidden, title: "Sent by a page of another site"},
	models.CodeNotEmpty:             {status: http.StatusConflict, title: "It is not empty"},
	models.CodeContradictsToken:     {status: http.StatusForbidden, title: "The request contradicts the token"},
	models.CodeNotFound:             {status: http.StatusNotFound, title: "Not found"},
	models.CodeUnknownRoute:         {status: http.StatusNotFound, title: "Unknown path"},
	models.CodeMethodNotAllowed:     {status: http.StatusMethodNotAllowed, title: "Method not allowed"},
	models.CodeTooLarge:             {status: http.StatusRequestEntityTooLarge, title: "The body is too large"},
	models.CodeUnsupportedMedia:     {status: http.StatusUnsupportedMediaType, title: "Unsupported media type"},
	models.CodeNoUsableAddress:      {status: http.StatusUnprocessableEntity, title: "No usable address"},
	models.CodeBadAddress:           {status: http.StatusUnprocessableEntity, title: "The address may not be used"},
	models.CodeAmbiguousGroup:       {status: http.StatusConflict, title: "Several groups have this name"},
	models.CodeGroupIPMismatch:      {status: http.StatusConflict, title: "The group has another group IP"},
	models.CodeGroupIPTaken:         {status: http.StatusConflict, title: "The group IP is taken"},
	models.CodeWrongLAN:             {status: http.StatusConflict, title: "The source is in no gateway's LAN"},
	models.CodeNoGateway:            {status: http.StatusConflict, title: "The premises has no gateway yet"},
	models.CodePoolExhausted:        {status: http.StatusConflict, title: "No group IP is free"},
	models.CodeRangeConflict:        {status: http.StatusConflict, title: "The range conflicts with another"},
	models.CodeBadRange:             {status: http.StatusUnprocessableEntity, title: "The range is not usable"},
	models.CodeBadURL:               {status: http.StatusUnprocessableEntity, title: "The URL may not be used"},
	models.CodeAlreadyExists:        {status: http.StatusConflict, title: "It exists already"},
	models.CodeIdempotencyKeyReused: {status: http.StatusUnprocessableEntity, title: "The Idempotency-Key was used for another request"},
	models.CodeQuotaExceeded:        {status: http.StatusConflict, title: "A quota is used up"},
	models.CodeRateLimited:          {status: http.StatusTooManyRequests, title: "Too many requests", retryAfter: 10},
	models.CodeOverloaded:           {status: http.StatusServiceUnavailable, title: "Too many callers wait", retryAfter: 5},
	models.CodeUnavailable:          {status: http.StatusServiceUnavailable, title: "Not available now", retryAfter: 2},
	models.CodeInternal:             {status: http.StatusInternalServerError, title: "A fault of the service"},

	models.CodeInvalidClient:         {status: http.StatusUnauthorized, title: "The client is not accepted"},
	models.CodeInvalidGrant:          {status: http.StatusBadRequest, title: "What was given is not good, or no longer"},
	models.CodeUnauthorizedClient:    {status: http.StatusBadRequest, title: "Not for this client"},
	models.CodeUnsupportedGrant:      {status: http.StatusBadRequest, title: "There is no such grant"},
	models.CodeInvalidScope:          {status: http.StatusBadRequest, title: "The scope is not granted to this client"},
	models.CodeInvalidClientMetadata: {status: http.StatusBadRequest, title: "The device's description can't be taken"},
	models.CodeInvalidDPoPProof:      {status: http.StatusBadRequest, title: "The proof of possession is not valid"},
	models.CodeUseDPoPNonce:          {status: http.StatusBadRequest, title: "The proof needs a nonce"},
	models.CodeAuthorizationPending:  {status: http.StatusBadRequest, title: "Nobody has decided yet"},
	models.CodeSlowDown:              {status: http.StatusBadRequest, title: "Polled too often"},
	models.CodeAccessDenied:          {status: http.StatusBadRequest, title: "The account holder refused"},
	models.CodeExpiredToken:          {status: http.StatusBadRequest, title: "Not approved in time"},
}

// Status is the HTTP status of a code; a code that the catalogue doesn't know is a fault of ours, 500.
func Status(code models.Code) int { return lookup(code).status }

// Wait is how many seconds to wait before trying again may help; 0 if waiting doesn't.
func Wait(e *models.Error) int {
	if wait, ok := e.Fields[RetryAfter].(int); ok {
		return wait
	}
	return lookup(e.Code).retryAfter
}

func lookup(code models.Code) row {
	if r, ok := catalogue[code]; ok {
		return r
	}
	return catalogue[models.CodeInternal]
}

// WriteOAuth answers like Write, in the form that RFC 6749 §5.2 wants at the OAuth endpoints: plain JSON with error and
// error_description, and the members of the problem document beside them (docs/adr/0010).
func WriteOAuth(w http.ResponseWriter, e *models.Error, instance string) {
	write(w, e, instance, "application/json", map[string]any{"error": OAuthError(e.Code), "error_description": e.Detail})
}

// oauthErrors are the error codes of those problems that are not named after one.
var oauthErrors = map[models.Code]string{
	models.CodeAlreadyExists: "invalid_client_metadata", // RFC 7591 §3.2.2: the key of another device
	models.CodeQuotaExceeded: "access_denied",
	models.CodeRateLimited:   "temporarily_unavailable",
	models.CodeOverloaded:    "temporarily_unavailable",
	models.CodeUnavailable:   "temporarily_unavailable",
	models.CodeInternal:      "server_error",
}

// OAuthError is the error code of an OAuth endpoint for a problem.
func OAuthError(code models.Code) string {
	switch code {
	case models.CodeInvalidClient, models.CodeInvalidGrant, models.CodeUnauthorizedClient, models.CodeUnsupportedGrant, models.CodeInvalidScope,
		models.CodeInvalidClientMetadata, models.CodeInvalidDPoPProof, models.CodeUseDPoPNonce, models.CodeAuthorizationPending,
		models.CodeSlowDown, models.CodeAccessDenied, models.CodeExpiredToken:
		return strings.ReplaceAll(string(code), "-", "_")
	}
	if name, ok := oauthErrors[code]; ok {
		return name
	}
	if Status(code) >= http.StatusInternalServerError {
		return "server_error"
	}
	return "invalid_request"
}

// Encode gives the problem document of an error, and its status. The instance is the id of the request.
func Encode(e *models.Error, instance string) (status int, body []byte) {
	return encode(e, instance, nil)
}

func encode(e *models.Error, instance string, more map[string]any) (status int, body []byte) {
	r, code := lookup(e.Code), e.Code
	if _, ok := catalogue[code]; !ok {
		code = models.CodeInternal
	}
	doc := map[string]any{}
	maps.Copy(doc, e.Fields)
	doc["type"] = TypePrefix + string(code)
	doc["title"] = r.title
	doc["status"] = r.status
	doc["detail"] = e.Detail
	doc["instance"] = instance
	maps.Copy(doc, more)
	body, err := json.Marshal(doc)
	if err != nil {
		// A member that JSON can't hold is a fault of ours; the standard members always can.
		for k := range e.Fields {
			delete(doc, k)
		}
		body, _ = json.Marshal(doc) //nolint:errchkjson // strings and a number only
	}
	return r.status, body
}

// Write answers with the problem document of an error. Headers that belong to this one answer, such as WWW-Authenticate, are set by
// the caller before.
func Write(w http.ResponseWriter, e *models.Error, instance string) {
	write(w, e, instance, MediaType, nil)
}

func write(w http.ResponseWriter, e *models.Error, instance, media string, more map[string]any) {
	status, body := encode(e, instance, more)
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Del("ETag")
	if wait := Wait(e); wait > 0 {
		h.Set("Retry-After", strconv.Itoa(wait))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone can't be told
}
