package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/lease"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/receive"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) receive() *cobra.Command {
	var m member
	var config receive.Config
	listen := netip.AddrPortFrom(netip.IPv4Unspecified(), 5004)
	var to, logFile string
	var limit int64
	var howLong time.Duration
	cmd := p.command("receive", "Register as a destination and hand on the stream", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) (err error) {
			if to == "-" && isatty.IsTerminal(os.Stdout.Fd()) {
				return errors.New("standard output is a terminal: send it to a player, or give --to FILE or --to udp:ADDRESS:PORT")
			}
			if config.Socket, err = receive.Open(listen); err != nil {
				return err
			}
			defer config.Socket.Close()
			m.at(config.Socket.At())
			request, err := m.request(true)
			if err != nil {
				return err
			}
			if config.Output, err = receive.OpenOutput(to, limit); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, config.Output.Close()) }()
			if config.Log, err = datagramlog.Create(logFile); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, config.Log.Close()) }()
			config.Lease = lease.New(c, request, config.Log, p.log())
			config.Joined = func(answer api.RegistrationAnswer) { p.tellJoined("destination", answer) }
			if howLong > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, howLong)
				defer cancel()
			}
			summary, err := receive.Run(ctx, p.leaveBy, config)
			p.tellReceived(summary)
			return err
		})
	cmd.Long = `Register as a destination, hand on what arrives, renew in time, and leave at Ctrl-C or after --for.

Copies come to --listen. If that is one address it is registered as the public one, unless address flags say otherwise. Of RTP
that carries an MPEG transport stream, standard output and files get the transport stream; a UDP port gets each datagram as it
is. What is missing is counted by RTP sequence numbers and told at the end.`
	m.flags(cmd)
	m.kindFlag(cmd)
	f := cmd.Flags()
	f.TextVar(&listen, "listen", listen, "`ADDRESS:PORT` to receive at; port 0 takes a free one")
	f.Uint16Var(&m.port, "port", 0, "UDP `PORT` to register, if it isn't the one of --listen")
	f.StringVar(&to, "to", "-", "where the stream goes: - (standard output), udp:`ADDRESS:PORT`, or a file")
	f.Int64Var(&limit, "limit", 0, "write at most so many `BYTES` to the file or standard output (default: all)")
	f.DurationVar(&howLong, "for", 0, "leave after so long (default: at Ctrl-C)")
	f.DurationVar(&config.Linger, "linger", 0, "go on listening and logging for so long after the leave, to see that nothing comes any more")
	f.StringVar(&logFile, "log", "", "write a line per datagram to this `FILE`: time in ns, RTP sequence number, size, hash")
	return cmd
}

// at takes the bound address for what the flags left out.
func (m *member) at(bound netip.AddrPort) {
	if m.port == 0 {
		m.port = bound.Port()
	}
	if m.private.IsValid() || m.public.IsValid() || m.ipv6.IsValid() || bound.Addr().IsUnspecified() {
		return
	}
	if bound.Addr().Is4() {
		m.public = bound.Addr()
	} else {
		m.ipv6 = bound.Addr()
	}
}

func (p *program) tellReceived(s receive.Summary) {
	if p.json {
		_ = report.JSON(p.err, s)
		return
	}
	fmt.Fprintf(p.err, "received %d datagrams, %d bytes\n", s.Datagrams, s.Bytes)
	for _, stream := range s.Streams {
		fmt.Fprintf(p.err, "RTP stream %08x: received %d, lost %d, duplicates %d, late %d\n",
			stream.SSRC, stream.Received, stream.Lost, stream.Duplicates, stream.Late)
	}
}
