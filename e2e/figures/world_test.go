package figures

import (
	"context"
	"fmt"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/server/store"
)

// The shape of the world: every premises is an account of its own, with a gateway and 25 registrations: five groups of a camera and four
// phones, which are in all five. Every name follows from the number of the premises, so that a bare server knows them without asking.
const (
	groupsEach  = 5
	phonesEach  = 4
	membersEach = groupsEach * (1 + phonesEach)
)

func accountName(k int) string        { return fmt.Sprintf("a_%026d", k) }
func premisesName(k int) string       { return fmt.Sprintf("p_%026d", k) }
func groupID(k, g int) string         { return fmt.Sprintf("g_%026d", k*10+g) }
func groupName(g int) string          { return fmt.Sprintf("groupcast-%d", g) }
func groupIP(g int) string            { return fmt.Sprintf("192.168.1.%d", 229+g) }
func gatewayID(k int) int64           { return 100_000_000_000_000_000 + int64(k) }
func phoneID(k, j int) int64          { return 200_000_000_000_000_000 + int64(k)*10 + int64(j) }
func phoneName(k, j int) string       { return fmt.Sprintf("phone %d of %d", j, k) }
func phoneAddr(j int) string          { return fmt.Sprintf("198.51.99.%d", j) }
func premisesOf(phone int64) int      { return int((phone - phoneID(0, 0)) / 10) }
func numberOf(phone int64) int        { return int((phone - phoneID(0, 0)) % 10) }
func groupNumber(name string) (g int) { _, _ = fmt.Sscanf(name, "groupcast-%d", &g); return g }

// world is what fill makes, for so many premises, with so many groups of so many phones.
const world = `
SET session_replication_role = replica; -- what is written here is known to fit together
SET synchronous_commit = off;
CREATE TEMP TABLE k AS SELECT k, 'a_' || lpad(k::text, 26, '0') AS account, 'p_' || lpad(k::text, 26, '0') AS premises,
	100000000000000000 + k AS gateway, CAST(extract(epoch FROM now()) * 1000 AS bigint) AS now FROM generate_series(1, %[1]d) k;
CREATE TEMP TABLE g AS SELECT k.*, g, 'g_' || lpad((k * 10 + g)::text, 26, '0') AS id, 'groupcast-' || g AS name,
	'192.168.1.' || 229 + g AS ip FROM k, generate_series(1, %[2]d) g;
INSERT INTO accounts SELECT account, 'bench', now FROM k;
INSERT INTO premises (id, account_id, name, created_at) SELECT premises, account, 'home', now FROM k;
INSERT INTO devices (id, account_id, premises_id, type, name, pop, created_at)
	SELECT gateway, account, premises, 'gateway', 'gateway', false, now FROM k;
INSERT INTO devices (id, account_id, premises_id, type, name, pop, created_at)
	SELECT 200000000000000000 + k * 10 + j, account, premises, 'phone', 'phone ' || j || ' of ' || k, false, now FROM k, generate_series(1, %[3]d) j;
INSERT INTO devices (id, account_id, premises_id, type, name, pop, created_at)
	SELECT 300000000000000000 + k * 10 + g, account, premises, 'camera', 'camera ' || g, false, now FROM g;
INSERT INTO gateways SELECT gateway, account, premises, '192.168.1.0/24', '192.168.1.1', '203.0.113.1', '192.168.1.230', '192.168.1.254', 1 FROM k;
INSERT INTO gateway_polls (gateway_id) SELECT gateway FROM k;
-- The rev is what their members' coming made of it; with 0 the next one would create the group.
INSERT INTO groups (id, account_id, premises_id, gateway_id, name, ip, generation, rev, next_source, next_destination, created_at)
	SELECT id, account, premises, gateway, name, ip, 1, 1 + %[3]d, 2, 1 + %[3]d, now FROM g;
INSERT INTO addresses (gateway_id, ip) SELECT gateway, '192.168.1.' || a FROM k, generate_series(235, 254) a;
INSERT INTO addresses (gateway_id, ip, state, group_id, last_group_name, generation) SELECT gateway, ip, 'allocated', id, name, 1 FROM g;
INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, number, private_ipv4,
		public_ipv4, ipv6, port, device_type, model, name, created_at)
	SELECT 'r_' || lpad((k * 100 + g * 10)::text, 26, '0'), id, account, 'Device', 300000000000000000 + k * 10 + g, 'source', '',
		300000000000000000 + k * 10 + g, 1, '192.168.1.' || 10 + g, '203.0.113.1', '', 0, 'camera', '', 'camera ' || g, now FROM g;
INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, number, private_ipv4,
		public_ipv4, ipv6, port, device_type, model, name, created_at)
	SELECT 'r_' || lpad((k * 100 + g * 10 + j)::text, 26, '0'), id, account, 'Device', 200000000000000000 + k * 10 + j, 'destination', '',
		200000000000000000 + k * 10 + j, j, '', '198.51.100.' || j, '', 0, 'phone', '', 'phone ' || j || ' of ' || k, now
	FROM g, generate_series(1, %[3]d) j;
-- Leases of a day, renewed at some time of the last eight hours.
INSERT INTO leases SELECT id, 86400, due, due + 60000 FROM
	(SELECT id, created_at + 86400000 - CAST(random() * 28800000 AS bigint) AS due FROM registrations) r;
`

// newWorld makes a database with this program's schema and a number of premises.
func newWorld(t testing.TB, c *pgtest.Cluster, premises int) (databaseURL string) {
	t.Helper()
	return newWorldOf(t, c, premises, groupsEach, phonesEach)
}

// newWorldOf does so with other numbers of groups and phones.
func newWorldOf(t testing.TB, c *pgtest.Cluster, premises, groups, phones int) (databaseURL string) {
	t.Helper()
	ctx := context.Background()
	databaseURL = c.URL(t)
	st, err := store.Open(ctx, store.Options{DatabaseURL: databaseURL})
	require.NoError(t, err)
	require.NoError(t, st.Migrate(ctx))
	require.NoError(t, st.Close())
	execute(t, superuser(t, c, databaseURL), fmt.Sprintf(world, premises, groups, phones))
	tidy(t, c, databaseURL)
	return databaseURL
}

// tidy ends what clients registered and brings the database into the state that rounds begin with.
func tidy(t testing.TB, c *pgtest.Cluster, databaseURL string) {
	t.Helper()
	admin := superuser(t, c, databaseURL)
	execute(t, admin, "DELETE FROM registrations WHERE instance <> ''")
	for _, table := range []string{"registrations", "leases", "groups", "gateways", "devices", "addresses", "gateway_polls", "premises", "accounts"} {
		execute(t, admin, "VACUUM (ANALYZE) "+table)
	}
	execute(t, admin, "CHECKPOINT")
}

// superuser is the URL of a database for the cluster's superuser.
func superuser(t testing.TB, c *pgtest.Cluster, databaseURL string) string {
	t.Helper()
	database, err := url.Parse(databaseURL)
	require.NoError(t, err)
	admin, err := url.Parse(c.AdminURL())
	require.NoError(t, err)
	admin.Path = database.Path
	return admin.String()
}

func execute(t testing.TB, databaseURL, statements string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, databaseURL)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	_, err = conn.PgConn().Exec(ctx, statements).ReadAll()
	require.NoError(t, err)
}
