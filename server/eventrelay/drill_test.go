package eventrelay_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// rounds makes the drills longer: `make chaos`.
var rounds = flag.Int("drill.rounds", 2, "how often a drill does to the service what it does")

// faulty is a queue whose process dies at a moment that the test chooses: nothing that it does afterwards happens.
type faulty struct {
	*eventqueue.Queue
	beforePublish, afterAck func() bool // tells whether the process dies here
	die                     func()
}

var errDead = errors.New("the process is dead")

func (f *faulty) Publish(m eventqueue.Message) (jetstream.PubAckFuture, error) {
	if f.beforePublish != nil && f.beforePublish() {
		f.die()
		return nil, errDead
	}
	future, err := f.Queue.Publish(m)
	if err != nil || f.afterAck == nil {
		return future, err
	}
	select { // the queue has it, and whoever sent it doesn't learn that
	case ack := <-future.Ok():
		if f.afterAck() {
			f.die()
			return nil, errDead
		}
		return acknowledged{future, ack}, nil
	case err := <-future.Err():
		return nil, err
	}
}

func (f *faulty) PublishTogether(ctx context.Context, all []eventqueue.Message) error {
	if f.beforePublish != nil && f.beforePublish() {
		f.die()
		return errDead
	}
	if err := f.Queue.PublishTogether(ctx, all); err != nil || f.afterAck == nil || !f.afterAck() {
		return err
	}
	f.die()
	return errDead
}

// acknowledged is a future whose acknowledgement came already.
type acknowledged struct {
	jetstream.PubAckFuture
	ack *jetstream.PubAck
}

func (a acknowledged) Ok() <-chan *jetstream.PubAck {
	c := make(chan *jetstream.PubAck, 1)
	c <- a.ack
	return c
}

// crashes runs relays that die, one after the other, while things happen.
func crashes(t *testing.T, db *storetest.DB, fault func(f *faulty, now func() bool)) *eventqueue.Queue {
	t.Helper()
	q := queue(t, eventqueue.Options{})
	l := newLife(t, db)
	for round := range *rounds {
		l.happen(t, 20)
		dead := make(chan struct{})
		running, cancel := context.WithCancel(ctx)
		var n atomic.Int32
		var once sync.Once
		f := &faulty{Queue: q, die: func() { once.Do(func() { cancel(); close(dead) }) }}
		// The first is many events together, later ones are few.
		fault(f, func() bool { return n.Add(1) == int32(1+2*(round%2)) })
		r := eventrelay.New(db.Store, f, quiet, nil)
		ended := make(chan struct{})
		go func() { defer close(ended); r.Run(running) }()
		require.Eventually(t, func() bool {
			l.happen(t, 1)
			select {
			case <-dead:
				return true
			default:
				return false
			}
		}, patience, time.Millisecond, "the relay published nothing")
		<-ended
		waits, err := db.EventBacklog(ctx)
		require.NoError(t, err)
		require.Positive(t, waits.Count)
	}
	relaying(t, db.Store, q)
	published(t, db)
	return q
}

func TestDrillDeathBetweenCommitAndPublish(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		q := crashes(t, db, func(f *faulty, now func() bool) { f.beforePublish = now })
		ledger(t, db, q)
	})
}

func TestDrillDeathBetweenAcknowledgementAndMark(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		q := crashes(t, db, func(f *faulty, now func() bool) { f.afterAck = now })
		ledger(t, db, q)
	})
}

// TestDrillLostQueue: power failed, and the queue has nothing of what it acknowledged.
func TestDrillLostQueue(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		dir := t.TempDir()
		l := newLife(t, db)
		for range *rounds {
			q := queue(t, eventqueue.Options{DataDir: dir})
			stop := relaying(t, db.Store, q)
			l.happen(t, 20)
			published(t, db)
			ledger(t, db, q)
			stop()
			q.Close()
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "events", "jetstream")))
			l.happen(t, 5)
		}
		q := queue(t, eventqueue.Options{DataDir: dir})
		relaying(t, db.Store, q)
		published(t, db)
		ledger(t, db, q)
	})
}

// TestDrillTwoProcessesOnOneDirectory: the second one is told so, for as long as the first one is there.
func TestDrillTwoProcessesOnOneDirectory(t *testing.T) {
	dir := t.TempDir()
	q := queue(t, eventqueue.Options{DataDir: dir})
	for range 20 {
		forceCollection() // a lock that only a collected file held would be gone by now
		_, err := eventqueue.Open(eventqueue.Options{DataDir: dir, MaxBytes: 1 << 20, Log: quiet})
		require.ErrorContains(t, err, "in use by another groupcastd")
		require.ErrorContains(t, err, "nats-url")
	}
	q.Close()
	again, err := eventqueue.Open(eventqueue.Options{DataDir: dir, MaxBytes: 1 << 20, Log: quiet})
	require.NoError(t, err)
	again.Close()
}

