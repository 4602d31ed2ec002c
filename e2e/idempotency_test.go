package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// createAccount creates an account with a key; false is no answer, or 503.
func createAccount(ctx context.Context, t *testing.T, s *harness.Server, key string) (models.AccountID, bool) {
	r, err := s.Admin.CreateAccountWithResponse(ctx, &adminapi.CreateAccountParams{IdempotencyKey: &key}, adminapi.AccountRequest{Name: key})
	if err != nil {
		return "", false
	}
	if r.JSON200 == nil {
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode(), "%s", r.Body)
		return "", false
	}
	return r.JSON200.AccountID, true
}

// TestARequestIsDoneOnceThoughTheServerIsKilled kills the server while a request with a key is under way, and sends it again.
func TestARequestIsDoneOnceThoughTheServerIsKilled(t *testing.T) {
	t.Parallel()
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		db := openRaw(t, s.DataDir, databaseURL)
		const rounds = 8
		interrupted := 0
		for round := range rounds {
			key := fmt.Sprintf("a-key-for-round-%d", round)
			pause := time.Duration(rand.IntN(8000)) * time.Microsecond
			between := databaseURL != "" && round%2 == 0
			if between { // the change is made and nothing is committed yet: there it dies
				_, err := db.Exec(`CREATE FUNCTION dally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
					CREATE TRIGGER dally BEFORE UPDATE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION dally()`)
				require.NoError(t, err)
				pause = 700 * time.Millisecond
			}
			type outcome struct {
				id models.AccountID
				ok bool
			}
			first := make(chan outcome, 1)
			go func() {
				id, ok := createAccount(t.Context(), t, s, key)
				first <- outcome{id, ok}
			}()
			time.Sleep(pause)
			s.Kill()
			was := <-first
			if between {
				require.False(t, was.ok)
				_, err := db.Exec("DROP FUNCTION dally CASCADE")
				require.NoError(t, err)
			}
			if !was.ok {
				interrupted++
			}
			s.Start(t)
			for range 2 {
				id, ok := createAccount(t.Context(), t, s, key)
				require.True(t, ok)
				if was.ok {
					require.Equal(t, was.id, id)
				}
				was = outcome{id, true}
			}
		}
		var all, names int
		require.NoError(t, db.QueryRow("SELECT count(*), count(DISTINCT name) FROM accounts").Scan(&all, &names))
		require.Equal(t, rounds, all)
		require.Equal(t, rounds, names)
		t.Logf("%d of %d requests were interrupted", interrupted, rounds)
	})
}

// TestARequestIsDoneOnceByTwoReplicas sends each request many times at once, to both replicas; one of them is killed meanwhile.
func TestARequestIsDoneOnceByTwoReplicas(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	a := harness.StartServer(t, replica(url, nil))
	b := harness.StartServer(t, replica(url, a))
	db := openRaw(t, "", url)
	const rounds, senders = 12, 12
	for round := range rounds {
		key := fmt.Sprintf("a-key-for-round-%d", round)
		got := make([]models.AccountID, senders)
		if round == rounds/2 {
			go func() { time.Sleep(3 * time.Millisecond); b.Kill() }()
		}
		atOnce(senders, func(i int) {
			s := []*harness.Server{a, b}[i%2]
			got[i], _ = createAccount(t.Context(), t, s, key)
		})
		want, ok := createAccount(t.Context(), t, a, key)
		require.True(t, ok)
		for i, id := range got {
			if id == "" {
				require.GreaterOrEqual(t, round, rounds/2, "every request is answered while both replicas run")
				require.Equal(t, 1, i%2, "and the one that wasn't killed answers always")
				continue
			}
			require.Equal(t, want, id)
		}
	}
	var all int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM accounts").Scan(&all))
	require.Equal(t, rounds, all)
}
