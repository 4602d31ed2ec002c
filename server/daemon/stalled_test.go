package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// stalls connects as a client that reads nothing. A small window and small segments keep the kernel's buffers on both sides small: what isn't read is soon
// too much.
func (s *service) stalls(t *testing.T) net.Conn {
	t.Helper()
	dial := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var window, segment error
		err := c.Control(func(fd uintptr) {
			window = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
			segment = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536)
		})
		return errors.Join(err, window, segment)
	}}
	conn, err := dial.DialContext(t.Context(), "tcp", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends a request on a connection.
func ask(t *testing.T, conn net.Conn, path string, header ...string) {
	t.Helper()
	text := "GET " + path + " HTTP/1.1\r\nHost: x\r\n"
	for i := 0; i < len(header); i += 2 {
		text += header[i] + ": " + header[i+1] + "\r\n"
	}
	_, err := fmt.Fprint(conn, text+"\r\n")
	require.NoError(t, err)
}

// serverEnd tells what the kernel says of the server's end of a connection: whether a process still has it, and how many bytes it was given that the client
// hasn't taken.
func serverEnd(t *testing.T, conn net.Conn) (open bool, unsent int) {
	t.Helper()
	of := func(a net.Addr) string {
		at := netip.MustParseAddrPort(a.String())
		b := at.Addr().As4()
		return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], at.Port())
	}
	file, err := os.Open("/proc/net/tcp")
	if !assert.NoError(t, err) {
		return false, 0
	}
	defer file.Close()
	for in := bufio.NewScanner(file); in.Scan(); {
		field := strings.Fields(in.Text())
		if len(field) < 10 || field[1] != of(conn.RemoteAddr()) || field[2] != of(conn.LocalAddr()) {
			continue
		}
		_, err := fmt.Sscanf(field[4], "%x:", &unsent)
		assert.NoError(t, err)
		const established, ofNobody = "01", "0"
		return field[3] == established && field[9] != ofNobody, unsent
	}
	return false, 0
}

// blocked waits until an answer doesn't get on: the client takes nothing of it, and the kernel nothing more.
func blocked(t *testing.T, conn net.Conn) {
	t.Helper()
	last, since := -1, 0
	require.Eventually(t, func() bool {
		open, unsent := serverEnd(t, conn)
		if !open || unsent == 0 || unsent != last {
			last, since = unsent, 0
			return false
		}
		since++
		return since >= 5
	}, waitLong, 20*time.Millisecond, "the kernel took the whole answer")
}

func heap() int {
	var m runtime.MemStats
	for range 3 { // pools and finalizers keep things for a collection or two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// crowded is a service with a group so large that no socket takes an answer about it whole.
type crowded struct {
	*service
	h house
	n int
}

func startCrowded(t *testing.T) *crowded {
	t.Helper()
	c := &crowded{service: start(t, settings(t, dataDir(t), "--rate-limit-principal", "0", "--rate-limit-source", "0", "--quota-destinations", "0"))}
	c.h = c.house(t, "Shared")
	for size := 0; size < 200<<10; _, size = c.now(t) {
		for range 50 {
			c.change(t)
		}
	}
	return c
}

// change lets something happen.
func (c *crowded) change(t *testing.T) {
	t.Helper()
	c.n++
	c.join(t, c.h.home, "door", c.h.groupIP, fmt.Sprint(strings.Repeat("n", 50), c.n))
}

// now gives the gateway's cursor and how long its answer is.
func (c *crowded) now(t *testing.T) (string, int) {
	t.Helper()
	r := c.poll(t, c.h.home, "")
	return r.Header.Get("ETag"), len(text(t, r))
}

// stalledGateway is a gateway's poll that waited, was answered, and isn't read.
func (c *crowded) stalledGateway(t *testing.T) net.Conn {
	t.Helper()
	at, _ := c.now(t)
	conn := c.stalls(t)
	ask(t, conn, "/v1/gateways/"+c.h.home.gateway.String()+"/groups?wait=50", "Authorization", "Bearer "+c.h.gatewayToken, "If-None-Match", at)
	c.waitForWaiters(t, 1)
	c.change(t)
	blocked(t, conn)
	return conn
}

func (c *crowded) events(last string) string {
	return "/v1/groups/" + c.h.group + "/events?wait=50&lastEventId=" + last
}

func (c *crowded) listens() []string {
	return []string{"Authorization", "Bearer " + c.h.phoneToken, "Accept", "application/json"}
}

// stalledListener is a poll for events that isn't read.
func (c *crowded) stalledListener(t *testing.T) net.Conn {
	t.Helper()
	conn := c.stalls(t)
	ask(t, conn, c.events("1"), c.listens()...)
	blocked(t, conn)
	return conn
}

// TestAttackStalledPoll is row 17 for those who poll: gateways and listeners that ask and don't read their answer delay nobody, and each costs little more
// than its answer. It runs alone, since it looks at the process's memory.
func TestAttackStalledPoll(t *testing.T) {
	c := startCrowded(t)
	const stalled = 8
	const allowed = 32 // MiB that the rest of the process may take meanwhile
	for name, way := range map[string]struct {
		stall func(*testing.T) net.Conn
		size  func() int
	}{
		"gateway": {c.stalledGateway, func() int { _, size := c.now(t); return size }},
		"listener": {c.stalledListener, func() int {
			return len(text(t, c.do(t, http.MethodGet, c.events("1"), "", c.listens()...)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			size := way.size()
			require.Greater(t, size, 200<<10)
			before := heap()
			var all []net.Conn
			for range stalled {
				all = append(all, way.stall(t))
			}
			after := heap()
			t.Logf("%d answers of %d bytes that aren't read took %d bytes", stalled, size, after-before)
			assert.Less(t, after, before+2*stalled*size+allowed<<20)

			at, _ := c.now(t)
			answered := c.pollLater(t, c.h.home, at)
			c.waitForWaiters(t, 1)
			heard := make(chan *http.Response, 1)
			listening := c.request(t, http.MethodGet, c.events(fmt.Sprint(c.rev(t))), "", c.listens()...)
			go func() {
				r, err := c.client.Do(listening)
				assert.NoError(t, err)
				heard <- r
			}()
			c.change(t)
			for what, r := range map[string]*http.Response{"gateway": <-answered, "listener": <-heard} {
				require.NotNil(t, r, what)
				require.Equal(t, http.StatusOK, r.StatusCode, what)
				require.Contains(t, text(t, r), "door", what)
				r.Body.Close()
			}
			for _, conn := range all {
				require.NoError(t, conn.Close())
			}
		})
	}
}

// rev is the group's.
func (c *crowded) rev(t *testing.T) int {
	t.Helper()
	return int(object(t, c.do(t, http.MethodGet, "/v1/groups/"+c.h.group, "", c.listens()[:2]...))["rev"].(float64))
}

// TestAStalledPollIsLetGo: the server doesn't keep the connection of a client that doesn't read.
func TestAStalledPollIsLetGo(t *testing.T) {
	t.Parallel()
	c := startCrowded(t)
	for _, conn := range []net.Conn{c.stalledGateway(t), c.stalledListener(t)} {
		require.Eventually(t, func() bool { open, _ := serverEnd(t, conn); return !open }, 3*waitLong, waitStep, "it still has a client that doesn't read")
	}
}