// TestDrillFullQueue: what doesn't fit waits; nothing is dropped to make room, and it drains in order once there is some.
func TestDrillFullQueue(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		dir := t.TempDir()
		small := queue(t, eventqueue.Options{DataDir: dir, MaxBytes: 32 << 10})
		l := newLife(t, db)
		stop := relaying(t, db.Store, small)
		l.happen(t, 60)
		require.Eventually(t, func() bool {
			b, err := db.EventBacklog(ctx)
			return err == nil && b.Count > 0 && b.Oldest > 2*time.Second
		}, patience, 50*time.Millisecond, "it is full")
		first := received(t, small)
		for subject, got := range first {
			require.Contains(t, got[0].ID, "/1", "%s: the oldest is still there", subject)
		}
		stop()
		small.Close()
		large := queue(t, eventqueue.Options{DataDir: dir})
		relaying(t, db.Store, large)
		published(t, db)
		ledger(t, db, large)
	})
}

// nats is a NATS server as an operator runs one.
func natsServer(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, JetStreamMaxStore: 64 << 20,
	})
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(patience))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// TestDrillQueueAway: without the queue everything goes on, and what happened meanwhile comes in order when it is back.
func TestDrillQueueAway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		dir := t.TempDir()
		s := natsServer(t, dir, server.RANDOM_PORT)
		addr, ok := s.Addr().(*net.TCPAddr)
		require.True(t, ok)
		q := queue(t, eventqueue.Options{URL: fmt.Sprint("nats://", addr)})
		relaying(t, db.Store, q)
		l := newLife(t, db)
		l.happen(t, 10)
		published(t, db)
		for range *rounds {
			s.Shutdown()
			s.WaitForShutdown()
			l.happen(t, 20) // each is accepted
			b, err := db.EventBacklog(ctx)
			require.NoError(t, err)
			require.GreaterOrEqual(t, b.Count, 20)
			s = natsServer(t, dir, addr.Port)
			l.happen(t, 5)
			published(t, db)
			ledger(t, db, q)
		}
	})
}

// TestDrillLeaderLost: of two replicas the one that publishes is cut off; the other goes on where it was.
func TestDrillLeaderLost(t *testing.T) {
	db := storetest.Postgres(t)
	s := natsServer(t, t.TempDir(), server.RANDOM_PORT)
	url := fmt.Sprint("nats://", s.Addr())
	q := queue(t, eventqueue.Options{URL: url})
	relaying(t, db.Store, q)
	relaying(t, db.Replica(t), queue(t, eventqueue.Options{URL: url}))
	l := newLife(t, db)
	const leader = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
	holder := func() int64 {
		var pid int64
		require.Eventually(t, func() bool {
			all := db.Ints(t, leader)
			if len(all) == 1 {
				pid = all[0]
			}
			return len(all) == 1
		}, patience, 20*time.Millisecond)
		return pid
	}
	for range 2 * *rounds {
		l.happen(t, 10)
		was := holder()
		var both sync.WaitGroup
		both.Go(func() { l.happen(t, 10) })
		db.Exec(t, fmt.Sprintf("SELECT pg_terminate_backend(%d)", was))
		both.Wait()
		require.Eventually(t, func() bool { return holder() != was }, patience, 20*time.Millisecond)
		published(t, db)
		ledger(t, db, q)
	}
}

// TestDrillOverlappingLeaders: a leader that was cut off may publish on until it notices. Twice is not wrong, only needless.
func TestDrillOverlappingLeaders(t *testing.T) {
	db := storetest.SQLite(t) // where nobody has to be asked who leads, so that both do
	q := queue(t, eventqueue.Options{})
	l := newLife(t, db)
	relaying(t, db.Store, q)
	relaying(t, db.Store, q)
	l.happen(t, 40**rounds)
	published(t, db)
	ledger(t, db, q)
}

// TestDrillNobodyHears: a consumer that is away costs nobody else anything, and gets what it missed, in order.
func TestDrillNobodyHears(t *testing.T) {
	db := storetest.SQLite(t)
	q := queue(t, eventqueue.Options{})
	relaying(t, db.Store, q)
	l := newLife(t, db)
	js, err := jetstream.New(q.Conn())
	require.NoError(t, err)
	c, err := js.CreateConsumer(ctx, eventqueue.StreamName, jetstream.ConsumerConfig{
		Durable: "away", FilterSubject: "gc.a." + string(l.Account.ID) + ".>", AckPolicy: jetstream.AckExplicitPolicy,
	})
	require.NoError(t, err)
	l.happen(t, 30)
	published(t, db)
	ledger(t, db, q)
	rev := map[string]int{}
	var n int
	info, err := c.Info(ctx)
	require.NoError(t, err)
	batch, err := c.Fetch(int(info.NumPending), jetstream.FetchMaxWait(patience))
	require.NoError(t, err)
	for m := range batch.Messages() {
		rev[m.Subject()]++
		n++
		require.NoError(t, m.Ack())
	}
	require.Len(t, rev, 5, "four groups and the account itself")
	require.Equal(t, len(db.Ints(t, "SELECT id FROM events")), n)
}
