package dataplane

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// copier is a way of copying: it begins with n receivers, and ends.
type copier func(l *lab, n int) (stop func())

func sendtoLoop(l *lab, n int) func() {
	args := []string{group, mediaPort}
	for i := range n {
		args = append(args, receiver(i))
	}
	return l.process(exec.Command(filepath.Join(l.programs, "sendto"), args...), false)
}

// bySocket and the others are processes of the test's own program (childMain).
func bySocket(l *lab, n int) func() { return l.child(job{Kind: "socket", Receivers: n}) }

func inKernel(l *lab, n int) func() { return l.child(job{Kind: "ebpf", Receivers: n, Pins: l.pins}) }

func inKernelBySource(l *lab, n int) func() {
	return l.child(job{Kind: "ebpf", Receivers: n, Pins: l.pins, Trigger: table.TriggerSource})
}

func naiveGo(l *lab, n int) func() { return l.child(job{Kind: "naive", Receivers: n}) }

// asking has a copier keep the consent of its destinations beside, as the agent does.
func asking(kind string) copier {
	return func(l *lab, n int) func() { return l.child(job{Kind: kind, Receivers: n, Pins: l.pins, Consent: true}) }
}

// merging has the kernel merge datagrams without options before the gateway sees them.
func merging(c copier) copier {
	return func(l *lab, n int) func() {
		l.feature("lan0", "rx-udp-gro-forwarding", true)
		stop := c(l, n)
		return func() {
			stop()
			l.feature("lan0", "rx-udp-gro-forwarding", false)
		}
	}
}

func cutByKernel(c copier) copier {
	return func(l *lab, n int) func() {
		l.segmentation(false)
		stop := c(l, n)
		return func() {
			stop()
			l.segmentation(true)
		}
	}
}

func cloning(l *lab, n int) func() {
	return l.attach(l.Gateway, "lan0", cilium.AttachTCXIngress, l.cloneOnly(n))
}

// forwarding is done by the kernel itself, which is set up for it.
func forwarding(*lab, int) func() { return func() {} }

func nftDup(l *lab, n int) func() {
	var rules strings.Builder
	fmt.Fprintf(&rules, "table netdev bench {\n chain fan {\n  ip saddr set %s\n  ether daddr set %s\n  ether saddr set %s\n", uplink, l.ext, l.wan)
	for i := range n - 1 {
		fmt.Fprintf(&rules, "  ip daddr set %s dup to \"wan0\"\n", receiver(i))
	}
	fmt.Fprintf(&rules, "  ip daddr set %s fwd to \"wan0\"\n }\n", receiver(n-1))
	fmt.Fprintf(&rules, " chain in {\n  type filter hook ingress device \"lan0\" priority 0; policy accept;\n  ip daddr %s jump fan\n }\n}\n", group)
	file := filepath.Join(l.programs, "dup.nft")
	require.NoError(l.t, os.WriteFile(file, []byte(rules.String()), 0o600))
	l.Gateway.Run("nft", "-f", file)
	return func() { l.Gateway.Run("nft", "delete", "table", "netdev", "bench") }
}

// process runs a copier that says "ready" and ends with its standard input.
func (l *lab) process(cmd *exec.Cmd, golang bool) (stop func()) {
	l.t.Helper()
	return l.processAt(cmd, golang, l.Gateway, 1)
}

func (l *lab) processAt(cmd *exec.Cmd, golang bool, at *netlab.Namespace, cpu int) (stop func()) {
	l.t.Helper()
	in, err := cmd.StdinPipe()
	require.NoError(l.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(l.t, err)
	cmd.Stderr = os.Stderr
	at.Start(cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(l.t, err, "%s did not get ready", cmd.Path)
	require.Equal(l.t, "ready\n", line)
	time.Sleep(50 * time.Millisecond) // its threads are all there
	l.placeProcess(cmd.Process.Pid, golang, cpu)
	return func() {
		_ = in.Close()
		if !golang {
			_ = cmd.Process.Kill()
		}
		if err := cmd.Wait(); golang {
			require.NoError(l.t, err)
		}
	}
}

const jobEnv = "GROUPCAST_DATAPLANE_JOB"

// job is what a child process does.
type job struct {
	Kind      string
	Receivers int
	Pins      string
	Trigger   table.Trigger // by default the option
	Consent   bool          // destinations are asked for it
	Backend   string        // of a relay
	Tunnel    *wireguard    // of a relay, or of a gateway
}

func (l *lab) child(j job) func() { return l.childAt(j, l.Gateway, 1) }

func (l *lab) childAt(j job, in *netlab.Namespace, cpu int) func() {
	l.t.Helper()
	text, err := json.Marshal(j)
	require.NoError(l.t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text), "GOMAXPROCS=1")
	return l.processAt(cmd, true, in, cpu)
}

func childMain(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	switch j.Kind {
	case "naive":
		return j.naive()
	case "relay":
		return j.relay()
	case "wireguard":
		return j.wireguard()
	}
	c := duplicator.Config{
		GroupRange: models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")},
		Uplink:     netip.MustParseAddr(uplink), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	var d duplicator.Duplicator
	var err error
	var keeping *keeper
	if j.Consent {
		if keeping, err = newKeeper(j); err != nil {
			return err
		}
		c.Heard, c.Answered = keeping.hear, keeping.ports.Each
	}
	kernel := ebpf.Config{Config: c, Interface: "lan0", PinDir: j.Pins}
	if j.Kind == "ebpf" {
		d, err = ebpf.Open(kernel)
	} else {
		d, err = duplicator.OpenSocket(c)
	}
	if err != nil {
		return err
	}
	guard, err := lan.Open("lan0", c.GroupRange)
	if err != nil {
		return err
	}
	if err := d.Apply(j.snapshot()); err != nil {
		return err
	}
	if keeping != nil {
		keeping.run(d)
	}
	if err := guard.Apply(j.snapshot()); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if keeping != nil {
		if err := keeping.end(); err != nil {
			return err
		}
	}
	if err := d.Close(); err != nil {
		return err
	}
	if j.Kind == "ebpf" {
		return ebpf.Remove(kernel)
	}
	return nil
}

// snapshot is what an agent makes of a camera and receivers that consented: the copies leave from the camera's reserved port.
func (j job) snapshot() *table.Snapshot {
	ip := netip.MustParseAddr(group)
	trigger := cmp.Or(j.Trigger, table.TriggerOption)
	g := &table.Group{
		ID: "g", IP: ip, Generation: 1,
		Sources: []table.Source{{ID: "camera", Addr: netip.MustParseAddr(camera), Trigger: trigger, Port: senderPort}},
	}
	until := time.Now().Add(10 * time.Minute)
	for i := range j.Receivers {
		to := netip.MustParseAddrPort(receiver(i) + ":" + mediaPort)
		d := table.Destination{ID: fmt.Sprint(i), Addr: to.Addr(), Port: to.Port(), Source: "camera", ValidUntil: until}
		if j.Consent {
			d.ValidUntil = time.Now().Add(models.ConsentExpires)
		}
		g.Destinations = append(g.Destinations, d)
	}
	return &table.Snapshot{ValidUntil: until, Groups: map[netip.Addr]*table.Group{ip: g}}
}

// naive is what most would write first.
func (j job) naive() error {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(group+":"+mediaPort)))
	if err != nil {
		return err
	}
	_ = conn.SetReadBuffer(4 << 20)
	var to []*net.UDPAddr
	for i := range j.Receivers {
		to = append(to, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(receiver(i)+":"+mediaPort)))
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range to {
				_, _ = conn.WriteTo(buf[:n], a)
			}
		}
	}()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return conn.Close()
}
