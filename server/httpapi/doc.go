// Package httpapi is the edge of the service: what every request goes through before a handler sees it, and the handlers of the
// public contract (openapi/openapi.yaml). The order is: request id, recover, log, metrics, limit of the body, authenticate,
// authorize, validate, handler. One Edge serves the public contract and another, made of the same code, the operator's.
//
// Handlers translate between the contract's types and the domain services, and hold no rules. Every error becomes a problem
// document in one place; what isn't a *models.Error is a fault of ours, is logged, and never shown.
package httpapi
