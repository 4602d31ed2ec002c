package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
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

var camera = models.Principal{Kind: models.KindDevice, AccountID: "a_1", Device: models.Device{ID: 664123086043511412}}

func record(t testing.TB, st *store.Store, entries ...audit.Entry) {
	t.Helper()
	require.NoError(t, st.Write(context.Background(), func(tx *store.Tx) error {
		for _, e := range entries {
			if err := audit.Record(tx, e); err != nil {
				return err
			}
		}
		return nil
	}))
}

// some gives n entries that differ.
func some(n int) []audit.Entry {
	all := make([]audit.Entry, n)
	for i := range all {
		all[i] = audit.Entry{
			Actor: audit.By(camera), Account: "a_1", Action: audit.GroupJoin, Object: audit.OfGroup(models.GroupID(fmt.Sprint("g_", i))),
			Source: netip.MustParseAddr("198.51.100.7"), RequestID: fmt.Sprint("req-", i),
		}
		if i%2 == 1 {
			all[i].Refused = models.CodeNotFound
		}
	}
	return all
}

func seal(t testing.TB, st *store.Store) int {
	t.Helper()
	n, err := audit.NewSealer(st, slog.New(slog.DiscardHandler)).Seal(context.Background())
	require.NoError(t, err)
	return n
}

func verify(t testing.TB, st *store.Store, anchor models.AuditHead) audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), st, anchor)
	require.NoError(t, err)
	return r
}

func TestRowsAreSealedAndVerify(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		assert.Equal(t, audit.Report{}, verify(t, db.Store, models.AuditHead{}), "an empty log is whole")
		record(t, db.Store, some(3)...)
		db.Advance(t, 5*time.Second)
		r := verify(t, db.Store, models.AuditHead{})
		assert.Nil(t, r.Break)
		assert.EqualValues(t, 3, r.Unsealed)
		assert.GreaterOrEqual(t, r.Waiting, 5*time.Second)

		assert.Equal(t, 3, seal(t, db.Store))
		assert.Zero(t, seal(t, db.Store))
		first := verify(t, db.Store, models.AuditHead{})
		assert.Nil(t, first.Break)
		assert.EqualValues(t, 3, first.Head.Seq)
		assert.Zero(t, first.Unsealed)
		assert.Zero(t, first.Waiting)

		record(t, db.Store, some(1200)...) // more than one batch, and more than one page
		assert.Equal(t, 1200, seal(t, db.Store))
		r = verify(t, db.Store, first.Head)
		assert.Nil(t, r.Break)
		assert.EqualValues(t, 1203, r.Head.Seq)
		assert.NotEqual(t, first.Head.Hash, r.Head.Hash)
	})
}

