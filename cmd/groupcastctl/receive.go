package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/oapi-codegen/nullable"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/receiver"
)

// settle is how long after the leave datagrams are still handed on that were sent before it.
const settle = 100 * time.Millisecond

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
	o := receiveOptions{listen: netip.AddrPortFrom(netip.IPv4Unspecified(), receiver.DefaultPort)}
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
			return p.receiveOne(ctx, p.leaveBy, c, o, func(*receiver.Receiver) {})
		})
	cmd.Long = `Register as a destination, hand on what arrives, renew in time, and leave at Ctrl-C or after --for.

Copies come to --listen. If that is one address it is registered as the public one, unless address flags say otherwise. Of RTP
that carries an MPEG transport stream, standard output and files get the transport stream; a UDP port gets each datagram as it
is. What is missing is counted by RTP sequence numbers and told at the end. Where the service asks for consent it is kept from the same port, and what becomes
of it is told.

It goes on while the service is away, and when the gateway or the group come back. One that was killed and is started again with the same --id, --instance and
--listen takes up its registration.

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

// receiveOne is one receiver's life in one group, until ctx is done.
func (p *program) receiveOne(ctx, leaveBy context.Context, c *client.ClientWithResponses, o receiveOptions, joined func(*receiver.Receiver)) (err error) {
	config := receiver.Config{Client: c, Listen: o.listen, BehindNAT: o.behindNAT, EventsElsewhere: o.auto}
	if config.Member, err = o.member.request(true); err != nil {
		return err
	}
	if o.auto { // the group is known; only a service has to name its IP
		config.Member.DeviceType, config.Member.Model = nil, nil
		if o.member.kind != models.MemberService {
			config.Member.GroupIP = nullable.NewNullNullable[netip.Addr]()
		}
	}
	output, closeOutput, err := openOutput(o.to, o.limit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeOutput()) }()
	log, err := datagramlog.Create(o.logFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	config.Step = log.Note
	var ending atomic.Bool // nothing is handed on any more
	config.Media = func(d receiver.Datagram) error {
		log.Datagram(d.At, d.Payload, d.Sequence, d.RTP)
		if ending.Load() {
			return nil
		}
		return output(d)
	}
	r, err := p.member(ctx, leaveBy, config, joined, func() {
		pause(leaveBy, settle)
		ending.Store(true)
		pause(leaveBy, o.linger-settle)
	})
	if r != nil {
		p.tellReceived(r.Summary())
	}
	return err
}

// member is a destination's life from its registration until ctx is done, and the leave, which may take until leaveBy is done. joined is called after the
// registration, lingering after the leave; without a registration there is no Receiver.
func (p *program) member(ctx, leaveBy context.Context, config receiver.Config, joined func(*receiver.Receiver), lingering func()) (*receiver.Receiver, error) {
	config.Log = p.log()
	config.Joined = func(answer api.RegistrationAnswer) { p.tellJoined("destination", answer) }
	config.Consent = p.tellConsent
	r, err := receiver.Join(leaveBy, config)
	if err != nil {
		return nil, err
	}
	joined(r)
	select {
	case <-ctx.Done():
		_ = r.Leave(leaveBy) // Close tells
		lingering()
	case <-r.Done():
	}
	return r, r.Close() //nolint:contextcheck // it has left
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tellConsent says on standard error how the consent stands, when that changes.
func (p *program) tellConsent(state models.ConsentState) {
	if p.json {
		_ = report.JSON(p.err, map[string]models.ConsentState{"consent": state})
		return
	}
	says := map[models.ConsentState]string{
		models.ConsentExempt:      "exempt: copies come unasked",
		models.ConsentLive:        "live: copies may come",
		models.ConsentLost:        "lost: the gateway has asked for nothing for 30 s, so no copies come; going on to ask it",
		models.ConsentPending:     "pending: the gateway hasn't said yet where it sends from, or hasn't asked",
		models.ConsentUnreachable: "unreachable: no check of the gateway got through for 10 s; a firewall may hold back UDP to this port",
	}
	fmt.Fprintf(p.err, "consent is %s\n", says[state])
}

func (p *program) tellReceived(s receiver.Summary) {
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
