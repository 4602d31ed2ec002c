package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/lease"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/receive"
	"github.com/groupcast/groupcast/openapi/api"
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
			if !media.IsValid() {
				return errors.New("--media: give the address and port that the receiver has, for example 198.51.100.7:5004")
			}
			beside, err := receiver.OpenBeside(media)
			if err != nil {
				return fmt.Errorf("--media: %w", err)
			}
			defer beside.Close()
			m.at(media)
			request, err := m.request(true)
			if err != nil {
				return err
			}
			return receive.Respond(ctx, p.leaveBy, lease.New(c, request, nil, p.log()), beside,
				func(answer api.RegistrationAnswer) { p.tellJoined("destination", answer) })
		})
	cmd.Long = `Register another program's port as a destination, renew in time, keep the consent that the service asks for, and leave at Ctrl-C or after --for.

The other program, such as ffplay, VLC or an appliance's receiver on this host, has the port and gets the copies; this one sees the checks that come to the port
and answers them from there, by a raw socket (CAP_NET_RAW, IPv4). While no program has the port it answers nothing, so the copies end within 30 seconds.`
	m.flags(cmd)
	m.kindFlag(cmd)
	cmd.Flags().TextVar(&media, "media", netip.AddrPort{}, "`ADDRESS:PORT` of this host that the other program receives at")
	cmd.Flags().DurationVar(&howLong, "for", 0, "leave after so long (default: at Ctrl-C)")
	return cmd
}
