package longpoll_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/longpoll"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// database stands for the real one where a test needs exact times and faults. It counts what it is asked.
type database struct {
	mu        sync.Mutex
	epoch     string
	revisions map[models.ID]int64
	notBefore time.Time
	looks     int // at standings
	fault     error
	builds    int
	polls     []models.Poll
	slow      time.Duration
}

const gateway = models.ID(42)

type lab struct {
	*longpoll.Hub
	db   *database
	reg  *prometheus.Registry
	deaf bool // every hint is lost on its way
}

// Wake is a hint, which gets lost in a lab that is deaf.
func (l *lab) Wake(id models.ID) {
	if !l.deaf {
		l.Hub.Wake(id)
	}
}

// late is how much later than at once an answer may come: the time to the next look at the database, if hints get lost.
func (l *lab) late() time.Duration {
	if l.deaf {
		return 2 * time.Second
	}
	return 0
}

// inLab runs the test in a bubble with a fake clock: once as things are, and once with every hint dropped.
func inLab(t *testing.T, change func(*longpoll.Options), test func(t *testing.T, l *lab)) {
	t.Helper()
	t.Run("hints", func(t *testing.T) { bubble(t, false, change, test) })
	t.Run("no hints", func(t *testing.T) { bubble(t, true, change, test) })
}

func bubble(t *testing.T, deaf bool, change func(*longpoll.Options), test func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		db := &database{epoch: "e1", revisions: map[models.ID]int64{gateway: 7}}
		reg := prometheus.NewRegistry()
		o := longpoll.Options{
			Epoch:       func(context.Context) (string, error) { return db.read(func() string { return db.epoch }) },
			Standings:   db.readStandings,
			Information: db.information,
			Render: func(i models.GroupInformation) ([]byte, error) {
				return fmt.Appendf(nil, "%s.%d", i.Epoch, i.Revision), nil
			},
			Record:     db.record,
			Now:        time.Now,
			MaxWaiters: 100,
			Log:        slog.New(slog.DiscardHandler),
			Metrics:    reg,
		}
		if change != nil {
			change(&o)
		}
		h := longpoll.New(o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { h.Run(ctx) })
		test(t, &lab{h, db, reg, deaf})
		cancel()
		wg.Wait()
	})
}

func (d *database) read(f func() string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return f(), d.fault
}

func (d *database) readStandings(_ context.Context, ids []models.ID) (map[models.ID]models.Standing, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	found := map[models.ID]models.Standing{}
	for _, id := range ids {
		if n, ok := d.revisions[id]; ok {
			found[id] = models.Standing{Revision: n, NotBefore: d.notBefore}
		}
	}
	return found, d.fault
}

func (d *database) information(_ context.Context, ids []models.ID) (map[models.ID]models.GroupInformation, error) {
	d.mu.Lock()
	d.builds += len(ids)
	slow := d.slow
	d.mu.Unlock()
	time.Sleep(slow)
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[models.ID]models.GroupInformation{}
	for _, id := range ids {
		if n, ok := d.revisions[id]; ok {
			all[id] = models.GroupInformation{GatewayID: id, Epoch: d.epoch, Revision: n, NotBefore: d.notBefore}
		}
	}
	return all, d.fault
}

func (d *database) record(_ context.Context, polls []models.Poll) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault != nil {
		return d.fault
	}
	d.polls = append(d.polls, polls...)
	return nil
}

func (d *database) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *database) set(revision int64) { d.change(func() { d.revisions[gateway] = revision }) }

// waiting polls in the background with the cursor.
type pending struct {
	answer longpoll.Answer
	err    error
	took   time.Duration
	done   chan struct{}
}

func (l *lab) start(ctx context.Context, cursor string, wait time.Duration) *pending {
	p := &pending{done: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(p.done)
		p.answer, p.err = l.Poll(ctx, longpoll.Request{Gateway: gateway, Cursor: &cursor, Wait: wait})
		p.took = time.Since(began)
	}()
	synctest.Wait()
	return p
}

