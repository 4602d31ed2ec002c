package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/camera"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/follow"
	"github.com/groupcast/groupcast/internal/lease"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) camera() *cobra.Command {
	var m member
	var config camera.Config
	var sourcePort uint16
	var noOption bool
	var waitFor int
	var logFile, keyFile string
	cmd := p.command("camera [FILE]", "Register as a source and send a stream to the group IP", cobra.MaximumNArgs(1),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) (err error) {
			request, err := m.request(false)
			if err != nil {
				return err
			}
			config.Pace.ByClock = len(args) == 1 && args[0] != "-"
			if !config.Relay.IsValid() {
				stream, err := openStream(args)
				if err != nil {
					return err
				}
				defer stream.Close()
				config.Stream = stream
			} else if len(args) > 0 {
				return errors.New("give a FILE or --relay, not both")
			}
			if config.SendLog, err = datagramlog.Create(logFile); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, config.SendLog.Close()) }()
			config.Log = p.log()
			config.Lease = lease.New(c, request, config.SendLog.Note, config.Log)
			config.Private = netip.AddrPortFrom(m.private.Unmap(), sourcePort)
			config.Option = !noOption
			if keyFile != "" {
				if config.Tunnel, err = camera.OpenTunnel(c, request.ID, keyFile, config.Private, config.Option, config.Log); err != nil {
					return err
				}
			}
			config.Joined = func(answer api.RegistrationAnswer) {
				p.tellJoined("source", answer)
			}
			if waitFor > 0 {
				config.Await = func(ctx context.Context, answer api.RegistrationAnswer) error {
					return p.await(ctx, c, answer, m.group, waitFor)
				}
			}
			summary, err := camera.Run(ctx, p.leaveBy, config)
			p.tellSent(summary)
			return err
		})
	cmd.Long = `Register as a source, send a stream to the group IP, renew in time, and leave at the end or at Ctrl-C.

The stream is an MPEG transport stream from FILE, sent by its own clock, or from standard input, sent as it comes (--bitrate
paces either), seven packets to a datagram. Or it is a local UDP stream (--relay), sent as it comes: one datagram in, one
datagram out, byte for byte.

Each datagram carries the IP option that asks for copies, which needs CAP_NET_RAW. With --no-option it doesn't; then the gateway
copies only if the account holder set this camera's trigger to "source".

In a premises without a gateway the camera ends a tunnel to a relay itself (--tunnel), if the account holder has the premises copied
in the network. That needs CAP_NET_ADMIN and CAP_NET_RAW. Nothing is sent while no relay copies or nobody wants copies.`
	m.kind = models.MemberDevice // services are never sources
	m.flags(cmd)
	f := cmd.Flags()
	f.TextVar(&config.Relay, "relay", netip.AddrPort{}, "relay the UDP stream that comes in at this local `ADDRESS:PORT`")
	f.Uint16Var(&config.MediaPort, "port", 5004, "UDP `PORT` of the group IP to send to")
	f.Uint16Var(&sourcePort, "source-port", 0, "UDP `PORT` to send from (default: a free one)")
	f.IntVar(&waitFor, "wait-for", 0, "begin to stream only when so many (`N`) destinations are in the group; what comes in before is dropped")
	f.StringVar(&keyFile, "tunnel", "", "send through a WireGuard tunnel to a relay; its key is in this `FILE`, which is made if there is none")
	f.BoolVar(&noOption, "no-option", false, "send without the IP option")
	f.Int64Var(&config.Pace.Bitrate, "bitrate", 0, "send so many `BITS` of transport stream per second")
	f.BoolVar(&config.Pace.RTP, "rtp", false, "send the transport stream in RTP")
	f.StringVar(&logFile, "log", "", "write a line per datagram to this `FILE`: time in ns, RTP sequence number, size, hash")
	needs(cmd, "private-ip")
	return cmd
}

// errThere ends the listening.
var errThere = errors.New("they are there")

// await returns when the service notifies that so many destinations are there, or ctx is done.
func (p *program) await(ctx context.Context, c *client.ClientWithResponses, answer api.RegistrationAnswer, group string, destinations int) error {
	fmt.Fprintf(p.err, "waiting for %d destinations\n", destinations)
	err := follow.Events(ctx, c, "", p.log(), func(h follow.Heard) error {
		for _, e := range h.Events {
			if e.Group != nil && e.Group.GroupName == group && e.Group.GroupIP == answer.GroupIP && int(e.Group.State) >= destinations {
				fmt.Fprintf(p.err, "%d destinations are there: the stream begins\n", e.Group.State)
				return errThere
			}
		}
		return nil
	})
	if errors.Is(err, errThere) {
		return nil
	}
	return errors.Join(err, context.Cause(ctx))
}

func openStream(args []string) (io.ReadCloser, error) {
	if len(args) == 0 || args[0] == "-" {
		if isatty.IsTerminal(os.Stdin.Fd()) {
			return nil, errors.New("there is no stream: give a FILE, a stream on standard input, or --relay")
		}
		return os.Stdin, nil
	}
	return os.Open(args[0])
}

// tellJoined says on standard error what the service answered, so that standard output stays free for the stream.
func (p *program) tellJoined(role string, answer api.RegistrationAnswer) {
	if p.json {
		_ = report.JSON(p.err, answer)
		return
	}
	fmt.Fprintf(p.err, "registered as %s: group IP %s, state %d\n", role, answer.GroupIP, answer.State)
}

func (p *program) tellSent(s camera.Summary) {
	if p.json {
		_ = report.JSON(p.err, s)
		return
	}
	fmt.Fprintf(p.err, "sent %d datagrams, %d failed\n", s.Sent, s.Failed)
	if s.Dropped > 0 {
		fmt.Fprintf(p.err, "%d more went nowhere: nobody copied then\n", s.Dropped)
	}
}
