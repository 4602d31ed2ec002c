package audit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

const (
	day       = 24 * time.Hour
	retention = 30 * day
)

func prune(t testing.TB, st *store.Store) int {
	t.Helper()
	n, err := audit.NewPruner(st, retention, slog.New(slog.DiscardHandler)).Prune(t.Context())
	require.NoError(t, err)
	return n
}

// aged gives a log with old and then young rows, all sealed, and the head from before the young ones.
func aged(t testing.TB, db *storetest.DB, old, young int) models.AuditHead {
	t.Helper()
	record(t, db.Store, some(old)...)
	seal(t, db.Store)
	before := verify(t, db.Store, models.AuditHead{}).Head
	db.Advance(t, retention+day+time.Hour)
	record(t, db.Store, some(young)...)
	seal(t, db.Store)
	return before
}

func TestOldRowsGoAndTheRestVerifies(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		old := aged(t, db, 2500, 6) // more than two batches
		anchor := verify(t, db.Store, models.AuditHead{}).Head
		assert.Equal(t, 2500, prune(t, db.Store))
		assert.Zero(t, prune(t, db.Store))
		r := verify(t, db.Store, anchor)
		require.Nil(t, r.Break)
		assert.Equal(t, old, r.Base, "what the rest is verified from")
		assert.EqualValues(t, 2500+6+3, r.Head.Seq, "three batches, each with its row")
		assert.Zero(t, r.Unsealed, "it is sealed with the removal")
		rows, _, err := audit.List(t.Context(), db.Store, models.AuditFilter{Action: "audit.prune"}, models.Page{})
		require.NoError(t, err)
		require.Len(t, rows, 3)
		assert.Equal(t, "system", rows[0].Actor)
		assert.Equal(t, fmt.Sprintf("audit/2500.%s", old.Hash), rows[0].Object)

		require.Nil(t, verify(t, db.Store, old).Break, "an anchor at the very base is good")
		wrong := verify(t, db.Store, models.AuditHead{Seq: old.Seq, Hash: strings.Repeat("0", 64)})
		require.NotNil(t, wrong.Break)
		_, err = audit.Verify(t.Context(), db.Store, models.AuditHead{Seq: 7, Hash: old.Hash})
		var refusal *models.Error
		require.ErrorAs(t, err, &refusal, "an anchor that is gone can't be compared")
		assert.Equal(t, models.CodeBadRequest, refusal.Code)

		record(t, db.Store, some(2)...)
		assert.EqualValues(t, 2, verify(t, db.Store, models.AuditHead{}).Unsealed, "the tail is told")
		seal(t, db.Store)
		require.Nil(t, verify(t, db.Store, anchor).Break, "the log goes on")
	})
}

// Rows rest until there is a day of them, so that the row about a removal is not all that happens.
func TestRemovingWaitsForADay(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		record(t, db.Store, some(3)...)
		seal(t, db.Store)
		db.Advance(t, retention+day-time.Minute)
		assert.Zero(t, prune(t, db.Store))
		db.Advance(t, 2*time.Minute)
		assert.Equal(t, 3, prune(t, db.Store), "also all there is")
		require.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
		db.Advance(t, retention+2*day)
		assert.Equal(t, 1, prune(t, db.Store), "the row about the first removal")
		require.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
		// What no sealer has reached is not touched, however old.
		record(t, db.Store, some(1)...)
		db.Advance(t, retention+2*day)
		assert.Equal(t, 1, prune(t, db.Store))
		assert.EqualValues(t, 1, verify(t, db.Store, models.AuditHead{}).Unsealed)
	})
}

