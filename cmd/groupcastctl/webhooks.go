package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

func (p *program) webhooks() *cobra.Command {
	g := group("webhooks", "Where a service has its events sent", p.webhookList(), p.webhookCreate(), p.webhookSet(), p.webhookRotate(), p.webhookDelete(), p.webhookTest())
	g.Long = `Where a service has its events sent, with a credential of that service (--token-file). An operator gets one with
"groupcastctl admin token --service ID --out FILE".`
	return g
}

func (p *program) webhookList() *cobra.Command {
	return p.command("list", "List webhooks, and how their deliveries go", cobra.NoArgs,
		func(ctx context.Context, c *client.ClientWithResponses, _ []string) error {
			all, err := pages.Webhooks(ctx, c)
			if err != nil {
				return err
			}
			return p.show(api.WebhookPage{Webhooks: all}, func() error {
				rows := make([][]string, 0, len(all))
				for _, w := range all {
					rows = append(rows, []string{string(w.WebhookID), w.URL, webhookState(w), text(&w.Pending), text(w.LastSuccess), text(w.LastFailure), text(w.LastProblem)})
				}
				return report.Table(p.out, []string{"WEBHOOK", "URL", "STATE", "PENDING", "LAST SUCCESS", "LAST FAILURE", "PROBLEM"}, rows)
			})
		})
}

func webhookState(w api.Webhook) string {
	switch {
	case !w.Enabled:
		return "disabled: " + text(w.DisabledBecause)
	case w.FailingSince != nil:
		return "failing since " + text(w.FailingSince)
	}
	return "ok"
}

func (p *program) showWebhook(w api.Webhook, more ...string) error {
	types := "all"
	if len(w.EventTypes) > 0 {
		types = strings.Join(w.EventTypes, ",")
	}
	fields := []string{"webhookId", string(w.WebhookID), "url", w.URL, "eventTypes", types, "state", webhookState(w), "pending", text(&w.Pending)}
	if w.OldSecretUntil != nil {
		fields = append(fields, "oldSecretUntil", text(w.OldSecretUntil))
	}
	return report.Fields(p.out, append(fields, more...)...)
}

func (p *program) webhookCreate() *cobra.Command {
	var types []string
	cmd := p.command("create URL", "Have events sent to a URL; shows the secret once", oneArgument("URL"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			request := api.WebhookRequest{URL: args[0]}
			if len(types) > 0 {
				request.EventTypes = eventTypes(types)
			}
			r, err := c.CreateWebhookWithResponse(ctx, &api.CreateWebhookParams{IdempotencyKey: key()}, request)
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON201, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error { return p.showWebhook(answer.Webhook, "secret", answer.Secret) })
		})
	cmd.Flags().StringSliceVar(&types, "types", nil, "only events of these `TYPES`, such as groupcast.group.created")
	return cmd
}

func eventTypes(names []string) *[]api.WebhookEventType {
	list := make([]api.WebhookEventType, len(names))
	for i, n := range names {
		list[i] = api.WebhookEventType(n)
	}
	return &list
}

func (p *program) webhookSet() *cobra.Command {
	var url string
	var types []string
	var enabled bool
	var cmd *cobra.Command
	cmd = p.command("set WEBHOOK", "Change a webhook, end or resume its deliveries", oneArgument("webhookId"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			change := api.WebhookChange{URL: given(url)}
			if cmd.Flags().Changed("types") {
				change.EventTypes = eventTypes(types)
			}
			if cmd.Flags().Changed("enabled") {
				change.Enabled = &enabled
			}
			r, err := c.ChangeWebhookWithResponse(ctx, models.WebhookID(args[0]), change)
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error { return p.showWebhook(*answer) })
		})
	cmd.Flags().StringVar(&url, "url", "", "another `URL`")
	cmd.Flags().StringSliceVar(&types, "types", nil, "only events of these `TYPES`; empty: all")
	cmd.Flags().BoolVar(&enabled, "enabled", true, "whether events are sent; --enabled=false ends it and keeps nothing")
	cmd.MarkFlagsOneRequired("url", "types", "enabled")
	return cmd
}

func (p *program) webhookRotate() *cobra.Command {
	return p.command("rotate WEBHOOK", "Draw another secret and show it once; the old one signs as well for a day", oneArgument("webhookId"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			r, err := c.RotateWebhookWithResponse(ctx, models.WebhookID(args[0]))
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error { return p.showWebhook(answer.Webhook, "secret", answer.Secret) })
		})
}

func (p *program) webhookDelete() *cobra.Command {
	return p.command("delete WEBHOOK", "Remove a webhook", oneArgument("webhookId"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			r, err := c.DeleteWebhookWithResponse(ctx, models.WebhookID(args[0]))
			if err != nil {
				return err
			}
			return refusal.Check(r, r.HTTPResponse.Header)
		})
}

func (p *program) webhookTest() *cobra.Command {
	return p.command("test WEBHOOK", "Send a test event now and tell what became of it", oneArgument("webhookId"),
		func(ctx context.Context, c *client.ClientWithResponses, args []string) error {
			r, err := c.TestWebhookWithResponse(ctx, models.WebhookID(args[0]))
			if err != nil {
				return err
			}
			answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return p.show(answer, func() error {
				return report.Fields(p.out, "delivered", text(&answer.Delivered), "status", text(answer.Status), "problem", text(answer.Problem))
			})
		})
}
