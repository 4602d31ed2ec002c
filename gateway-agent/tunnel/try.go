//go:build !mipsle

package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
)

// tried names the interface, so that those of running agents stay what they are.
const tried = "gctry"

// Try has a tunnel for as long as with runs: without peers, at an address and a port that nobody knows. Nothing of it stays. Its errors are those of Open.
func Try(log *slog.Logger, with func(*Tunnel)) error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("tunnel key: %w", err)
	}
	address := [16]byte{0xfd}
	_, _ = rand.Read(address[1:]) // it never fails
	t, err := Open(Config{Name: tried, Key: PrivateKey{key}, Address: netip.AddrFrom16(address), Log: log})
	if err != nil {
		return err
	}
	with(t)
	return t.Close()
}
