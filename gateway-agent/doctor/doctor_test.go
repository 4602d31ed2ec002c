package doctor_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/doctor"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// host is the gateway of the worked example with everything right; a test makes one thing wrong.
type host struct {
	netlab.Home
	t       *testing.T
	config  config.Config
	root    string
	service *scripted.Service
	skew    time.Duration // of the server's clock
	offline bool
}

func newHost(t *testing.T) *host {
	h := &host{Home: netlab.NewHome(t, netlab.Current(t, "gateway")), t: t, root: t.TempDir()}
	h.Gateway.Sysctl("net.ipv4.conf.lan0.rp_filter", "1")
	groupRange := models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")}
	require.NoError(t, lan.Block(groupRange))
	h.write("etc/dnsmasq.conf", "# dhcp-range=172.168.0.2,172.168.0.254\ndhcp-range=tag:home,172.168.0.10,172.168.0.200,12h\n")
	h.service = scripted.New(api.GroupInformation{Revision: "1"}, "the-token")
	handler := h.service.Handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(h.skew).UTC().Format(http.TimeFormat))
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("the-token"), 0o600))
	h.config = config.Config{
		Server: at, Credential: token, StateDir: "/proc/self/fd/nothing",
		Gateway: models.Gateway{
			ID: 812345678901234567, LANPrefix: netip.MustParsePrefix("172.168.0.0/24"), LANAddr: netip.MustParseAddr("172.168.0.1"),
			Uplink: netip.MustParseAddr("203.0.113.1"), Range: groupRange,
		},
		MediaPorts: []uint16{5004}, CopyOptions: packet.Strip, Backend: config.BackendAuto, BPFDir: filepath.Join(netlab.BPFFS(t), "groupcast"),
	}
	return h
}

func (h *host) write(file, text string) {
	h.t.Helper()
	at := filepath.Join(h.root, file)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(at), 0o755))
	require.NoError(h.t, os.WriteFile(at, []byte(text), 0o644))
}

func (h *host) declare(groupRange string) {
	h.t.Helper()
	body := `{"lanPrefix":"172.168.0.0/24","gatewayIPv4":"172.168.0.1","uplinkIPv4":"203.0.113.1","groupRange":"` + groupRange + `"}`
	r, err := http.NewRequest(http.MethodPut, h.config.Server.String()+"/v1/gateways/812345678901234567", strings.NewReader(body))
	require.NoError(h.t, err)
	r.Header.Set("Authorization", "Bearer the-token")
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	require.NoError(h.t, err)
	answer.Body.Close()
	require.Equal(h.t, http.StatusOK, answer.StatusCode)
}

func (h *host) examine() []doctor.Finding {
	return doctor.Examine(h.t.Context(), h.config, doctor.Options{Root: h.root, Offline: h.offline})
}

// worst gives the worst finding of a check.
func worst(findings []doctor.Finding, check string) doctor.Finding {
	rank := map[doctor.Level]int{"": 0, doctor.OK: 1, doctor.Warn: 2, doctor.Fail: 3}
	var w doctor.Finding
	for _, f := range findings {
		if f.Check == check && rank[f.Level] > rank[w.Level] {
			w = f
		}
	}
	return w
}

// On a host where all is well every line is ok, but for what the test's machine decides.
func TestAHostWhereAllIsWell(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHost(t)
		h.declare(h.config.Gateway.Range.String())
		findings := h.examine()
		for _, f := range findings {
			if f.Check == "clock" {
				continue
			}
			assert.Equal(t, doctor.OK, f.Level, "%s: %s", f.Check, f.What)
			assert.Empty(t, f.Do)
		}
		for _, check := range []string{
			"configuration", "kernel", "clock", "lan", "uplink", "mtu", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW", "socket", "ebpf",
			"receive buffer", "state-dir", "arp", "rp_filter", "ip_forward", "guard", "dhcp", "neighbours", "firewall", "credential", "server", "declaration",
		} {
			assert.NotEmpty(t, worst(findings, check).Level, "nothing is said about %s", check)
		}
		assert.False(t, doctor.Failed(findings))
		var text bytes.Buffer
		doctor.Print(&text, findings)
		assert.Regexp(t, `(?m)^ok    ebpf            the ebpf backend can run: the agent takes it$`, text.String())
		_, err := os.Stat(h.config.BPFDir)
		assert.ErrorIs(t, err, os.ErrNotExist, "the doctor leaves nothing behind")
	})
}

