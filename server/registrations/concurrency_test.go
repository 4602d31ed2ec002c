package registrations_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// answered is a state that a client was told, and by what.
type answered struct {
	op    string // as in the record: "join" or "leave"
	id    models.RegistrationID
	state int
}

// TestManyClientsAtOnce lets 64 clients join, move, renew and leave at the same moment. The database itself records, by triggers,
// in which order members came and went; every answer must be what that record says, and no two groups ever had one address in
// one generation.
func TestManyClientsAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { manyClients(t, db, servertest.On(db, db.Store)) })
}

// TestManyClientsOfTwoReplicas is the same through two stores on one database.
func TestManyClientsOfTwoReplicas(t *testing.T) {
	db := storetest.Postgres(t)
	manyClients(t, db, servertest.On(db, db.Store), servertest.On(db, db.Replica(t)))
}

const (
	clients    = 64
	cameras    = 16
	steps      = 16
	groupNames = 8
)

func manyClients(t *testing.T, db *storetest.DB, replicas ...*servertest.Services) {
	h := replicas[0].NewAccount(t, true)
	h.Declare(t, "172.168.0.230-172.168.0.254")
	record(t, db)
	var mu sync.Mutex
	var told []answered
	tell := func(a answered) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, a)
	}
	var all errgroup.Group
	for i := range clients {
		kind := models.DevicePhone
		if i < cameras {
			kind = models.DeviceCamera
		}
		device := h.Device(t, kind, fmt.Sprint("device", i))
		service := replicas[i%len(replicas)]
		random := rand.New(rand.NewPCG(1, uint64(i)))
		all.Go(func() error { return client(service, device, i, random, tell) })
	}
	require.NoError(t, all.Wait())
	replay(t, db, told)
	require.Zero(t, db.Deadlocks(t), "deadlocks")
	i := h.Information(t)
	require.Equal(t, db.Ints(t, "SELECT max(revision) FROM gateways")[0], i.Revision)
}

// client is one device that does random things, and fails on any answer that isn't allowed.
func client(s *servertest.Services, device models.Principal, i int, random *rand.Rand, tell func(answered)) error {
	ctx := context.Background()
	member := map[string]models.RegistrationID{}
	for range steps {
		name := fmt.Sprint("g", random.IntN(groupNames))
		if len(member) > 0 && random.IntN(2) == 0 {
			name = slices.Sorted(maps.Keys(member))[0]
			id := member[name]
			delete(member, name)
			_, state, err := s.Registrations.Leave(ctx, device, id)
			switch {
			case err == nil:
				tell(answered{"leave", id, state})
			case code(err) != models.CodeNotFound: // the group may have ended meanwhile
				return fmt.Errorf("leave: %w", err)
			}
			continue
		}
		r := servertest.Destination(device, fmt.Sprintf("198.51.99.%d", 1+random.IntN(2)), name)
		if device.Device.Type == models.DeviceCamera {
			name = fmt.Sprint("g", i%groupNames) // two cameras for each group, so that it ends now and then
			r = servertest.Source(device, fmt.Sprintf("172.168.0.%d", 10+i), name)
		}
		a, err := s.Registrations.Join(ctx, device, r)
		switch {
		case err == nil && a.RegistrationID != member[name]:
			tell(answered{"join", a.RegistrationID, a.State})
			member[name] = a.RegistrationID
		case err != nil && code(err) != models.CodeNotFound:
			return fmt.Errorf("join: %w", err)
		}
	}
	return nil
}

func code(err error) models.Code {
	var refusal *models.Error
	errors.As(err, &refusal)
	if refusal == nil {
		return ""
	}
	return refusal.Code
}

