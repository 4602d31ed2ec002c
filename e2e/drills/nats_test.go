package drills

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventqueue"
)

// nodeVariable makes this program a server of the NATS cluster; its value is the node as JSON.
const nodeVariable = "GROUPCAST_DRILL_NATS_NODE"

// node is one server of the cluster.
type node struct {
	Name, Dir  string
	Port, Peer int
	Peers      []int
	// Configuration is what an operator gives it for services to read.
	Configuration string
	process       *harness.Process
}

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVariable); text != "" {
		runNode(text)
		return
	}
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

// runNode is nats-server as an operator runs it, of the version that go.mod names.
func runNode(text string) {
	var n node
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		panic(err)
	}
	o := &server.Options{}
	if err := o.ProcessConfigString(n.Configuration); err != nil {
		panic(err)
	}
	o.ServerName, o.Host, o.Port, o.JetStream, o.StoreDir, o.JetStreamMaxStore = n.Name, "127.0.0.1", n.Port, true, n.Dir, 256<<20
	o.Cluster = server.ClusterOpts{Name: "drill", Host: "127.0.0.1", Port: n.Peer}
	for _, p := range n.Peers {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprint("127.0.0.1:", p)})
	}
	s, err := server.NewServer(o)
	if err != nil {
		panic(err)
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
}

// natsCluster is three servers.
type natsCluster struct {
	nodes []*node
	conn  *nats.Conn
	js    jetstream.JetStream
}

func startNATS(t testing.TB, keys *eventqueue.Keys, services ...models.ServiceID) *natsCluster {
	t.Helper()
	c := &natsCluster{}
	var peers []int
	for range 3 {
		peers = append(peers, freePort(t))
	}
	for i, peer := range peers {
		c.nodes = append(c.nodes, &node{Name: fmt.Sprint("n", i), Dir: memory(t), Port: freePort(t), Peer: peer, Peers: peers, Configuration: keys.Configuration(services)})
	}
	c.start(t)
	var err error
	c.conn, err = nats.Connect(c.url(), keys.Login(false), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(c.conn.Close)
	c.js, err = jetstream.New(c.conn)
	require.NoError(t, err)
	return c
}

func (c *natsCluster) url() string {
	var all []string
	for _, n := range c.nodes {
		all = append(all, fmt.Sprint("nats://127.0.0.1:", n.Port))
	}
	return strings.Join(all, ",")
}

// start starts those that don't run.
func (c *natsCluster) start(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		if n.process != nil {
			continue
		}
		text, err := json.Marshal(n)
		require.NoError(t, err)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
		n.process = harness.Start(t, nil, "nats-server "+n.Name, cmd)
	}
}

func (n *node) kill() {
	n.process.Kill()
	n.process = nil
}

// leader is the server that leads the stream.
func (c *natsCluster) leader(t testing.TB) *node {
	t.Helper()
	var leader *node
	require.Eventually(t, func() bool {
		s, err := c.js.Stream(t.Context(), eventqueue.StreamName)
		if err != nil || s.CachedInfo().Cluster == nil {
			return false
		}
		for _, n := range c.nodes {
			if n.Name == s.CachedInfo().Cluster.Leader {
				leader = n
			}
		}
		return leader != nil
	}, patience, 50*time.Millisecond, "the stream has no leader")
	return leader
}

func (c *natsCluster) follower(t testing.TB) *node {
	t.Helper()
	leader := c.leader(t)
	for _, n := range c.nodes {
		if n != leader {
			return n
		}
	}
	return nil
}

// stepDown asks the leader of the stream to give the lead away.
func (c *natsCluster) stepDown(t testing.TB) {
	t.Helper()
	c.leader(t)
	require.Eventually(t, func() bool {
		m, err := c.conn.Request("$JS.API.STREAM.LEADER.STEPDOWN."+eventqueue.StreamName, nil, 2*time.Second)
		return err == nil && strings.Contains(string(m.Data), `"success":true`)
	}, patience, 50*time.Millisecond)
}

// memory is a directory in memory where there is such a thing: a killed process loses nothing that the kernel has.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "groupcast-nats-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func freePort(t testing.TB) int {
	t.Helper()
	return int(netip.MustParseAddrPort(harness.FreePort(t)).Port())
}
