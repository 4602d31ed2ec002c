package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
)

const mediaPort = 5004

// wire is the network of the worked example: a camera and a gateway on one /24 without static routes or neighbours, and
// everybody else behind the uplink. None of the namespaces has a link to the host's network.
type wire struct {
	camera, gateway, wan *netlab.Namespace
	uplink               *netlab.Capture
	receivers            map[string]*listener
}

func newWire(t *testing.T) *wire {
	home := netlab.NewHome(t, netlab.New(t, "gateway"))
	home.Camera.Address("cam0", "172.168.0.6/24") // groupcast2's camera
	w := &wire{
		camera: home.Camera, gateway: home.Gateway, wan: home.WAN,
		uplink: home.Gateway.Capture("wan0"), receivers: map[string]*listener{},
	}
	for _, addr := range []string{uploadAddr, thumbnailAddr, phoneAddr, foreignAddr} {
		w.receivers[addr] = &listener{UDPConn: home.WAN.ListenUDP(fmt.Sprintf("%s:%d", addr, mediaPort))}
	}
	return w
}

// listener is where a member gets its copies.
type listener struct {
	*net.UDPConn

	consent *receiver.Consent // nil: it is exempt
}

// consents has the member keep its consent with the gateway's reserved port, which the answer names once the gateway has told.
func (m *listener) consents(t *testing.T, register func() registered) {
	var a registered
	require.Eventually(t, func() bool { a = register(); return len(a.Senders) == 1 }, time.Minute, 20*time.Millisecond, "the gateway hasn't told where it sends from")
	m.consent = receiver.New(models.ConsentCredential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd})
	m.consent.Senders([]netip.AddrPort{netip.AddrPortFrom(a.Senders[0].Address, a.Senders[0].Port)})
	go m.consent.Keep(t.Context(), m.UDPConn)
}

// Read gives a copy. Checks are answered and are none.
func (m *listener) Read(b []byte) (int, error) {
	for {
		n, from, err := m.ReadFromUDPAddrPort(b)
		if err != nil || m.consent == nil {
			return n, err
		}
		reply, check := m.consent.Take(time.Now(), from, b[:n])
		if !check {
			return n, nil
		}
		if reply != nil {
			_, _ = m.WriteToUDPAddrPort(reply, from)
		}
	}
}

// send sends one datagram from the camera with the given IP options, as firmware does with setsockopt(IP_OPTIONS).
func (w *wire) send(t *testing.T, from string, to string, options, payload []byte) {
	t.Helper()
	var err error
	w.camera.Do(func() {
		d := net.Dialer{
			LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 40000)),
			Control: func(_, _ string, c syscall.RawConn) error {
				var optErr error
				err := c.Control(func(fd uintptr) {
					if len(options) > 0 {
						optErr = syscall.SetsockoptString(int(fd), syscall.IPPROTO_IP, syscall.IP_OPTIONS, string(options))
					}
				})
				if err != nil {
					return err
				}
				return optErr
			},
		}
		var conn net.Conn
		if conn, err = d.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr(to), mediaPort).String()); err == nil {
			_, err = conn.Write(payload)
			conn.Close()
		}
	})
	require.NoError(t, err)
}

// streamOption is the option of FIG 5: copied, class 0, number 8, length 6, the source's address.
func streamOption(first byte, source string) []byte {
	a := netip.MustParseAddr(source).As4()
	return append([]byte{first, 6}, a[:]...)
}

// received waits for one datagram at the receiver.
func (w *wire) received(t *testing.T, addr string) []byte {
	t.Helper()
	conn := w.receivers[addr]
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 1<<16)
	n, err := conn.Read(buf)
	require.NoError(t, err, "%s received nothing", addr)
	return buf[:n]
}

// silent tells whether nothing waits at the receiver.
func (w *wire) silent(t *testing.T, addr string) bool {
	t.Helper()
	conn := w.receivers[addr]
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := conn.Read(make([]byte, 1<<16))
	return err != nil
}

