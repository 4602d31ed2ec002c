//go:build !mipsle

package agent

import (
	"errors"
	"log/slog"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/sync"
)

// openRelay is openDuplicator for a relay.
func openRelay(c config.Config, inside duplicator.Inside, asking *consents, log *slog.Logger) (duplicator.Network, error) {
	base := duplicator.Config{
		Uplink: c.Gateway.Uplink, CopyOptions: c.CopyOptions, DestinationRate: c.DestinationRate, Heard: asking.hear, Answered: asking.ports.Each,
		MaxStale: sync.MaxStaleLimit, Log: log,
	}
	why := "it is the configured backend"
	if c.Backend != config.BackendSocket {
		d, err := ebpf.OpenRelay(ebpf.Config{Config: base}, inside)
		switch {
		case err == nil:
			if c.Backend == config.BackendAuto {
				why = "this host can run it"
			}
			log.Info("copying in the kernel", "backend", config.BackendEBPF, "why", why, "tunnel", inside.Interface())
			loaded(log)
			return d, nil
		case c.Backend == config.BackendEBPF || !errors.Is(err, ebpf.ErrUnavailable):
			return nil, err
		}
		why = err.Error()
	}
	d, err := duplicator.OpenRelay(base, inside)
	if err != nil {
		return nil, err
	}
	log.Info("copying by sockets", "backend", config.BackendSocket, "why", why)
	loaded(log)
	return d, nil
}
