package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

var (
	historySteps   = flag.Int("history.steps", 25, "requests of each client in a recorded history")
	historyHomes   = flag.Int("history.homes", 2, "homes, each with a history of its own, at the same time")
	historyCheck   = flag.Duration("history.check", 2*time.Minute, "how long the checker may look for an order; it is done in seconds on an idle machine")
	historyMutants = flag.Bool("history.mutants", false, "build programs with bugs and see that the checker finds them")
)

// TestHistory records what concurrent clients ask and are told, with real clocks, while a replica is killed and starts again; a
// checker then looks for an order of the requests in which a service that does one thing at a time would have said the same.
func TestHistory(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		s := harness.StartServer(t, harness.Options{})
		require.Equal(t, porcupine.Ok, recordHistory(t, s.DataDir, "", true, s))
	})
	t.Run("postgres, two replicas", func(t *testing.T) {
		t.Parallel()
		url := pgtest.URL(t)
		a := harness.StartServer(t, replica(url, nil))
		b := harness.StartServer(t, replica(url, a))
		require.Equal(t, porcupine.Ok, recordHistory(t, "", url, true, a, b))
	})
}

// TestHistoryFindsABug proves that the checker sees it if an address comes to another group at once. The bug is a trigger in the
// test's own database, so the program under test has no switch for it.
func TestHistoryFindsABug(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.Options{})
	db := openRaw(t, s.DataDir, "")
	_, err := db.Exec(`CREATE TRIGGER reuse AFTER UPDATE ON addresses WHEN NEW.state = 'quarantined' BEGIN
		UPDATE addresses SET state = 'free', released_at = 0 WHERE gateway_id = NEW.gateway_id AND ip = NEW.ip; END`)
	require.NoError(t, err)
	require.Equal(t, porcupine.Illegal, recordHistory(t, s.DataDir, "", false, s))
}

// TestHistoryFindsAMissingLock builds a groupcastd in which nobody locks the gateway, and proves that the checker sees it. The bug is in
// an overlay of this build alone, so the program under test has no switch for it.
func TestHistoryFindsAMissingLock(t *testing.T) {
	t.Parallel()
	const lock = "\"UPDATE gateways SET revision = revision + 1 WHERE \" + where + \" RETURNING \" + lockedColumns"
	file, err := filepath.Abs("../server/store/gateways.go")
	require.NoError(t, err)
	code, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(code), lock), "the statement that locks has changed; change this test too")
	if !*historyMutants {
		t.Skip("builds another groupcastd: run make history")
	}
	without := strings.Replace(string(code), lock, "\"SELECT \" + lockedColumns + \" FROM gateways WHERE \" + where", 1)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "gateways.go"), []byte(without), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: filepath.Join(dir, "gateways.go")}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	program := filepath.Join(dir, "groupcastd")
	out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "../cmd/groupcastd").CombinedOutput()
	require.NoError(t, err, "%s", out)
	url := pgtest.URL(t)
	o := replica(url, nil)
	o.Program = program
	a := harness.StartServer(t, o)
	o = replica(url, a)
	o.Program = program
	require.Equal(t, porcupine.Illegal, recordHistory(t, "", url, false, a, harness.StartServer(t, o)))
}

// replica is a server on a shared database; all share the issuer and the key-encryption key of the first.
func replica(url string, first *harness.Server) harness.Options {
	o := harness.Options{DatabaseURL: url, Args: []string{"--public-url", "http://127.0.0.1:8080"}}
	if first != nil {
		o.Args = append(o.Args, "--key-encryption-key-file", filepath.Join(first.DataDir, "kek"))
	}
	return o
}

func openRaw(t *testing.T, dataDir, url string) *sql.DB {
	t.Helper()
	driver, dsn := "pgx", url
	if url == "" {
		driver, dsn = "sqlite3", "file:"+filepath.Join(dataDir, "groupcast.db")+"?_txlock=immediate&_busy_timeout=10000"
	}
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// recorder is the history of all homes.
type recorder struct {
	mu      sync.Mutex
	start   time.Time
	all     []porcupine.Operation
	db      *sql.DB
	servers []*harness.Server
	// down is held while a server is being killed and started.
	down sync.RWMutex
}

func (r *recorder) now() int64 { return time.Since(r.start).Nanoseconds() }

func (r *recorder) add(client int, call int64, in request, out answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: r.now()})
}