// await sends until exactly the given receivers get a copy: the agent has applied the group information.
func (w *wire) await(t *testing.T, addrs ...string) {
	t.Helper()
	want := slices.Sorted(slices.Values(addrs))
	var got []string
	for i := range 100 {
		payload := fmt.Appendf(nil, "is everybody there? %d", i)
		w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
		time.Sleep(time.Duration(50+5*i) * time.Millisecond) // on a busy machine copies take their time
		got = got[:0]
		for addr, conn := range w.receivers {
			buf := make([]byte, 1<<16)
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			for n, err := conn.Read(buf); err == nil; n, err = conn.Read(buf) {
				if bytes.Equal(buf[:n], payload) {
					got = append(got, addr)
				}
			}
		}
		slices.Sort(got)
		require.NotContains(t, got, foreignAddr, "a copy to somebody who is not in the group")
		if slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("the agent copies to %v, not to the members %v", got, want)
}

// copiesOf gives the packets with this payload that left by the uplink, by destination. The capture runs behind the wire, so it
// waits until the uplink has shown n of them.
func (w *wire) copiesOf(t *testing.T, payload []byte, n int) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	w.uplink.Wait(time.Minute, func(frames []netlab.Frame) bool {
		clear(found)
		for _, f := range frames {
			p := f.IPv4()
			if p == nil || !f.Outgoing || p[9] != syscall.IPPROTO_UDP || !bytes.HasSuffix(p, payload) {
				continue
			}
			dst := netip.AddrFrom4([4]byte(p[16:20])).String()
			assert.NotContains(t, found, dst, "two copies of one datagram to one destination")
			found[dst] = p
		}
		return len(found) >= n
	})
	require.Len(t, found, n)
	return found
}