func TestARowSaysWhatHappened(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		service := models.Principal{Kind: models.KindService, Service: models.Service{ID: "svc-upload"}}
		record(t, db.Store,
			audit.Entry{Actor: audit.By(camera), Account: "a_1", Action: audit.GroupJoin, Object: audit.OfGroup("g_1"), Source: netip.MustParseAddr("::ffff:198.51.100.7"), RequestID: "req-1"},
			audit.Entry{Actor: audit.By(service), Account: "a_2", Action: audit.Request, Object: audit.OfDevice(42), Refused: models.CodeForbidden, Source: netip.MustParseAddr("2001:db8::7")},
			audit.Entry{Action: audit.Login, Refused: models.CodeUnauthenticated},
			audit.Entry{Actor: audit.System, Account: "a_1", Action: audit.GroupExpire, Object: audit.OfMember(models.Registration{ID: "r_1", GroupID: "g_1"})},
			audit.Entry{Actor: audit.By(models.Principal{Kind: models.KindOperator}), Action: audit.ServiceCreate, Object: audit.OfService("svc")},
			audit.Entry{Actor: audit.By(models.Principal{}), Action: audit.AccountCreate, Object: audit.OfAccount("a_3")},
			audit.Entry{Actor: audit.By(models.Principal{Kind: models.KindGateway, Device: models.Device{ID: 9}}), Action: audit.GatewayDeclare, Object: audit.OfPremises("p_1")},
		)
		seal(t, db.Store)
		rows, next, err := audit.List(t.Context(), db.Store, models.AuditFilter{}, models.Page{})
		require.NoError(t, err)
		assert.Empty(t, next)
		require.Len(t, rows, 7)
		now, err := db.Now(t.Context())
		require.NoError(t, err)
		var got []string
		for _, r := range slices.Backward(rows) { // newest first
			assert.WithinDuration(t, now, r.At, time.Minute)
			assert.Len(t, r.Hash, 64)
			source := ""
			if r.Source.IsValid() {
				source = r.Source.String()
			}
			got = append(got, strings.Join([]string{fmt.Sprint(r.Seq), r.Actor, string(r.AccountID), r.Action, r.Object, r.Result, r.Reason, source, r.RequestID}, "|"))
		}
		assert.Equal(t, []string{
			"1|device/664123086043511412|a_1|group.join|group/g_1|ok||198.51.100.0/24|req-1",
			"2|service/svc-upload|a_2|request|device/42|refused|forbidden|2001:db8::/64|",
			"3|anonymous||login||refused|unauthenticated||",
			"4|system|a_1|group.expire|group/g_1/registration/r_1|ok|||",
			"5|operator||service.create|service/svc|ok|||",
			"6|anonymous||account.create|account/a_3|ok|||",
			"7|gateway/9||gateway.declare|premises/p_1|ok|||",
		}, got)

		mine, _, err := audit.List(t.Context(), db.Store, models.AuditFilter{AccountID: "a_1"}, models.Page{})
		require.NoError(t, err)
		require.Len(t, mine, 2, "an account sees its own")
		assert.Equal(t, "group.expire", mine[0].Action)
		page, next, err := audit.List(t.Context(), db.Store, models.AuditFilter{}, models.Page{Size: 3})
		require.NoError(t, err)
		assert.Equal(t, rows[:3], page)
		page, _, err = audit.List(t.Context(), db.Store, models.AuditFilter{}, models.Page{Size: 4, Token: next})
		require.NoError(t, err)
		assert.Equal(t, rows[3:], page)
		_, _, err = audit.List(t.Context(), db.Store, models.AuditFilter{}, models.Page{Token: "x"})
		require.Error(t, err)
	})
}

func TestARowIsCommittedWithWhatItTells(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		gaveUp := errors.New("gave up")
		err := db.Write(t.Context(), func(tx *store.Tx) error {
			require.NoError(t, audit.Record(tx, some(1)[0]))
			return gaveUp
		})
		require.ErrorIs(t, err, gaveUp)
		assert.Zero(t, seal(t, db.Store))
		assert.Zero(t, verify(t, db.Store, models.AuditHead{}).Unsealed)
	})
}

func TestWritersTouchNoCommonRow(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		for _, s := range db.Statements(func() { record(t, db.Store, some(2)...) }) {
			if strings.Contains(s, "audit") {
				assert.True(t, strings.HasPrefix(s, "INSERT INTO audit_rows"), s)
			}
		}
		// With nothing to seal, a sealer only looks.
		seal(t, db.Store)
		for _, s := range db.Statements(func() { seal(t, db.Store) }) {
			assert.True(t, strings.HasPrefix(s, "SELECT"), s)
		}
	})
}

