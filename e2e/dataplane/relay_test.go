package dataplane

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
)

// What a relay is measured with. The generator knows the addresses.
const (
	wireguardHome  = "gchome"
	wireguardRelay = "gcrelay"
	wireguardPort  = 51820
	lanAddr        = "172.168.0.1"
)

var (
	insideHome  = netip.MustParseAddr("fd12:3456:789a::1")
	insideRelay = netip.MustParseAddr("fd12:3456:789a:1::1")
)

// relaying is a relay whose tunnel device is a tun that nothing decrypts for.
func relaying(backend string) copier {
	return func(l *lab, n int) func() {
		return l.child(job{Kind: "relay", Backend: backend, Receivers: n})
	}
}

// fed has what comes in IPv6 on the LAN come out of the tunnel device: it loses its Ethernet header and is received once more, on the same CPU. Both is
// counted as a cost of the copies; decrypting isn't there.
func fed(c copier) copier {
	return func(l *lab, n int) func() {
		end := c(l, n)
		into := int32(l.index(l.Gateway, wireguardRelay))
		stop := l.attach(l.Gateway, "lan0", cilium.AttachTCXIngress, asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbProtocol, asm.Word),
			asm.JNE.Imm(asm.R2, 0xdd86, "next"), // ETH_P_IPV6 in network byte order
			asm.Mov.Imm(asm.R1, into), asm.Mov.Imm(asm.R2, 1 /* BPF_F_INGRESS */), asm.FnRedirect.Call(), asm.Return(),
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"), asm.Return(),
		})
		return func() {
			stop()
			end()
		}
	}
}

// wireguard is one end of a tunnel.
type wireguard struct {
	Private, Peer string // hexadecimal
	KeyFile       string // of the agent's own kind, in place of Private
	PeerKey       *models.TunnelKey
}

// behindWireGuard is a relay, or a host that forwards one to one, behind a tunnel of user-space WireGuard. Its other end has the camera's CPU.
func behindWireGuard(what string) copier {
	return func(l *lab, n int) func() {
		private, err := ecdh.X25519().GenerateKey(rand.Reader)
		require.NoError(l.t, err)
		file := filepath.Join(l.programs, "tunnel.key")
		key, err := tunnel.LoadKey(file)
		require.NoError(l.t, err)
		public := key.Public()
		home := wireguard{Private: hex.EncodeToString(private.Bytes()), Peer: hex.EncodeToString(public[:])}
		peer := models.TunnelKey(private.PublicKey().Bytes())
		relay := wireguard{KeyFile: file, PeerKey: &peer}
		j := job{Kind: "relay", Backend: what, Receivers: n, Tunnel: &relay}
		if what == "forward" {
			other, err := ecdh.X25519().GenerateKey(rand.Reader)
			require.NoError(l.t, err)
			home.Peer = hex.EncodeToString(other.PublicKey().Bytes())
			j = job{Kind: "wireguard", Tunnel: &wireguard{Private: hex.EncodeToString(other.Bytes()), Peer: hex.EncodeToString(private.PublicKey().Bytes())}}
		}
		end := l.child(j)
		endHome := l.childAt(job{Kind: "wireguard", Receivers: 1, Tunnel: &home}, l.Camera, 0)
		return func() {
			endHome()
			end()
		}
	}
}

// relay is a child process that relays. Without a tunnel of its own it makes the device that would be one.
func (j job) relay() error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var inside duplicator.Inside = device0{}
	if j.Tunnel != nil {
		key, err := tunnel.LoadKey(j.Tunnel.KeyFile)
		if err != nil {
			return err
		}
		t, err := tunnel.Open(tunnel.Config{Name: wireguardRelay, Key: key, Port: wireguardPort, Address: insideRelay, UserSpace: true, Log: log})
		if err != nil {
			return err
		}
		defer t.Close()
		if err := t.Apply([]tunnel.Peer{{Key: *j.Tunnel.PeerKey, Address: insideHome}}); err != nil {
			return err
		}
		inside = t
	} else {
		t, err := tun.CreateTUN(wireguardRelay, tunnel.MTU)
		if err != nil {
			return err
		}
		defer t.Close()
		if err := execute("ip addr add "+insideRelay.String()+"/48 dev "+wireguardRelay+" nodad", "ip link set up dev "+wireguardRelay); err != nil {
			return err
		}
	}
	c := duplicator.Config{Uplink: netip.MustParseAddr(uplink), Log: log}
	var d duplicator.Network
	var err error
	if j.Backend == "ebpf" {
		d, err = ebpf.OpenRelay(ebpf.Config{Config: c}, inside)
	} else {
		d, err = duplicator.OpenRelay(c, inside)
	}
	if err != nil {
		return err
	}
	if err := d.Apply(map[netip.Addr]*table.Snapshot{insideHome: j.snapshot()}); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return d.Close()
}

// device0 is a tunnel device without a tunnel.
type device0 struct{}

func (device0) Interface() string   { return wireguardRelay }
func (device0) Address() netip.Addr { return insideRelay }

// wireguard is a child process that is one end of a tunnel and nothing else: the one on the camera's side if it has receivers, else one that the kernel forwards behind.
func (j job) wireguard() error {
	name, config := wireguardRelay, fmt.Sprintf("listen_port=%d\n", wireguardPort)
	peer := "allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n"
	if j.Receivers > 0 {
		name, config = wireguardHome, ""
		peer += fmt.Sprintf("endpoint=%s:%d\n", lanAddr, wireguardPort)
	}
	native, err := tun.CreateTUN(name, tunnel.MTU)
	if err != nil {
		return err
	}
	d := device.NewDevice(native, conn.NewStdNetBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	defer d.Close()
	err = d.IpcSet("private_key=" + j.Tunnel.Private + "\n" + config + "public_key=" + j.Tunnel.Peer + "\n" + peer)
	if err = errors.Join(err, d.Up(), execute("ip link set up dev "+name)); err != nil {
		return err
	}
	if j.Receivers == 0 { // what the camera sends comes from the tunnel
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0o600); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

func execute(commands ...string) error {
	for _, c := range commands {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}