// record installs triggers that write down every member's coming and going, in the order of the commits of each gateway.
func record(t *testing.T, db *storetest.DB) {
	t.Helper()
	if db.Dialect() == "sqlite" {
		db.Exec(t, `CREATE TABLE record (seq integer PRIMARY KEY AUTOINCREMENT, op text, id text, group_id text, role text)`)
		db.Exec(t, `CREATE TRIGGER j AFTER INSERT ON registrations BEGIN
			INSERT INTO record (op, id, group_id, role) VALUES ('join', NEW.id, NEW.group_id, NEW.role); END`)
		db.Exec(t, `CREATE TRIGGER l AFTER DELETE ON registrations BEGIN
			INSERT INTO record (op, id, group_id, role) VALUES ('leave', OLD.id, OLD.group_id, OLD.role); END`)
		db.Exec(t, `CREATE TABLE lives (ip text, generation integer, UNIQUE (ip, generation))`)
		db.Exec(t, `CREATE TRIGGER g AFTER INSERT ON groups BEGIN INSERT INTO lives VALUES (NEW.ip, NEW.generation); END`)
		return
	}
	db.Exec(t, `CREATE TABLE record (seq bigserial PRIMARY KEY, op text, id text, group_id text, role text)`)
	db.Exec(t, `CREATE FUNCTION joined() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO record (op, id, group_id, role) VALUES ('join', NEW.id, NEW.group_id, NEW.role); RETURN NULL; END $$`)
	db.Exec(t, `CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO record (op, id, group_id, role) VALUES ('leave', OLD.id, OLD.group_id, OLD.role); RETURN NULL; END $$`)
	db.Exec(t, `CREATE TRIGGER j AFTER INSERT ON registrations FOR EACH ROW EXECUTE FUNCTION joined()`)
	db.Exec(t, `CREATE TRIGGER l AFTER DELETE ON registrations FOR EACH ROW EXECUTE FUNCTION gone()`)
	db.Exec(t, `CREATE TABLE lives (ip text, generation bigint, UNIQUE (ip, generation))`)
	db.Exec(t, `CREATE FUNCTION lived() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO lives VALUES (NEW.ip, NEW.generation); RETURN NULL; END $$`)
	db.Exec(t, `CREATE TRIGGER g AFTER INSERT ON groups FOR EACH ROW EXECUTE FUNCTION lived()`)
}

// replay counts from the record what each answer should have been.
func replay(t *testing.T, db *storetest.DB, told []answered) {
	t.Helper()
	truth := map[answered]bool{}
	state := map[string]int{}
	lines := db.Texts(t, `SELECT op || ' ' || id || ' ' || group_id || ' ' || role FROM record ORDER BY seq`)
	for _, line := range lines {
		var op, id, group, role string
		_, err := fmt.Sscan(line, &op, &id, &group, &role)
		require.NoError(t, err)
		if role == string(models.RoleDestination) {
			state[group] += map[string]int{"join": 1, "leave": -1}[op]
		}
		truth[answered{op, models.RegistrationID(id), state[group]}] = true
	}
	for _, a := range told {
		if a.op == "leave" && !truth[a] {
			// The last source's leave is answered 0: its group ended with all destinations.
			require.Zero(t, a.state, "%+v is not in the record", a)
			continue
		}
		require.True(t, truth[a], "%+v is not in the record", a)
	}
	require.Greater(t, len(told), clients*steps/4, "most requests must have done something")
	require.Greater(t, len(lines), len(told), "groups must have ended with destinations in them")
	t.Logf("%d answers agree with a record of %d changes", len(told), len(lines))
}

