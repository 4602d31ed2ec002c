package eventhub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventhub"
)

var group = models.EventStream{AccountID: "a_1", GroupID: "g_1"}

func at(of models.EventStream, rev int64) models.EventPlace {
	return models.EventPlace{EventStream: of, Rev: rev}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestOnlyTheStreamsWatchersWake(t *testing.T) {
	h := eventhub.New()
	own, account := h.Watch(group), h.Watch(models.EventStream{AccountID: "a_1"})
	foreign := h.Watch(models.EventStream{AccountID: "a_2", GroupID: "g_1"})
	a, b, c := own.Next(4), account.Next(4), foreign.Next(4)
	h.Wake(at(group, 5))
	require.True(t, closed(a))
	require.False(t, closed(b), "the account's own events are another stream")
	require.False(t, closed(c), "the same group id in another account is another stream")
}

func TestAHintBetweenReadAndWaitIsKept(t *testing.T) {
	h := eventhub.New()
	w := h.Watch(group)
	next := w.Next(4)
	h.Wake(at(group, 5)) // while the database is being read
	require.True(t, closed(next))
	require.True(t, closed(w.Next(4)), "who still has 4 needs not wait")
	require.False(t, closed(w.Next(5)))
}

func TestOldHintsWakeNobody(t *testing.T) {
	h := eventhub.New()
	w := h.Watch(group)
	h.Wake(at(group, 5))
	next := w.Next(5)
	for _, rev := range []int64{5, 4, 1} { // twice, and out of order
		h.Wake(at(group, rev))
	}
	require.False(t, closed(next))
	h.Wake(at(group, 6))
	require.True(t, closed(next))
}

func TestNothingIsRememberedOfUnwatchedStreams(t *testing.T) {
	h := eventhub.New()
	for i := range 1000 {
		of := models.EventStream{AccountID: "a_1", GroupID: models.GroupID(fmt.Sprint(i))}
		h.Wake(at(of, 1))
		w, other := h.Watch(of), h.Watch(of)
		h.Wake(at(of, 2))
		w.Close()
		w.Close()
		require.Equal(t, 1, h.Watched(), "the other still watches")
		require.True(t, closed(other.Next(1)))
		other.Close()
	}
	require.Zero(t, h.Watched())
}

func TestWakeAllIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := eventhub.New()
		begin, woken := time.Now(), map[time.Duration]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 1000 {
			w := h.Watch(models.EventStream{AccountID: "a_1", GroupID: models.GroupID(fmt.Sprint(i))})
			next := w.Next(7)
			all.Go(func() {
				defer w.Close()
				<-next
				mu.Lock()
				woken[time.Since(begin)]++
				mu.Unlock()
			})
		}
		h.WakeAll(2 * time.Second)
		all.Wait()
		require.Greater(t, len(woken), 20, "not all at once")
		for after := range woken {
			require.LessOrEqual(t, after, 2*time.Second)
		}
	})
}

// TestManyWritersAndWatchers: whoever reads what there is and waits for more sees the newest in the end.
func TestManyWritersAndWatchers(t *testing.T) {
	h := eventhub.New()
	const last = 2000
	var mu sync.Mutex
	var truth int64
	read := func() int64 { mu.Lock(); defer mu.Unlock(); return truth }
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			w := h.Watch(group)
			defer w.Close()
			for seen := int64(0); seen < last; {
				next := w.Next(seen)
				if now := read(); now > seen {
					seen = now
					continue
				}
				<-next
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for {
				mu.Lock()
				if truth == last {
					mu.Unlock()
					return
				}
				truth++
				now := truth
				mu.Unlock()
				h.Wake(at(group, now)) // of several writers these overtake each other
			}
		})
	}
	all.Wait()
	require.Zero(t, h.Watched())
}

// TestALostHintCostsTwoSeconds: nobody calls Wake, and yet the watcher is woken, by one question for all.
func TestALostHintCostsTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := eventhub.New()
		running, stop := context.WithCancel(t.Context())
		asked := 0
		go h.Run(running, func(_ context.Context, of []models.EventStream) ([]models.EventPlace, error) {
			asked++
			if asked == 1 {
				return nil, errors.New("the database is away")
			}
			assert.Len(t, of, 2)
			return []models.EventPlace{at(group, 8)}, nil
		}, slog.New(slog.DiscardHandler))
		w, other := h.Watch(group), h.Watch(models.EventStream{AccountID: "a_1"})
		begin := time.Now()
		waiting := other.Next(0)
		<-w.Next(7)
		require.Equal(t, 4*time.Second, time.Since(begin), "the second look finds it")
		require.False(t, closed(waiting))
		w.Close()
		other.Close()
		time.Sleep(5 * time.Second)
		require.Equal(t, 2, asked, "nobody is asked when nobody waits")
		stop()
		synctest.Wait()
	})
}
