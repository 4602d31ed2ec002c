package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
)

// ctl runs groupcastctl as an operator or integrator does, by hand.
type ctl struct {
	t      *testing.T
	server *harness.Server
	tokens string
}

func (c ctl) command(args ...string) *exec.Cmd {
	cmd := exec.Command(harness.Bin(c.t, "groupcastctl"), args...)
	cmd.Env = append(os.Environ(), "GROUPCASTCTL_SERVER="+c.server.URL, "GROUPCASTCTL_DATA_DIR="+c.server.DataDir)
	return cmd
}

// run gives standard output, standard error and the exit code.
func (c ctl) run(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	cmd := c.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		var exited *exec.ExitError
		require.ErrorAs(c.t, err, &exited)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// json runs a command that has to succeed and reads its document.
func (c ctl) json(document any, args ...string) {
	c.t.Helper()
	out, errs, code := c.run(append(args, "--json")...)
	require.Zero(c.t, code, "%v: %s", args, errs)
	require.NoError(c.t, json.Unmarshal([]byte(out), document), "%s", out)
}

func (c ctl) token(name string, who ...string) string {
	c.t.Helper()
	file := filepath.Join(c.tokens, name)
	_, errs, code := c.run(append([]string{"admin", "token", "--out", file}, who...)...)
	require.Zero(c.t, code, errs)
	info, err := os.Stat(file)
	require.NoError(c.t, err)
	assert.Equal(c.t, os.FileMode(0o600), info.Mode())
	return file
}

// From nothing to a stream that arrives, and back, with groupcastctl alone.
func TestGroupcastctl(t *testing.T) {
	t.Parallel()
	c := ctl{t: t, server: harness.StartServer(t, harness.Options{Args: []string{"--allow-loopback"}}), tokens: t.TempDir()}
	// Drawn, so that runs of other clones of the project don't meet here.
	home := fmt.Sprintf("127.%d.%d.", 220+rand.N(30), rand.N(250))
	cameraAt, receiverAt := home+"5", home+"100:5004"

	var account adminapi.Account
	c.json(&account, "admin", "account", "create", "the Smiths")
	var premises adminapi.Premises
	c.json(&premises, "admin", "premises", "create", "home", "--account", string(account.AccountID))
	device := func(name string, args ...string) adminapi.Device {
		var d adminapi.Device
		c.json(&d, append([]string{"admin", "device", "create", name, "--premises", string(premises.PremisesID), "--pop=off"}, args...)...)
		return d
	}
	gateway := device("gateway", "--type", "gateway")
	camera := device("camera1", "--id", "664123086043511412", "--model", "C1")
	assert.Equal(t, "664123086043511412", camera.DeviceID.String())
	assert.False(t, camera.Pop)
	c.json(&camera, "admin", "device", "set", camera.DeviceID.String(), "--trigger", "source")
	assert.Equal(t, "source", string(camera.Trigger))
	var service adminapi.Service
	c.json(&service, "admin", "service", "create", "svc-upload", "--name", "upload")
	var link adminapi.Link
	c.json(&link, "admin", "link", "create", "--service", "svc-upload", "--account", string(account.AccountID), "--id", "2908757376510572177")
	assert.Equal(t, "2908757376510572177", link.ServiceAccountID.String())

	cameraToken := c.token("camera", "--device", camera.DeviceID.String())
	uploadToken := c.token("upload", "--service", "svc-upload", "--ttl", "1h")
	gatewayToken := c.token("gateway", "--device", gateway.DeviceID.String())

	// What is refused says why and what to do.
	_, errs, code := c.run("register", "--token-file", cameraToken, "--id", camera.DeviceID.String(), "--group", "groupcast1", "--private-ip", cameraAt)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "(409)")
	assert.Contains(t, errs, "type: /problems/no-gateway")
	_, errs, code = c.run("register", "--token-file", cameraToken, "--id", "664123086043511413", "--group", "groupcast1", "--json")
	assert.Equal(t, 1, code)
	var problem api.Problem
	require.NoError(t, json.Unmarshal([]byte(errs), &problem), errs)
	assert.Equal(t, "/problems/contradicts-token", problem.Type)
	_, errs, code = c.run("groups", "--token-file", filepath.Join(c.tokens, "none"))
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "there is no credential file")
	_, errs, code = c.run("groups", "--token-file", cameraToken, "--server", "http://192.0.2.1")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "--allow-plain-http")

	token, err := os.ReadFile(gatewayToken)
	require.NoError(t, err)
	harness.StartAgent(t, harness.AgentOptions{
		Server: c.server, GatewayID: gateway.DeviceID, Token: strings.TrimSpace(string(token)), LANInterface: "lo",
		LANPrefix: home + "0/24", LANAddress: home + "1", Uplink: "127.0.0.1", AllowLoopback: true,
	})
	declared := func() bool {
		r, err := c.server.Client(t, strings.TrimSpace(string(token))).GetGatewayWithResponse(t.Context(), gateway.DeviceID)
		return err == nil && r.JSON200 != nil
	}
	require.Eventually(t, declared, time.Minute, 50*time.Millisecond)

	// A camera sends what comes on standard input; a service that names no group IP finds it.
	send := c.command("camera", "--token-file", cameraToken, "--id", camera.DeviceID.String(), "--group", "groupcast1", "--name", "camera1",
		"--private-ip", cameraAt, "--no-option", "--rtp", "--bitrate", "4000000")
	stdin, err := send.StdinPipe()
	require.NoError(t, err)
	sending := harness.Start(t, nil, "camera", send)
	require.Eventually(t, func() bool { return strings.Contains(sending.Log(), "registered as source") }, time.Minute, 20*time.Millisecond)
	file := filepath.Join(c.tokens, "stream.ts")
	receive := harness.Start(t, nil, "receive", c.command("receive", "--token-file", uploadToken, "--type", "Service",
		"--id", link.ServiceAccountID.String(), "--group", "groupcast1", "--name", "upload", "--listen", receiverAt, "--to", file))
	require.Eventually(t, func() bool { return strings.Contains(receive.Log(), "registered as destination") }, time.Minute, 20*time.Millisecond)

	var page api.GroupPage
	c.json(&page, "groups", "--token-file", cameraToken)
	require.Len(t, page.Groups, 1)
	assert.Equal(t, int32(1), page.Groups[0].State)
	out, _, code := c.run("groups", "--token-file", uploadToken)
	assert.Zero(t, code)
	assert.Contains(t, out, page.Groups[0].GroupIP.String())
	var own api.RegistrationPage
	c.json(&own, "registrations", "--token-file", uploadToken)
	require.Len(t, own.Registrations, 1)

	sent := feed(t, stdin.Write, file)
	require.NoError(t, stdin.Close())
	<-sending.Done()
	assert.Contains(t, sending.Log(), " 0 failed")
	require.NoError(t, receive.Stop())
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, bytes.HasSuffix(sent, got), "what arrived is the end of what was sent: %d of %d bytes", len(got), len(sent))
	assert.Contains(t, receive.Log(), "lost 0, duplicates 0")

	c.json(&page, "groups", "--token-file", cameraToken)
	assert.Empty(t, page.Groups, "the camera left at the end of its stream")

	// Without consent and without the device nothing works any more.
	_, errs, code = c.run("admin", "link", "delete", "--service", "svc-upload", "--account", string(account.AccountID))
	assert.Zero(t, code, errs)
	_, errs, code = c.run("admin", "device", "delete", camera.DeviceID.String())
	assert.Zero(t, code, errs)
	_, errs, code = c.run("groups", "--token-file", cameraToken)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "(401)")
	var accounts adminapi.AccountPage
	c.json(&accounts, "admin", "account", "list")
	require.Len(t, accounts.Accounts, 1)
	assert.Empty(t, accounts.Accounts[0].Links)
	assert.Len(t, accounts.Accounts[0].Devices, 1)

	// Who enrols with a ticket is told its own id.
	for _, who := range []struct {
		field  string
		ticket []string
	}{
		{"relayId", []string{"admin", "relay", "create", "--name", "relay-1"}},
		{"deviceId", []string{"admin", "ticket", "--premises", string(premises.PremisesID), "--type", "gateway"}},
	} {
		ticket := filepath.Join(c.tokens, who.field+".ticket")
		_, errs, code := c.run(append(who.ticket, "--out", ticket)...)
		require.Zero(t, code, errs)
		enrolled := map[string]string{}
		c.json(&enrolled, "enrol", "--ticket-file", ticket, "--out", filepath.Join(c.tokens, who.field+".credential"))
		assert.ElementsMatch(t, []string{"clientId", who.field}, slices.Collect(maps.Keys(enrolled)))
		assert.Regexp(t, `^[1-9]\d*$`, enrolled[who.field])
	}
}

