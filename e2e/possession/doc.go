// Package possession lets the client's half of RFC 9449 (openapi/clientauth) talk to the server's half (server/dpop) over a socket, with nothing
// else of groupcast around them. It has tests only.
package possession