func (p *pending) isDone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// metric reads a counter or gauge; label is the value of its only label.
func (l *lab) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := l.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s{%s}", name, label)
	return 0
}

func (l *lab) waiters(t *testing.T) int {
	return int(l.metric(t, "groupcast_longpoll_waiters", ""))
}

func TestCursor(t *testing.T) {
	c, ok := longpoll.ParseCursor("5f2c9a71d0b34e68.7")
	require.True(t, ok)
	assert.Equal(t, longpoll.Cursor{Epoch: "5f2c9a71d0b34e68", Revision: 7}, c)
	assert.Equal(t, `"5f2c9a71d0b34e68.7"`, c.ETag())
	for _, bad := range []string{"", ".", "e", "e.", ".7", "e.0", "e.-1", "e.07", "e.+7", "e.7.8", "e.9223372036854775808", "e. 7", "e.7 "} {
		_, ok := longpoll.ParseCursor(bad)
		assert.False(t, ok, bad)
	}
}

func TestWhatIsAnsweredAtOnce(t *testing.T) {
	for _, c := range []struct {
		cursor string // "-": none
		wait   time.Duration
		full   bool
		want   longpoll.Answer
	}{
		{"-", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true}},
		{"e1.6", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true}},
		{"e1.8", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true, Resync: "ahead"}},
		{"e0.7", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true, Resync: "unknown-epoch"}},
		{"e0.9", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true, Resync: "unknown-epoch"}},
		{"nonsense", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true, Resync: "malformed"}},
		{"", 50 * time.Second, false, longpoll.Answer{Body: []byte("e1.7"), Changed: true, Resync: "malformed"}},
		{"e1.7", 0, false, longpoll.Answer{}},
		{"e1.7", 0, true, longpoll.Answer{Body: []byte("e1.7")}},
	} {
		inLab(t, nil, func(t *testing.T, l *lab) {
			r := longpoll.Request{Gateway: gateway, Cursor: &c.cursor, Wait: c.wait, Full: c.full}
			if c.cursor == "-" {
				r.Cursor = nil
			}
			began := time.Now()
			a, err := l.Poll(t.Context(), r)
			require.NoError(t, err)
			assert.Zero(t, time.Since(began), "%q waited", c.cursor)
			c.want.Cursor = longpoll.Cursor{Epoch: "e1", Revision: 7}
			assert.Equal(t, c.want, a, c.cursor)
			assert.Zero(t, l.waiters(t))
		})
	}
}

func TestAChangeAnswersAtOnce(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.start(t.Context(), "e1.7", 30*time.Second)
		time.Sleep(time.Second)
		require.False(t, p.isDone())
		l.db.set(8)
		l.Wake(gateway)
		<-p.done
		require.NoError(t, p.err)
		assert.InDelta(t, time.Second+l.late()/2, p.took, float64(l.late()/2))
		assert.Equal(t, "e1.8", string(p.answer.Body))
		assert.EqualValues(t, 1, l.metric(t, "groupcast_longpoll_answers_total", "change"))
		assert.Zero(t, l.waiters(t))
	})
}

func TestLosingEveryHintCostsTwoSeconds(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		time.Sleep(300 * time.Millisecond)
		p := l.start(t.Context(), "e1.7", 30*time.Second)
		time.Sleep(5 * time.Second)
		changed := time.Now()
		l.db.set(8) // nobody says so
		<-p.done
		assert.LessOrEqual(t, time.Since(changed), 2*time.Second)
		assert.Equal(t, "e1.8", string(p.answer.Body))
		assert.EqualValues(t, 1, l.metric(t, "groupcast_longpoll_missed_hints_total", ""))
	})
}

func TestARestoredDatabaseWakesEverybody(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.start(t.Context(), "e1.7", 30*time.Second)
		time.Sleep(5 * time.Second)
		l.db.change(func() { l.db.epoch, l.db.revisions[gateway] = "e2", 3 })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.True(t, p.isDone())
		assert.Equal(t, longpoll.Cursor{Epoch: "e2", Revision: 3}, p.answer.Cursor)
		assert.Equal(t, "e2.3", string(p.answer.Body))
		assert.Equal(t, longpoll.ResyncEpoch, p.answer.Resync, "without it the gateway would take it for an old answer")
	})
}

