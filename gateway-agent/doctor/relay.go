//go:build !mipsle

package doctor

import (
	"log/slog"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// relay has a tunnel of its own for a moment, and behind it what a relay copies with: nobody knows its address, so nothing comes.
func (e *examination) relay() {
	c := e.config
	quiet := slog.New(slog.DiscardHandler)
	base := duplicator.Config{Uplink: c.Gateway.Uplink, CopyOptions: c.CopyOptions, DestinationRate: c.DestinationRate, Log: quiet}
	if !base.Uplink.IsValid() {
		return // the configuration's finding says so
	}
	err := tunnel.Try(quiet, func(t *tunnel.Tunnel) {
		kind := "WireGuard in user space, on a tun device"
		if t.Kernel() {
			kind = "the kernel's WireGuard"
		}
		e.ok("tunnel device", "it can be made: %s", kind)
		e.judgeSocket(closed(duplicator.OpenRelay(base, t)), duplicator.ProbeRing())
		if c.Backend != config.BackendSocket {
			e.judgeKernel(closed(ebpf.OpenRelay(ebpf.Config{Config: base}, t)))
		}
	})
	if err != nil {
		e.fail("tunnel device", "do what the message says", "%v", err)
	}
}

func closed[N duplicator.Network](n N, err error) error {
	if err == nil {
		err = n.Close()
	}
	return err
}
