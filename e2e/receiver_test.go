package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/internal/rtp"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	farIPv4 = "71.230.36.162" // where nobody is exempt
	farIPv6 = "2001:db9:1::2"
	farPort = "6004"
)

// far is the worked example with a camera that streams and an agent that asks for consent, seen from a host in the internet, which reaches the service as well.
type far struct {
	*wire
	*example
	agent *harness.Agent
	host  *netlab.Namespace
	token string // file with the service's
	sent  atomic.Uint64
}

func newFar(t *testing.T, backend string) *far {
	w := newWire(t)
	f := &far{wire: w, host: w.wan, token: filepath.Join(t.TempDir(), "token")}
	w.gateway.Address("wan0", "2001:db9:1::1/64")
	f.host.Address("ext0", farIPv6+"/64")
	w.gateway.Route("::/0", farIPv6)
	f.example = newExample(t, harness.Options{In: w.gateway, Listen: "127.0.0.1:8080"})
	relay(t, f.host, w.gateway, "127.0.0.1:8080")
	require.NoError(t, os.WriteFile(f.token, []byte(f.uploadToken), 0o600))
	f.agent = harness.StartAgent(t, harness.AgentOptions{
		Server: f.Server, GatewayID: f.example.gateway, Token: f.gatewayToken, In: w.gateway,
		LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr,
		GroupRange: "172.168.0.233-172.168.0.254", Backend: backend, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
	})
	f.awaitDeclared(t)
	f.postCamera(t)
	return f
}

// relay makes what listens in one namespace reachable at the same address in another one.
func relay(t *testing.T, at, to *netlab.Namespace, address string) {
	var l net.Listener
	var err error
	at.Do(func() { l, err = net.Listen("tcp", address) })
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				var out net.Conn
				var err error
				to.Do(func() { out, err = net.Dial("tcp", address) })
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
}

// stream sends a datagram every 5 ms until the test ends.
func (f *far) stream(t *testing.T, next func(n uint64) []byte) {
	var conn net.Conn
	var err error
	f.camera.Do(func() {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(cameraAddr)}, Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) {
				set = syscall.SetsockoptString(int(fd), syscall.IPPROTO_IP, syscall.IP_OPTIONS, string(streamOption(0x88, cameraAddr)))
			})
			if err != nil {
				return err
			}
			return set
		}}
		conn, err = d.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr(groupIP), mediaPort).String())
	})
	require.NoError(t, err)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_, _ = conn.Write(next(f.sent.Add(1))) // a camera goes on, whatever the network says
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
		_ = conn.Close()
	})
}

// numbered is RTP of payload type 96 with its number in 64 bits as payload.
func numbered(n uint64) []byte {
	b := []byte{0x80, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7}
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return binary.BigEndian.AppendUint64(b, n)
}

func (f *far) ctl(t *testing.T, command string, args ...string) *exec.Cmd {
	return exec.Command(harness.Bin(t, "groupcastctl"), append([]string{
		command, "--server", f.URL, "--token-file", f.token, "--type", "Service", "--id", uploadAccountID.String(), "--group", "groupcast1", "--group-ip", groupIP,
	}, args...)...)
}

// registered gives the upload service's registrations by their instance.
func (f *far) registered(t *testing.T) map[string]models.RegistrationID {
	r, err := f.Client(t, f.uploadToken).ListRegistrationsWithResponse(t.Context(), &api.ListRegistrationsParams{})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	all := map[string]models.RegistrationID{}
	for _, v := range r.JSON200.Registrations {
		all[v.Instance] = v.RegistrationID
	}
	return all
}

// hears waits for datagrams that were sent from now on.
func (f *far) hears(t *testing.T, player *net.UDPConn, why string) {
	t.Helper()
	from := f.sent.Load()
	require.NoError(t, player.SetReadDeadline(time.Now().Add(time.Minute)))
	b := make([]byte, 2000)
	for n := 0; n < 20; {
		size, err := player.Read(b)
		require.NoError(t, err, why)
		require.Equal(t, 20, size, "what is handed on is media and nothing else")
		if binary.BigEndian.Uint64(b[12:]) > from {
			n++
		}
	}
}

// A receiver that is killed and started again, an agent that is, and both without a service, all get the stream back without a new registration and without
// anybody's help: over IPv4 and IPv6.
func TestReceiversComeBack(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			f := newFar(t, backend)
			f.stream(t, numbered)
			listen := map[string]string{"four": farIPv4 + ":" + farPort, "six": "[" + farIPv6 + "]:" + farPort}
			players, receivers := map[string]*net.UDPConn{}, map[string]*harness.Process{}
			begin := func() {
				for name, at := range listen {
					to := players[name].LocalAddr().String()
					receivers[name] = harness.Start(t, f.host, "receive "+name, f.ctl(t, "receive", "--instance", name, "--listen", at, "--to", "udp:"+to))
				}
			}
			all := func(why string) {
				t.Helper()
				for name, player := range players {
					f.hears(t, player, name+" "+why)
				}
			}
			for name := range listen {
				players[name] = f.host.ListenUDP("127.0.0.1:0")
			}
			begin()
			all("at first")
			first := f.registered(t)
			require.Len(t, first, 2)
			for name, r := range receivers {
				require.Eventually(t, func() bool { return strings.Contains(r.Log(), "consent is live") }, time.Minute, 20*time.Millisecond, name)
				r.Kill()
			}
			begin()
			all("after they were killed")
			assert.Equal(t, first, f.registered(t), "it is the same registration")

			f.agent.Kill()
			f.agent.Start(t)
			all("after the agent was killed")
			f.Server.Kill()
			f.agent.Kill()
			f.agent.Start(t)
			all("without a service")
			f.Server.Start(t)
			assert.Equal(t, first, f.registered(t))
			for name, r := range receivers {
				assert.Equal(t, 1, strings.Count(r.Log(), "registered as destination"), name)
				require.NoError(t, r.Stop(), name)
				assert.Contains(t, r.Log(), "RTP stream 00000007: received ", name)
			}
			assert.Empty(t, f.registered(t))
		})
	}
}