func TestTheWaitEndsWithItsTime(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		for _, wait := range []time.Duration{time.Second, 30 * time.Second, longpoll.MaxWait} {
			p := l.start(t.Context(), "e1.7", wait)
			<-p.done
			require.NoError(t, p.err)
			assert.GreaterOrEqual(t, p.took, wait)
			assert.LessOrEqual(t, p.took, wait+wait/16)
			assert.Equal(t, longpoll.Answer{Cursor: longpoll.Cursor{Epoch: "e1", Revision: 7}}, p.answer)
		}
		assert.EqualValues(t, 3, l.metric(t, "groupcast_longpoll_answers_total", "timeout"))
		assert.Zero(t, l.db.builds, "nothing changed, so nothing had to be read")
	})
}

func TestAHintForNothingIsNoAnswer(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.start(t.Context(), "e1.7", 30*time.Second)
		for range 5 {
			l.Wake(gateway)
			l.Wake(gateway + 1)
			time.Sleep(time.Second)
		}
		assert.False(t, p.isDone())
		if !l.deaf {
			assert.EqualValues(t, 5, l.metric(t, "groupcast_longpoll_empty_wakes_total", ""))
		}
		<-p.done
		assert.False(t, p.answer.Changed)
	})
}

// TestABurstOfChanges makes a change every 10 ms: the first is answered at once, the others at most every 50 ms, and none
// is missing at the end.
func TestABurstOfChanges(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		var answers []longpoll.Answer
		var at []time.Time
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			cursor := "e1.7"
			for {
				a, err := l.Poll(ctx, longpoll.Request{Gateway: gateway, Cursor: &cursor, Wait: 30 * time.Second})
				if err != nil {
					return
				}
				answers, at = append(answers, a), append(at, time.Now())
				cursor = a.Cursor.String()
			}
		})
		synctest.Wait()
		began := time.Now()
		for i := range 20 {
			l.db.set(int64(8 + i))
			l.Wake(gateway)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second + l.late())
		cancel()
		wg.Wait()
		if !l.deaf {
			require.Len(t, answers, 5) // 0, 50, 100, 150 and 200 ms
		}
		require.NotEmpty(t, answers)
		assert.LessOrEqual(t, at[0].Sub(began), l.late(), "the first change was delayed")
		for i := 1; i < len(at); i++ {
			assert.GreaterOrEqual(t, at[i].Sub(at[i-1]), 50*time.Millisecond)
		}
		assert.EqualValues(t, 27, answers[len(answers)-1].Cursor.Revision)
	})
}

func TestAPlainPollIsNeverDelayed(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		began := time.Now()
		for range 5 {
			cursor := "e1.6"
			a, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor})
			require.NoError(t, err)
			assert.True(t, a.Changed)
		}
		assert.Zero(t, time.Since(began))
		assert.Equal(t, 1, l.db.builds, "the same snapshot is built once")
	})
}

func TestAThirdPollEndsTheOldest(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		first := l.start(t.Context(), "e1.7", 30*time.Second)
		second := l.start(t.Context(), "e1.7", 30*time.Second)
		assert.Equal(t, 2, l.waiters(t))
		assert.False(t, first.isDone())
		third := l.start(t.Context(), "e1.7", 30*time.Second)
		require.True(t, first.isDone())
		require.NoError(t, first.err)
		assert.Equal(t, longpoll.Cursor{Epoch: "e1", Revision: 7}, first.answer.Cursor)
		assert.False(t, first.answer.Changed)
		assert.False(t, first.answer.Close)
		assert.Equal(t, 2, l.waiters(t))

		l.db.set(8)
		l.Wake(gateway)
		<-second.done
		<-third.done
		assert.Equal(t, "e1.8", string(second.answer.Body))
		assert.Equal(t, "e1.8", string(third.answer.Body))
		assert.Equal(t, 1, l.db.builds)
		assert.Zero(t, l.waiters(t))
	})
}

