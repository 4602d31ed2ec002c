package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
)

// quiet is how long no log may grow before everything that was on its way has arrived.
const quiet = 400 * time.Millisecond

// settle ends the stream from its beginning to its end, so that all that was sent can arrive, and compares the books.
func (d *demo) settle(ctx context.Context) (v ledger.Verdict, err error) {
	_ = d.video.stop() // ffmpeg calls it an error to be asked to stop
	if err := d.untilQuiet(ctx); err != nil {
		return v, err
	}
	var faults []error
	for _, r := range d.receivers {
		if r != d.left {
			if err := d.leave(ctx, r); err != nil {
				return v, err
			}
		}
		faults = append(faults, r.program.stop())
	}
	faults = append(faults, d.camera.stop(), d.agent.stop(), d.server.stop())

	sends, err := d.sends.whole()
	if err != nil {
		return v, err
	}
	receivers, faulty, err := d.books(ctx)
	if err != nil {
		return v, err
	}
	left := ""
	if d.left != nil {
		left = d.left.name
	}
	v = ledger.Settle(sends, receivers, left)
	v.GroupIP = d.groupIP.String()
	for _, fault := range append(faults, faulty...) {
		if fault != nil {
			v.Fail("%s", d.explain(fault))
		}
	}
	return v, nil
}

// books reads what the receivers wrote, and has their recordings decoded.
func (d *demo) books(ctx context.Context) (receivers []ledger.Receiver, faults []error, err error) {
	d.screen.say("Decoding what arrived.")
	receivers, faults = make([]ledger.Receiver, len(d.receivers)), make([]error, len(d.receivers))
	var decoding sync.WaitGroup
	for i, r := range d.receivers {
		decoding.Go(func() { receivers[i].Frames, faults[i] = countFrames(ctx, d.recording(r)) })
	}
	decoding.Wait()
	for i, r := range d.receivers {
		receivers[i].Name = r.name
		var unread error
		receivers[i].Log, unread = r.arrives.whole()
		err = errors.Join(err, unread)
	}
	return receivers, faults, errors.Join(err, context.Cause(ctx))
}

// untilQuiet waits until nothing is sent and nothing arrives any more.
func (d *demo) untilQuiet(ctx context.Context) error {
	total, since := -1, time.Now()
	return until(ctx, "the last datagrams to arrive", d.agent, func(context.Context) (bool, error) {
		now, err := d.total()
		if now != total {
			total, since = now, time.Now()
		}
		return time.Since(since) > quiet, err
	})
}

func (d *demo) total() (int, error) {
	sent, err := d.sends.read()
	total := sent.datagrams
	for _, r := range d.receivers {
		arrived, unread := r.arrives.read()
		err = errors.Join(err, unread)
		total += arrived.datagrams
	}
	return total, err
}
