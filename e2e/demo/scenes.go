package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	// afterLeave is how long the stream runs on, at least, once a receiver has left.
	afterLeave = time.Second
	// recordLimit bounds what is recorded for each receiver of a long demo: about three minutes.
	recordLimit = 32 << 20
	// lingering receivers would see whatever came after their leave.
	linger = "24h"

	forever = 100 * 365 * 24 * time.Hour
)

// receiver is one destination.
type receiver struct {
	name    string
	kind    models.MemberType
	id      models.ID
	token   string
	auto    bool // it joins by the account's join policy, before the stream begins
	at      netip.AddrPort
	program *program
	arrives *follower
	gone    atomic.Bool
}

// times is when something happens after the stream began.
type times struct{ join, leave, end time.Duration }

// schedule spreads the scenes over the duration, if there is one.
func schedule(duration time.Duration) times {
	if duration == 0 {
		return times{join: 3 * time.Second, leave: 10 * time.Second, end: forever}
	}
	part := func(share float64) time.Duration { return time.Duration(share * float64(duration)) }
	return times{join: part(0.2), leave: part(0.7), end: duration}
}

// startCamera starts the camera without video: it registers and gets the group IP.
func (d *demo) startCamera(ctx context.Context) (err error) {
	d.sends = &follower{path: d.path("camera.sends")}
	args := []string{
		"camera", "--server", d.url(), "--token-file", d.home.cameraToken, "--id", d.home.camera.String(), "--group", groupName,
		"--name", cameraName, "--private-ip", host(d.place.home, hostCamera).String(), "--port", strconv.Itoa(int(d.place.mediaPort)),
		"--relay", d.place.relay().String(), "--log", d.sends.path, "--wait-for", "2",
	}
	if !d.option {
		args = append(args, "--no-option")
	}
	if d.camera, err = d.programs.start("camera", d.own("groupcastctl"), args...); err != nil {
		return err
	}
	if err = untilEvent(ctx, "the camera to register", d.camera, d.sends, "joined"); err != nil {
		return err
	}
	if d.ask, err = d.client(d.home.cameraToken); err != nil {
		return err
	}
	group, err := d.group(ctx)
	d.groupIP = group.GroupIP
	return err
}

