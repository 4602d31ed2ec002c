package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
)

// Ports for servers lie below those that Linux gives to whoever asks for any (ip_local_port_range): so nobody has taken one while its
// server is away, killed by a test or not yet started.
const firstPort, lastPort = 12_000, 32_000

var ports = struct {
	sync.Mutex
	given map[int]bool
}{given: map[int]bool{}}

// FreePort gives an address on 127.0.0.1 at which nobody listens, and which no other test of this process was given.
func FreePort(t testing.TB) string {
	t.Helper()
	// Whatever is started meanwhile would hold the port for a moment longer.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l := Listen(t)
	_ = l.Close()
	return l.Addr().String()
}

// Listen listens at such an address: a test of another process can't come in between.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		address := fmt.Sprint("127.0.0.1:", port)
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		ports.given[port] = true
		return l
	}
	t.Fatal("a hundred ports are taken")
	return nil
}
