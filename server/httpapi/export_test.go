package httpapi

import (
	"context"
	"net/netip"

	"github.com/getkin/kin-openapi/openapi3"
)

// RemoteOf shows where the edge thinks that a request came from.
func RemoteOf(ctx context.Context) netip.Addr { return callOf(ctx).remote }

// DecodeBody shows what a handler would be given.
func DecodeBody(data []byte, schema *openapi3.Schema) (any, error) { return decodeBody(data, schema) }