// TestExpiryAndRenewalRace: whoever is told that it is registered is registered, even if its lease was over at that moment and
// the reaper looked.
func TestExpiryAndRenewalRace(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		ctx := context.Background()
		reaper := expiry.New(db.Store, slog.New(slog.DiscardHandler))
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		ttl := 30
		renewed, ended := 0, 0
		for range 60 {
			source, destination := servertest.Source(camera, "172.168.0.5", "g"), servertest.Destination(phone, "198.51.99.9", "g")
			destination.TTL = &ttl
			h.Join(t, camera, source)
			before := h.Join(t, phone, destination)
			_, err := reaper.Look(ctx) // records that leases are looked at
			require.NoError(t, err)
			db.Advance(t, 36*time.Second) // 30 s and the grace of 5 s are over
			var after registrations.Answer
			var both errgroup.Group
			both.Go(func() (err error) { after, err = h.Registrations.Join(ctx, phone, destination); return err })
			both.Go(func() error { _, err := reaper.Look(ctx); return err })
			require.NoError(t, both.Wait())
			_, err = h.Registrations.Get(ctx, phone, after.RegistrationID)
			require.NoError(t, err, "it was told that it is registered")
			require.Equal(t, 1, after.State)
			if after.RegistrationID == before.RegistrationID {
				renewed++
			} else {
				ended++
			}
		}
		t.Logf("renewed %d, ended and joined anew %d", renewed, ended)
		require.NotZero(t, renewed)
	})
}

// TestUnlinkAndJoinRace: nobody stays registered whose link or device is gone, and nobody sees a fault of ours.
func TestUnlinkAndJoinRace(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		ctx := context.Background()
		camera := h.Device(t, models.DeviceCamera, "camera")
		ip := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).GroupIP
		for range 20 {
			upload := h.Service(t, "svc-upload", 0)
			phone := h.Device(t, models.DevicePhone, "phone")
			var all errgroup.Group
			all.Go(func() error { return h.Accounts.DeleteLink(ctx, "svc-upload", h.Account.ID) })
			all.Go(func() error { return h.Accounts.DeleteDevice(ctx, "", phone.Device.ID) })
			for i := range 3 {
				all.Go(func() error {
					r := servertest.ServiceDestination(upload, "96.114.14.140", "g", ip)
					r.Instance = fmt.Sprint(i)
					return unless(models.CodeNotFound, join(h, upload.Principal, r))
				})
				all.Go(func() error {
					r := servertest.Destination(phone, "198.51.99.9", "g")
					r.Instance = fmt.Sprint(i)
					return unless(models.CodeUnauthenticated, join(h, phone, r))
				})
			}
			require.NoError(t, all.Wait())
			require.Equal(t, []int64{1}, h.DB.Ints(t, "SELECT count(*) FROM registrations"), "only the camera is left")
			require.Empty(t, h.Information(t).Groups[0].Destinations)
		}
	})
}

func unless(c models.Code, err error) error {
	if code(err) == c {
		return nil
	}
	return err
}

// TestStatements pins how many statements each operation takes, so that an accidental query per row doesn't come back.
func TestStatements(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		ctx := context.Background()
		camera := h.Device(t, models.DeviceCamera, "camera")
		event := 1 // the statements that record what happened
		if h.DB.Dialect() == "sqlite" {
			event = 3
		}
		var a registrations.Answer
		count := func(want int, what string, f func()) {
			t.Helper()
			statements := h.DB.Statements(f)
			require.Len(t, statements, want, "%s: %q", what, statements)
		}
		count(11+event, "create a group", func() { a = h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")) })
		for i := range 20 {
			phone := h.Device(t, models.DevicePhone, fmt.Sprint(i))
			r := servertest.Destination(phone, "198.51.99.9", "g")
			var d registrations.Answer
			count(7+event, "join", func() { d = h.Join(t, phone, r) })
			r.PublicIPv4 = servertest.Addr("198.51.99.10")
			count(7+event, "move", func() { h.Join(t, phone, r) })
			count(1, "renew", func() { h.Join(t, phone, r) })
			if i%2 == 0 {
				count(5+event, "leave", func() { h.Leave(t, phone, d.RegistrationID) })
			}
			count(1, "group information", func() { h.Information(t) })
			count(1, "authenticate", func() {
				_, err := h.Accounts.DevicePrincipal(ctx, h.Account.ID, phone.Device.ID)
				require.NoError(t, err)
			})
			count(1, "list registrations", func() {
				_, _, err := h.Registrations.List(ctx, phone, models.Page{})
				require.NoError(t, err)
			})
		}
		count(9+event, "end a group", func() { h.Leave(t, camera, a.RegistrationID) })
	})
}
