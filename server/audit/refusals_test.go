package audit_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// refusals writes when the test says so, by the test's clock.
type refusals struct {
	*audit.Refusals
	db  *storetest.DB
	now atomic.Int64
}

func newRefusals(db *storetest.DB) *refusals {
	r := &refusals{db: db}
	r.now.Store(time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC).UnixNano())
	r.Refusals = audit.NewRefusals(db.Store, func() time.Time { return time.Unix(0, r.now.Load()) }, slog.New(slog.DiscardHandler))
	return r
}

func (r *refusals) advance(d time.Duration) { r.now.Add(int64(d)) }

// rows flushes and gives all rows, oldest first.
func (r *refusals) rows(t testing.TB) (all []string) {
	t.Helper()
	require.NoError(t, r.Flush(t.Context()))
	rows, _, err := audit.List(t.Context(), r.db.Store, models.AuditFilter{}, models.Page{Size: 500})
	require.NoError(t, err)
	for _, a := range slices.Backward(rows) {
		all = append(all, strings.Join([]string{a.Actor, string(a.AccountID), a.Action, a.Object, a.Result, a.Reason, a.Source.String(), a.RequestID, fmt.Sprint(a.Count)}, "|"))
	}
	return all
}

func TestRefusalsThatAreAlikeAreOneRow(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		r := newRefusals(db)
		add := func(id, source string) {
			r.Add(audit.Caller{Principal: camera, Source: netip.MustParseAddr(source), RequestID: id}, "register", models.CodeNotFound)
		}
		add("first", "198.51.100.7")
		require.Equal(t, []string{"device/664123086043511412|a_1|request|operation/register|refused|not-found|198.51.100.0/24|first|1"}, r.rows(t), "the first is told at once")
		for range 1000 {
			add("more", "198.51.100.8") // of the same network
		}
		r.advance(59 * time.Second)
		statements := db.Statements(func() { require.NoError(t, r.Flush(t.Context())) })
		assert.Empty(t, statements, "the others wait for the end of the minute")
		r.advance(time.Second)
		all := r.rows(t)
		require.Len(t, all, 2)
		assert.Equal(t, "device/664123086043511412|a_1|request|operation/register|refused|not-found|198.51.100.0/24||1000", all[1])
		add("elsewhere", "203.0.113.7")
		r.Add(audit.Caller{Principal: camera}, "register", models.CodeForbidden)
		r.Add(audit.Caller{Principal: camera}, "leave", models.CodeForbidden)
		assert.Len(t, r.rows(t), 5, "what differs is told apart")
		seal(t, db.Store)
		assert.Nil(t, verify(t, db.Store, models.AuditHead{}).Break)
		db.Exec(t, "UPDATE audit_rows SET count = 1 WHERE count = 1000")
		assert.NotNil(t, verify(t, db.Store, models.AuditHead{}).Break, "the number is part of what is sealed")
	})
}

// A flood of strangers from everywhere gives a bounded number of rows, and hides nothing that a known caller does.
func TestHostileFloodOfRefusals(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		r := newRefusals(db)
		const flood = 20000
		statements := db.Statements(func() {
			var wg sync.WaitGroup
			for part := range 4 {
				wg.Go(func() {
					for i := range flood / 4 {
						r.Add(audit.Caller{Source: netip.AddrFrom4([4]byte{11, byte(part), byte(i >> 8), byte(i)})}, "requestToken", models.CodeInvalidClient)
						if i%100 == 0 {
							r.Add(audit.Caller{Source: netip.AddrFrom4([4]byte{11, byte(part), byte(i >> 8), byte(i)})}, "register", models.CodeUnauthenticated)
						}
					}
				})
			}
			wg.Wait()
		})
		assert.Empty(t, statements, "a refused request never waits for the database")
		r.Add(audit.Caller{Principal: camera, RequestID: "seen"}, "register", models.CodeNotFound)
		all := r.rows(t)
		assert.LessOrEqual(t, len(all), 103)
		assert.True(t, slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, "device/664123086043511412|") }))
		total := 0
		for _, row := range all {
			fields := strings.Split(row, "|")
			if fields[0] == "system" {
				assert.Equal(t, "request.more", fields[2])
			}
			var n int
			_, err := fmt.Sscan(fields[len(fields)-1], &n)
			require.NoError(t, err)
			total += n
		}
		assert.Equal(t, flood+flood/100+1, total, "each is counted")
	})
}

func TestRefusalsSurviveTheDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		r := newRefusals(db)
		r.Add(audit.Caller{Principal: camera}, "register", models.CodeNotFound)
		db.Exec(t, "ALTER TABLE audit_rows RENAME TO away")
		require.Error(t, r.Flush(t.Context()))
		r.Add(audit.Caller{Principal: camera}, "register", models.CodeNotFound)
		db.Exec(t, "ALTER TABLE away RENAME TO audit_rows")
		all := r.rows(t)
		require.Len(t, all, 1)
		assert.True(t, strings.HasSuffix(all[0], "|2"), "%s", all[0])
	})
}

func TestTheLastRefusalsAreWrittenAtTheStop(t *testing.T) {
	db := storetest.SQLite(t)
	r := newRefusals(db)
	r.Add(audit.Caller{Principal: camera}, "register", models.CodeNotFound)
	require.Len(t, r.rows(t), 1)
	r.Add(audit.Caller{Principal: camera}, "register", models.CodeNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	require.Len(t, r.rows(t), 2)
}
