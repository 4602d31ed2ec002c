package figures

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
)

// scale is how much is measured.
type scale struct {
	rounds   int
	premises int // of the world that throughput is measured in
	requests int // of each kind and round
	large    int // premises of the large world of the growth; the small one has 40
	judge    bool
}

// BenchmarkRegistrationFigures prints the figures of docs/benchmarks.md that are about registrations and renewals.
func BenchmarkRegistrationFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("set BENCH_FIGURES=1, as make bench-registrations does")
	}
	s := scale{rounds: 7, premises: 400, requests: 3200, large: 40_000, judge: true}
	registrations(b, s)
	growth(b, s)
}

// TestRegistrationFiguresRun shows that the measurements run, on very little.
func TestRegistrationFiguresRun(t *testing.T) {
	s := scale{rounds: 1, premises: 40, requests: 64, large: 80}
	registrations(t, s)
	growth(t, s)
}

func cluster(t testing.TB) *pgtest.Cluster {
	t.Helper()
	return pgtest.New(t, pgtest.Options{Fsync: true, Settings: recordingSettings})
}

// phoneTokens gives every n-th premises' first phone a token.
func phoneTokens(t testing.TB, p *program, premises, n int) (numbers []int, token map[int]string) {
	t.Helper()
	var phones []int64
	for k := 1; k <= premises; k += n {
		numbers = append(numbers, k)
		phones = append(phones, phoneID(k, 1))
	}
	token = make(map[int]string, len(numbers))
	for i, text := range p.tokens(t, phones) {
		token[numbers[i]] = text
	}
	return numbers, token
}

// registrations measures how many registrations and renewals a second there are, beside a bare server that sends the same statements.
func registrations(t testing.TB, s scale) {
	c := cluster(t)
	var worlds [3]string
	for i := range worlds {
		worlds[i] = newWorld(t, c, s.premises)
	}
	service := groupcastd(t, worlds[0])
	numbers, token := phoneTokens(t, service, s.premises, 1)

	logStatements(t, c, "all")
	joining := record(t, c, worlds[0], service, func(k int) string { return token[k] }, false)
	renewing := record(t, c, worlds[0], service, func(k int) string { return token[k] }, true)
	logStatements(t, c, "none")
	show("a registration", joining)
	show("a renewal", renewing)
	transaction := slices.DeleteFunc(slices.Clone(joining), func(u unit) bool { return !u.Transaction })
	require.Len(t, transaction, 1, "a registration is one transaction")

	bareJoin := bareServer(t, "registrations", bareSettings{worlds[1], transaction})
	bareWhole := bareServer(t, "registrations", bareSettings{worlds[1], joining})
	bareRenew := bareServer(t, "registrations", bareSettings{worlds[2], renewing})

	var seq atomic.Int64
	join := func(int, int) string {
		k := numbers[rand.IntN(len(numbers))]
		return post(token[k], registration(k, 1, 1+rand.IntN(groupsEach), fmt.Sprint("b", seq.Add(1))))
	}
	renew := func(int, int) string {
		k := numbers[rand.IntN(len(numbers))]
		return post(token[k], registration(k, 1, 1+rand.IntN(groupsEach), ""))
	}
	db := postgresOf(t, c.AdminURL())
	measure := func(p *program, clients int, next func(int, int) string, costs *cost) (perSecond float64) {
		costs.measured(p, db, s.requests, func() {
			took, err := load(p.addr, clients, s.requests, next)
			require.NoError(t, err)
			perSecond = float64(s.requests) / took.Seconds()
			if p == service {
				finished(t, worlds[0]) // else it would go on beside the next that is measured
			}
		})
		return perSecond
	}
	// Every token is verified once, and every connection is there.
	measure(service, 32, join, &cost{})
	measure(bareJoin, 32, join, &cost{})
	measure(bareWhole, 32, join, &cost{})
	measure(bareRenew, 32, renew, &cost{})

	results := map[string][]float64{}
	var bareCosts, ourCosts, wholeCosts, renewCosts, sameCosts cost
	note := func(name string, v float64) { results[name] = append(results[name], v) }
	for range s.rounds {
		for i := range 2 {
			tidy(t, c, worlds[i])
		}
		// The service stands between the two runs of its bare server, so that what gets slower with time falls on both.
		bare := measure(bareJoin, 32, join, &bareCosts)
		ours := measure(service, 32, join, &ourCosts)
		whole := measure(bareWhole, 32, join, &wholeCosts)
		note("ours", ours)
		note("bare", bare)
		note("register", ours/bare)
		note("register_whole", ours/whole)

		bare = measure(bareJoin, 64, join, &cost{})
		ours = measure(service, 64, renew, &renewCosts)
		same := measure(bareRenew, 64, renew, &sameCosts)
		note("renewals", ours)
		note("renew", ours/bare)
		note("renew_same", ours/same)
	}
	fmt.Printf("registrations a second, 32 clients: %.0f, bare %.0f; renewals, 64 clients: %.0f\n",
		median(results["ours"]), median(results["bare"]), median(results["renewals"]))
	fmt.Printf("processor time of a registration: %s; bare, the transaction alone: %s; bare, all statements: %s\n", &ourCosts, &bareCosts, &wholeCosts)
	fmt.Printf("processor time of a renewal: %s; bare, one by one: %s\n", &renewCosts, &sameCosts)
	figure(s, "registrations_c32", median(results["register"]), "x_bare_transaction", ">=", 0.85)
	aside("registrations_c32_beside_bare_with_all_statements", results["register_whole"])
	figure(s, "renewals_c64", median(results["renew"]), "x_bare_transaction", ">=", 2)
	aside("renewals_c64_beside_bare_that_renews_one_by_one", results["renew_same"])
}