func (r *recorder) recorded() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// recordHistory lets clients of several homes work at once and checks what they were told.
func recordHistory(t *testing.T, dataDir, url string, restart bool, servers ...*harness.Server) porcupine.CheckResult {
	r := &recorder{start: time.Now(), db: openRaw(t, dataDir, url), servers: servers}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var clients, gateways sync.WaitGroup
	finished := make(chan struct{})
	requests := 0
	for h := range *historyHomes {
		home := newHistoryHome(t, servers[0], h)
		for i, m := range home.members {
			clients.Go(func() { r.member(ctx, home, m, 10*h+i) })
		}
		gateways.Go(func() { r.gateway(ctx, home, 10*h+9, finished) })
		requests += len(home.members) * *historySteps
	}
	go func() { clients.Wait(); close(finished) }()
	if restart {
		for r.recorded() < requests/3 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		r.down.Lock()
		servers[len(servers)-1].Kill()
		servers[len(servers)-1].Start(t)
		r.down.Unlock()
	}
	<-finished
	gateways.Wait()
	require.NoError(t, ctx.Err())
	model := historyModel()
	result := porcupine.CheckOperationsTimeout(model, r.all, *historyCheck)
	t.Logf("%d requests: %s", len(r.all), result)
	counts := map[string]int{}
	for _, o := range r.all {
		counts[fmt.Sprint(o.Input.(request).Kind, " ", o.Output.(answer).Status)]++
	}
	t.Log(counts)
	return result
}

type historyHome struct {
	index   int
	gateway models.ID
	token   string
	members []historyMember
}

type historyMember struct {
	id     models.ID
	token  string
	source bool
	group  string // a camera's own
	ip     string
	ttl    int
}

const (
	// historyTick moves the clock far past a lease of 30 s and its grace.
	historyTick = 200 * time.Second
	// historyCooldown is that of --max-stale's default; historySlack is more than a test takes by real clocks.
	historyCooldown = 960 * time.Second
	historySlack    = 120 * time.Second
	// historySilent is when a gateway may count as silent: after 900 s, but the record of its polls may be some ticks late.
	historySilent = 900*time.Second - 3*historyTick
)

func newHistoryHome(t *testing.T, s *harness.Server, index int) *historyHome {
	off := false
	account := s.Account(t, fmt.Sprint("home", index))
	premises := s.Premises(t, account, "home", false)
	h := &historyHome{index: index}
	h.gateway = s.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	h.token = s.DeviceToken(t, h.gateway)
	for i := range 6 {
		m := historyMember{source: i < 4, group: fmt.Sprint("g", i), ip: fmt.Sprint("10.0.0.", 10+i), ttl: 86400}
		kind := models.DevicePhone
		if m.source {
			kind = models.DeviceCamera
		}
		if i == 5 && index == 0 {
			m.ttl = 30 // this one lets its leases end; two would end each other's
		}
		m.id = s.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: fmt.Sprint(i), Pop: &off})
		m.token = s.DeviceToken(t, m.id)
		h.members = append(h.members, m)
	}
	status, body := call(t.Context(), s, http.MethodPut, fmt.Sprint("/v1/gateways/", h.gateway), h.token, "",
		`{"lanPrefix":"10.0.0.0/24","gatewayIPv4":"10.0.0.1","uplinkIPv4":"203.0.113.1","groupRange":"10.0.0.230-10.0.0.232"}`, nil)
	require.Equal(t, http.StatusOK, status, "%s", body)
	return h
}

// call sends one request; status 0 is no answer.
func call(ctx context.Context, s *harness.Server, method, path, token, etag, body string, answered *http.Header) (int, []byte) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	res, err := s.HTTP.Do(req)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, nil
	}
	if answered != nil {
		*answered = res.Header
	}
	return res.StatusCode, b
}

