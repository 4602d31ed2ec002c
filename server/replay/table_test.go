package replay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/groupcast/groupcast/server/replay"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func TestTheTableTakesAKeyOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		ctx := context.Background()
		table := replay.NewTable(db.Store, slog.New(slog.DiscardHandler))
		now, err := db.Now(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := table.Use(ctx, fmt.Sprint("dpop key ", i), now.Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		used := func() error { return table.Use(ctx, "dpop key 1", now.Add(time.Hour)) }
		if err := used(); !errors.Is(err, replay.ErrUsed) {
			t.Fatalf("second use: %v", err)
		}
		// As long as any replica's clock may take it for valid, it is remembered; then it is swept.
		for _, step := range []struct {
			by   time.Duration
			left int
		}{{time.Minute, 20}, {4 * time.Minute, 20}, {2 * time.Minute, 0}} {
			db.Advance(t, step.by)
			if err := table.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			if n := db.Ints(t, "SELECT count(*) FROM replays"); n[0] != int64(step.left) {
				t.Fatalf("%d keys are left, want %d", n[0], step.left)
			}
		}
		if err := used(); err != nil {
			t.Fatalf("after the sweep: %v", err)
		}
	})
}

func TestAttackOneKeyOnManyReplicas(t *testing.T) {
	db := storetest.Postgres(t)
	tables := []*replay.Table{
		replay.NewTable(db.Store, slog.New(slog.DiscardHandler)),
		replay.NewTable(db.Replica(t), slog.New(slog.DiscardHandler)),
	}
	var accepted atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			err := tables[i%2].Use(context.Background(), "same", time.Now().Add(time.Minute))
			if err == nil {
				accepted.Add(1)
			} else if !errors.Is(err, replay.ErrUsed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := accepted.Load(); n != 1 {
		t.Fatalf("%d of 40 uses at once were accepted, want 1", n)
	}
}

func BenchmarkUse(b *testing.B) {
	until := time.Now().Add(time.Hour)
	memory, err := replay.NewMemory(1<<18, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	for name, use := range map[string]func(context.Context, string, time.Time) error{
		"memory":   memory.Use,
		"postgres": replay.NewTable(storetest.Postgres(b).Store, slog.New(slog.DiscardHandler)).Use,
	} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := use(context.Background(), fmt.Sprint(b.N, " ", i), until.Add(time.Duration(i)*time.Millisecond)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
