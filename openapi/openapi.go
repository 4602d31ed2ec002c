// Package openapi is the only source of groupcast's HTTP contract: openapi.yaml for devices, services and gateways, admin.yaml
// for the operator's unix socket. The code beside it is generated; `make generate` writes it, `make drift` checks it.
package openapi

import _ "embed"

//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config public-types.cfg.yaml openapi.yaml
//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config public-server.cfg.yaml openapi.yaml
//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config public-client.cfg.yaml openapi.yaml
//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config admin-types.cfg.yaml admin.yaml
//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config admin-server.cfg.yaml admin.yaml
//go:generate go tool -modfile=../.ci/tools/go.mod oapi-codegen -config admin-client.cfg.yaml admin.yaml
//go:generate go run ../.ci/permissions ../docs/permissions.md

// Public is the contract as published, free of Go's own annotations.
//
//go:embed openapi.yaml
var Public []byte

// Events describes the ways on which events come, in AsyncAPI 3.1; their schemas are those of Public.
//
//go:embed asyncapi.yaml
var Events []byte

// Admin is the operator's contract.
//
//go:embed admin.yaml
var Admin []byte