// Each condition is made true, and its line says so and what to do.
func TestWhatIsWrongIsFound(t *testing.T) {
	uci := "config interface 'lan'\n\toption ipaddr '172.168.0.1'\n\toption netmask '255.255.255.0'\n"
	for name, test := range map[string]struct {
		make  func(h *host)
		check string
		level doctor.Level
		what  string
	}{
		"no uplink-address in the configuration": {func(h *host) { h.config.Gateway.Uplink = netip.Addr{} }, "configuration", doctor.Fail, "uplink-address: give"},
		"no such interface":                      {func(h *host) { h.config.LANInterface = "lan9" }, "lan", doctor.Fail, `no interface "lan9"`},
		"nobody has the LAN address":             {func(h *host) { h.config.Gateway.LANAddr = netip.MustParseAddr("172.168.0.9") }, "lan", doctor.Fail, "no interface has lan-address"},
		"another interface's address": {func(h *host) {
			h.config.LANInterface, h.config.Gateway.LANAddr = "lan0", netip.MustParseAddr("172.168.0.9")
		}, "lan", doctor.Warn, "lan0 doesn't have lan-address"},
		"the LAN is down":    {func(h *host) { h.down("lan0") }, "lan", doctor.Fail, "is down"},
		"no cable":           {func(h *host) { h.Home.Camera.Do(func() { h.down("cam0") }) }, "lan", doctor.Warn, "no carrier"},
		"the uplink is down": {func(h *host) { h.down("wan0") }, "uplink", doctor.Fail, "is down"},
		"nobody has the uplink address": {func(h *host) {
			h.config.Gateway.Uplink = netip.MustParseAddr("203.0.113.9")
		}, "uplink", doctor.Fail, "no interface has uplink-address"},
		"a smaller uplink": {func(h *host) { h.Gateway.MTU("wan0", 1400) }, "mtu", doctor.Warn, "takes packets of 1400 bytes"},
		"no group range's guard": {func(*host) {
			_ = lan.Unblock()
		}, "guard", doctor.Fail, "missing"},
		"arp_ignore":    {func(h *host) { h.Gateway.Sysctl("net.ipv4.conf.all.arp_ignore", "1") }, "arp", doctor.Fail, "arp_ignore is 1"},
		"arp_filter":    {func(h *host) { h.Gateway.Sysctl("net.ipv4.conf.lan0.arp_filter", "1") }, "arp", doctor.Fail, "arp_filter is 1"},
		"no rp_filter":  {func(h *host) { h.rpFilter("0") }, "rp_filter", doctor.Warn, "off on lan0"},
		"loose":         {func(h *host) { h.rpFilter("2") }, "rp_filter", doctor.Warn, "loose on lan0"},
		"no forwarding": {func(h *host) { h.Gateway.Sysctl("net.ipv4.ip_forward", "0") }, "ip_forward", doctor.Warn, "forwards nothing"},
		"dnsmasq": {func(h *host) {
			h.write("etc/dnsmasq.d/lan.conf", "dhcp-range = set:home , 172.168.0.50,172.168.0.231,255.255.255.0,1h\n")
		}, "dhcp", doctor.Fail, "/etc/dnsmasq.d/lan.conf overlaps"},
		"ISC": {func(h *host) {
			h.write("etc/dhcp/dhcpd.conf", "subnet 172.168.0.0 netmask 255.255.255.0 {\n  range dynamic-bootp 172.168.0.20\n    172.168.0.240;\n}\n")
		}, "dhcp", doctor.Fail, "/etc/dhcp/dhcpd.conf overlaps"},
		"Kea": {func(h *host) {
			h.write("etc/kea/kea-dhcp4.conf", `{"Dhcp4":{"subnet4":[{"pools":[ { "pool": "172.168.0.128/25" } ]}]}} // a comment`)
		}, "dhcp", doctor.Fail, "/etc/kea/kea-dhcp4.conf overlaps"},
		"systemd-networkd, all of the network": {func(h *host) {
			h.write("etc/systemd/network/lan.network", "[Match]\nName=lan0\n[Network]\nAddress=172.168.0.1/24\nDHCPServer=yes\n")
		}, "dhcp", doctor.Fail, "lan.network overlaps"},
		"systemd-networkd, a pool": {func(h *host) {
			h.write("etc/systemd/network/lan.network", "[Network]\nAddress=172.168.0.1/24\nDHCPServer=yes\n[DHCPServer]\nPoolOffset=200\nPoolSize=31\n")
		}, "dhcp", doctor.Fail, "172.168.0.200-172.168.0.230"},
		"systemd-networkd, a small pool": {func(h *host) {
			h.write("etc/systemd/network/lan.network", "[Network]\nAddress=172.168.0.1/24\nDHCPServer=yes\n[DHCPServer]\nPoolOffset=200\nPoolSize=30\n")
		}, "dhcp", doctor.OK, "2 pools"},
		"OpenWrt's default, which ends at .249": {func(h *host) {
			h.write("etc/config/network", uci)
			h.write("etc/config/dhcp", "config dhcp 'lan'\n\toption interface 'lan'\n\toption start '100'\n\toption limit '150'\n")
		}, "dhcp", doctor.Fail, "172.168.0.100-172.168.0.249"},
		"OpenWrt without DHCP": {func(h *host) {
			h.write("etc/config/network", uci)
			h.write("etc/config/dhcp", "config dhcp 'lan'\n\toption interface 'lan'\n\toption ignore '1'\n")
		}, "dhcp", doctor.OK, "1 pools"},
		"no DHCP server": {func(h *host) { h.write("etc/dnsmasq.conf", "") }, "dhcp", doctor.Warn, "no DHCP server's pool"},
		"a lease": {func(h *host) {
			h.write("var/lib/misc/dnsmasq.leases", "1767225600 02:00:00:00:00:01 172.168.0.240 tablet *\n1767225600 02:00:00:00:00:02 172.168.0.24 phone *\n")
		}, "dhcp", doctor.Fail, "172.168.0.240 is leased"},
		"a host with a group IP": {func(h *host) {
			link, err := netlink.LinkByName("lan0")
			require.NoError(h.t, err)
			require.NoError(h.t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, IP: net.ParseIP("172.168.0.233"), State: netlink.NUD_STALE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
			}))
		}, "neighbours", doctor.Fail, "02:00:00:00:00:01 on lan0 uses 172.168.0.233"},
		"the firewall drops by default": {func(h *host) {
			h.nft("add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; add rule inet f in udp dport 53 accept")
		}, "firewall", doctor.Warn, "drops whatever no rule accepts"},
		"the firewall drops by default, but not media": {func(h *host) {
			h.nft("add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; add rule inet f in udp dport { 53, 5000-5100 } accept; add rule inet f in iifname lo accept")
		}, "firewall", doctor.OK, "no plain rule"},
		"the firewall drops media": {func(h *host) {
			h.nft("add table ip f; add chain ip f pre { type filter hook prerouting priority 0; policy accept; }; add rule ip f pre iifname lan0 udp dport 5004 drop")
		}, "firewall", doctor.Warn, "a rule in ip f pre drops a media port"},
		"no BPF file system": {func(h *host) { h.config.BPFDir = filepath.Join(h.root, "bpf") }, "ebpf", doctor.Warn, "is not in a BPF file system"},
		"no BPF file system, but configured": {func(h *host) {
			h.config.BPFDir, h.config.Backend = filepath.Join(h.root, "bpf"), config.BackendEBPF
		}, "ebpf", doctor.Fail, "the configured ebpf backend can't run"},
		"no CAP_NET_ADMIN": {func(h *host) { h.dropCapabilities(unix.CAP_NET_ADMIN) }, "CAP_NET_ADMIN", doctor.Fail, "doesn't have it"},
		"no tunnel without CAP_NET_RAW": {func(h *host) {
			h.config.Tunnel = true
			h.dropCapabilities(unix.CAP_NET_RAW)
		}, "tunnel", doctor.Warn, "CAP_NET_RAW is missing"},
		"no tunnel without CAP_NET_ADMIN": {func(h *host) {
			h.config.Tunnel = true
			h.dropCapabilities(unix.CAP_NET_ADMIN)
		}, "tunnel", doctor.Warn, "CAP_NET_ADMIN is missing"},
		"no tunnel without IPv6": {func(h *host) {
			h.config.Tunnel = true
			h.Gateway.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")
		}, "tunnel", doctor.Warn, "turned off for new interfaces"},
		"no relay without CAP_NET_RAW": {func(h *host) {
			h.relay("203.0.113.1")
			h.dropCapabilities(unix.CAP_NET_RAW)
		}, "tunnel", doctor.Fail, "CAP_NET_RAW is missing"},
		"no relay's kernel path without CAP_BPF": {func(h *host) {
			h.relay("203.0.113.1")
			h.dropCapabilities(unix.CAP_BPF, unix.CAP_SYS_ADMIN)
		}, "ebpf", doctor.Warn, "give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"},
		"no relay's kernel path without CAP_PERFMON, but configured": {func(h *host) {
			h.relay("203.0.113.1")
			h.config.Backend = config.BackendEBPF
			h.dropCapabilities(unix.CAP_PERFMON, unix.CAP_SYS_ADMIN)
		}, "ebpf", doctor.Fail, "the configured ebpf backend can't run"},
		"a relay without CAP_PERFMON": {func(h *host) {
			h.relay("203.0.113.1")
			h.dropCapabilities(unix.CAP_PERFMON, unix.CAP_SYS_ADMIN)
		}, "CAP_PERFMON", doctor.Warn, "copies by sockets"},
		"a relay with fixed rates": {func(h *host) {
			h.relay("203.0.113.1")
			h.config.DestinationRate = 50_000_000
		}, "ebpf", doctor.Warn, "destination-rate is set"},
		"a relay that is told to copy by sockets": {func(h *host) {
			h.relay("203.0.113.1")
			h.config.Backend = config.BackendSocket
		}, "socket", doctor.OK, "the agent takes it"},
		"a relay without a tunnel device": {func(h *host) {
			h.relay("203.0.113.1")
			h.Gateway.Run("ip", "link", "add", "gctry", "type", "veth", "peer", "name", "gcother")
		}, "tunnel device", doctor.Fail, "gctry"},
		"a relay where all is well":      {func(h *host) { h.relay("203.0.113.1") }, "ebpf", doctor.OK, "the ebpf backend can run: the agent takes it"},
		"a relay's address is another's": {func(h *host) { h.relay("203.0.113.77") }, "tunnel-endpoint", doctor.Warn, "is no address of this host"},
		"a relay's address is its own":   {func(h *host) { h.relay("203.0.113.1") }, "tunnel-endpoint", doctor.OK, "is an address of this host"},
		"the firewall drops the tunnel": {func(h *host) {
			h.relay("203.0.113.1")
			h.nft("add table ip f; add chain ip f pre { type filter hook prerouting priority 0; policy accept; }; add rule ip f pre udp dport 51820 drop")
		}, "firewall", doctor.Warn, "a rule in ip f pre drops"},
		"any port without CAP_BPF": {func(h *host) {
			h.config.MediaPorts, h.config.AnyPort = nil, true
			h.dropCapabilities(unix.CAP_BPF, unix.CAP_SYS_ADMIN)
		}, "socket", doctor.Fail, "CAP_BPF and CAP_NET_ADMIN, or list the ports in media-ports"},
		"no CAP_BPF": {func(h *host) { h.dropCapabilities(unix.CAP_BPF, unix.CAP_SYS_ADMIN) }, "CAP_BPF", doctor.Warn, "copies by sockets"},
		"a state-dir that is a file": {func(h *host) {
			h.write("state", "")
			h.config.StateDir = filepath.Join(h.root, "state")
		}, "state-dir", doctor.Fail, "can't be kept"},
		"a credential for everybody": {func(h *host) { require.NoError(h.t, os.Chmod(h.config.Credential, 0o644)) }, "credential", doctor.Fail, "chmod 600"},
		"no credential":              {func(h *host) { h.config.Credential = "/does/not/exist" }, "credential", doctor.Fail, "/does/not/exist"},
		"another token":              {func(h *host) { h.service.SetToken("another") }, "server", doctor.Fail, "refuses the token"},
		"no server":                  {func(h *host) { h.config.Server.Host = "127.0.0.1:9" }, "server", doctor.Fail, "connection refused"},
		"no server, but not asked": {func(h *host) {
			h.config.Server.Host, h.offline = "127.0.0.1:9", true
		}, "server", "", ""},
		"a clock that is late": {func(h *host) { h.skew = time.Hour }, "server clock", doctor.Fail, "off the server's"},
		"nothing declared":     {func(*host) {}, "declaration", doctor.Warn, "doesn't know this gateway's LAN"},
		"behind a NAT": {func(h *host) {
			h.config.Gateway.BehindNAT = true
			h.declare(h.config.Gateway.Range.String())
		}, "nat", doctor.Warn, "stun-listen"},
		"behind a NAT, with a STUN port": {func(h *host) {
			h.config.Gateway.BehindNAT = true
			h.service.SetSTUN("groupcast.example:3478")
			h.declare(h.config.Gateway.Range.String())
		}, "nat", "", ""},
		"something else declared": {func(h *host) { h.declare("172.168.0.240-172.168.0.250") }, "declaration", doctor.Warn, "goes by other values"},
	} {
		t.Run(name, func(t *testing.T) {
			netlab.Isolated(t, func(t *testing.T) {
				h := newHost(t)
				test.make(h)
				findings := h.examine()
				f := worst(findings, test.check)
				assert.Equal(t, test.level, f.Level, "%+v", findings)
				assert.Contains(t, f.What+f.Do, test.what)
				if test.level == doctor.Warn || test.level == doctor.Fail {
					assert.NotEmpty(t, f.Do, "what to do")
				}
				if test.check == "ebpf" || test.check == "tunnel device" {
					_, err := netlink.LinkByName("gctry")
					assert.Equal(t, test.level == doctor.Fail && test.check == "tunnel device", err == nil, "the doctor leaves no tunnel behind")
				}
				assert.Equal(t, test.level == doctor.Fail, worst(findings, test.check).Level == doctor.Fail && doctor.Failed(findings))
			})
		})
	}
}

// down takes down an interface of the calling thread's namespace.
func (h *host) down(iface string) {
	link, err := netlink.LinkByName(iface)
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		h.t.Error(err)
	}
}

func (h *host) nft(commands string) {
	h.t.Helper()
	h.Gateway.Run("nft", strings.ReplaceAll(commands, "; add", "\nadd"))
}

// relay makes it a relay whose tunnel is at that address.
func (h *host) relay(endpoint string) {
	h.config.Mode = config.ModeRelay
	h.config.Relay.Endpoint = netip.AddrPortFrom(netip.MustParseAddr(endpoint), 51820)
}

func (h *host) rpFilter(value string) {
	h.Gateway.Sysctl("net.ipv4.conf.all.rp_filter", value)
	h.Gateway.Sysctl("net.ipv4.conf.lan0.rp_filter", value)
}

// dropCapabilities takes capabilities from this thread, which the test then stays on. The process ends with the test.
func (h *host) dropCapabilities(numbers ...int) {
	h.t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	require.NoError(h.t, unix.Capget(&header, &data[0]))
	for _, n := range numbers {
		data[n/32].Effective &^= 1 << (n % 32)
	}
	require.NoError(h.t, unix.Capset(&header, &data[0]))
}