// growth measures what a registration costs in a large world, beside a small one.
func growth(t testing.TB, s scale) {
	c := cluster(t)
	const small, tokens, clients = 40, 4000, 4
	type side struct {
		*program
		world   string
		numbers []int
		token   map[int]string
	}
	var sides [2]side
	for i, premises := range []int{small, s.large} {
		began := time.Now()
		world := newWorld(t, c, premises)
		fmt.Printf("a world of %d registrations was made in %.0f s\n", premises*membersEach, time.Since(began).Seconds())
		p := groupcastd(t, world)
		numbers, token := phoneTokens(t, p, premises, max(1, premises/tokens))
		sides[i] = side{p, world, numbers, token}
	}
	var seq atomic.Int64
	// Each client has premises of its own: with forty they would otherwise wait for each other.
	measure := func(s side, n int) float64 {
		took, err := load(s.addr, clients, n, func(client, _ int) string {
			k := s.numbers[rand.IntN(len(s.numbers)/clients)*clients+client]
			return post(s.token[k], registration(k, 1, 1+rand.IntN(groupsEach), fmt.Sprint("b", seq.Add(1))))
		})
		require.NoError(t, err)
		return took.Seconds() / float64(n) * clients * 1e6
	}
	warm := s.requests
	for _, side := range sides {
		measure(side, warm)
	}
	var ratio, few, many []float64
	for range s.rounds {
		for _, side := range sides {
			tidy(t, c, side.world)
		}
		a := measure(sides[0], s.requests/4)
		b := measure(sides[1], s.requests/2)
		a = (a + measure(sides[0], s.requests/4)) / 2
		few, many, ratio = append(few, a), append(many, b), append(ratio, b/a)
	}
	fmt.Printf("a registration with %d others takes %.0f µs, with %d others %.0f µs\n",
		small*membersEach, median(few), s.large*membersEach, median(many))
	figure(s, "registration_growth", median(ratio), "x_small", "<=", 1.2)
}

// finished waits until the service has published the events and sealed the audit log that the requests so far lead to.
func finished(t testing.TB, world string) {
	t.Helper()
	require.Eventually(t, func() bool {
		var left int
		err := queryRow(world, "SELECT (SELECT count(*) FROM events WHERE published_at = 0) + (SELECT count(*) FROM audit_rows WHERE seq IS NULL)", &left)
		return err == nil && left == 0
	}, time.Minute, 20*time.Millisecond, "events are still not published, or audit rows not sealed")
}

func queryRow(databaseURL, query string, to ...any) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.QueryRow(ctx, query).Scan(to...)
}

// figure prints one line for the one who reads or compares them.
func figure(s scale, name string, value float64, unit, op string, target float64) {
	verdict := "ok"
	if op == "<=" && value > target || op == ">=" && value < target {
		verdict = "short"
	}
	if !s.judge {
		verdict = "unjudged"
	}
	fmt.Printf("figure %s %.3f %s want %s %g %s\n", name, value, unit, op, target, verdict)
}

// aside prints what nothing is promised of.
func aside(name string, values []float64) { fmt.Printf("beside %s %.3f\n", name, median(values)) }

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