func TestAttackEveryChangeToASealedRowIsFound(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		for i, change := range []string{
			"UPDATE audit_rows SET id = 'e_0' WHERE seq = 4",
			"UPDATE audit_rows SET at = at + 1 WHERE seq = 4",
			"UPDATE audit_rows SET actor = 'device/1' WHERE seq = 4",
			"UPDATE audit_rows SET account_id = 'a_2' WHERE seq = 4",
			"UPDATE audit_rows SET action = 'login' WHERE seq = 4",
			"UPDATE audit_rows SET object = 'group/g_9' WHERE seq = 4",
			"UPDATE audit_rows SET result = 'ok' WHERE seq = 4",
			"UPDATE audit_rows SET reason = '' WHERE seq = 4",
			"UPDATE audit_rows SET source = '' WHERE seq = 4",
			"UPDATE audit_rows SET request_id = 'x' WHERE seq = 4",
			"UPDATE audit_rows SET hash = '' WHERE seq = 4",
			"UPDATE audit_rows SET hash = NULL WHERE seq = 4",
			"UPDATE audit_rows SET seq = NULL, hash = NULL WHERE seq = 4",
			"DELETE FROM audit_rows WHERE seq = 4",
			"UPDATE audit_rows SET seq = seq + 1000 WHERE seq >= 4",
			// a field moved into the next one
			"UPDATE audit_rows SET actor = actor || 'g', action = 'roup.join' WHERE seq = 4",
			// two rows changed places
			"UPDATE audit_rows SET seq = CASE seq WHEN 4 THEN -5 ELSE -4 END WHERE seq IN (4, 5)",
			"UPDATE audit_rows SET seq = -seq WHERE seq < 0",
		} {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				db.Exec(t, "DELETE FROM audit_rows")
				db.Exec(t, "UPDATE audit_head SET seq = 0, hash = ''")
				record(t, db.Store, some(8)...)
				require.Equal(t, 8, seal(t, db.Store))
				require.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
				if strings.Contains(change, "WHERE seq < 0") {
					db.Exec(t, "UPDATE audit_rows SET seq = CASE seq WHEN 4 THEN -5 ELSE -4 END WHERE seq IN (4, 5)")
				}
				db.Exec(t, change)
				r := verify(t, db.Store, models.AuditHead{})
				require.NotNil(t, r.Break, change)
				assert.EqualValues(t, 4, r.Break.Seq, "%s: %s", change, r.Break.What)
				assert.EqualValues(t, 3, r.Head.Seq, "what is before is good")
				assert.True(t, strings.HasSuffix(r.Break.What, "."))
			})
		}
	})
}

func TestAttackTheEndOfTheChain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		record(t, db.Store, some(8)...)
		seal(t, db.Store)
		whole := verify(t, db.Store, models.AuditHead{}).Head
		hash := func(seq int64) string {
			var h string
			rows, _, err := audit.List(t.Context(), db.Store, models.AuditFilter{}, models.Page{})
			require.NoError(t, err)
			for _, r := range rows {
				if r.Seq == seq {
					h = r.Hash
				}
			}
			return h
		}
		six := hash(6)

		db.Exec(t, "UPDATE audit_head SET hash = 'x'")
		assert.EqualValues(t, 8, verify(t, db.Store, models.AuditHead{}).Break.Seq, "another hash at the end")
		db.Exec(t, "UPDATE audit_head SET seq = 6, hash = '"+six+"'")
		assert.EqualValues(t, 7, verify(t, db.Store, models.AuditHead{}).Break.Seq, "the end was moved back")
		db.Exec(t, "DELETE FROM audit_rows WHERE seq > 6")
		assert.Nil(t, verify(t, db.Store, models.AuditHead{}).Break, "by itself, a chain that was cut off cleanly is whole")
		r := verify(t, db.Store, whole)
		require.NotNil(t, r.Break, "the anchor tells")
		assert.Contains(t, r.Break.What, "cut off")

		// The end is written anew, with right hashes: the sealer does it for the attacker.
		record(t, db.Store, some(2)...)
		seal(t, db.Store)
		assert.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
		r = verify(t, db.Store, whole)
		require.NotNil(t, r.Break, "the anchor tells")
		assert.EqualValues(t, 8, r.Break.Seq)
		assert.Contains(t, r.Break.What, "anchor")
		assert.Nil(t, verify(t, db.Store, models.AuditHead{Seq: 6, Hash: six}).Break, "an anchor before the change is still good")

		// A row put behind the end by hand stops the sealer, and Verify says why.
		db.Exec(t, "INSERT INTO audit_rows SELECT 'e_forged', at, actor, account_id, action, object, result, reason, source, request_id, 9, hash, 1 FROM audit_rows WHERE seq = 8")
		r = verify(t, db.Store, models.AuditHead{})
		require.NotNil(t, r.Break)
		assert.EqualValues(t, 9, r.Break.Seq)
		record(t, db.Store, some(1)...)
		_, err := audit.NewSealer(db.Store, slog.New(slog.DiscardHandler)).Seal(t.Context())
		require.Error(t, err)
	})
}

