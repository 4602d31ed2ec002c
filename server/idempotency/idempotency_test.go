package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/idempotency"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

const key = "3f1d3a6e-1b1f-4a4e-9a49-2f2c8f0f3b11"

func newKEK(t *testing.T) *keys.KEK {
	t.Helper()
	kek, err := keys.LoadOrCreateKEK(filepath.Join(t.TempDir(), "kek"))
	require.NoError(t, err)
	return kek
}

// creator creates an account for each request that is done, through its own replica.
type creator struct {
	*idempotency.Keeper
	accounts *accounts.Service
	done     *atomic.Int64
}

func newCreator(st *store.Store, kek *keys.KEK, done *atomic.Int64) creator {
	return creator{idempotency.New(st, kek), accounts.New(st, models.Quotas{}), done}
}

func (c creator) ask(r idempotency.Request) (idempotency.Answer, error) {
	return c.Once(ctx, r, func(ctx context.Context) (idempotency.Answer, error) {
		a, err := c.accounts.CreateAccount(ctx, "made once")
		if err != nil {
			return idempotency.Answer{}, err
		}
		// What was made is seen by whatever the handler asks next.
		if _, err := c.accounts.Account(ctx, a.ID); err != nil {
			return idempotency.Answer{}, err
		}
		c.done.Add(1)
		return idempotency.Answer{Status: 201, Header: map[string][]string{"Cache-Control": {"no-store"}}, Body: []byte("the-secret " + a.ID)}, nil
	})
}

func made(t *testing.T, db *storetest.DB) int64 {
	t.Helper()
	return db.Ints(t, "SELECT count(*) FROM accounts")[0]
}

func TestOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		c := newCreator(db.Store, newKEK(t), new(atomic.Int64))
		user := models.Principal{Kind: models.KindUser, AccountID: "a_one", UserID: "u_one"}
		r := idempotency.Request{Key: key, Principal: user, Operation: "createPremises", Path: "/v1/premises", Body: map[string]any{"name": "Home"}}
		first, err := c.ask(r)
		require.NoError(t, err)
		again, err := c.ask(r)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.EqualValues(t, 1, made(t, db))

		for name, other := range map[string]func(*idempotency.Request){
			"body": func(r *idempotency.Request) { r.Body = map[string]any{"name": "Cabin"} },
			"path": func(r *idempotency.Request) { r.Path = "/v1/premises/other" },
		} {
			t.Run("another "+name, func(t *testing.T) {
				r := r
				other(&r)
				_, err := c.ask(r)
				servertest.Refused(t, models.CodeIdempotencyKeyReused, err)
			})
		}
		want := int64(1)
		for name, other := range map[string]func(*idempotency.Request){
			"key":       func(r *idempotency.Request) { r.Key += "2" },
			"operation": func(r *idempotency.Request) { r.Operation = "createTicket" },
			"user":      func(r *idempotency.Request) { r.Principal.UserID = "u_two" },
			"account":   func(r *idempotency.Request) { r.Principal.AccountID = "a_two" },
			"kind":      func(r *idempotency.Request) { r.Principal.Kind = models.KindOperator },
			"device":    func(r *idempotency.Request) { r.Principal.Device.ID = 7 },
			"service":   func(r *idempotency.Request) { r.Principal.Service.ID = "svc-a" },
		} {
			t.Run("another "+name, func(t *testing.T) {
				r := r
				other(&r)
				answer, err := c.ask(r)
				require.NoError(t, err)
				require.NotEqual(t, first, answer)
				want++
				require.Equal(t, want, made(t, db), "it is another request")
			})
		}
	})
}

// TestNothingCanBeReadFromTheDatabase: neither the key, nor who used it, nor a secret in an answer.
func TestNothingCanBeReadFromTheDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		c := newCreator(db.Store, newKEK(t), new(atomic.Int64))
		_, err := c.ask(idempotency.Request{Key: key, Principal: models.Principal{UserID: "u_someone"}, Operation: "createTicket", Path: "/v1/tickets"})
		require.NoError(t, err)
		hex := "hex(id) || hex(fingerprint) || hex(answer)"
		if db.Dialect() == "postgres" {
			hex = "encode(id, 'hex') || encode(fingerprint, 'hex') || encode(answer, 'hex')"
		}
		row := strings.ToLower(db.Texts(t, "SELECT "+hex+" FROM idempotency_keys")[0])
		require.Greater(t, len(row), 4*32)
		for _, secret := range []string{key, "the-secret", "u_someone", "createTicket", "tickets", "no-store"} {
			require.NotContains(t, row, fmt.Sprintf("%x", secret))
		}
	})
}

