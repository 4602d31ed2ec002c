package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

type options struct {
	bin      string
	keep     bool
	duration time.Duration // 0: until finish is closed
	finish   <-chan struct{}
}

// errFinished says that the first signal came before there was all to see.
var errFinished = errors.New("it was ended by a signal before every receiver had joined")

// demo is one performance.
type demo struct {
	options
	dir      string
	place    *place
	option   bool // the camera may set the IP option
	programs *programs
	screen   *screen

	server, agent, camera, video *program

	home      home
	ask       *client.ClientWithResponses // with the camera's token
	groupIP   netip.Addr
	sends     *follower
	left      *receiver
	mu        sync.Mutex  // for receivers: the table is drawn meanwhile
	receivers []*receiver // those that have joined
}

// perform does everything and leaves nothing behind.
func perform(ctx context.Context, o options) ledger.Verdict {
	d := &demo{options: o, screen: newScreen(), option: maySetOption()}
	v, err := d.perform(ctx)
	switch {
	case errors.Is(err, errAborted), errors.Is(err, errFinished):
		v.Result = ledger.Interrupted
	case err != nil:
		v.Result = ledger.Failed
	}
	if err != nil {
		v.Why = append(v.Why, d.explain(err))
	}
	if v.Destinations == nil {
		v.Destinations = []ledger.Destination{}
	}
	d.screen.summary(v)
	return v
}

func (d *demo) perform(ctx context.Context) (v ledger.Verdict, err error) {
	if d.place, err = findPlace(); err != nil {
		return v, err
	}
	defer d.place.close()
	if d.dir, err = makeDirectory(); err != nil {
		return v, err
	}
	defer func() {
		if d.keep {
			d.screen.say("Logs and recordings are in %s.", d.dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(d.dir))
	}()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	d.programs = newPrograms(d.dir, fail)
	defer d.programs.stopAll()

	if err = d.setUp(ctx); err != nil {
		return v, err
	}
	d.screen.say("The camera sends one stream to the group IP %s, %s.", d.groupIP, d.how())
	stopShowing := d.keepShowing()
	played := d.play(ctx)
	stopShowing()
	if played != nil && !errors.Is(played, errFinished) {
		return v, played
	}
	v, err = d.settle(ctx)
	return v, errors.Join(played, err)
}

// explain gives the sentence of an error and shows the log beneath it.
func (d *demo) explain(err error) string {
	sentence, log := account(err)
	if log != "" {
		d.screen.say("%s", log)
	}
	return sentence
}

// makeDirectory keeps the path short: that of a unix socket must stay below 108 bytes.
func makeDirectory() (string, error) {
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "groupcast-demo-")
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// maySetOption finds out by doing it.
func maySetOption() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x88\x06\x7f\x00\x00\x01") == nil
}

func (d *demo) trigger() models.Trigger {
	if d.option {
		return models.TriggerOption
	}
	return models.TriggerSource
}

func (d *demo) how() string {
	if d.option {
		return "each datagram with the IP option that asks for copies"
	}
	return `without the IP option, which takes CAP_NET_RAW: its trigger is "source", so the gateway goes by the registered address`
}

// setUp starts service, gateway and camera. After it the stream runs, since those who join by
// themselves have come. The first signal ends it.
func (d *demo) setUp(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-d.finish:
			end(errFinished)
		case <-ctx.Done():
		}
	}()
	for _, step := range []func(context.Context) error{d.check, d.startServer, d.bootstrap, d.startAgent, d.startListeners, d.startCamera, d.awaitListeners, d.startVideo} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx) // says why the step could not end
			}
			return err
		}
	}
	return nil
}

// check finds what is missing before anything is started.
func (d *demo) check(context.Context) error {
	for _, program := range []string{"groupcastd", "gateway-agent", "groupcastctl"} {
		if _, err := os.Stat(d.own(program)); err != nil {
			return fmt.Errorf("%s is not in %s: run \"make demo\", which builds it", program, d.bin)
		}
	}
	for _, program := range []string{"ffmpeg", "ffprobe"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: install ffmpeg, for example with \"apt-get install ffmpeg\"", program)
		}
	}
	return nil
}

// own gives the path of one of the project's programs.
func (d *demo) own(program string) string { return filepath.Join(d.bin, program) }

func (d *demo) startServer(ctx context.Context) (err error) {
	d.screen.say("Starting the registration service, a gateway agent and a camera; nothing leaves this machine.")
	if d.server, err = d.programs.start("groupcastd", d.own("groupcastd"), "serve", "--listen", d.place.server.String(),
		"--data-dir", d.path("server"), "--metrics-listen", "", "--allow-loopback"); err != nil {
		return err
	}
	return until(ctx, "the registration service to be ready", d.server, func(ctx context.Context) (bool, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url()+"/readyz", nil)
		if err != nil {
			return false, err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, nil //nolint:nilerr // it doesn't listen yet
		}
		return response.StatusCode == http.StatusOK, response.Body.Close()
	})
}

func (d *demo) startAgent(ctx context.Context) error {
	config, err := d.configureAgent()
	if err != nil {
		return err
	}
	if d.agent, err = d.programs.start("gateway-agent", d.own("gateway-agent"), "run", "--config", config); err != nil {
		return err
	}
	gateway, err := d.client(d.home.gatewayToken)
	if err != nil {
		return err
	}
	return until(ctx, "the gateway to declare its LAN", d.agent, func(ctx context.Context) (bool, error) {
		r, err := gateway.GetGatewayWithResponse(ctx, d.home.gateway)
		return err == nil && r.JSON200 != nil, nil
	})
}

func (d *demo) url() string { return "http://" + d.place.server.String() }

func (d *demo) client(credentialFile string) (*client.ClientWithResponses, error) {
	c, err := clientauth.Open(credentialFile, d.url(), clientauth.Options{})
	if err != nil {
		return nil, err
	}
	return client.NewClientWithResponses(c.Server(), client.WithHTTPClient(&http.Client{Transport: c.Transport(), Timeout: stepTimeout}))
}
