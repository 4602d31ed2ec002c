package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// noteTruth has the database itself write down, with every commit that raises a gateway's revision, which registrations are in its groups.
const noteTruth = `
CREATE TABLE truth (gateway bigint, epoch text, revision bigint, content text, at bigserial, PRIMARY KEY (gateway, epoch, revision));
CREATE FUNCTION note_truth() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO truth SELECT NEW.id, (SELECT epoch FROM installation), NEW.revision, coalesce((SELECT string_agg(
		g.name || '/' || g.ip || '/' || g.generation || '/' || r.role || '/' || r.id, ' ' ORDER BY g.name, r.role, r.id)
		FROM groups g JOIN registrations r ON r.group_id = g.id WHERE g.gateway_id = NEW.id), '') ON CONFLICT DO NOTHING;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER truth AFTER UPDATE ON gateways DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_truth();`

// content writes group information as the trigger does.
func content(i *sync.Information) string {
	var all []string
	for _, g := range i.Groups {
		prefix := fmt.Sprintf("%s/%s/%d/", g.Name, g.IP, g.Generation)
		for _, s := range g.Sources {
			all = append(all, prefix+"source/"+string(s.RegistrationID))
		}
		for _, d := range g.Destinations {
			all = append(all, prefix+"destination/"+string(d.RegistrationID))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// polling is a gateway that polls through everything: the real client, and in place of the network a way to either replica that loses answers.
type polling struct {
	t       *testing.T
	db      *sql.DB
	gateway models.Gateway
	token   string
	servers []*harness.Server

	mu      gosync.Mutex
	target  int
	answers int
	lose    int // so many answers get lost on their way
	cut     context.CancelFunc
	through context.Context // ends with a fail-over
	held    sync.Held
	applied []*sync.Information
	stop    func()

	sources, destinations []historyMember
	wanted                map[string]bool // "group member", the last that was asked for
	joined                map[string]string
	unknown               map[string]bool // it was asked for and there was no answer
}

// RoundTrip goes to the replica of the moment.
func (p *polling) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	through, to := p.through, p.servers[p.target]
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(through, cancel)
	r = r.Clone(ctx)
	r.URL.Host = strings.TrimPrefix(to.URL, "http://")
	r.Header.Set("Authorization", "Bearer "+p.token)
	answer, err := to.HTTP.Transport.RoundTrip(r)
	stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers++
	if err == nil && p.lose > 0 {
		p.lose--
		_ = answer.Body.Close()
		cancel()
		return nil, errors.New("the answer got lost")
	}
	if err != nil {
		cancel()
	}
	return answer, err
}

// awaitAnswers lets the client get n more answers, if they come soon.
func (p *polling) awaitAnswers(n int) {
	p.mu.Lock()
	want := p.answers + n
	p.mu.Unlock()
	for range 300 {
		p.mu.Lock()
		enough := p.answers >= want
		p.mu.Unlock()
		if enough {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// failOver ends what is under way and goes on at the other replica.
func (p *polling) failOver() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
	p.target = 1 - p.target
	p.through, p.cut = context.WithCancel(context.Background())
}

// start starts the client with what is held, as an agent does.
func (p *polling) start() {
	p.mu.Lock()
	held := p.held
	p.mu.Unlock()
	poller, err := sync.New(sync.Config{
		Server: "http://replica.invalid", Gateway: p.gateway, Transport: &http.Transport{}, Authorized: p, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(p.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		poller.Run(ctx, held, func(_ context.Context, a sync.Answer) (sync.Held, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if a.Information != nil {
				p.applied = append(p.applied, a.Information)
				p.held = sync.Held{Cursor: a.Information.Cursor(), MaxStale: a.Information.MaxStale}
			}
			return p.held, nil
		})
	}()
	p.stop = func() { cancel(); <-done }
}

// ask registers or leaves once, at either replica. It may fail.
func (p *polling) ask(server int, group string, m historyMember, in bool) (status int) {
	s, key := p.servers[server], group+" "+m.id.String()
	if !in {
		if p.joined[key] == "" {
			return http.StatusNotFound
		}
		status, _ = call(p.t.Context(), s, http.MethodDelete, "/v1/registrations/"+p.joined[key], m.token, "", "", nil)
		if status == http.StatusOK {
			delete(p.joined, key)
		}
		return status
	}
	status, body := call(p.t.Context(), s, http.MethodPost, "/v1/registrations", m.token, "",
		fmt.Sprintf(`{"type":"Device","id":"%s","destination":%t,"groupName":%q,"TTLs":86400,"privateIPv4":%q,"publicIPv4":"198.51.99.9"}`,
			m.id, !m.source, group, m.ip), nil)
	var answer struct {
		RegistrationID string `json:"registrationId"`
	}
	if status == http.StatusOK {
		require.NoError(p.t, json.Unmarshal(body, &answer))
		p.joined[key] = answer.RegistrationID
	}
	p.unknown[key] = status != http.StatusOK && status != http.StatusNotFound
	return status
}

// change asks for something new: a group begins or ends, a destination joins or leaves.
func (p *polling) change(rt *rapid.T) {
	i := rapid.IntRange(0, len(p.sources)-1).Draw(rt, "group")
	m := p.sources[i]
	if rapid.IntRange(0, 3).Draw(rt, "who") > 0 {
		m = rapid.SampledFrom(p.destinations).Draw(rt, "destination")
	}
	key := p.sources[i].group + " " + m.id.String()
	p.wanted[key] = !p.wanted[key]
	p.ask(rapid.IntRange(0, 1).Draw(rt, "replica"), p.sources[i].group, m, p.wanted[key])
}

func (p *polling) exec(statement string) {
	require.Eventually(p.t, func() bool { // it may meet a deadlock with what the replicas do
		conn, err := p.db.Conn(p.t.Context())
		if err != nil {
			return false
		}
		defer conn.Close()
		if _, err = conn.ExecContext(p.t.Context(), statement); err != nil {
			_, _ = conn.ExecContext(p.t.Context(), "ROLLBACK")
		}
		return err == nil
	}, time.Minute, 20*time.Millisecond, statement)
}

// TestAGatewayEndsWithTheTruth polls with the agent's own client through drawn interleavings of changes at two replicas, killed and restarted
// replicas and clients, fail-overs, lost answers, changes that nobody was told of, new lives of the database and faults of it.
// Postgres itself has written down what was true at each revision: whatever the client applied was that, never older than what
// it had, and in the end it has the latest.
func TestAGatewayEndsWithTheTruth(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	a := harness.StartServer(t, replica(url, nil))
	b := harness.StartServer(t, replica(url, a)) // no queue in common: they don't tell each other anything
	db := openRaw(t, "", url)
	_, err := db.Exec(noteTruth)
	require.NoError(t, err)
	home := 0
	harness.Check(t, 2, func(rt *rapid.T) {
		home++
		p := newPolling(t, db, home, a, b)
		defer func() { p.stop() }()
		actions := map[string]func(){
			"change":  func() { p.change(rt) },
			"changes": func() { p.change(rt); p.change(rt); p.change(rt) },
			"a change that nobody is told of": func() {
				p.exec(fmt.Sprint("UPDATE gateways SET revision = revision + 1 WHERE id = ", p.gateway.ID))
			},
			"fail-over":          p.failOver,
			"answers get lost":   func() { p.mu.Lock(); defer p.mu.Unlock(); p.lose = rapid.IntRange(1, 2).Draw(rt, "answers") },
			"the agent restarts": func() { p.stop(); p.start() },
			"a replica is killed": func() {
				i := rapid.IntRange(0, 1).Draw(rt, "replica")
				p.servers[i].Kill()
				p.failOver()
				p.change(rt)
				p.servers[i].Start(t)
			},
			"a new life": func() {
				r, err := a.Admin.RotateEpochWithResponse(t.Context())
				require.NoError(t, err)
				require.NotNil(t, r.JSON200, "%s", r.Body)
				// All addresses are in quarantine; without more of them the cameras can only come back after it.
				p.exec("UPDATE installation SET clock_offset_ms = clock_offset_ms + 1000000, expiry_ran_at = expiry_ran_at + 1000000")
			},
			"no database": func() {
				p.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
				p.change(rt)
			},
			"a table can't be read": func() {
				other := rapid.SampledFrom([]string{"leases", "installation", "gateways"}).Draw(rt, "table")
				for _, table := range []string{"groups", "registrations", other} {
					// Together with news, so that there is something to answer with.
					p.exec(fmt.Sprintf("BEGIN; UPDATE gateways SET revision = revision + 1 WHERE id = %d; SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE %s RENAME TO away; COMMIT",
						p.gateway.ID, table))
					p.failOver() // so that it asks now
					p.change(rt)
					p.awaitAnswers(rapid.IntRange(1, 2).Draw(rt, "answers"))
					p.exec("ALTER TABLE away RENAME TO " + table)
				}
			},
		}
		names := []string{}
		for name := range actions {
			names = append(names, name)
		}
		slices.Sort(names)
		steps := rapid.Permutation(names).Draw(rt, "each once, in some order")
		for range rapid.IntRange(0, 5).Draw(rt, "more") {
			steps = append(steps, rapid.SampledFrom(names).Draw(rt, "action"))
		}
		t.Logf("%q", steps)
		for _, name := range steps {
			actions[name]()
			time.Sleep(time.Duration(rapid.SampledFrom([]int{0, 20, 300}).Draw(rt, "then")) * time.Millisecond)
		}
		p.settle()
		p.check()
		t.Log("applied:", len(p.applied))
	})
}

func newPolling(t *testing.T, db *sql.DB, n int, servers ...*harness.Server) *polling {
	off := false
	s := servers[0]
	premises := s.Premises(t, s.Account(t, fmt.Sprint("polling", n)), "home", false)
	id := s.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceGateway, Name: "gateway", Pop: &off})
	p := &polling{
		t: t, db: db, servers: servers, token: s.DeviceToken(t, id), wanted: map[string]bool{}, joined: map[string]string{}, unknown: map[string]bool{},
		gateway: models.Gateway{
			ID: id, LANPrefix: netip.MustParsePrefix("10.0.0.0/24"), LANAddr: netip.MustParseAddr("10.0.0.1"), Uplink: netip.MustParseAddr("203.0.113.1"),
			Range: models.AddrRange{First: netip.MustParseAddr("10.0.0.230"), Last: netip.MustParseAddr("10.0.0.254")},
		},
		target: rand.IntN(2),
	}
	p.through, p.cut = context.WithCancel(context.Background())
	for i := range 6 {
		m := historyMember{source: i < 3, group: fmt.Sprint("g", i), ip: fmt.Sprint("10.0.0.", 10+i)}
		kind := models.DevicePhone
		if m.source {
			kind = models.DeviceCamera
		}
		m.id = s.Device(t, premises, adminapi.DeviceRequest{Type: kind, Name: fmt.Sprint(i), Pop: &off})
		m.token = s.DeviceToken(t, m.id)
		if m.source {
			p.sources = append(p.sources, m)
		} else {
			p.destinations = append(p.destinations, m)
		}
	}
	p.start()
	require.Eventually(t, func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.applied) > 0 }, time.Minute, 10*time.Millisecond)
	for _, m := range p.sources { // so that an empty snapshot is wrong from here on
		p.wanted[m.group+" "+m.id.String()] = true
	}
	p.settle()
	return p
}

// settle asks for all that is wanted until it is so: what failed meanwhile is done now.
func (p *polling) settle() {
	for _, m := range append(slices.Clone(p.sources), p.destinations...) {
		for _, g := range p.sources {
			key := g.group + " " + m.id.String()
			in := p.wanted[key]
			if m.source && m.group != g.group {
				continue
			}
			until := func(in bool) {
				require.Eventually(p.t, func() bool {
					status := p.ask(0, g.group, m, in)
					return status == http.StatusOK || status == http.StatusNotFound
				}, 60*time.Second, 50*time.Millisecond, "%s", key)
			}
			if !in && p.unknown[key] {
				until(true) // to learn by which id to leave
			}
			until(in)
		}
	}
}

// check waits until the client has the latest truth, and holds all that it applied against what the database wrote down. It fails the whole
// test: nothing gets smaller by trying again with what is left of the database.
func (p *polling) check() {
	p.t.Helper()
	cursor := func() (c string) {
		require.NoError(p.t, p.db.QueryRow("SELECT (SELECT epoch FROM installation) || '.' || revision FROM gateways WHERE id = $1", int64(p.gateway.ID)).Scan(&c))
		return c
	}
	require.Eventually(p.t, func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.held.Cursor == cursor() }, 120*time.Second, 50*time.Millisecond,
		"the gateway doesn't come to have the truth")
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.applied[len(p.applied)-1]
	for key, in := range p.wanted {
		group, _, _ := strings.Cut(key, " ")
		lives := slices.ContainsFunc(p.sources, func(s historyMember) bool { return s.group == group && p.wanted[group+" "+s.id.String()] })
		has := p.joined[key] != "" && strings.Contains(content(last), p.joined[key])
		require.Equal(p.t, in && lives, has, "%s in %s", key, content(last))
	}
	at := int64(0)
	for i, info := range p.applied {
		var truth string
		var when int64
		err := p.db.QueryRow("SELECT content, at FROM truth WHERE gateway = $1 AND epoch = $2 AND revision = $3", int64(p.gateway.ID), info.Epoch, info.Revision).
			Scan(&truth, &when)
		if errors.Is(err, sql.ErrNoRows) && i == 0 {
			continue // before it declared
		}
		require.NoError(p.t, err, "%s was never true", info.Cursor())
		require.Equal(p.t, truth, content(info), "what was applied as %s", info.Cursor())
		require.GreaterOrEqual(p.t, when, at, "%s is older than what was applied before", info.Cursor())
		at = when
	}
}
