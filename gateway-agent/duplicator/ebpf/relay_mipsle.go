package ebpf

import (
	"fmt"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
)

// OpenRelay can't be: the agent has no tunnel on this architecture.
func OpenRelay(Config, duplicator.Inside) (duplicator.Network, error) {
	return nil, fmt.Errorf("%w: this build of the agent has no tunnel", ErrUnavailable)
}
