package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/refusal"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

func (p *program) audit() *cobra.Command {
	o := &operator{program: p}
	audit := group("audit", "Who did what, on the host of the service", o.auditList(), o.auditVerify())
	audit.PersistentFlags().StringVar(&o.dataDir, "data-dir", "", "data directory `DIR` of the groupcastd on this host")
	describeVariable(audit.PersistentFlags().Lookup("data-dir"))
	return audit
}

func (o *operator) auditList() *cobra.Command {
	var account, token string
	var size int32
	cmd := o.command("list", "List the audit log, newest first", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			params := &adminapi.ListAuditParams{PageSize: &size, PageToken: given(token), AccountID: given(models.AccountID(account))}
			r, err := c.ListAuditWithResponse(ctx, params)
			if err != nil {
				return err
			}
			page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(page, func() error {
				rows := make([][]string, len(page.Rows))
				for i, a := range page.Rows {
					rows[i] = []string{a.At, a.Actor, a.Action, text(a.Object), a.Result, text(a.Reason), text(a.Source), text(a.Seq)}
				}
				if err := report.Table(o.out, []string{"AT", "ACTOR", "ACTION", "OBJECT", "RESULT", "REASON", "SOURCE", "SEQ"}, rows); err != nil {
					return err
				}
				if page.NextPageToken == nil {
					return nil
				}
				return report.Fields(o.out, "nextPageToken", *page.NextPageToken)
			})
		})
	cmd.Flags().StringVar(&account, "account", "", "only the rows of the account with this `ID`")
	cmd.Flags().StringVar(&token, "page-token", "", "the nextPageToken of the page before")
	cmd.Flags().Int32Var(&size, "page-size", 100, "at most so many rows, 1 to 500")
	return cmd
}

// errBroken makes the program fail; what is wrong has been shown.
var errBroken = errors.New("the audit log is not what was sealed: keep a copy of the database, and find out who could write to it")

func (o *operator) auditVerify() *cobra.Command {
	var anchor string
	cmd := o.command("verify", "Verify the hash chain of the audit log", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.VerifyAuditWithResponse(ctx, &adminapi.VerifyAuditParams{Anchor: given(anchor)})
			if err != nil {
				return err
			}
			v, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			if err := o.show(v, func() error {
				state := "as it was sealed"
				if v.Broken {
					state = text(v.What)
				}
				return report.Fields(o.out, "chain", state, "row", text(v.Row), "head", v.Head, "unsealed", fmt.Sprint(v.Unsealed), "waiting", fmt.Sprint(v.Waiting))
			}); err != nil {
				return err
			}
			if v.Broken {
				return errBroken
			}
			return nil
		})
	cmd.Long = `Read the whole audit log and find the first row that was changed, removed or put in later. Note the head somewhere else and give it
as --anchor the next time: then also a log that was cut off or written anew is found. Rows stay unsealed for about a second.`
	cmd.Flags().StringVar(&anchor, "anchor", "", "the `HEAD` of an earlier verification")
	return cmd
}

func (o *operator) invite() *cobra.Command {
	var account, file string
	cmd := o.command("invite", "Make an invitation to sign up", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.CreateInvitationWithResponse(ctx, nil, adminapi.InvitationRequest{AccountID: given(models.AccountID(account))})
			if err != nil {
				return err
			}
			i, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.secret(file, i.Invitation, i)
		})
	cmd.Long = "Make an invitation, good once and for 7 days: for a new account or, with --account, for a further user of that account."
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the account that the user belongs to")
	cmd.Flags().StringVar(&file, "out", "", "write the invitation to this `FILE` instead of standard output")
	return cmd
}
