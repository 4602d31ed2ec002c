package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/oapi-codegen/nullable"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) register() *cobra.Command {
	var m member
	var destination bool
	cmd := p.command("register", "Join a group, renew the lease, or move", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			request, err := m.request(destination)
			if err != nil {
				return err
			}
			r, err := c.RegisterWithResponse(ctx, request)
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error {
				return report.Fields(p.out,
					"groupIP", answer.GroupIP.String(), "state", text(&answer.State), "generation", text(answer.Generation),
					"TTLs", text(answer.TTLs), "renewAfter", text(answer.RenewAfter), "registrationId", text(answer.RegistrationID))
			})
		})
	m.flags(cmd)
	m.kindFlag(cmd)
	cmd.Flags().BoolVar(&destination, "destination", false, "register as a receiver; without it as a source")
	cmd.Flags().Uint16Var(&m.port, "port", 0, "UDP `PORT` for the copies (default: the port that the camera sends to)")
	return cmd
}

func (p *program) leave() *cobra.Command {
	return p.command("leave REGISTRATION", "Leave a group", oneArgument("registrationId"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			r, err := c.LeaveWithResponse(ctx, models.RegistrationID(args[0]))
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error {
				return report.Fields(p.out, "groupIP", answer.GroupIP.String(), "state", text(&answer.State))
			})
		})
}

func (p *program) registrations() *cobra.Command {
	return p.command("registrations", "List one's own registrations", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			all, err := pages.Registrations(ctx, c)
			if err != nil {
				return err
			}
			return p.show(api.RegistrationPage{Registrations: all}, func() error {
				rows := make([][]string, 0, len(all))
				for _, r := range all {
					role := "source"
					if r.Destination {
						role = "destination"
					}
					rows = append(rows, []string{
						r.GroupName, r.GroupIP.String(), role, string(r.Type), r.ID.String(), r.Instance,
						text(&r.ExpiresIn) + " s", string(r.RegistrationID),
					})
				}
				return report.Table(p.out, []string{"GROUP", "GROUP IP", "ROLE", "TYPE", "ID", "INSTANCE", "EXPIRES", "REGISTRATION"}, rows)
			})
		})
}

// filter chooses among groups.
type filter struct{ group, premises string }

func (f *filter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.group, "group", "", "only groups of this `NAME`")
	cmd.Flags().StringVar(&f.premises, "premises", "", "only groups of the premises with this `ID`")
}

func (f *filter) params() api.ListGroupsParams {
	return api.ListGroupsParams{GroupName: given(f.group), PremisesID: given(models.PremisesID(f.premises))}
}

func (p *program) groups() *cobra.Command {
	var f filter
	cmd := p.command("groups", "List the groups one may see", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			groups, err := pages.Groups(ctx, c, f.params())
			if err != nil {
				return err
			}
			return p.showGroups(groups)
		})
	f.flags(cmd)
	return cmd
}

func (p *program) showGroups(groups []api.Group) error {
	return p.show(api.GroupPage{Groups: groups}, func() error {
		rows := make([][]string, 0, len(groups))
		for _, g := range groups {
			rows = append(rows, []string{
				g.GroupName, g.GroupIP.String(), text(&g.Generation), text(&g.State),
				names(g.Members, api.Source), names(g.Members, api.Destination), string(g.PremisesID),
			})
		}
		return report.Table(p.out, []string{"GROUP", "GROUP IP", "GENERATION", "STATE", "SOURCES", "DESTINATIONS", "PREMISES"}, rows)
	})
}

func names(members []api.Member, role api.MemberRole) string {
	var names []string
	for _, m := range members {
		if m.Role == role {
			names = append(names, m.Name)
		}
	}
	return strings.Join(names, ", ")
}

// text gives what a table shows of a value that may be absent.
func text[T any](value *T) string {
	if value == nil {
		return ""
	}
	return fmt.Sprint(*value)
}

func nullableText[T any](value nullable.Nullable[T]) string {
	if v, err := value.Get(); err == nil {
		return fmt.Sprint(v)
	}
	return ""
}
