package hints_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/hints"
	"github.com/groupcast/groupcast/server/store"
)

func TestOtherReplicasHear(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	replica := func() (*hints.Hints, chan store.Changed, *nats.Conn) {
		c, err := nats.Connect(fmt.Sprint("nats://", s.Addr()), nats.ReconnectBufSize(-1))
		require.NoError(t, err)
		t.Cleanup(c.Close)
		heard := make(chan store.Changed, 10)
		h, err := hints.New(c, func(c store.Changed) { heard <- c }, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		require.NoError(t, c.Flush())
		return h, heard, c
	}
	a, heardA, connA := replica()
	_, heardB, connB := replica()
	want := store.Changed{
		Gateways: []models.ID{9223372036854775807},
		Events:   []models.EventPlace{{EventStream: models.EventStream{AccountID: "a_1", GroupID: "g_1"}, Rev: 7}, {EventStream: models.EventStream{AccountID: "a_1"}, Rev: 2}},
	}
	a.Tell(want)
	select {
	case got := <-heardB:
		require.Equal(t, want, got)
	case <-time.After(time.Minute):
		t.Fatal("the other replica heard nothing")
	}
	require.NoError(t, connA.Publish(hints.Subject, []byte("no hint")))
	a.Tell(store.Changed{Gateways: []models.ID{1}})
	require.NoError(t, connA.Flush())
	require.NoError(t, connB.Flush())
	require.Equal(t, []models.ID{1}, (<-heardB).Gateways, "nonsense is passed over")
	require.Empty(t, heardA, "nobody hears himself")
	connA.Close()
	a.Tell(want) // is lost, and blocks nobody
}
