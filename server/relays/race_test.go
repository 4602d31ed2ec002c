package relays_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// replica is a process of its own on the database that the test has.
type replica struct {
	*servertest.Services
	relays *relays.Service
	store  *store.Store
}

// node is a relay that asks one replica after the other, and holds what it was answered.
type node struct {
	id   models.ID
	mu   sync.Mutex // held while it asks
	dead atomic.Bool
}

// race is several replicas that assign premises while relays die and come, account holders change their minds, and groups change.
type race struct {
	t        *testing.T
	db       *storetest.DB
	replicas []replica
	nodes    []*node
	texts    sync.Map // of each state of each relay, whoever gave it
	stop     chan struct{}
	wg       sync.WaitGroup
	answers  atomic.Int64
}

const raceHomes = 60

// TestAssignersRace: three replicas look after the premises of three relays on Postgres. At each instant one relay at most may copy for a premises, and holds it; the
// gateways' rows say what the assignments say; a state of a relay has the same bytes whoever gives it. In the end every premises is served, and the load is spread.
func TestAssignersRace(t *testing.T) {
	t.Parallel()
	db := storetest.Postgres(t)
	homes(t, db, raceHomes)
	r := &race{t: t, db: db, stop: make(chan struct{})}
	for range 3 {
		st := db.Replica(t)
		r.replicas = append(r.replicas, replica{servertest.On(db, st), relays.New(st, relays.Options{}), st})
	}
	l := lab{r.replicas[0].Services, r.replicas[0].relays, t}
	for n := range 3 {
		r.nodes = append(r.nodes, &node{id: l.relay(n + 1).Relay.ID})
	}
	// All relays are there: account holders who change at the same time are spread.
	r.together(func(i int, on replica) { r.fanout(on, i, models.FanoutNetwork) })
	for _, n := range r.served() {
		require.GreaterOrEqual(t, n, raceHomes/6, "spread: %v", r.served())
	}

	for _, on := range r.replicas {
		r.again(func() { assert.NoError(t, on.relays.Look(ctx)) })
	}
	for _, n := range r.nodes {
		r.again(func() { r.ask(n) })
	}
	r.again(r.check)
	r.settled()

	// One dies: the two others have its premises, about as many each.
	r.kill(r.nodes[0])
	r.settled()
	served := r.served()
	require.Zero(t, served[r.nodes[0].id])
	require.InDelta(t, served[r.nodes[1].id], served[r.nodes[2].id], raceHomes/10, "the load is spread")

	// They come and go while groups change and account holders change their minds.
	for round := range 6 {
		r.nodes[round%3].dead.Store(false)
		r.kill(r.nodes[(round+1)%3])
		if round%2 == 0 {
			r.kill(r.nodes[(round+2)%3])
		}
		r.together(func(i int, on replica) {
			switch {
			case i%4 == round%4:
				r.fanout(on, i, models.FanoutHome)
			case i%4 == (round+3)%4:
				r.fanout(on, i, models.FanoutNetwork)
			default:
				assert.NoError(t, on.store.Write(ctx, func(tx *store.Tx) error {
					_, _, err := tx.LockGateway(models.ID(100_000 + i))
					return err
				}))
			}
		})
	}
	for _, n := range r.nodes {
		n.dead.Store(false)
	}
	r.together(func(i int, on replica) { r.fanout(on, i, models.FanoutNetwork) })
	r.settled()
	close(r.stop)
	r.wg.Wait()
	r.check()
	require.Greater(t, r.answers.Load(), int64(50))
	t.Logf("%d answers to relays, %d deadlocks that the database resolved, served %v", r.answers.Load(), db.Deadlocks(t), r.served())
}

// again does something again and again until the race is over.
func (r *race) again(f func()) {
	r.wg.Go(func() {
		for {
			select {
			case <-r.stop:
				return
			case <-time.After(rand.N(10 * time.Millisecond)):
				f()
			}
		}
	})
}

// together does something with all premises, by several at once.
func (r *race) together(f func(i int, on replica)) {
	r.t.Helper()
	var wg sync.WaitGroup
	for w, on := range r.replicas {
		wg.Go(func() {
			for i := w + 1; i <= raceHomes; i += len(r.replicas) {
				f(i, on)
			}
		})
	}
	wg.Wait()
}

