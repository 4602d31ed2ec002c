package mqtt_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/store"
)

// benchServer makes this program the server of a benchmark: "edge", or "bare", which only holds connections and writes the same bytes.
const benchServer = "MQTT_BENCH_SERVER"

func TestMain(m *testing.M) {
	switch os.Getenv(benchServer) {
	case "edge":
		serveBench(benchEdge())
	case "bare":
		serveBench(newBare())
	default:
		goleak.VerifyTestMain(m)
	}
}

// benchTruth is what the benchmark's servers tell: each device has a group of its own, and all are of one account.
type benchTruth struct{ rev atomic.Int64 }

const benchAccount = models.AccountID("a_06gzwnzqbhz1d1ejr6gcdyjb64")

func benchTopic(device int) string {
	return mqtt.StateTopic(models.GroupID(fmt.Sprint("g_06gzwnzqbhz1d1ejr6gcdy", 100000+device)))
}

func (*benchTruth) state(of models.EventStream) events.State {
	id, _ := strconv.Atoi(string(of.GroupID[len("g_06gzwnzqbhz1d1ejr6gcdy"):]))
	e := models.Event{EventPlace: models.EventPlace{EventStream: of, Rev: 4}, Type: models.EventMemberJoined, At: time.Unix(1e9, 0), Group: &models.GroupState{
		Group: models.Group{ID: of.GroupID, Name: "groupcast1", IP: netip.MustParseAddr("192.168.1.233"), Generation: 1, Rev: 4, State: 3},
		Members: []models.Member{
			{Type: models.MemberDevice, ID: models.ID(id - 100000), Role: models.RoleSource, Name: "front door"},
			{Type: models.MemberService, ID: 2908757376510572177, Role: models.RoleDestination, Name: "Upload"},
			{Type: models.MemberService, ID: 2908757376510572178, Role: models.RoleDestination, Name: "Thumbnail"},
			{Type: models.MemberDevice, ID: 6641230860435114, Role: models.RoleDestination, Name: "phone"},
		},
	}}
	return events.NewState(e, e.Group.Members)
}

func (t *benchTruth) added(rev int64) models.Event {
	return models.Event{
		EventPlace: models.EventPlace{EventStream: models.EventStream{AccountID: benchAccount}, Rev: rev}, Type: models.EventDeviceAdded, At: time.Unix(1e9, 0),
		Device: &models.Device{ID: 664123086043511412, PremisesID: "p_06gzwnzqb1tgd0par1e5711008", Type: models.DevicePhone, Name: "phone", Model: "M1"},
	}
}

// server is one of the two that are compared.
type server interface {
	serve(l net.Listener)
	event()
}

type edgeServer struct {
	*mqtt.Edge
	truth *benchTruth
}

func benchEdge() server {
	truth := &benchTruth{}
	e := mqtt.New(mqtt.Options{
		Authenticate: func(_ context.Context, token, _ string) (mqtt.Client, error) {
			id, err := strconv.ParseInt(token, 10, 64)
			return mqtt.Client{Device: models.ID(id), Account: benchAccount, Premises: "p_1", Bound: true, ExpiresAt: time.Now().Add(time.Hour)}, err
		},
		Devices: func(_ context.Context, ids []models.ID) (all []models.Device, err error) {
			for _, id := range ids {
				all = append(all, models.Device{ID: id, AccountID: benchAccount, PremisesID: "p_1", Type: models.DeviceCamera})
			}
			return all, nil
		},
		State: func(_ context.Context, of models.EventStream) (events.State, bool, error) {
			return truth.state(of), true, nil
		},
		After: func(_ context.Context, _ models.EventStream, rev int64) (events.Batch, error) {
			return events.Batch{Events: []models.Event{truth.added(rev + 1)}, Newest: rev + 1}, nil
		},
		Revs: func(_ context.Context, ids []models.GroupID) (map[models.GroupID]int64, error) {
			revs := map[models.GroupID]int64{}
			for _, id := range ids {
				revs[id] = 4
			}
			return revs, nil
		},
		News: func(context.Context, []models.AccountID) (map[models.AccountID]store.AccountNews, error) {
			return map[models.AccountID]store.AccountNews{benchAccount: {Rev: truth.rev.Load()}}, nil
		},
		AllowSource: func(netip.Addr) bool { return true }, AllowDevice: func(models.ID) bool { return true },
		MaxConnections: 20000, MaxPerAccount: 20000, MaxPerSource: 20000, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	go e.Run(context.Background())
	return edgeServer{e, truth}
}

func (e edgeServer) serve(l net.Listener) { _ = e.Serve(l) }

func (e edgeServer) event() {
	e.Wake(models.EventPlace{EventStream: models.EventStream{AccountID: benchAccount}, Rev: e.truth.rev.Add(1)})
}

// bare holds a goroutine and a connection for each client.
type bare struct {
	mu    sync.Mutex
	conns []net.Conn
	bytes []byte
}

func newBare() server { return &bare{bytes: publication(mqtt.EventsTopic, (&benchTruth{}).added(1))} }

func publication(topic string, e models.Event) []byte {
	body, err := events.JSON(e, events.Listener{})
	if err != nil {
		panic(err)
	}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID = topic, body, 1, 1
	var b bytes.Buffer
	_ = p.Write(&b)
	return b.Bytes()
}

func (s *bare) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		go s.hold(c)
	}
}

func (s *bare) hold(c net.Conn) {
	answers := [][]byte{{0x20, 2, 0, 0}, {0x90, 3, 0, 7, 1}} // CONNACK, SUBACK
	var buffer [256]byte
	for {
		if _, err := c.Read(buffer[:]); err != nil {
			return
		}
		if len(answers) > 0 {
			_, _ = c.Write(answers[0])
			answers = answers[1:]
		}
	}
}

