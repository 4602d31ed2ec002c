package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/receive"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/client"
)

// receiveOptions are what one receiver does, in whatever group.
type receiveOptions struct {
	member      member
	listen      netip.AddrPort
	to, logFile string
	limit       int64
	linger      time.Duration
	auto        bool
	behindNAT   bool
}

// severalAtOnce tells whether each group has an output of its own.
func (o receiveOptions) severalAtOnce() bool {
	return strings.Contains(o.to, groupMark) && (o.logFile == "" || strings.Contains(o.logFile, groupMark))
}

func (p *program) receive() *cobra.Command {
	o := receiveOptions{listen: netip.AddrPortFrom(netip.IPv4Unspecified(), 5004)}
	var howLong time.Duration
	cmd := p.command("receive", "Register as a destination and hand on the stream", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			if o.to == "-" && isatty.IsTerminal(os.Stdout.Fd()) {
				return errors.New("standard output is a terminal: send it to a player, or give --to FILE or --to udp:ADDRESS:PORT")
			}
			if !o.auto && (o.member.group == "" || o.member.id == "") {
				return errors.New("give --id and --group, or --auto to join by the account's policy")
			}
			if o.auto && o.member.kind == models.MemberDevice && o.member.id == "" {
				return errors.New("--id: give the device's id")
			}
			if howLong > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, howLong)
				defer cancel()
			}
			if o.auto {
				return p.receiveAutomatically(ctx, c, o)
			}
			return p.receiveOne(ctx, p.leaveBy, c, o)
		})
	cmd.Long = `Register as a destination, hand on what arrives, renew in time, and leave at Ctrl-C or after --for.

Copies come to --listen. If that is one address it is registered as the public one, unless address flags say otherwise. Of RTP
that carries an MPEG transport stream, standard output and files get the transport stream; a UDP port gets each datagram as it
is. What is missing is counted by RTP sequence numbers and told at the end. Where the service asks for consent it is kept from the same port.

With --auto it listens to the account's events and joins each group that there is or comes, if the account's join policy names this device's type (and model)
or this service; --group makes it one name only, and a service needs no --id. It leaves a group when that ends, goes on through restarts of the
service, and receives several groups at once if "{group}", the group's name, stands in --to and --log.`
	o.member.flags(cmd)
	o.member.kindFlag(cmd)
	f := cmd.Flags()
	for _, name := range []string{"id", "group"} { // --auto can do without
		delete(f.Lookup(name).Annotations, cobra.BashCompOneRequiredFlag)
	}
	f.BoolVar(&o.auto, "auto", false, "join the groups that the account's join policy wants this member in")
	f.TextVar(&o.listen, "listen", o.listen, "`ADDRESS:PORT` to receive at; port 0 takes a free one")
	f.Uint16Var(&o.member.port, "port", 0, "UDP `PORT` to register, if it isn't the one of --listen")
	f.BoolVar(&o.behindNAT, "behind-nat", false, "register no port: the copies come to wherever a NAT makes the checks come from")
	f.StringVar(&o.to, "to", "-", "where the stream goes: - (standard output), udp:`ADDRESS:PORT`, or a file")
	f.Int64Var(&o.limit, "limit", 0, "write at most so many `BYTES` to the file or standard output (default: all)")
	f.DurationVar(&howLong, "for", 0, "leave after so long (default: at Ctrl-C)")
	f.DurationVar(&o.linger, "linger", 0, "go on listening and logging for so long after the leave, to see that nothing comes any more")
	f.StringVar(&o.logFile, "log", "", "write a line per datagram to this `FILE`: time in ns, RTP sequence number, size, hash")
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