// ask sends a request to any server and records it. Without an answer it is recorded as perhaps done, until all servers are up.
func (r *recorder) ask(ctx context.Context, client int, random *rand.Rand, in request, method, path, token, body string) answer {
	s := r.servers[random.IntN(len(r.servers))]
	begin := r.now()
	var header http.Header
	var out answer
	var b []byte
	out.Status, b = call(ctx, s, method, path, token, in.Cursor, body, &header)
	if out.Status == 0 || out.Status == http.StatusServiceUnavailable {
		out.Status = 0
		r.down.RLock()   // what was under way when the server died is done by now, or never
		r.down.RUnlock() //nolint:staticcheck // waiting is all there is to do
	} else {
		_ = json.Unmarshal(b, &out) // a problem has other members
		out.Cursor = header.Get("ETag")
	}
	r.add(client, begin, in, out)
	return out
}

func (r *recorder) member(ctx context.Context, h *historyHome, m historyMember, client int) {
	random := rand.New(rand.NewPCG(uint64(h.index), uint64(client)))
	joined := map[string]string{}
	for range *historySteps {
		group := m.group
		if !m.source {
			group = fmt.Sprint("g", random.IntN(4))
		}
		in := request{Home: h.index, Member: m.id.String(), Source: m.source, Group: group}
		id := joined[group]
		switch {
		case id != "" && m.ttl == 30:
			// Only this client has short leases, so it is the only one whom moving the clock concerns.
			in.Kind, in.Tick = "expire", historyTick
			begin := r.now()
			r.move(ctx, historyTick)
			for _, id := range joined {
				for status := 0; status != http.StatusNotFound && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
					status, _ = call(ctx, r.servers[0], http.MethodGet, "/v1/registrations/"+id, m.token, "", "", nil)
				}
			}
			r.add(client, begin, in, answer{Status: http.StatusOK})
			clear(joined) // all of them are over
		case id != "" && random.IntN(3) > 0:
			in.Kind = "leave"
			if out := r.ask(ctx, client, random, in, http.MethodDelete, "/v1/registrations/"+id, m.token, ""); out.Status != 0 {
				delete(joined, group)
			}
		default:
			in.Kind = "join"
			body := fmt.Sprintf(`{"type":"Device","id":"%s","destination":%t,"groupName":%q,"TTLs":%d,"privateIPv4":%q,"publicIPv4":"198.51.99.9"}`,
				m.id, !m.source, group, m.ttl, m.ip)
			out := r.ask(ctx, client, random, in, http.MethodPost, "/v1/registrations", m.token, body)
			for out.Status == 0 && ctx.Err() == nil { // so that it knows all that it is in
				out = r.ask(ctx, client, random, in, http.MethodPost, "/v1/registrations", m.token, body)
			}
			if out.Status == http.StatusOK {
				joined[group] = out.RegistrationID
			}
		}
	}
}

// move moves the database's clock as if the service had run all the time.
func (r *recorder) move(ctx context.Context, d time.Duration) {
	r.down.RLock()
	defer r.down.RUnlock()
	_, _ = r.db.ExecContext(ctx, fmt.Sprintf(`UPDATE installation SET clock_offset_ms = clock_offset_ms + %[1]d, expiry_ran_at = expiry_ran_at + %[1]d`,
		d.Milliseconds()))
}

// gateway polls with what it has, and now and then lets its answer get lost.
func (r *recorder) gateway(ctx context.Context, h *historyHome, client int, finished <-chan struct{}) {
	random := rand.New(rand.NewPCG(uint64(h.index), uint64(client)))
	etag := ""
	for range *historySteps * 10 {
		select {
		case <-finished:
			return
		case <-time.After(10 * time.Millisecond):
		}
		in := request{Home: h.index, Kind: "poll", Cursor: etag}
		out := r.ask(ctx, client, random, in, http.MethodGet, fmt.Sprintf("/v1/gateways/%s/groups", h.gateway), h.token, "")
		if out.Cursor != "" && random.IntN(5) > 0 {
			etag = out.Cursor
		}
	}
}