func (s *bare) event() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_, _ = c.Write(s.bytes)
	}
}

// serveBench does what the benchmark says on standard input.
func serveBench(s server) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go s.serve(l)
	fmt.Println(l.Addr())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "rss":
			time.Sleep(300 * time.Millisecond) // what is going on comes to rest
			debug.FreeOSMemory()
			status, _ := os.ReadFile("/proc/self/status")
			fmt.Println(string(regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)[1]))
		case "event":
			fmt.Println(time.Now().UnixNano())
			s.event()
		}
	}
}

// process is a server in a process of its own.
type process struct {
	b    *testing.B
	in   io.WriteCloser
	out  *bufio.Scanner
	addr string
}

func startBench(b *testing.B, kind string) *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), benchServer+"="+kind), os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	p := &process{b: b, in: in, out: bufio.NewScanner(out)}
	b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	p.addr = p.line()
	return p
}

func (p *process) line() string {
	p.b.Helper()
	require.True(p.b, p.out.Scan())
	return p.out.Text()
}

func (p *process) ask(what string) int {
	p.b.Helper()
	_, err := io.WriteString(p.in, what+"\n")
	require.NoError(p.b, err)
	n, err := strconv.Atoi(p.line())
	require.NoError(p.b, err)
	return n
}

// connect lets n devices connect and subscribe, and read what comes then; heard is told when the first byte of a message was there.
func (p *process) connect(n int, topic func(int) string, first bool, heard func(time.Time)) (end func()) {
	p.b.Helper()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range conns {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				p.b.Error(err)
				return
			}
			conns[i] = c
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = connectPacket(strconv.Itoa(i+1), "camera").Write(c)
			_, err = packets.ReadPacket(c)
			_ = subscribePacket(1, topic(i+1)).Write(c)
			if err == nil {
				_, err = packets.ReadPacket(c)
			}
			if err == nil && first {
				_, err = packets.ReadPacket(c)
				_, _ = c.Write([]byte{0x40, 2, 0, 1})
			}
			if err != nil {
				p.b.Error(err)
				return
			}
			if heard == nil {
				return
			}
			go func() {
				buffer := make([]byte, 4096)
				for {
					if _, err := c.Read(buffer); err != nil {
						return
					}
					heard(time.Now())
					_, _ = c.Write([]byte{0x40, 2, 0, 1})
				}
			}()
		})
	}
	wg.Wait()
	return func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}
}

// BenchmarkEventsMQTTFigures prints the figures of docs/benchmarks.md, each beside that of a server that does nothing but hold the connections and
// write the same bytes, in rounds that alternate.
func BenchmarkEventsMQTTFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("set BENCH_FIGURES=1, as make bench-events does")
	}
	const rounds, connected, listeners, each = 5, 10_000, 4000, 10
	kinds := []string{"edge", "bare"}
	rss, late := map[string][]float64{}, map[string][]float64{}
	for range rounds {
		for _, kind := range kinds {
			p := startBench(b, kind)
			before := p.ask("rss")
			end := p.connect(connected, benchTopic, kind == "edge", nil)
			rss[kind] = append(rss[kind], float64(p.ask("rss")-before)*1024/1000/connected)
			end()
			p.in.Close()
		}
	}
	type running struct {
		*process
		mu    sync.Mutex
		times []time.Time
	}
	all := map[string]*running{}
	for _, kind := range kinds {
		r := &running{process: startBench(b, kind)}
		defer r.connect(listeners, func(int) string { return mqtt.EventsTopic }, false, func(at time.Time) {
			r.mu.Lock()
			r.times = append(r.times, at)
			r.mu.Unlock()
		})()
		all[kind] = r
	}
	for range rounds {
		taken := map[string][]float64{}
		for range each {
			for _, kind := range kinds {
				r := all[kind]
				began := time.Unix(0, int64(r.ask("event")))
				require.Eventually(b, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.times) == listeners }, time.Minute, time.Millisecond)
				r.mu.Lock()
				for _, at := range r.times {
					taken[kind] = append(taken[kind], float64(at.Sub(began).Microseconds())/1000)
				}
				r.times = r.times[:0]
				r.mu.Unlock()
				time.Sleep(20 * time.Millisecond) // acknowledgements
			}
		}
		for _, kind := range kinds {
			slices.Sort(taken[kind])
			late[kind] = append(late[kind], taken[kind][len(taken[kind])*99/100])
		}
	}
	fmt.Printf("a bare server takes %.1f kB for a connection, and %.1f ms until 99 of 100 of %d have the same bytes; %d rounds\n",
		median(rss["bare"]), median(late["bare"]), listeners, rounds)
	fmt.Printf("edge, each round: %s kB, %s ms\n", strings.Trim(fmt.Sprintf("%.1f", rss["edge"]), "[]"), strings.Trim(fmt.Sprintf("%.1f", late["edge"]), "[]"))
	figure("mqtt_rss_per_connection", median(rss["edge"]), "kB", 20)
	// Where the bare server takes over half of it, the machine is what is measured.
	figure("mqtt_one_event_to_4000_p99", median(late["edge"]), "ms", max(50, 2*median(late["bare"])))
}

// figure prints one line for the one who reads or compares them.
func figure(name string, value float64, unit string, target float64) {
	verdict := "ok"
	if value > target {
		verdict = "short"
	}
	fmt.Printf("figure %s %.1f %s want <= %.0f %s\n", name, value, unit, target, verdict)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
