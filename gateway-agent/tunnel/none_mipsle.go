package tunnel

import "errors"

// The agent for mipsle is for small routers, and WireGuard doesn't fit into the room that it has there (docs/adr/0069).
var errNoKernel = errors.New("this build of the agent has no tunnel: copies are made at home")

func openKernel(Config) (backend, error) { return nil, errNoKernel }

func openUser(Config) (backend, error) { return nil, errNoKernel }

// Possible tells why this process can't have a tunnel.
func Possible() error { return errNoKernel }