func TestAClientThatIsGoneIsNoWaiter(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		ctx, cancel := context.WithCancel(t.Context())
		p := l.start(ctx, "e1.7", 30*time.Second)
		require.Equal(t, 1, l.waiters(t))
		cancel()
		synctest.Wait()
		assert.ErrorIs(t, p.err, context.Canceled)
		assert.Zero(t, l.waiters(t))
		assert.EqualValues(t, 1, l.metric(t, "groupcast_longpoll_answers_total", "client_gone"))
	})
}

func TestAFullReplicaSaysSo(t *testing.T) {
	inLab(t, func(o *longpoll.Options) { o.MaxWaiters = 1 }, func(t *testing.T, l *lab) {
		l.db.change(func() { l.db.revisions[gateway+1] = 7 })
		ctx, cancel := context.WithCancel(t.Context())
		l.start(ctx, "e1.7", 30*time.Second)
		cursor := "e1.7"
		_, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway + 1, Cursor: &cursor, Wait: time.Second})
		var e *models.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, models.CodeOverloaded, e.Code)
		// Whoever needn't wait is served.
		cursor = "e1.6"
		a, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway + 1, Cursor: &cursor, Wait: time.Second})
		require.NoError(t, err)
		assert.True(t, a.Changed)
		cancel()
		synctest.Wait()
	})
}

func TestAReadErrorIsAnError(t *testing.T) {
	fault := errors.New("the database is away")
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.start(t.Context(), "e1.7", 10*time.Second)
		l.db.change(func() { l.db.fault = fault })
		time.Sleep(9 * time.Second)
		assert.False(t, p.isDone(), "a fault of the look for everybody must not end anybody's wait")
		<-p.done
		assert.ErrorIs(t, p.err, fault, "304 would claim that nothing changed")
		assert.Nil(t, p.answer.Body)
		for _, cursor := range []string{"e1.7", "e1.6", "nonsense"} {
			a, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor})
			assert.ErrorIs(t, err, fault)
			assert.Zero(t, a)
		}
		assert.EqualValues(t, 4, l.metric(t, "groupcast_longpoll_answers_total", "error"))
	})
}

func TestARemovedGatewayIsUnauthenticated(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.start(t.Context(), "e1.7", 30*time.Second)
		l.db.change(func() { delete(l.db.revisions, gateway) })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.True(t, p.isDone())
		var e *models.Error
		require.ErrorAs(t, p.err, &e)
		assert.Equal(t, models.CodeUnauthenticated, e.Code)
		assert.EqualValues(t, 1, l.metric(t, "groupcast_longpoll_answers_total", "token_ended"))
	})
}

func TestASnapshotIsBuiltOnceForAllWhoWait(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.db.change(func() { l.db.slow = time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		first := l.start(ctx, "e1.1", 0)
		second := l.start(t.Context(), "e1.2", 0)
		cancel() // the one whose request built it goes away
		<-first.done
		assert.ErrorIs(t, first.err, context.Canceled)
		<-second.done
		require.NoError(t, second.err)
		assert.Equal(t, "e1.7", string(second.answer.Body))
		assert.Equal(t, 1, l.db.builds)
	})
}

