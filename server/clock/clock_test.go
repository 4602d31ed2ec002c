package clock_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/clock"
)

// world is a host and a database, each with a clock of its own.
type world struct {
	host, database atomic.Int64 // how far each is ahead, in nanoseconds
	trip           time.Duration
	fault          error
	log            bytes.Buffer
}

func (w *world) hostNow() time.Time { return time.Now().Add(time.Duration(w.host.Load())) }

func (w *world) truth() time.Time {
	return time.Now().Add(time.Duration(w.database.Load())).Round(0)
}

func (w *world) ask(context.Context) (time.Time, error) {
	time.Sleep(w.trip / 2)
	defer time.Sleep(w.trip / 2)
	return w.truth(), w.fault
}

func inWorld(t *testing.T, w *world, test func(t *testing.T, c *clock.Clock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, err := clock.New(t.Context(), w.ask, w.hostNow, slog.New(slog.NewTextHandler(&w.log, nil)), prometheus.NewRegistry())
		require.NoError(t, err)
		test(t, c)
	})
}

// TestTheDatabasesTime: whatever the host's clock shows, and while the database is away.
func TestTheDatabasesTime(t *testing.T) {
	for _, host := range []time.Duration{-time.Hour, 0, 30 * time.Hour} {
		w := &world{trip: 20 * time.Millisecond}
		w.host.Store(int64(host))
		inWorld(t, w, func(t *testing.T, c *clock.Clock) {
			require.Equal(t, w.truth(), c.Now())
			w.fault = errors.New("away")
			time.Sleep(time.Hour)
			require.Error(t, c.Look(t.Context()))
			require.Equal(t, w.truth(), c.Now())
		})
		require.Equal(t, host != 0, bytes.Contains(w.log.Bytes(), []byte("NTP")), "%s", &w.log)
	}
}

// TestAClockThatIsSet: the host's changes nothing, the database's is followed.
func TestAClockThatIsSet(t *testing.T) {
	w := &world{}
	inWorld(t, w, func(t *testing.T, c *clock.Clock) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Run(ctx) }()
		w.host.Store(-int64(2 * time.Hour))
		time.Sleep(6 * time.Second)
		require.Equal(t, w.truth(), c.Now())
		w.database.Store(int64(time.Hour))
		time.Sleep(6 * time.Second)
		require.Equal(t, w.truth(), c.Now())
		stop()
		<-done
	})
}

// TestASlowAnswerIsNotBelieved: nobody knows when in that time it was true.
func TestASlowAnswerIsNotBelieved(t *testing.T) {
	w := &world{}
	inWorld(t, w, func(t *testing.T, c *clock.Clock) {
		w.trip = 3 * time.Second
		w.database.Store(int64(time.Minute))
		require.NoError(t, c.Look(t.Context()))
		require.Equal(t, time.Now().Round(0), c.Now())
		w.trip = time.Second
		require.NoError(t, c.Look(t.Context()))
		require.Equal(t, w.truth(), c.Now())
	})
}

// TestADatabaseWithoutAnAnswer: there is no time to go by.
func TestADatabaseWithoutAnAnswer(t *testing.T) {
	_, err := clock.New(t.Context(), func(context.Context) (time.Time, error) { return time.Time{}, errors.New("away") }, time.Now,
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorContains(t, err, "database's clock")
}