// startListeners starts those who join by themselves. There is no group yet.
func (d *demo) startListeners(context.Context) error {
	for _, r := range d.home.receivers {
		if r.auto {
			if err := d.startReceiver(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitListeners waits until they have heard of the group, joined it, and proved to the gateway that they want the stream: whoever
// has joined counts at once, but gets copies only then.
func (d *demo) awaitListeners(ctx context.Context) error {
	for _, r := range d.home.receivers {
		if !r.auto {
			continue
		}
		if err := d.joined(ctx, r); err != nil {
			return err
		}
		if err := until(ctx, r.name+" to consent", r.program, func(ctx context.Context) (bool, error) {
			group, err := d.group(ctx)
			return slices.ContainsFunc(group.Members, r.live), err
		}); err != nil {
			return err
		}
	}
	return nil
}

// live tells whether m is the receiver, and gets copies.
func (r *receiver) live(m api.Member) bool {
	return m.Role == api.Destination && m.Name == r.name && m.Consent != nil && *m.Consent == models.ConsentLive
}

// startVideo starts what makes the picture: 720p15 H.264 at 1.5 Mbit/s in RTP/MP2T, with a key frame each second, so that a
// receiver soon sees the first picture.
func (d *demo) startVideo(ctx context.Context) (err error) {
	if d.video, err = d.programs.start("ffmpeg", "ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostdin", "-re",
		"-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=15,noise=alls=8:allf=t",
		"-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p",
		"-b:v", "1500k", "-maxrate", "1500k", "-bufsize", "750k", "-g", "15",
		"-f", "rtp_mpegts", fmt.Sprintf("rtp://%s?pkt_size=1328", d.place.relay())); err != nil {
		return err
	}
	return until(ctx, "the stream to begin", d.video, func(context.Context) (bool, error) {
		sent, err := d.sends.read()
		return sent.datagrams > 0, err
	})
}

// group asks the service for the group that the camera made.
func (d *demo) group(ctx context.Context) (api.Group, error) {
	name := groupName
	r, err := d.ask.ListGroupsWithResponse(ctx, &api.ListGroupsParams{GroupName: &name})
	if err != nil {
		return api.Group{}, err
	}
	if r.JSON200 == nil || len(r.JSON200.Groups) != 1 {
		return api.Group{}, fmt.Errorf("the service should list one group %s and answered %s: %s", groupName, r.Status(), r.Body)
	}
	return r.JSON200.Groups[0], nil
}

// play lets the receivers come and one go, and returns when the stream is to end. The first signal only shortens the time
// between; if not all have come by then, the error is errFinished.
func (d *demo) play(ctx context.Context) error {
	began, times := time.Now(), schedule(d.duration)
	finished, err := d.wait(ctx, began.Add(times.join))
	if err != nil {
		return err
	}
	if finished {
		return errFinished
	}
	leaves := d.home.receivers[1]
	if err := d.startReceiver(leaves); err != nil {
		return err
	}
	if err := d.joined(ctx, leaves); err != nil {
		return err
	}
	if _, err := d.wait(ctx, began.Add(times.leave)); err != nil {
		return err
	}
	if err := d.takeAway(ctx, leaves); err != nil {
		return err
	}
	leftAt := time.Now()
	if _, err := d.wait(ctx, began.Add(times.end)); err != nil {
		return err
	}
	return sleepUntil(ctx, leftAt.Add(afterLeave))
}

// startReceiver starts a receiver. Its socket is open before it registers.
func (d *demo) startReceiver(r *receiver) (err error) {
	r.arrives = &follower{path: d.path(r.name + ".arrivals")}
	args := []string{
		"receive", "--server", d.url(), "--token-file", r.token, "--type", string(r.kind), "--id", r.id.String(), "--group", groupName, "--name", r.name,
		"--listen", r.at.String(), "--to", d.recording(r), "--limit", strconv.Itoa(recordLimit), "--log", r.arrives.path, "--linger", linger,
	}
	if r.auto {
		args = append(args, "--auto")
	} else {
		args = append(args, "--group-ip", d.groupIP.String())
	}
	r.program, err = d.programs.start(r.name, d.own("groupcastctl"), args...)
	return err
}

// joined waits until a receiver has joined.
func (d *demo) joined(ctx context.Context, r *receiver) error {
	if err := untilEvent(ctx, r.name+" to register", r.program, r.arrives, "joined"); err != nil {
		return err
	}
	how := ""
	if r.auto {
		how = " by the account's join policy"
	}
	d.screen.say("%s has joined%s.", r.name, how)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.receivers = append(d.receivers, r)
	return nil
}

func (d *demo) recording(r *receiver) string { return d.path(r.name + ".ts") }

// takeAway has a receiver leave while the stream runs. It goes on listening.
func (d *demo) takeAway(ctx context.Context, r *receiver) error {
	if err := d.leave(ctx, r); err != nil {
		return err
	}
	d.left = r
	d.screen.say("%s has left.", r.name)
	return nil
}

func (d *demo) leave(ctx context.Context, r *receiver) error {
	r.program.signal()
	r.gone.Store(true)
	return untilEvent(ctx, r.name+" to leave", r.program, r.arrives, "left")
}

// wait tells whether the first signal came before that time.
func (d *demo) wait(ctx context.Context, at time.Time) (finished bool, err error) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-d.finish:
		return true, nil
	case <-timer.C:
		return false, nil
	}
}

// keepShowing draws the table until the function that it gives is called.
func (d *demo) keepShowing() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(d.screen.every())
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
				d.show(ctx)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// show leaves out what can't be read at the moment: whoever needs it finds out why.
func (d *demo) show(ctx context.Context) {
	group, err := d.group(ctx)
	if err != nil {
		return
	}
	v := view{state: int(group.State)}
	sent, _ := d.sends.read()
	v.sent, v.bytes = sent.datagrams, sent.bytes
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.receivers {
		arrived, _ := r.arrives.read()
		v.rows = append(v.rows, row{r.name, r.at.String(), arrived.datagrams, arrived.bytes, r.gone.Load()})
	}
	d.screen.show(v)
}