// TestWorkedExampleOnTheWire is steps 6 to 8 of SPEC §3 with the document's addresses, checked byte by byte from a capture of
// the uplink.
func TestWorkedExampleOnTheWire(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	nop := []byte{1, 0, 0, 0} // FIGs 9–11
	for _, mode := range []struct {
		backend, copyOptions string
		options              []byte
		log                  string
	}{
		{"socket", "strip", nil, "copying by sockets"},
		{"socket", "nop", nop, "copying by sockets"},
		{"ebpf", "strip", nil, "copying in the kernel"},
		{"auto", "nop", nop, "copying in the kernel"},
	} {
		t.Run(mode.backend+", "+mode.copyOptions, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			e := newExample(t, harness.Options{In: w.gateway, Listen: "127.0.0.1:8080"})
			agent := harness.StartAgent(t, harness.AgentOptions{
				Server: e.Server, GatewayID: e.gateway, Token: e.gatewayToken, In: w.gateway,
				LANInterface: "lan0", LANPrefix: "172.168.0.0/24", LANAddress: gatewayAddr, Uplink: uplinkAddr,
				GroupRange: "172.168.0.233-172.168.0.254", CopyOptions: mode.copyOptions,
				Backend: mode.backend, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
			})
			e.awaitDeclared(t)
			assert.Contains(t, agent.Log(), mode.log)
			e.postCamera(t)
			e.postSecondGroup(t)
			e.postUpload(t)
			e.Allow(t, "svc-thumbnail") // anywhere, with consent
			thumbnail := e.postThumbnail(t).RegistrationID
			w.receivers[thumbnailAddr].consents(t, func() registered { return e.postThumbnail(t) })
			e.postPhone(t)
			// The upload service is exempt; the phone gets nothing before it consents.
			w.await(t, uploadAddr, thumbnailAddr)
			w.receivers[phoneAddr].consents(t, func() registered { return e.postPhone(t) })
			members := []string{uploadAddr, thumbnailAddr, phoneAddr}
			w.await(t, members...)

			t.Run("three copies byte for byte", func(t *testing.T) {
				payload := []byte("the one datagram of step 6")
				w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
				for _, addr := range members {
					assert.Equal(t, payload, w.received(t, addr))
				}
				copies := w.copiesOf(t, payload, 3)
				for _, addr := range members {
					p := copies[addr]
					require.NotNil(t, p, "no copy to %s", addr)
					headerLen := int(p[0]&0xf) * 4
					assert.Equal(t, 20+len(mode.options), headerLen)
					assert.Equal(t, mode.options, append([]byte(nil), p[20:headerLen]...))
					assert.Equal(t, netip.MustParseAddr(uplinkAddr).AsSlice(), p[12:16], "source is the uplink")
					assert.EqualValues(t, 63, p[8], "TTL is one less than the camera's 64")
					assert.EqualValues(t, mediaPort, binary.BigEndian.Uint16(p[headerLen+2:]))
					assert.NoError(t, netlab.VerifyIPv4(p))
				}
				assert.True(t, w.silent(t, foreignAddr), "groupcast2's destination got a copy")
			})

			t.Run("no copy without the flag", func(t *testing.T) {
				for name, options := range map[string][]byte{
					"copied bit 0":           streamOption(0x08, cameraAddr),
					"no option":              nil,
					"somebody else's option": streamOption(0x88, "172.168.0.6"),
				} {
					payload := []byte("must not be copied: " + name)
					w.send(t, cameraAddr, groupIP, options, payload)
					// A datagram that is copied, sent later, proves that the earlier one has been dealt with.
					marker := []byte("marker after " + name)
					w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), marker)
					for _, addr := range members {
						assert.Equal(t, marker, w.received(t, addr), name)
					}
					w.copiesOf(t, marker, 3)
					w.copiesOf(t, payload, 0)
				}
			})

			t.Run("4000 bytes in three fragments are reassembled by three receivers", func(t *testing.T) {
				payload := make([]byte, 4000)
				for i := range payload {
					payload[i] = byte(rand.Uint32())
				}
				lan := w.gateway.Capture("lan0")
				w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
				for _, addr := range members {
					assert.Equal(t, sha256.Sum256(payload), sha256.Sum256(w.received(t, addr)), addr)
				}
				var fragments [][]byte
				lan.Wait(time.Minute, func(frames []netlab.Frame) bool {
					fragments = fragments[:0]
					for _, f := range frames {
						if p := f.IPv4(); p != nil && bytes.Equal(p[16:20], netip.MustParseAddr(groupIP).AsSlice()) {
							fragments = append(fragments, p)
						}
					}
					return len(fragments) >= 3
				})
				require.Len(t, fragments, 3)
				for _, p := range fragments {
					assert.Equal(t, streamOption(0x88, cameraAddr), p[20:26], "each fragment carries the option")
				}
			})

			t.Run("two groups side by side", func(t *testing.T) {
				payload := []byte("of groupcast2")
				w.send(t, "172.168.0.6", groupIP2, streamOption(0x88, "172.168.0.6"), payload)
				assert.Equal(t, payload, w.received(t, foreignAddr))
				for _, addr := range members {
					assert.True(t, w.silent(t, addr), addr)
				}
				// A camera of one group is nobody in the other.
				w.send(t, cameraAddr, groupIP2, streamOption(0x88, cameraAddr), []byte("intruder"))
				w.send(t, "172.168.0.6", groupIP2, streamOption(0x88, "172.168.0.6"), payload)
				assert.Equal(t, payload, w.received(t, foreignAddr))
			})

			t.Run("the thumbnail service leaves", func(t *testing.T) {
				assert.Equal(t, 2, e.leave(t, e.thumbnailToken, thumbnail))
				w.await(t, uploadAddr, phoneAddr)
				payload := []byte("the very next copies are two")
				w.send(t, cameraAddr, groupIP, streamOption(0x88, cameraAddr), payload)
				assert.Equal(t, payload, w.received(t, uploadAddr))
				assert.Equal(t, payload, w.received(t, phoneAddr))
				w.copiesOf(t, payload, 2)
			})

			for _, f := range w.uplink.Frames() {
				p := f.IPv4()
				if p == nil || !f.Outgoing {
					continue
				}
				lan := netip.MustParsePrefix("172.168.0.0/24")
				assert.False(t, lan.Contains(netip.AddrFrom4([4]byte(p[16:20]))), "a group or LAN address left by the uplink")
				assert.False(t, lan.Contains(netip.AddrFrom4([4]byte(p[12:16]))), "a LAN source address left by the uplink")
			}
		})
	}
}

// awaitDeclared waits until the agent has stated the LAN, so that the camera may register.
func (e *example) awaitDeclared(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := e.Client(t, e.gatewayToken).GetGatewayWithResponse(t.Context(), e.gateway)
		return err == nil && r.JSON200 != nil && r.JSON200.LanPrefix != ""
	}, time.Minute, 20*time.Millisecond, "the agent has not declared its LAN")
}
