package eventrelay_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// childOf is the variable that makes the test be the process that is killed; its value is the data directory.
const childOf = "GROUPCAST_DRILL_DIR"

// TestDrillKilledProcess: the process with the database, the queue and the relay is killed again and again while things happen. What it had
// committed is there, and is published, once and in order.
func TestDrillKilledProcess(t *testing.T) {
	if dir := os.Getenv(childOf); dir != "" {
		liveUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	st, err := store.Open(ctx, store.Options{DataDir: dir})
	require.NoError(t, err)
	require.NoError(t, st.Migrate(ctx))
	require.NoError(t, st.Close())
	committed := map[string]bool{}
	for round := range 2 * *rounds {
		for _, c := range killed(t, dir, 20+13*round) {
			committed[c] = true
		}
	}
	db := storetest.SQLiteAt(t, dir)
	q := queue(t, eventqueue.Options{DataDir: dir})
	relaying(t, db.Store, q)
	published(t, db)
	ledger(t, db, q)
	recorded := map[string]bool{}
	for _, e := range db.Texts(t, "SELECT account_id || ' ' || group_id || ' ' || rev FROM events") {
		recorded[e] = true
	}
	require.NotEmpty(t, committed)
	for c := range committed {
		require.True(t, recorded[c], "%s was committed", c)
	}
}

// liveUntilKilled says each commit aloud, after it.
func liveUntilKilled(t *testing.T, dir string) {
	db := storetest.SQLiteAt(t, dir)
	relaying(t, db.Store, queue(t, eventqueue.Options{DataDir: dir}))
	db.OnCommit(func(c store.Changed) {
		for _, p := range c.Events {
			fmt.Println("committed", p.AccountID, p.GroupID, p.Rev)
		}
	})
	l := newLife(t, db)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		l.happen(t, 1)
	}
}

// killed runs the process until it has said so many commits, kills it, and gives what it said.
func killed(t *testing.T, dir string, commits int) (all []string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestDrillKilledProcess$", "-test.v")
	child.Env = append(os.Environ(), childOf+"="+dir)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if c, ok := strings.CutPrefix(lines.Text(), "committed "); ok {
			if all = append(all, c); len(all) == commits {
				require.NoError(t, child.Process.Kill())
			}
		}
	}
	require.ErrorContains(t, child.Wait(), "killed")
	require.GreaterOrEqual(t, len(all), commits)
	return all
}

// TestDrillDatabaseKilled: Postgres dies without a goodbye while things happen. What was committed is there and is published; what was under
// way fails, and leaves no number behind.
func TestDrillDatabaseKilled(t *testing.T) {
	cluster := pgtest.New(t, pgtest.Options{Settings: map[string]string{"synchronous_commit": "on"}})
	db := storetest.PostgresAt(t, cluster.URL(t), store.Options{})
	q := queue(t, eventqueue.Options{})
	relaying(t, db.Store, q)
	l := newLife(t, db)
	for range *rounds {
		l.happen(t, 10)
		failed := make(chan struct{})
		var busy sync.WaitGroup
		busy.Go(func() {
			defer close(failed)
			for n := 0; ; n++ {
				r := servertest.Destination(l.phones[0], fmt.Sprintf("198.51.99.%d", 1+n%200), "g0")
				if _, err := l.Registrations.Join(ctx, l.phones[0], r); err != nil {
					return
				}
			}
		})
		require.NoError(t, cluster.Kill())
		<-failed
		require.NoError(t, cluster.Start())
		require.Eventually(t, func() bool { return db.Ping(ctx) == nil }, patience, 50*time.Millisecond)
		published(t, db)
		ledger(t, db, q)
	}
}