func TestAttackChangesAfterARemoval(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		for i, change := range []string{
			"UPDATE audit_rows SET actor = 'device/1' WHERE seq = 6",
			"UPDATE audit_rows SET actor = 'device/1' WHERE seq = 9",
			"DELETE FROM audit_rows WHERE seq = 6",
			"DELETE FROM audit_rows WHERE seq = 7",
			"UPDATE audit_head SET base_seq = 4",
			"UPDATE audit_head SET base_hash = 'x'",
			"UPDATE audit_head SET base_seq = 0, base_hash = ''",
			// one more row removed, as if by age: nothing in the chain says so
			"UPDATE audit_head SET base_seq = 6, base_hash = (SELECT hash FROM audit_rows WHERE seq = 6); DELETE FROM audit_rows WHERE seq = 6",
			// the row that says it is gone
			"UPDATE audit_head SET seq = 8, hash = (SELECT hash FROM audit_rows WHERE seq = 8); DELETE FROM audit_rows WHERE seq = 9",
		} {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				db.Exec(t, "DELETE FROM audit_rows")
				db.Exec(t, "UPDATE audit_head SET seq = 0, hash = '', base_seq = 0, base_hash = ''")
				aged(t, db, 5, 3)
				require.Equal(t, 5, prune(t, db.Store))
				require.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
				for statement := range strings.SplitSeq(change, "; ") {
					db.Exec(t, statement)
				}
				r := verify(t, db.Store, models.AuditHead{})
				require.NotNil(t, r.Break, change)
				assert.True(t, strings.HasSuffix(r.Break.What, "."))
			})
		}
	})
}

// What was tampered with is evidence, however old.
func TestAttackAgeRemovesNoEvidence(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		aged(t, db, 5, 3)
		db.Exec(t, "UPDATE audit_rows SET actor = 'device/1' WHERE seq = 3")
		_, err := audit.NewPruner(db.Store, retention, slog.New(slog.DiscardHandler)).Prune(t.Context())
		require.ErrorContains(t, err, "groupcastctl audit verify")
		r := verify(t, db.Store, models.AuditHead{})
		require.NotNil(t, r.Break)
		assert.EqualValues(t, 3, r.Break.Seq)
		assert.Zero(t, r.Base.Seq)
	})
}

// Two replicas remove, others seal and verify, all at once.
func TestReplicasRemoveOnce(t *testing.T) {
	db := storetest.Postgres(t)
	aged(t, db, 4200, 50)
	stores := []*store.Store{db.Store, db.Replica(t)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	removed := 0
	for _, st := range stores {
		wg.Go(func() {
			n, err := audit.NewPruner(st, retention, slog.New(slog.DiscardHandler)).Prune(t.Context())
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			removed += n
		})
		wg.Go(func() {
			for range 10 {
				r, err := audit.Verify(t.Context(), st, models.AuditHead{})
				if refusal, ok := errors.AsType[*models.Error](err); ok && refusal.Code == models.CodeUnavailable {
					continue // rows went while it read, again and again
				}
				assert.NoError(t, err)
				assert.Nil(t, r.Break)
			}
		})
		wg.Go(func() {
			for range 20 {
				record(t, st, some(3)...)
				_, err := audit.NewSealer(st, slog.New(slog.DiscardHandler)).Seal(t.Context())
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 4200, removed)
	seal(t, db.Store)
	r := verify(t, db.Store, models.AuditHead{})
	assert.Nil(t, r.Break)
	assert.EqualValues(t, 4200, r.Base.Seq)
	assert.EqualValues(t, 4200+50+120+5, r.Head.Seq)
}

func TestListFilters(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		operator := audit.By(models.Principal{Kind: models.KindOperator})
		record(t, db.Store, audit.Entry{Actor: operator, Account: "a_1", Action: audit.AccountCreate}, audit.Entry{Actor: audit.By(camera), Account: "a_1", Action: audit.GroupJoin})
		db.Advance(t, time.Hour)
		middle, err := db.Now(t.Context())
		require.NoError(t, err)
		record(t, db.Store, audit.Entry{Actor: operator, Account: "a_2", Action: audit.AccountCreate})
		for _, c := range []struct {
			filter models.AuditFilter
			want   int
		}{
			{models.AuditFilter{}, 3},
			{models.AuditFilter{AccountID: "a_1"}, 2},
			{models.AuditFilter{Actor: "operator"}, 2},
			{models.AuditFilter{Action: "account.create"}, 2},
			{models.AuditFilter{AccountID: "a_1", Actor: "operator", Action: "account.create"}, 1},
			{models.AuditFilter{Actor: "device/664123086043511412"}, 1},
			{models.AuditFilter{Actor: "device"}, 0},
			{models.AuditFilter{Since: middle}, 1},
			{models.AuditFilter{Until: middle}, 2},
			{models.AuditFilter{Since: middle, Until: middle}, 0},
		} {
			rows, _, err := audit.List(t.Context(), db.Store, c.filter, models.Page{})
			require.NoError(t, err)
			assert.Len(t, rows, c.want, "%+v", c.filter)
		}
	})
}