func TestDraining(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.db.change(func() {
			for i := range 20 {
				l.db.revisions[gateway+models.ID(i)] = 7
			}
		})
		cursor := "e1.7"
		var mu sync.Mutex
		var ended []time.Duration
		var wg sync.WaitGroup
		began := time.Now()
		for i := range 20 {
			wg.Go(func() {
				a, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway + models.ID(i), Cursor: &cursor, Wait: 50 * time.Second})
				assert.NoError(t, err)
				assert.True(t, a.Close)
				mu.Lock()
				defer mu.Unlock()
				ended = append(ended, time.Since(began))
			})
		}
		synctest.Wait()
		l.Drain(t.Context(), 5*time.Second)
		wg.Wait()
		assert.Zero(t, l.waiters(t))
		assert.LessOrEqual(t, ended[19], 5*time.Second)
		assert.Greater(t, ended[19]-ended[0], 100*time.Millisecond, "they all ended at once")

		a, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor, Wait: 50 * time.Second})
		require.NoError(t, err)
		assert.Equal(t, longpoll.Answer{Cursor: longpoll.Cursor{Epoch: "e1", Revision: 7}, Close: true}, a)
		l.Drain(t.Context(), time.Second)
	})
}

func TestAcknowledgementsAreStored(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		poll := func(cursor string) {
			_, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor})
			require.NoError(t, err)
		}
		recorded := func() []models.Poll {
			l.db.mu.Lock()
			defer l.db.mu.Unlock()
			p := l.db.polls
			l.db.polls = nil
			return p
		}
		poll("e1.6")
		time.Sleep(200 * time.Millisecond)
		got := recorded()
		require.Len(t, got, 1, "an acknowledgement that advances is stored at once")
		assert.Equal(t, models.Poll{GatewayID: gateway, Epoch: "e1", Revision: 6, Ago: got[0].Ago}, got[0])

		for range 50 {
			poll("e1.6")
			time.Sleep(100 * time.Millisecond)
		}
		assert.LessOrEqual(t, len(recorded()), 1, "polls that say nothing new are batched")
		time.Sleep(10 * time.Second)
		recorded()

		// What is no state of ours acknowledges nothing, but the gateway is alive.
		poll("e1.9")
		poll("e0.5")
		poll("nonsense")
		time.Sleep(10 * time.Second)
		got = recorded()
		require.Len(t, got, 1)
		assert.EqualValues(t, 6, got[0].Revision)
	})
}

func TestAnAcknowledgementSurvivesAFault(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		cursor := "e1.7"
		_, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor})
		require.NoError(t, err)
		l.db.change(func() { l.db.fault = errors.New("away") })
		assert.Error(t, l.Flush(t.Context()))
		l.db.change(func() { l.db.fault = nil })
		require.NoError(t, l.Flush(t.Context()))
		require.Len(t, l.db.polls, 1)
		assert.EqualValues(t, 7, l.db.polls[0].Revision)
	})
}

// startWith polls in the background with a token.
func (l *lab) startWith(ctx context.Context, r longpoll.Request) *pending {
	cursor := "e1.7"
	p := &pending{done: make(chan struct{})}
	r.Gateway, r.Cursor, r.Wait = gateway, &cursor, longpoll.MaxWait
	began := time.Now()
	go func() {
		defer close(p.done)
		p.answer, p.err = l.Poll(ctx, r)
		p.took = time.Since(began)
	}()
	synctest.Wait()
	return p
}

func refusedAsEnded(t *testing.T, p *pending) {
	t.Helper()
	require.True(t, p.isDone())
	var e *models.Error
	require.ErrorAs(t, p.err, &e)
	assert.Equal(t, models.CodeUnauthenticated, e.Code)
	assert.Zero(t, p.answer, "an empty snapshot would be wrong")
}

// A token that is withdrawn ends what waits with it: at once where the hint comes, with the next look of all where it is lost.
func TestAttackAWaitOutlivesItsToken(t *testing.T) {
	for name, hint := range map[string]bool{"with a hint": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				old := l.startWith(t.Context(), longpoll.Request{IssuedAt: time.Now()})
				time.Sleep(500 * time.Millisecond)
				withdrawn := time.Now()
				l.db.change(func() { l.db.notBefore = withdrawn })
				fresh := l.startWith(t.Context(), longpoll.Request{IssuedAt: withdrawn})
				if hint && !l.deaf {
					l.Wake(gateway)
				} else {
					require.False(t, old.isDone())
					time.Sleep(2 * time.Second)
				}
				synctest.Wait()
				refusedAsEnded(t, old)
				assert.False(t, fresh.isDone(), "that of a newer token goes on")
				<-fresh.done
				require.NoError(t, fresh.err)
			})
		})
	}
}

