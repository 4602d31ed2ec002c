package agent

import (
	"errors"
	"log/slog"

	"github.com/groupcast/groupcast/gateway-agent/admission"
	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/sync"
)

// admit puts a gate in front of the backend if the uplink has a rate; else gate is nil.
func admit(c config.Config, backend duplicator.Duplicator, log *slog.Logger) (copier duplicator.Duplicator, gate *admission.Gate) {
	if c.UplinkRate == 0 {
		return backend, nil
	}
	gate = admission.New(backend, admission.Config{Rate: c.UplinkRate, Log: log})
	return gate, gate
}

// openDuplicator opens the configured backend, or by auto the fastest that this host can run, and says which and why.
func openDuplicator(c config.Config, iface string, asking *consents, log *slog.Logger) (duplicator.Duplicator, error) {
	base := duplicator.Config{
		GroupRange: c.Gateway.Range, Uplink: c.Gateway.Uplink, Ports: c.MediaPorts, AnyPort: c.AnyPort, CopyOptions: c.CopyOptions,
		DestinationRate: c.DestinationRate, Permit: asking.permit, AllowLoopback: c.AllowLoopback, Heard: asking.hear, Answered: asking.ports.Each, MaxStale: sync.MaxStaleLimit, Log: log,
	}
	inKernel := ebpf.Config{Config: base, Interface: iface, PinDir: c.BPFDir}
	why := "it is the configured backend"
	if c.Backend != config.BackendSocket {
		d, err := ebpf.Open(inKernel)
		switch {
		case err == nil:
			if c.Backend == config.BackendAuto {
				why = "this host can run it"
			}
			log.Info("copying in the kernel", "backend", config.BackendEBPF, "why", why, "lan", iface)
			return d, nil
		case c.Backend == config.BackendEBPF || !errors.Is(err, ebpf.ErrUnavailable):
			return nil, err
		}
		why = err.Error()
	}
	// A program that an agent before this one left would keep the cameras' datagrams from the sockets.
	if err := ebpf.Remove(inKernel); err != nil {
		return nil, err
	}
	d, err := duplicator.OpenSocket(base)
	if err != nil {
		return nil, err
	}
	log.Info("copying by sockets", "backend", config.BackendSocket, "why", why)
	return d, nil
}

// loaded gives up what only loading a program needs.
func loaded(log *slog.Logger) {
	if err := giveUpTracing(); err != nil {
		log.Warn("CAP_PERFMON is needed no more, but could not be given up", "err", err)
	}
}