// feed writes transport stream packets that all differ: until the first arrive in the file, then some hundred more.
func feed(t *testing.T, write func([]byte) (int, error), file string) (sent []byte) {
	t.Helper()
	next := func() {
		block := make([]byte, 7*188)
		for at := 0; at < len(block); at += 188 {
			block[at] = 0x47
			binary.BigEndian.PutUint64(block[at+4:], uint64(len(sent)+at))
		}
		_, err := write(block)
		require.NoError(t, err)
		sent = append(sent, block...)
	}
	require.Eventually(t, func() bool {
		next()
		info, err := os.Stat(file)
		return err == nil && info.Size() > 0
	}, time.Minute, 10*time.Millisecond)
	for range 300 { // paced by the camera, so that the kernel's buffers are no part of this test
		next()
	}
	require.Eventually(t, func() bool {
		got, err := os.ReadFile(file)
		return err == nil && len(got) >= 188 && bytes.HasSuffix(sent, got[len(got)-188:])
	}, time.Minute, 50*time.Millisecond, "the end of the stream did not arrive")
	return sent
}

// A gateway's group information is shown at once and at each change.
func TestGroupcastctlWatch(t *testing.T) {
	t.Parallel()
	e := newExample(t, harness.Options{})
	e.declare(t)
	c := ctl{t: t, server: e.Server, tokens: t.TempDir()}
	gatewayToken := c.token("gateway", "--device", e.gateway.String())
	cameraToken := c.token("camera", "--device", cameraID.String())
	watch := harness.Start(t, nil, "watch", c.command("watch", "--token-file", gatewayToken, "--gateway", e.gateway.String(), "--json"))
	shown := func() []api.GroupInformation {
		var all []api.GroupInformation
		d := json.NewDecoder(strings.NewReader(watch.Log()))
		for {
			var g api.GroupInformation
			if d.Decode(&g) != nil {
				return all
			}
			all = append(all, g)
		}
	}
	require.Eventually(t, func() bool { return len(shown()) == 1 }, time.Minute, 20*time.Millisecond)
	var answer api.RegistrationAnswer
	c.json(&answer, "register", "--token-file", cameraToken, "--id", cameraID.String(),
		"--group", "groupcast1", "--private-ip", cameraAddr, "--public-ip", phoneAddr)
	require.Eventually(t, func() bool { return len(shown()) == 2 }, time.Minute, 20*time.Millisecond)
	assert.Empty(t, shown()[0].Groups)
	require.Len(t, shown()[1].Groups, 1)
	assert.Equal(t, answer.GroupIP, shown()[1].Groups[0].GroupIP)

	groups := harness.Start(t, nil, "watch groups", c.command("watch", "--token-file", cameraToken, "--every", "50ms"))
	require.Eventually(t, func() bool { return strings.Contains(groups.Log(), answer.GroupIP.String()) }, time.Minute, 20*time.Millisecond)
	_, errs, code := c.run("leave", "--token-file", cameraToken, string(*answer.RegistrationID))
	require.Zero(t, code, errs)
	require.Eventually(t, func() bool { return len(shown()) == 3 && strings.Count(groups.Log(), "GROUP IP") == 2 }, time.Minute, 20*time.Millisecond)
	require.NoError(t, watch.Stop())
	require.NoError(t, groups.Stop())
}
