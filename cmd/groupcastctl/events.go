package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/internal/follow"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) events() *cobra.Command {
	var group string
	cmd := p.command("events", "Write each event that one may hear, one JSON document to a line, until Ctrl-C", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			return follow.Events(ctx, c, models.GroupID(group), p.log(), func(h follow.Heard) error {
				for _, e := range h.Events {
					if _, err := fmt.Fprintf(p.out, "%s\n", e.JSON); err != nil {
						return fmt.Errorf("write an event: %w", err)
					}
				}
				return nil
			})
		})
	cmd.Long = `Write each event that one may hear, one JSON document to a line, until Ctrl-C.

It begins with how each group is, of type groupcast.group.state, and goes on where it was when the connection was cut.`
	cmd.Flags().StringVar(&group, "group", "", "only what happens in the group with this `ID`; a device has to be its member")
	return cmd
}
