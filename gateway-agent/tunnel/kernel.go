//go:build !mipsle

package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/groupcast/groupcast/models"
)

// errNoKernel says that this kernel has no WireGuard.
var errNoKernel = errors.New("this kernel has no WireGuard")

// kernel is the kernel's WireGuard. Its interface outlives a killed agent; the next one replaces it.
type kernel struct {
	name   string
	client *wgctrl.Client
}

func openKernel(c Config) (backend, error) {
	if present, err := netlink.LinkByName(c.Name); err == nil {
		if present.Type() != "wireguard" {
			return nil, fmt.Errorf("there is an interface %s that is not ours: does another agent run here?", c.Name)
		}
		if err := netlink.LinkDel(present); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = c.Name, MTU
	switch err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, errNoKernel
	case err != nil:
		return nil, fmt.Errorf("make the interface %s: %w", c.Name, err)
	}
	k := &kernel{name: c.Name}
	// While it is down, so that nothing gets through before. With WireGuard in user space nothing of the host's is needed for that.
	if err := inward(c.Name, c.Address); err != nil {
		c.Log.Warn("the kernel's WireGuard is not used: slower, but as safe", "why", err)
		return nil, errors.Join(errNoKernel, k.close())
	}
	var err error
	if k.client, err = wgctrl.New(); err == nil {
		key, port := wgtypes.Key(c.Key.bytes()), int(c.Port)
		err = k.client.ConfigureDevice(c.Name, wgtypes.Config{PrivateKey: &key, ListenPort: &port, ReplacePeers: true})
	}
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func (k *kernel) set(leave []models.TunnelKey, come []Peer) error {
	var c wgtypes.Config
	for _, key := range leave {
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	for _, p := range come {
		peer := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.Key), ReplaceAllowedIPs: true,
			AllowedIPs: []net.IPNet{*netipx.PrefixIPNet(netip.PrefixFrom(p.Address, 128))},
		}
		if p.Endpoint.IsValid() {
			every := KeepAlive
			peer.Endpoint, peer.PersistentKeepaliveInterval = net.UDPAddrFromAddrPort(p.Endpoint), &every
		}
		c.Peers = append(c.Peers, peer)
	}
	return k.client.ConfigureDevice(k.name, c)
}

func (k *kernel) peers() (map[models.TunnelKey]PeerStatus, error) {
	d, err := k.client.Device(k.name)
	if err != nil {
		return nil, err
	}
	all := map[models.TunnelKey]PeerStatus{}
	for _, p := range d.Peers {
		s := PeerStatus{Handshake: p.LastHandshakeTime, Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes)}
		if p.Endpoint != nil {
			s.Endpoint = p.Endpoint.AddrPort()
		}
		all[models.TunnelKey(p.PublicKey)] = s
	}
	return all, nil
}

func (k *kernel) close() error {
	var errs []error
	if k.client != nil {
		errs = append(errs, k.client.Close())
	}
	if l, err := netlink.LinkByName(k.name); err == nil {
		errs = append(errs, netlink.LinkDel(l))
		_ = outward(k.name) // without nft there is nothing
	}
	return errors.Join(errs...)
}
