package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/watch"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) watch() *cobra.Command {
	var f filter
	var gateway string
	var every time.Duration
	cmd := p.command("watch", "Show groups and each change of them until Ctrl-C", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			if gateway == "" {
				return watch.Groups(ctx, c, f.params(), every, p.log(), p.showGroups)
			}
			id, err := models.ParseID(gateway)
			if err != nil {
				return fmt.Errorf("--gateway: %w", err)
			}
			return watch.GroupInformation(ctx, c, id, p.log(), p.showGroupInformation)
		})
	cmd.Long = `Show groups and each change of them until Ctrl-C.

With --gateway and that gateway's token: its group information, by long poll. Asking with the cursor of what it has is a
gateway's acknowledgement, so don't watch a gateway whose agent is at work. Without --gateway: the groups that the token's
owner may see, asked for again and again.`
	f.flags(cmd)
	cmd.Flags().StringVar(&gateway, "gateway", "", "`ID` of the gateway whose group information to show")
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often to ask for the groups")
	return cmd
}

func (p *program) showGroupInformation(g *api.GroupInformation) error {
	return p.show(g, func() error {
		fmt.Fprintf(p.out, "revision %s, %d groups\n", g.Revision, len(g.Groups))
		var rows [][]string
		for _, group := range g.Groups {
			for _, s := range group.GroupSources {
				rows = append(rows, []string{group.GroupName, group.GroupIP.String(), "source", s.SourceName, s.SourceIPv4.String(), "", string(s.Trigger)})
			}
			for _, d := range group.GroupDestinations {
				to := nullableText(d.DestinationIPv4)
				if to == "" {
					to = nullableText(d.DestinationIPv6)
				}
				rows = append(rows, []string{group.GroupName, group.GroupIP.String(), "destination", d.DestinationName, to, nullableText(d.DestinationPort), ""})
			}
		}
		return report.Table(p.out, []string{"GROUP", "GROUP IP", "ROLE", "NAME", "ADDRESS", "PORT", "TRIGGER"}, rows)
	})
}
