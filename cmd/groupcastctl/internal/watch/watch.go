// Package watch follows what changes: a gateway's group information by long poll, or a member's groups by asking again and again.
// It never ends by itself while the service is away.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	longPoll   = 50 // seconds, the most that the contract knows
	retryPause = 2 * time.Second
)

// GroupInformation shows the gateway's group information and each change of it, until ctx is done. The cursor that it sends tells
// the service that this gateway holds what was shown; so it isn't for a gateway whose agent is running.
func GroupInformation(ctx context.Context, c *client.ClientWithResponses, gateway models.ID, log *slog.Logger, show func(*api.GroupInformation) error) error {
	wait := int32(longPoll)
	params := &api.GetGroupInformationParams{Wait: &wait}
	return forever(ctx, log, func() error {
		r, err := c.GetGroupInformationWithResponse(ctx, gateway, params)
		if err != nil {
			return err
		}
		if err := refusal.Check(r, r.HTTPResponse.Header); err != nil {
			return err
		}
		if r.JSON200 == nil || r.Headers200 == nil {
			return nil
		}
		params.IfNoneMatch = &r.Headers200.ETag
		return wrapShow(show(r.JSON200))
	})
}

// Groups shows the groups and each change of them, until ctx is done.
func Groups(ctx context.Context, c *client.ClientWithResponses, params api.ListGroupsParams, every time.Duration, log *slog.Logger, show func([]api.Group) error) error {
	var shown []api.Group
	first := true
	return forever(ctx, log, func() error {
		groups, err := pages.Groups(ctx, c, params)
		if err != nil {
			return err
		}
		if first || !reflect.DeepEqual(groups, shown) {
			if err := show(groups); err != nil {
				return wrapShow(err)
			}
			shown, first = groups, false
		}
		return sleep(ctx, every)
	})
}

// showError ends the watch: there is nobody left to show anything to.
type showError struct{ error }

func (e showError) Unwrap() error { return e.error }

func wrapShow(err error) error {
	if err == nil {
		return nil
	}
	return showError{fmt.Errorf("show the change: %w", err)}
}

// forever repeats the step until ctx is done or nothing can help.
func forever(ctx context.Context, log *slog.Logger, step func() error) error {
	for ctx.Err() == nil {
		err := step()
		if err == nil || ctx.Err() != nil {
			continue
		}
		if _, ok := errors.AsType[showError](err); ok {
			return err
		}
		pause := retryPause
		if refused, ok := errors.AsType[*refusal.Error](err); ok {
			if refused.Final() {
				return err
			}
			pause = max(pause, refused.RetryAfter)
		}
		log.Error("the service gave no answer; trying again", "error", err, "in", pause)
		_ = sleep(ctx, pause)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
