package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/receiver"
)

func (p *program) consentResponder() *cobra.Command {
	var m member
	var media netip.AddrPort
	var howLong time.Duration
	cmd := p.command("consent-responder", "Register and consent for a receiver that knows nothing of it", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			if howLong > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, howLong)
				defer cancel()
			}
			if !media.IsValid() || media.Port() == 0 {
				return errors.New("--media: give the address and port that the receiver has, for example 198.51.99.7:5004 or [2001:db9::7]:5004")
			}
			request, err := m.request(true)
			if err != nil {
				return err
			}
			config := receiver.Config{Client: c, Member: request, Listen: media, Beside: true}
			if _, err := p.member(ctx, p.leaveBy, config, func(*receiver.Receiver) {}, func() {}); err != nil {
				return fmt.Errorf("consent for %s: %w", media, err)
			}
			return nil
		})
	cmd.Long = `Register another program's port as a destination, renew in time, keep the consent that the service asks for, and leave at Ctrl-C or after --for.

The other program, such as ffplay or an appliance's receiver on this host, has the port and gets the copies, and the checks, which it has to ignore; this one sees
the checks and answers them from the port, by a raw socket (CAP_NET_RAW). While no program has the port it answers nothing, so the copies end within 30 seconds.`
	m.flags(cmd)
	m.kindFlag(cmd)
	cmd.Flags().TextVar(&media, "media", netip.AddrPort{}, "`ADDRESS:PORT` of this host that the other program receives at")
	cmd.Flags().DurationVar(&howLong, "for", 0, "leave after so long (default: at Ctrl-C)")
	return cmd
}
