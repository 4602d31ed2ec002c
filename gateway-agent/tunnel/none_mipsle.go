package tunnel

import "errors"

// The agent for mipsle is for small routers, and WireGuard doesn't fit into the room that it has there (docs/adr/0069).
var errNoKernel = errors.New("this build of the agent has no tunnel: copies are made at home")

func openKernel(Config) (backend, error) { return nil, errNoKernel }

func openUser(Config) (backend, error) { return nil, errNoKernel }

// Built tells whether this build of the agent has a tunnel at all. What only a relay needs is left out by it.
const Built = false

// Lack is something that this process needs for a tunnel and hasn't got.
type Lack struct {
	What string
	Why  error
	Do   string
}

// Possible tells why this process can't have a tunnel.
func Possible() error { return errNoKernel }

// Lacks gives why this process can't have a tunnel.
func Lacks(bool) []Lack {
	return []Lack{{"WireGuard", errNoKernel, "take another build, if this router has room for it"}}
}
