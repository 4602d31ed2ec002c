package duplicator_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/backendtest"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// agentEnv makes this program an agent process that copies the worked example from any port until it is killed.
const agentEnv = "GROUPCAST_TEST_SOCKET_AGENT"

func agentProcess() int {
	s, err := openAnyPort()
	if err == nil {
		err = s.Apply(backendtest.WorkedExample())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	select {}
}

func openAnyPort() (*duplicator.Socket, error) {
	return duplicator.OpenSocket(duplicator.Config{GroupRange: backendtest.GroupRange, Uplink: backendtest.Uplink, AnyPort: true})
}

// process is such a process as a backend under test.
type process struct{ cmd *exec.Cmd }

func (process) Apply(*table.Snapshot) error   { return nil }
func (process) Counters() duplicator.Counters { return duplicator.Counters{} }
func (process) Close() error                  { return nil }

func (p process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func startProcess(t *testing.T) process {
	t.Helper()
	p := process{exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), agentEnv+"=1")
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent says %q, %v", line, err)
	}
	return p
}

// An agent that was killed, and one that was closed, leaves nothing behind: what is sent to a group IP goes where it would go without them. The
// next agent needs to clean up nothing.
func TestOfAnyPortNothingIsLeft(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		const port = 9999
		var killed process
		h := backendtest.NewHome(t, backendtest.Backend{Open: func(t *testing.T, _ duplicator.Config) duplicator.Duplicator {
			killed = startProcess(t)
			return killed
		}}, packet.Strip, nil)
		receiver := h.WAN.ListenUDP(fmt.Sprintf("%s:%d", netlab.Upload, port))
		camera := h.Sender(backendtest.Camera, backendtest.StreamID)
		to := netip.AddrPortFrom(backendtest.Groupcast1, port)
		bystander := bindForeign(t, to)
		goes := func(what, text string, where net.PacketConn, notTo net.PacketConn) {
			t.Helper()
			if _, err := camera.WriteToUDPAddrPort([]byte(text), to); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			_ = where.SetReadDeadline(time.Now().Add(wait))
			if n, _, err := where.ReadFrom(buf); err != nil || string(buf[:n]) != text {
				t.Fatalf("%s: received %q, %v, want %q", what, buf[:n], err, text)
			}
			_ = notTo.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if n, _, err := notTo.ReadFrom(buf); err == nil {
				t.Fatalf("%s: the other one received %q", what, buf[:n])
			}
		}
		goes("an agent runs", "one", receiver, bystander)
		killed.kill()
		goes("it was killed", "two", bystander, receiver)
		s, err := openAnyPort()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		goes("the next one has no groups yet", "three", bystander, receiver)
		if err := s.Apply(backendtest.WorkedExample()); err != nil {
			t.Fatal(err)
		}
		goes("the next one copies", "four", receiver, bystander)
		left := backendtest.WorkedExample()
		delete(left.Groups, backendtest.Groupcast1)
		if err := s.Apply(left); err != nil {
			t.Fatal(err)
		}
		goes("the group is gone", "five", bystander, receiver)
		if err := s.Apply(backendtest.WorkedExample()); err != nil {
			t.Fatal(err)
		}
		goes("the group is there again", "six", receiver, bystander)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		goes("it was closed", "seven", bystander, receiver)
	})
}

// bindForeign binds an address that no interface has.
func bindForeign(t *testing.T, at netip.AddrPort) net.PacketConn {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		if controlErr != nil {
			return controlErr
		}
		return err
	}}
	c, err := config.ListenPacket(context.Background(), "udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Without the rights it says so and what to do, and doesn't copy from fewer ports than it was told.
func TestAnyPortNeedsRights(t *testing.T) {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
		header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		err := unix.Capset(&header, &data[0])
		if err == nil {
			var s *duplicator.Socket
			if s, err = openAnyPort(); err == nil {
				s.Close()
			}
		}
		result <- err
	}()
	err := <-result
	if err == nil || !strings.Contains(err.Error(), "CAP_BPF and CAP_NET_ADMIN, or list the ports in media-ports") {
		t.Fatal(err)
	}
}
