package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Frame is one whole Ethernet frame as it passed an interface.
type Frame struct {
	At       time.Time
	Outgoing bool // sent by the namespace that captures, not received
	Data     []byte
}

// IPv4 is the IPv4 packet in the frame without padding, or nil if it carries something else.
func (f Frame) IPv4() []byte {
	if f.etherType() != unix.ETH_P_IP || len(f.Data) < 14+20 {
		return nil
	}
	ip := f.Data[14:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < 20 || total > len(ip) {
		return ip
	}
	return ip[:total]
}

// ARP is the ARP message in the frame, or nil if it carries something else.
func (f Frame) ARP() []byte {
	if f.etherType() != unix.ETH_P_ARP {
		return nil
	}
	return f.Data[14:]
}

func (f Frame) etherType() int {
	if len(f.Data) < 14 {
		return 0
	}
	return int(binary.BigEndian.Uint16(f.Data[12:]))
}

// Capture records every frame of one interface from the moment it is made until the test ends.
type Capture struct {
	t      testing.TB
	each   func(Frame) // takes the frames instead of keeping them
	file   *os.File
	mu     sync.Mutex
	frames []Frame
}

// Capture starts recording. A capture that loses a frame fails the test.
func (n *Namespace) Capture(iface string) *Capture {
	n.t.Helper()
	return n.capture(iface, nil)
}

// Watch gives each frame to a function, one at a time, and keeps none: for runs that memory has no room for. Its Frames tells only whether one
// was lost.
func (n *Namespace) Watch(iface string, each func(Frame)) *Capture {
	n.t.Helper()
	return n.capture(iface, each)
}

func (n *Namespace) capture(iface string, each func(Frame)) *Capture {
	n.t.Helper()
	var file *os.File
	var err error
	link := n.link(iface)
	n.Do(func() { file, err = openCapture(link) })
	if err != nil {
		n.t.Fatalf("capture on %s: %v", end(n, iface), err)
	}
	c := &Capture{t: n.t, file: file, each: each}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run()
	}()
	n.t.Cleanup(func() {
		file.Close()
		<-done
	})
	return c
}

func openCapture(link netlink.Link) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "capture"), nil
}

func (c *Capture) run() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		var frame Frame
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			frame, recvErr = receiveFrame(int(fd), buf, oob)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if recvErr != nil {
			continue // the interface went down: what was captured stays
		}
		if c.each != nil {
			c.each(frame)
			continue
		}
		c.mu.Lock()
		c.frames = append(c.frames, frame)
		c.mu.Unlock()
	}
}

func receiveFrame(fd int, buf, oob []byte) (Frame, error) {
	n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
	if err != nil {
		return Frame{}, err
	}
	frame := Frame{Data: append([]byte(nil), buf[:n]...)}
	if link, ok := from.(*unix.SockaddrLinklayer); ok {
		frame.Outgoing = link.Pkttype == unix.PACKET_OUTGOING
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return Frame{}, err
	}
	for _, m := range messages {
		if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			frame.At = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return frame, nil
}

// Frames gives what was recorded so far.
func (c *Capture) Frames() []Frame {
	c.t.Helper()
	if err := c.lost(); err != nil {
		c.t.Fatalf("capture: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Frame(nil), c.frames...)
}

// Wait gives the recorded frames as soon as enough says that they are enough, and fails the test after the timeout.
func (c *Capture) Wait(timeout time.Duration, enough func([]Frame) bool) []Frame {
	c.t.Helper()
	for end := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		frames := c.Frames()
		if enough(frames) {
			return frames
		}
		if time.Now().After(end) {
			c.t.Fatalf("capture: not enough after %s; %d frames:\n%s", timeout, len(frames), dump(frames))
		}
	}
}

func (c *Capture) lost() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var statsErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return err
	}
	if statsErr == nil && stats.Drops > 0 {
		return fmt.Errorf("the kernel dropped %d frames; the test's receive buffer is too small for its load", stats.Drops)
	}
	return statsErr
}

func dump(frames []Frame) string {
	var s strings.Builder
	for _, f := range frames[max(0, len(frames)-20):] {
		fmt.Fprintf(&s, "%s out=%t %x\n", f.At.Format("15:04:05.000000"), f.Outgoing, f.Data[:min(len(f.Data), 64)])
	}
	return s.String()
}
