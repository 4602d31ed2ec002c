package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/server/idempotency"
)

const headerIdempotencyKey = "Idempotency-Key"

// Once is a middleware of generated code: an operation that takes an Idempotency-Key, and gets one, is done once for each key, and its
// answer is given again to whoever sends the request again. F is the generated package's type of a handler.
func Once[F ~func(*gin.Context, any) (any, error)](e *Edge) func(F, string) F {
	return func(do F, operation string) F {
		return func(c *gin.Context, request any) (any, error) {
			op := e.operations[c.Request.Method+" "+c.FullPath()]
			// The contract lets a key have the quotes of a structured field (RFC 8941 §3.3.3), or none.
			key := strings.Trim(c.GetHeader(headerIdempotencyKey), `"`)
			if op == nil || !op.keyed || key == "" {
				return do(c, request)
			}
			outer := c.Request
			ctx, principal := caller(c)
			body, _ := outer.Body.(validated)
			a, err := e.answers.Once(ctx, idempotency.Request{
				Key: key, Principal: principal, Operation: op.id, Path: outer.URL.Path, Body: body.value,
			}, func(ctx context.Context) (idempotency.Answer, error) {
				c.Request = outer.WithContext(ctx) // the handler's changes are a part of the transaction
				defer func() { c.Request = outer }()
				response, err := do(c, request)
				if err != nil {
					return idempotency.Answer{}, err
				}
				return render(operation, response)
			})
			if err != nil {
				return nil, err
			}
			maps.Copy(c.Writer.Header(), a.Header)
			c.Writer.WriteHeader(a.Status)
			if _, err := c.Writer.Write(a.Body); err != nil {
				return nil, fmt.Errorf("write an answer: %w", err)
			}
			return nil, nil //nolint:nilnil // generated code writes nothing then
		}
	}
}

// render writes a response of generated code, which has a method for that named after its operation.
func render(operation string, response any) (idempotency.Answer, error) {
	w := &rendered{answer: idempotency.Answer{Header: http.Header{}}}
	visit, ok := reflect.TypeAssert[func(http.ResponseWriter) error](reflect.ValueOf(response).MethodByName("Visit" + operation + "Response"))
	if !ok {
		return w.answer, fmt.Errorf("a response of %s can't be written", operation)
	}
	err := visit(w)
	w.answer.Body = w.body.Bytes()
	return w.answer, err
}

// rendered is a response that is kept instead of sent.
type rendered struct {
	answer idempotency.Answer
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (r *rendered) Header() http.Header { return r.answer.Header }

// WriteHeader implements http.ResponseWriter.
func (r *rendered) WriteHeader(status int) { r.answer.Status = status }

// Write implements http.ResponseWriter.
func (r *rendered) Write(b []byte) (int, error) { return r.body.Write(b) }