func TestAttackARowTakenOutAndPutBack(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		record(t, db.Store, some(8)...)
		seal(t, db.Store)
		db.Exec(t, "UPDATE audit_rows SET seq = NULL, hash = NULL, actor = 'device/1' WHERE seq = 4")
		assert.Equal(t, 1, seal(t, db.Store), "the sealer takes it for a new row")
		r := verify(t, db.Store, models.AuditHead{})
		require.NotNil(t, r.Break)
		assert.EqualValues(t, 4, r.Break.Seq)
	})
}

func TestSecretsHaveNoPlaceInARow(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		const token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
		for _, e := range []audit.Entry{
			{Action: audit.Login, Refused: token},
			{Action: audit.Login, Refused: "BCDF-GHJK"},
			{Action: audit.Login, Refused: "198.51.100.7"},
			{Action: audit.Login, RequestID: token},
			{Action: audit.Login, RequestID: "Bearer x"},
			{Action: audit.Login, RequestID: "2001:db8::1"},
			{Action: audit.Login, RequestID: strings.Repeat("x", 41)},
			{},
		} {
			err := db.Write(t.Context(), func(tx *store.Tx) error { return audit.Record(tx, e) })
			require.Error(t, err, "%+v", e)
			assert.NotContains(t, err.Error(), "eyJ")
		}
	})
}

func TestReplicasSealWithoutGapsOrTwice(t *testing.T) {
	db := storetest.Postgres(t)
	stores := []*store.Store{db.Store, db.Replica(t), db.Replica(t)}
	const writers, each = 6, 60
	ctx, cancel := context.WithCancel(t.Context())
	var sealers, wg sync.WaitGroup
	for _, st := range stores {
		for range 2 {
			sealers.Go(func() {
				s := audit.NewSealer(st, slog.New(slog.DiscardHandler))
				for ctx.Err() == nil {
					_, err := s.Seal(context.WithoutCancel(ctx))
					assert.NoError(t, err)
				}
			})
		}
	}
	for w := range writers {
		wg.Go(func() {
			for i, e := range some(each) {
				err := stores[w%len(stores)].Write(t.Context(), func(tx *store.Tx) error {
					if err := audit.Record(tx, e); err != nil {
						return err
					}
					if i%10 == 0 { // some take their time, so that ids and commits differ in order
						time.Sleep(2 * time.Millisecond)
					}
					return nil
				})
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	cancel()
	sealers.Wait()
	seal(t, db.Store)
	r := verify(t, db.Store, models.AuditHead{})
	assert.Nil(t, r.Break)
	assert.EqualValues(t, writers*each, r.Head.Seq)
	assert.Zero(t, r.Unsealed)
}

func TestTheSealerRunsByItselfAndSurvivesTheDatabase(t *testing.T) {
	db := storetest.SQLite(t)
	var log strings.Builder
	var mu sync.Mutex
	handler := slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { audit.NewSealer(db.Store, slog.New(handler)).Run(ctx) })
	defer func() { cancel(); wg.Wait() }()

	record(t, db.Store, some(3)...)
	sealed := func() bool {
		r, err := audit.Verify(context.Background(), db.Store, models.AuditHead{})
		return err == nil && r.Unsealed == 0 && r.Head.Seq > 0
	}
	require.Eventually(t, sealed, time.Minute, 20*time.Millisecond)
	db.Exec(t, "ALTER TABLE audit_rows RENAME TO away")
	logged := func(text string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Contains(log.String(), text)
		}
	}
	require.Eventually(t, logged("can't be sealed now"), time.Minute, 20*time.Millisecond)
	db.Exec(t, "ALTER TABLE away RENAME TO audit_rows")
	require.Eventually(t, logged("being sealed again"), time.Minute, 20*time.Millisecond)
	record(t, db.Store, some(2)...)
	require.Eventually(t, sealed, time.Minute, 20*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, 1, strings.Count(log.String(), "can't be sealed now"), "it is said once")
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