// TestAFailureKeepsNothing: what was changed before it is undone, and the request may be sent again.
func TestAFailureKeepsNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		c := newCreator(db.Store, newKEK(t), new(atomic.Int64))
		r := idempotency.Request{Key: key, Operation: "createAccount"}
		fault := errors.New("after the change")
		_, err := c.Once(ctx, r, func(ctx context.Context) (idempotency.Answer, error) {
			_, err := c.accounts.CreateAccount(ctx, "undone")
			require.NoError(t, err)
			return idempotency.Answer{}, fault
		})
		require.ErrorIs(t, err, fault)
		require.Zero(t, made(t, db))
		require.Zero(t, db.Ints(t, "SELECT count(*) FROM idempotency_keys")[0])
		_, err = c.ask(r)
		require.NoError(t, err)
		require.EqualValues(t, 1, made(t, db))
	})
}

func TestAnswersEnd(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		c := newCreator(db.Store, newKEK(t), new(atomic.Int64))
		r := idempotency.Request{Key: key, Operation: "createAccount"}
		first, err := c.ask(r)
		require.NoError(t, err)
		db.Advance(t, idempotency.Keep-time.Minute)
		_, err = db.Sweep(ctx)
		require.NoError(t, err)
		again, err := c.ask(r)
		require.NoError(t, err)
		require.Equal(t, first, again)
		db.Advance(t, time.Minute)
		later, err := c.ask(r) // before anybody has swept
		require.NoError(t, err)
		require.NotEqual(t, first, later)
		require.EqualValues(t, 2, made(t, db))
		last, err := c.ask(r)
		require.NoError(t, err)
		require.Equal(t, later, last)

		bytes := map[string]string{"sqlite": "blob", "postgres": "bytea"}[db.Dialect()]
		for i := range 1200 { // more than two batches
			db.Exec(t, fmt.Sprintf("INSERT INTO idempotency_keys VALUES (CAST('%d' AS %[2]s), CAST('' AS %[2]s), CAST('' AS %[2]s), 1)", i, bytes))
		}
		var removed int64
		batches := db.Statements(func() { removed, err = db.Sweep(ctx) })
		require.NoError(t, err)
		require.EqualValues(t, 1200, removed)
		n := 0
		for _, s := range batches {
			if strings.HasPrefix(s, "DELETE FROM idempotency_keys") {
				require.Contains(t, s, "LIMIT")
				n++
			}
		}
		require.Equal(t, 3, n)
		require.Equal(t, []int64{1}, db.Ints(t, "SELECT count(*) FROM idempotency_keys"))
	})
}

// TestManyAtOnce sends one request by many clients at the same moment, on Postgres to two replicas: all get one answer.
func TestManyAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		kek, done := newKEK(t), new(atomic.Int64)
		replicas := []creator{newCreator(db.Store, kek, done)}
		if db.Dialect() == "postgres" {
			replicas = append(replicas, newCreator(db.Replica(t), kek, done))
		}
		for round := range 10 {
			r := idempotency.Request{Key: fmt.Sprint(key, round), Operation: "createAccount"}
			answers := make([]idempotency.Answer, 24)
			var all errgroup.Group
			for i := range answers {
				all.Go(func() (err error) {
					answers[i], err = replicas[i%len(replicas)].ask(r)
					return err
				})
			}
			require.NoError(t, all.Wait())
			for _, a := range answers {
				require.Equal(t, answers[0], a)
			}
			require.EqualValues(t, round+1, made(t, db))
		}
		require.EqualValues(t, 10, done.Load())
		require.Zero(t, db.Deadlocks(t))
	})
}
