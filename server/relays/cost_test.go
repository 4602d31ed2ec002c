package relays_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// BenchmarkRelayInformation: what the snapshot of a relay takes, of premises with one group of a camera and two destinations each: to read, to put together
// and to write down, in processor time of this process; Postgres' own isn't in it. "first" is by a replica that didn't have it, "change" after a change of one premises.
func BenchmarkRelayInformation(b *testing.B) {
	for _, premises := range []int{1_000, 10_000} {
		db := storetest.SQLite(b)
		fill(b, db, premises)
		b.Run(fmt.Sprint("first/", premises), func(b *testing.B) {
			benchmarkInformation(b, premises, func() *servertest.Services { return servertest.On(db, db.Store) })
		})
		b.Run(fmt.Sprint("change/", premises), func(b *testing.B) {
			l, n := servertest.On(db, db.Store), 0
			benchmarkInformation(b, premises, func() *servertest.Services {
				db.Exec(b, fmt.Sprintf("UPDATE gateways SET revision = revision + 1 WHERE id = %d", 100_001+n%premises))
				n++
				return l
			})
		})
	}
}

func benchmarkInformation(b *testing.B, premises int, prepared func() *servertest.Services) {
	b.Helper()
	id := models.ID(7)
	used := func() time.Duration {
		var r syscall.Rusage
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	build := func() int {
		all, err := prepared().Groups.Information(ctx, []models.ID{id})
		require.NoError(b, err)
		require.Len(b, all[id].Homes, premises)
		body, err := httpapi.RenderInformation(all[id])
		require.NoError(b, err)
		return len(body)
	}
	bytes := build()
	began := used()
	for b.Loop() {
		bytes = build()
	}
	b.ReportMetric(float64((used()-began).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(bytes)/float64(premises), "B/premises")
}

// fill makes premises that relay 7 serves, by plain statements: what is measured is reading.
func fill(b *testing.B, db *storetest.DB, n int) {
	b.Helper()
	homes(b, db, n)
	with := numbers(n)
	for _, s := range []string{
		"INSERT INTO relays (id, name, tunnel_address, tunnel_key, created_at) VALUES (7, 'r', 'fd00::7', 'mFQaPXo0yDlA9Q4Av2pm7r0y1sS0n0p0y9m1mX3Zq0A=', 1)",
		"INSERT INTO relay_polls (relay_id) VALUES (7)",
		"INSERT INTO relay_assignments (premises_id, relay_id, forwarding) " + with + "SELECT 'p' || i, 7, 1 FROM n",
		"UPDATE gateways SET relay_id = 7, forwarding = true",
	} {
		db.Exec(b, s)
	}
}

func numbers(n int) string {
	return fmt.Sprintf("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) ", n)
}

// homes makes premises p1, p2, … of account a, each with a gateway that has a tunnel, and a group of a camera and two destinations at the same address.
func homes(tb testing.TB, db *storetest.DB, n int) {
	tb.Helper()
	with := numbers(n)
	for _, s := range []string{
		"INSERT INTO accounts (id, name, created_at) VALUES ('a', 'a', 1)",
		"INSERT INTO premises (id, account_id, name, created_at) " + with + "SELECT 'p' || i, 'a', 'home', 1 FROM n",
		"INSERT INTO devices (id, account_id, premises_id, type, name, created_at) " + with + "SELECT 100000 + i, 'a', 'p' || i, 'gateway', 'gateway', 1 FROM n",
		"INSERT INTO gateways (id, account_id, premises_id, lan_prefix, lan_addr, uplink, range_first, range_last, tunnel_key, tunnel_address) " + with +
			"SELECT 100000 + i, 'a', 'p' || i, '172.16.0.0/24', '172.16.0.1', '96.114.14.1', '172.16.0.233', '172.16.0.254', 'mFQaPXo0yDlA9Q4Av2pm7r0y1sS0n0p0y9m1' || (100000 + i) || 'A=', 'fd00::' || (i / 1000) || ':' || (i % 1000) FROM n",
		"INSERT INTO groups (id, account_id, premises_id, gateway_id, name, ip, generation, created_at) " + with + "SELECT 'g' || i, 'a', 'p' || i, 100000 + i, 'g', '172.16.0.233', 1, 1 FROM n",
	} {
		db.Exec(tb, s)
	}
	for m, role := range []string{"source", "destination", "destination"} {
		db.Exec(tb, fmt.Sprintf("INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, number, private_ipv4, public_ipv4, ipv6, port, "+
			"device_type, model, name, created_at, consent_policy) %[1]sSELECT 'r%[2]d_' || i, 'g' || i, 'a', 'Device', %[2]d, '%[3]s', '', 100000 + i, %[2]d, '172.16.0.%[4]d', '96.114.14.%[4]d', '', 0, "+
			"'camera', '', 'member', 1, 'learned' FROM n", with, m, role, m+2))
	}
}
