package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

// relay groups what an operator does with relays.
func (o *operator) relay() *cobra.Command {
	return group("relay", "Relays, which copy in the network", o.createRelay(), o.relayTicket(), o.listRelays(), o.relayPremises(), o.removeRelay())
}

func (o *operator) createRelay() *cobra.Command {
	var name, file string
	cmd := o.command("create", "Create a relay and show the ticket that it enrols with", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.CreateRelayWithResponse(ctx, &adminapi.CreateRelayParams{IdempotencyKey: key()}, adminapi.RelayRequest{Name: name})
			if err != nil {
				return err
			}
			t, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.secret(file, t.Ticket, t)
		})
	cmd.Long = `Create a relay. It enrols with the ticket, which is good for 15 minutes and once ("groupcastctl enrol"), and serves nobody before
"groupcastctl admin relay premises" says whom it may. With --json its id is shown, too; "groupcastctl admin relay list" has it as well.`
	cmd.Flags().StringVar(&name, "name", "", "what you call it")
	cmd.Flags().StringVar(&file, "out", "", "write the ticket to this `FILE` instead of standard output")
	needs(cmd, "name")
	return cmd
}

func (o *operator) relayTicket() *cobra.Command {
	var file string
	cmd := o.command("ticket RELAY", "Make another ticket for a relay, whose key is replaced when it is used", cobra.ExactArgs(1),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			id, err := models.ParseID(args[0])
			if err != nil {
				return err
			}
			r, err := c.CreateRelayTicketWithResponse(ctx, id, &adminapi.CreateRelayTicketParams{IdempotencyKey: key()})
			if err != nil {
				return err
			}
			t, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.secret(file, t.Ticket, t)
		})
	cmd.Flags().StringVar(&file, "out", "", "write the ticket to this `FILE` instead of standard output")
	return cmd
}

func (o *operator) listRelays() *cobra.Command {
	return o.command("list", "List the relays", cobra.NoArgs, func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
		all, err := pages.Relays(ctx, c)
		if err != nil {
			return err
		}
		return o.show(adminapi.RelayPage{Relays: all}, func() error {
			for _, r := range all {
				if _, err := fmt.Fprintln(o.out, relayLine(r)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func relayLine(r adminapi.Relay) string {
	live, may := "away", fmt.Sprintf("may serve %d premises", len(r.Premises))
	if r.Live {
		live = "live"
	}
	if r.All {
		may = "may serve all"
	}
	return fmt.Sprintf("%s\t%s\t%s, %s, serves %d", r.RelayID, r.Name, live, may, r.Served)
}

func (o *operator) relayPremises() *cobra.Command {
	var all bool
	cmd := o.command("premises RELAY [PREMISES...]", "Say which premises a relay may serve", cobra.MinimumNArgs(1),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			id, err := models.ParseID(args[0])
			if err != nil {
				return err
			}
			if all && len(args) > 1 {
				return errors.New("--all and premises exclude each other: say one")
			}
			request := adminapi.RelayPremisesRequest{}
			if all {
				request.All = &all
			} else {
				premises := []models.PremisesID{}
				for _, p := range args[1:] {
					premises = append(premises, models.PremisesID(p))
				}
				request.Premises = &premises
			}
			r, err := c.SetRelayPremisesWithResponse(ctx, id, request)
			if err != nil {
				return err
			}
			v, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(v, func() error { _, err := fmt.Fprintln(o.out, relayLine(*v)); return err })
		})
	cmd.Long = `Say which premises a relay may serve: all with --all, or those that are named; none if none is. It replaces what was said before.`
	cmd.Flags().BoolVar(&all, "all", false, "it may serve all")
	return cmd
}

func (o *operator) removeRelay() *cobra.Command {
	return o.command("remove RELAY", "Remove a relay", cobra.ExactArgs(1), func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
		id, err := models.ParseID(args[0])
		if err != nil {
			return err
		}
		r, err := c.DeleteRelayWithResponse(ctx, id)
		if err != nil {
			return err
		}
		return refusal.Check(r, r.HTTPResponse.Header)
	})
}