func TestAttackAWaitOutlivesTheExpiry(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		p := l.startWith(t.Context(), longpoll.Request{IssuedAt: time.Now(), ExpiresAt: time.Now().Add(7 * time.Second)})
		<-p.done
		refusedAsEnded(t, p)
		assert.Equal(t, 7*time.Second, p.took)
		// The verifier's leeway lets a token that has just expired ask, but not wait.
		p = l.startWith(t.Context(), longpoll.Request{IssuedAt: time.Now(), ExpiresAt: time.Now().Add(-time.Second)})
		refusedAsEnded(t, p)
	})
}

// All that wait are looked after with one question every two seconds, whatever ends them.
func TestOneLookIsForAll(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.db.change(func() {
			for i := range 50 {
				l.db.revisions[gateway+models.ID(i)] = 7
			}
		})
		cursor := "e1.7"
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				_, err := l.Poll(t.Context(), longpoll.Request{Gateway: gateway + models.ID(i), Cursor: &cursor, Wait: 30 * time.Second, IssuedAt: time.Now()})
				assert.NoError(t, err)
			})
		}
		synctest.Wait()
		var before, after int
		l.db.change(func() { before = l.db.looks })
		time.Sleep(20 * time.Second)
		synctest.Wait()
		l.db.change(func() { after = l.db.looks })
		assert.Equal(t, 10, after-before)
		wg.Wait()
	})
}

// A change costs one read, and while very many are woken whoever has an answer lets the others go first.
func TestTheWokenGoFirst(t *testing.T) {
	bubble(t, false, nil, func(t *testing.T, l *lab) { // it is about hints
		const many = 70
		l.db.change(func() {
			for i := range many {
				l.db.revisions[gateway+models.ID(i)] = 7
			}
		})
		cursor := "e1.7"
		var wg sync.WaitGroup
		var last *longpoll.Wait
		for i := range many {
			_, w, err := l.Begin(t.Context(), longpoll.Request{Gateway: gateway + models.ID(i), Cursor: &cursor, Wait: 50 * time.Second})
			require.NoError(t, err)
			require.NotNil(t, w)
			wg.Go(func() {
				a, err := w.End(t.Context())
				assert.NoError(t, err)
				assert.Equal(t, "e1.8", string(a.Body))
			})
			last = w
		}
		synctest.Wait()
		assert.True(t, calm(last.Calm()), "they only wait")
		var looks int
		l.db.change(func() {
			looks, l.db.builds, l.db.slow = l.db.looks, 0, 100*time.Millisecond
			for i := range many {
				l.db.revisions[gateway+models.ID(i)] = 8
			}
		})
		for i := range many {
			l.Wake(gateway + models.ID(i))
		}
		synctest.Wait()
		crowded := last.Calm()
		assert.False(t, calm(crowded))
		wg.Wait()
		assert.True(t, calm(crowded), "whoever asked is told")
		assert.True(t, calm(last.Calm()))
		l.db.change(func() {
			assert.Equal(t, many, l.db.builds)
			assert.Equal(t, looks, l.db.looks, "nobody asks for the revision first")
		})
	})
}

// A client that leaves ends its wait, without an answer and without a question.
func TestLeaveEndsTheWait(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		cursor := "e1.7"
		_, w, err := l.Begin(t.Context(), longpoll.Request{Gateway: gateway, Cursor: &cursor, Wait: 50 * time.Second})
		require.NoError(t, err)
		var looks int
		l.db.change(func() { looks = l.db.looks })
		w.Leave()
		w.Leave()
		a, err := w.End(t.Context())
		assert.ErrorIs(t, err, context.Canceled)
		assert.Zero(t, a)
		assert.Zero(t, l.waiters(t))
		l.db.change(func() { assert.Equal(t, looks, l.db.looks) })
	})
}

func calm(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
