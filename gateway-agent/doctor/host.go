package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
)

type rootFS = fs.FS

// written is a day before which no clock of a host that runs this program can be.
var written = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (e *examination) kernel() {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		e.warn("kernel", "tell us", "its version can't be read: %v", err)
		return
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := version(release)
	if major < 6 || major == 6 && minor < 6 {
		e.warn("kernel", "the socket backend runs here; for the ebpf backend, several times as fast, take Linux 6.6 or later", "Linux %s", release)
		return
	}
	e.ok("kernel", "Linux %s, new enough for every backend", release)
}

func version(release string) (major, minor int) {
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 {
		return 0, 0
	}
	return major, minor
}

// clock looks at the wall clock. The packet path doesn't go by it, but TLS and the proofs for the server do.
func (e *examination) clock() {
	now := time.Now()
	if now.Before(written) {
		e.fail("clock", "set the clock, and run a time service such as chrony or ntpd: TLS and the credential need it", "it says %s, which is past", now.UTC().Format(time.RFC3339))
		return
	}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0) {
		e.warn("clock", "run a time service such as chrony or ntpd", "it says %s, and the kernel knows of nobody who keeps it right", now.UTC().Format(time.RFC3339))
		return
	}
	e.ok("clock", "%s, kept right by a time service", now.UTC().Format(time.RFC3339))
}

// The numbers of capabilities(7).
const (
	capNetBindService = 10
	capNetAdmin       = 12
	capNetRaw         = 13
	capSysAdmin       = 21
	capPerfmon        = 38
	capBPF            = 39
)

func (e *examination) capabilities() {
	have, err := effective()
	if err != nil {
		e.warn("capabilities", "tell us", "they can't be read: %v", err)
		return
	}
	has := func(n int) bool { return have&(1<<n) != 0 }
	onLoopback := e.config.Gateway.LANAddr.IsLoopback()
	switch {
	case has(capNetAdmin):
		e.ok("CAP_NET_ADMIN", "this process has it")
	case onLoopback:
		e.ok("CAP_NET_ADMIN", "not needed on loopback")
	default:
		e.fail("CAP_NET_ADMIN", "run the agent, and this command, as root or give them the capability: the systemd unit of the package does", "this process doesn't have it, so it can't answer ARP for group IPs")
	}
	e.kernelCapabilities(has, onLoopback)
	if has(capNetRaw) {
		e.ok("CAP_NET_RAW", "this process has it; the agent needs it for the tunnel only")
	} else {
		e.ok("CAP_NET_RAW", "only the tunnel needs it, and a camera that runs on this host to set option 0x88")
	}
	for _, port := range e.config.MediaPorts {
		if port < 1024 && !has(capNetBindService) {
			e.fail("media-ports", "give the agent CAP_NET_BIND_SERVICE, or take ports from 1024", "port %d is for privileged programs", port)
		}
	}
}

// kernelCapabilities are those that copying in the kernel needs beside CAP_NET_ADMIN.
func (e *examination) kernelCapabilities(has func(int) bool, onLoopback bool) {
	for _, c := range []struct {
		name string
		has  bool
	}{{"CAP_BPF", has(capBPF) || has(capSysAdmin)}, {"CAP_PERFMON", has(capPerfmon) || has(capSysAdmin)}} {
		switch wanted := e.config.Backend; {
		case c.has:
			e.ok(c.name, "this process has it")
		case wanted == config.BackendEBPF:
			e.fail(c.name, "give the agent the capability, or set backend to auto or socket", "this process doesn't have it, and backend is ebpf")
		case wanted == config.BackendSocket || onLoopback:
			e.ok(c.name, "not needed by the socket backend")
		default:
			e.warn(c.name, "give the agent the capability if it should copy in the kernel", "this process doesn't have it, so the agent copies by sockets")
		}
	}
}

// effective gives the capabilities that this process acts with.
func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), err
}

// backends tries both, and says which the agent would take.
func (e *examination) backends() {
	c := e.config
	base := duplicator.Config{GroupRange: c.Gateway.Range, Uplink: c.Gateway.Uplink, Ports: c.MediaPorts, AnyPort: c.AnyPort, CopyOptions: c.CopyOptions, AllowLoopback: c.AllowLoopback}
	socket, err := duplicator.OpenSocket(base)
	if err == nil {
		err = socket.Close()
	}
	e.judgeSocket(err, duplicator.ProbeRing())
	if e.iface == "" || c.Backend == config.BackendSocket {
		return
	}
	switch err := ebpf.Probe(ebpf.Config{Config: base, Interface: e.iface, PinDir: c.BPFDir}); {
	case c.Gateway.LANAddr.IsLoopback() && err != nil && c.Backend != config.BackendEBPF:
		e.ok("ebpf", "not for loopback; the agent copies by sockets")
	default:
		e.judgeKernel(err)
	}
}

func (e *examination) judgeKernel(err error) {
	switch {
	case err == nil:
		e.ok("ebpf", "the ebpf backend can run%s", chosen(true))
	case e.config.Backend == config.BackendEBPF:
		e.fail("ebpf", "do what the message says, or set backend to auto", "the configured ebpf backend can't run: %v", err)
	default:
		e.warn("ebpf", "do what the message says if the agent should copy in the kernel; else it copies by sockets", "%v", err)
	}
}

func (e *examination) judgeSocket(err, ringErr error) {
	switch taken := chosen(e.config.Backend == config.BackendSocket); {
	case err != nil:
		e.fail("socket", "do what the message says", "the socket backend can't run: %v", err)
	case ringErr != nil:
		e.ok("socket", "the socket backend can run%s; a datagram that comes alone costs it a system call for each destination (%v)", taken, ringErr)
	default:
		e.ok("socket", "the socket backend can run%s", taken)
	}
}

func chosen(it bool) string {
	if it {
		return ": the agent takes it"
	}
	return ""
}

func (e *examination) receiveBuffer() {
	e.judgeReceiveBuffer(duplicator.ProbeReceiveBuffer())
}

func (e *examination) judgeReceiveBuffer(granted, wanted int, err error) {
	switch {
	case err != nil:
		e.fail("receive buffer", "do what the message says", "%v", err)
	case granted < wanted:
		e.warn("receive buffer", fmt.Sprintf("sysctl -w net.core.rmem_max=%d, or give the agent CAP_NET_ADMIN", wanted),
			"the kernel grants %d of %d bytes: a burst of key frames may overflow it (counted as overflow)", granted, wanted)
	default:
		e.ok("receive buffer", "%d bytes", granted)
	}
}

// inMemory tells a file system's type; 32 bits of it count, whatever their sign.
func inMemory(kind uint32) bool { return kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC }

func (e *examination) stateDir() {
	dir := e.config.StateDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.ok("state-dir", "%s isn't there yet; the agent makes it", dir)
	case err != nil || !info.IsDir() || unix.Access(dir, unix.W_OK|unix.X_OK) != nil:
		e.fail("state-dir", "make it a directory that the agent's user may write", "the last group information can't be kept in %s", dir)
	default:
		var s unix.Statfs_t
		if unix.Statfs(dir, &s) == nil && inMemory(uint32(s.Type)) {
			e.warn("state-dir", "choose a directory that survives a restart of the host", "%s is in memory: after a restart nothing is copied until the server answers", dir)
			return
		}
		e.ok("state-dir", "%s", dir)
	}
}
