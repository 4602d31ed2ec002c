// Package pages reads the lists of both contracts to their end.
package pages

import (
	"context"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

// Groups reads the groups that the caller may see.
func Groups(ctx context.Context, c *client.ClientWithResponses, params api.ListGroupsParams) ([]api.Group, error) {
	return all(func(token *string) ([]api.Group, *string, error) {
		params.PageToken = token
		r, err := c.ListGroupsWithResponse(ctx, &params)
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Groups, page.NextPageToken, nil
	})
}

// Registrations reads the caller's own registrations.
func Registrations(ctx context.Context, c *client.ClientWithResponses) ([]api.Registration, error) {
	return all(func(token *string) ([]api.Registration, *string, error) {
		r, err := c.ListRegistrationsWithResponse(ctx, &api.ListRegistrationsParams{PageToken: token})
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Registrations, page.NextPageToken, nil
	})
}

// Webhooks reads the calling service's webhooks.
func Webhooks(ctx context.Context, c *client.ClientWithResponses) ([]api.Webhook, error) {
	return all(func(token *string) ([]api.Webhook, *string, error) {
		r, err := c.ListWebhooksWithResponse(ctx, &api.ListWebhooksParams{PageToken: token})
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Webhooks, page.NextPageToken, nil
	})
}

// Accounts reads every account.
func Accounts(ctx context.Context, c *adminclient.ClientWithResponses) ([]adminapi.Account, error) {
	return all(func(token *string) ([]adminapi.Account, *string, error) {
		r, err := c.ListAccountsWithResponse(ctx, &adminapi.ListAccountsParams{PageToken: token})
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Accounts, page.NextPageToken, nil
	})
}

// Relays reads the relays.
func Relays(ctx context.Context, c *adminclient.ClientWithResponses) ([]adminapi.Relay, error) {
	return all(func(token *string) ([]adminapi.Relay, *string, error) {
		r, err := c.ListRelaysWithResponse(ctx, &adminapi.ListRelaysParams{PageToken: token})
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Relays, page.NextPageToken, nil
	})
}

// Credentials reads the credentials of a service.
func Credentials(ctx context.Context, c *adminclient.ClientWithResponses, service models.ServiceID) ([]adminapi.ServiceCredential, error) {
	return all(func(token *string) ([]adminapi.ServiceCredential, *string, error) {
		r, err := c.ListServiceCredentialsWithResponse(ctx, service, &adminapi.ListServiceCredentialsParams{PageToken: token})
		if err != nil {
			return nil, nil, err
		}
		page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return nil, nil, err
		}
		return page.Credentials, page.NextPageToken, nil
	})
}

func all[T any](next func(token *string) ([]T, *string, error)) ([]T, error) {
	entries := []T{} // an empty list is [] in JSON
	var token *string
	for {
		page, following, err := next(token)
		if err != nil {
			return nil, err
		}
		entries = append(entries, page...)
		if following == nil {
			return entries, nil
		}
		token = following
	}
}
