package httpapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/webhooks"
)

func (h handlers) CreateWebhook(ctx context.Context, r ginserver.CreateWebhookRequestObject) (ginserver.CreateWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	w, secret, err := h.Webhooks.Create(ctx, p.Service.ID, r.Body.URL, value(eventTypes(r.Body.EventTypes)))
	if err != nil {
		return nil, err
	}
	return ginserver.CreateWebhook201JSONResponse{
		Body: webhookSecret(w, secret), Headers: ginserver.CreateWebhook201ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) ListWebhooks(ctx context.Context, r ginserver.ListWebhooksRequestObject) (ginserver.ListWebhooksResponseObject, error) {
	ctx, p := caller(ctx)
	all, next, err := h.Webhooks.List(ctx, p.Service.ID, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListWebhooks200JSONResponse{Webhooks: convert(all, webhook), NextPageToken: orNil(next)}, nil
}

func (h handlers) GetWebhook(ctx context.Context, r ginserver.GetWebhookRequestObject) (ginserver.GetWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	w, err := h.Webhooks.Get(ctx, p.Service.ID, r.WebhookID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetWebhook200JSONResponse(webhook(w)), nil
}

func (h handlers) ChangeWebhook(ctx context.Context, r ginserver.ChangeWebhookRequestObject) (ginserver.ChangeWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	w, err := h.Webhooks.Change(ctx, p.Service.ID, r.WebhookID, webhooks.Change{URL: r.Body.URL, Types: eventTypes(r.Body.EventTypes), Enabled: r.Body.Enabled})
	if err != nil {
		return nil, err
	}
	h.Courier.Wake()
	return ginserver.ChangeWebhook200JSONResponse(webhook(w)), nil
}

func (h handlers) DeleteWebhook(ctx context.Context, r ginserver.DeleteWebhookRequestObject) (ginserver.DeleteWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Webhooks.Delete(ctx, p.Service.ID, r.WebhookID); err != nil {
		return nil, err
	}
	return ginserver.DeleteWebhook204Response{}, nil
}

func (h handlers) RotateWebhook(ctx context.Context, r ginserver.RotateWebhookRequestObject) (ginserver.RotateWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	w, secret, err := h.Webhooks.Rotate(ctx, p.Service.ID, r.WebhookID)
	if err != nil {
		return nil, err
	}
	return ginserver.RotateWebhook200JSONResponse{
		Body: webhookSecret(w, secret), Headers: ginserver.RotateWebhook200ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) TestWebhook(ctx context.Context, r ginserver.TestWebhookRequestObject) (ginserver.TestWebhookResponseObject, error) {
	ctx, p := caller(ctx)
	o, err := h.Courier.Test(ctx, p.Service.ID, r.WebhookID)
	if err != nil {
		return nil, err
	}
	return ginserver.TestWebhook200JSONResponse{Delivered: o.Delivered, Status: orNil(int32(o.Status)), Problem: orNil(o.Problem)}, nil
}

// eventTypes keeps apart what is absent and what is empty.
func eventTypes(list *[]api.WebhookEventType) *[]string {
	if list == nil {
		return nil
	}
	names := convert(*list, func(t api.WebhookEventType) string { return string(t) })
	return &names
}

func webhookSecret(w models.Webhook, secret webhooks.Secret) api.WebhookSecret {
	return api.WebhookSecret{Webhook: webhook(w), Secret: secret.Reveal()}
}

func webhook(w models.Webhook) api.Webhook {
	v := api.Webhook{
		WebhookID: w.ID, URL: w.URL, EventTypes: convert(w.Types, func(t models.EventType) string { return events.TypePrefix + string(t) }),
		Enabled: w.Disabled == "", DisabledBecause: orNil(string(w.Disabled)), CreatedAt: w.CreatedAt, LastSuccess: orNil(w.LastSuccess),
		LastFailure: orNil(w.LastFailure), LastProblem: orNil(w.LastError), FailingSince: orNil(w.FailingSince), Failures: int32(w.Failures),
		Pending: int32(w.Pending),
	}
	if w.Overlap {
		v.OldSecretUntil = &w.OldSecretUntil
	}
	return v
}
