package agent

import (
	"errors"
	"log/slog"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
)

// openRelay isn't reached: this build has no tunnel (docs/adr/0069). It spares the program what a relay consists of.
func openRelay(config.Config, duplicator.Inside, *consents, *slog.Logger) (duplicator.Network, error) {
	return nil, errors.New("this build of the agent has no tunnel")
}
