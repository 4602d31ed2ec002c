package main

import (
	"context"
	"fmt"
	"time"
)

const (
	// stepTimeout is for what takes a fraction of a second on an idle machine.
	stepTimeout = 20 * time.Second
	lookEvery   = 50 * time.Millisecond
)

// until asks again and again. It gives up when it takes too long, with the end of the log of the program that has to do it.
func until(ctx context.Context, what string, who *program, ask func(context.Context) (bool, error)) error {
	late := time.NewTimer(stepTimeout)
	defer late.Stop()
	for {
		ok, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case ok:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-late.C:
			return fmt.Errorf("it took longer than %v for %s%s", stepTimeout, what, who.tail())
		case <-time.After(lookEvery):
		}
	}
}

// untilEvent waits until the event stands in the log.
func untilEvent(ctx context.Context, what string, who *program, log *follower, event string) error {
	return until(ctx, what, who, func(context.Context) (bool, error) {
		counts, err := log.read()
		return counts.happened(event), err
	})
}

func sleepUntil(ctx context.Context, at time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(at)):
		return nil
	}
}