func (r *race) fanout(on replica, i int, to models.Fanout) {
	_, err := on.Accounts.ChangePremises(ctx, "a", models.PremisesID(fmt.Sprint("p", i)), accounts.PremisesChange{Fanout: &to})
	assert.NoError(r.t, err)
}

// ask polls once, at any replica, as a relay would.
func (r *race) ask(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead.Load() {
		return
	}
	on := r.replicas[rand.N(len(r.replicas))]
	all, err := on.Groups.Information(ctx, []models.ID{n.id})
	if !assert.NoError(r.t, err) {
		return
	}
	info := all[n.id]
	body, err := httpapi.RenderInformation(info)
	assert.NoError(r.t, err)
	before, known := r.texts.LoadOrStore(fmt.Sprint(n.id, info.Epoch, info.Revision), body)
	assert.True(r.t, !known || bytes.Equal(before.([]byte), body), "two bodies of one state") //nolint:forcetypeassert // nothing else is stored
	assert.NoError(r.t, on.store.RecordPolls(ctx, []models.Poll{{GatewayID: n.id, Relay: true, Epoch: info.Epoch, Revision: info.Revision}}))
	r.answers.Add(1)
}

// kill lets a relay be silent for longer than it may.
func (r *race) kill(n *node) {
	r.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead.Store(true)
	r.db.Exec(r.t, fmt.Sprintf("UPDATE relay_polls SET polled_at = polled_at - %d WHERE relay_id = %d", models.RelayLiveFor.Milliseconds()+1, n.id))
}

// check looks at one instant.
func (r *race) check() {
	for what, query := range map[string]string{
		"a gateway's row says something else than the assignment": `SELECT w.premises_id FROM gateways w LEFT JOIN relay_assignments ra ON ra.premises_id = w.premises_id
			WHERE w.relay_id <> coalesce(ra.relay_id, 0) OR w.forwarding <> coalesce(ra.forwarding, false)`,
		"a gateway forwards to a relay that doesn't hold the premises": `SELECT ra.premises_id FROM relay_assignments ra JOIN relay_polls rp ON rp.relay_id = ra.relay_id
			WHERE ra.forwarding AND rp.acked_revision < ra.revision`,
		"gateways of one premises belong to two relays": "SELECT premises_id FROM gateways WHERE relay_id <> 0 GROUP BY premises_id HAVING count(DISTINCT relay_id) > 1",
		"a gateway leaves the relay that it belongs to": "SELECT premises_id FROM gateways WHERE leaving_id <> 0 AND leaving_id = relay_id",
		"a relay's report counts that doesn't copy": `SELECT c.registration_id FROM consents c JOIN registrations r ON r.id = c.registration_id JOIN groups g ON g.id = r.group_id
			JOIN gateways w ON w.id = g.gateway_id WHERE c.counts AND c.relay_id NOT IN (0, w.relay_id, w.leaving_id)`,
	} {
		assert.Empty(r.t, r.db.Texts(r.t, query), what)
	}
}

// served counts the premises of each relay that lives or did.
func (r *race) served() map[models.ID]int {
	r.t.Helper()
	all := map[models.ID]int{}
	for _, n := range r.nodes {
		all[n.id] = int(r.db.Ints(r.t, fmt.Sprintf("SELECT count(*) FROM relay_assignments WHERE relay_id = %d", n.id))[0])
	}
	return all
}

// settled waits until every premises is copied by a relay that lives.
func (r *race) settled() {
	r.t.Helper()
	waiting, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		forwarding := map[models.ID]int{}
		sum := 0
		for _, n := range r.nodes {
			if !n.dead.Load() {
				forwarding[n.id] = int(r.db.Ints(r.t, fmt.Sprintf("SELECT count(*) FROM relay_assignments WHERE forwarding AND relay_id = %d", n.id))[0])
				sum += forwarding[n.id]
			}
		}
		if sum == raceHomes {
			return
		}
		select {
		case <-waiting.Done():
			require.FailNow(r.t, "not every premises is served", "%v", forwarding)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