// A receiver that knows nothing of groupcast, here ffmpeg, decodes the stream: as the owner of the media port beside consent-responder over IPv4 and IPv6, and handed on
// by receive.
func TestReceiversOfOthers(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("ffmpeg is missing: run .ci/install test")
		}
		t.Skip("needs ffmpeg: install it")
	}
	f := newFar(t, "socket")
	video := filepath.Join(t.TempDir(), "video.ts")
	out, err := exec.Command("ffmpeg", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25", "-t", "4", "-c:v", "mpeg2video", "-g", "5",
		"-b:v", "500k", "-muxrate", "2100k", video).CombinedOutput()
	require.NoError(t, err, "%s", out)
	ts, err := os.ReadFile(video)
	require.NoError(t, err)
	const size = rtp.PacketSize * rtp.DatagramPackets
	packer := rtp.NewPacker(time.Now())
	f.stream(t, func(n uint64) []byte {
		from := int(n) % (len(ts) / size) * size
		d, err := packer.Pack(ts[from:from+size], time.Now())
		if err != nil {
			panic(err)
		}
		return d
	})
	decodes := func(t *testing.T, player *exec.Cmd) *harness.Process {
		return harness.Start(t, f.host, "ffmpeg", player)
	}
	ffmpeg := func(input ...string) *exec.Cmd {
		args := append([]string{"-nostdin", "-hide_banner", "-loglevel", "info"}, input...)
		return exec.Command("ffmpeg", append(args, "-frames:v", "25", "-f", "null", "-")...)
	}
	ended := func(t *testing.T, player *harness.Process, r *harness.Process) {
		t.Helper()
		select {
		case <-player.Done():
		case <-time.After(60 * time.Second):
			t.Fatalf("no picture; the receiver says\n%s", r.Log())
		}
		assert.True(t, player.Cmd.ProcessState.Success(), player.Log())
		assert.Contains(t, player.Log(), "frame=   25")
	}
	for name, host := range map[string]string{"beside it over IPv4": farIPv4, "beside it over IPv6": "[" + farIPv6 + "]"} {
		t.Run(name, func(t *testing.T) {
			at := host + ":" + farPort
			player := decodes(t, ffmpeg("-i", "rtp://"+at))
			r := harness.Start(t, f.host, "consent-responder", f.ctl(t, "consent-responder", "--media", at))
			ended(t, player, r)
			assert.Contains(t, r.Log(), "consent is live")
			require.NoError(t, r.Stop())
			assert.Empty(t, f.registered(t))
		})
	}
	t.Run("without the right to", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "gc-") // unlike the test's own, others may enter it
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		mine := filepath.Join(dir, "token")
		require.NoError(t, os.WriteFile(mine, []byte(f.uploadToken), 0o600))
		require.NoError(t, errors.Join(os.Chown(dir, 65534, 65534), os.Chown(mine, 65534, 65534)))
		cmd := f.ctl(t, "consent-responder", "--media", farIPv4+":"+farPort, "--token-file", mine)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		r := harness.Start(t, f.host, "consent-responder", cmd)
		<-r.Done()
		assert.Equal(t, 1, r.Cmd.ProcessState.ExitCode())
		assert.Contains(t, r.Log(), "CAP_NET_RAW")
		assert.Empty(t, f.registered(t), "nothing was registered that nobody consents for")
	})
	t.Run("handed on to its port", func(t *testing.T) {
		player := decodes(t, ffmpeg("-i", "rtp://127.0.0.1:6010"))
		r := harness.Start(t, f.host, "receive", f.ctl(t, "receive", "--listen", farIPv4+":"+farPort, "--to", "udp:127.0.0.1:6010"))
		ended(t, player, r)
		require.NoError(t, r.Stop())
		assert.Contains(t, r.Log(), "lost 0, duplicates 0")
	})
	t.Run("handed on to its standard input", func(t *testing.T) {
		cmd, play := f.ctl(t, "receive", "--listen", "["+farIPv6+"]:"+farPort), ffmpeg("-i", "pipe:0")
		read, write, err := os.Pipe()
		require.NoError(t, err)
		play.Stdin = read
		player := decodes(t, play)
		r := harness.StartInto(t, f.host, "receive", cmd, write)
		require.NoError(t, read.Close())
		require.NoError(t, write.Close())
		ended(t, player, r)
		<-r.Done() // nobody reads any more, so it leaves
		assert.Contains(t, r.Log(), "hand on the stream")
		assert.Empty(t, f.registered(t))
	})
}
