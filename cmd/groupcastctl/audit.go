package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

func (p *program) audit() *cobra.Command {
	o := &operator{program: p}
	return o.group("audit", "Who did what, on the host of the service", o.auditList(), o.auditVerify())
}

func (o *operator) auditList() *cobra.Command {
	var account, actor, action, since, until, token string
	var size int32
	cmd := o.command("list", "List the audit log, newest first", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			params := &adminapi.ListAuditParams{
				PageSize: &size, PageToken: given(token), AccountID: given(models.AccountID(account)), Actor: given(actor), Action: given(action),
			}
			for _, limit := range []struct {
				flag, text string
				to         **time.Time
			}{{"since", since, &params.Since}, {"until", until, &params.Until}} {
				if limit.text == "" {
					continue
				}
				at, err := moment(limit.text, time.Now())
				if err != nil {
					return fmt.Errorf("--%s: %w", limit.flag, err)
				}
				*limit.to = &at
			}
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
					rows[i] = []string{a.At, a.Actor, a.Action, text(a.Object), a.Result, text(a.Reason), text(a.Source), text(a.Count), text(a.Seq)}
				}
				if err := report.Table(o.out, []string{"AT", "ACTOR", "ACTION", "OBJECT", "RESULT", "REASON", "SOURCE", "COUNT", "SEQ"}, rows); err != nil {
					return err
				}
				if page.NextPageToken == nil {
					return nil
				}
				return report.Fields(o.out, "nextPageToken", *page.NextPageToken)
			})
		})
	cmd.Flags().StringVar(&account, "account", "", "only the rows of the account with this `ID`")
	cmd.Flags().StringVar(&actor, "actor", "", "only what this `ACTOR` did, for example device/664123086043511412, operator or anonymous")
	cmd.Flags().StringVar(&action, "action", "", "only this `ACTION`, for example device.remove, or request for what was refused")
	cmd.Flags().StringVar(&since, "since", "", "only rows from this `TIME` on: RFC 3339, or how long ago, for example 24h")
	cmd.Flags().StringVar(&until, "until", "", "only rows from before this `TIME`")
	cmd.Flags().StringVar(&token, "page-token", "", "the nextPageToken of the page before")
	cmd.Flags().Int32Var(&size, "page-size", 100, "at most so many rows, 1 to 500")
	return cmd
}

// moment reads a time, or how long ago one was.
func moment(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%q is neither a time like 2026-11-21T10:00:00Z nor a duration like 24h", text)
	}
	return at, nil
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
				return report.Fields(o.out, "chain", state, "row", text(v.Row), "head", v.Head, "base", v.Base, "unsealed", fmt.Sprint(v.Unsealed), "waiting", fmt.Sprint(v.Waiting))
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
