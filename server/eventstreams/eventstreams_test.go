package eventstreams_test

import (
	"fmt"
	"log/slog"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventstreams"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestBroadcast: each live member hears each change with the new state (SPEC §7), and whoever left hears nothing more.
func TestBroadcast(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera := l.Device(t, models.DeviceCamera, "camera")
		first, second := l.Device(t, models.DeviceReceiver, "first"), l.Device(t, models.DeviceReceiver, "second")
		phone, tablet := l.Device(t, models.DevicePhone, "phone"), l.Device(t, models.DeviceTablet, "tablet")
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		g := l.group("door")
		source := l.listen(l.as(camera), g, nil)
		source.hears("group.state 0")
		l.Join(t, first, servertest.Destination(first, "198.51.99.1", "door"))
		l.Join(t, second, servertest.Destination(second, "198.51.99.2", "door"))
		one, two := l.listen(l.as(first), g, nil), l.listen(l.as(second), "", nil)
		source.hears("member.joined 1", "member.joined 2")
		one.hears("group.state 2")
		two.hears("group.state 2")

		joined := l.Join(t, phone, servertest.Destination(phone, "198.51.99.3", "door"))
		moved := servertest.Destination(phone, "198.51.99.4", "door")
		l.Join(t, phone, moved)
		l.Join(t, phone, moved) // a renewal
		l.Leave(t, phone, joined.RegistrationID)
		short, ttl := servertest.Destination(tablet, "198.51.99.5", "door"), 30
		short.TTL = &ttl
		l.Join(t, tablet, short)
		reaper := expiry.New(l.db.Store, slog.New(slog.DiscardHandler))
		_, err := reaper.Look(ctx) // begins to look
		require.NoError(t, err)
		l.db.Advance(t, time.Minute)
		_, err = reaper.Look(ctx)
		require.NoError(t, err)
		for _, e := range []*ear{source, one, two} {
			e.hears("member.joined 3", "member.moved 3", "member.left 2", "member.joined 3", "member.expired 2")
			e.nothing(l)
		}
	})
}

// TestAttackNotificationLeaksAddresses is row 19: the exact payload, and no address but the group IP in any of a member's life.
func TestAttackNotificationLeaksAddresses(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		upload := l.Service(t, "svc-upload", 2908757376510572177)
		a := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		g := l.group("door")
		ears := []*ear{l.listen(l.as(camera), g, nil), l.listen(l.user(), "", nil), l.listen(l.as(upload.Principal), "", nil)}
		at := servertest.Destination(phone, "198.51.99.77", "door")
		at.IPv6 = servertest.Addr("2001:db9::77")
		l.Join(t, phone, at)
		at.PublicIPv4 = servertest.Addr("198.51.99.78")
		b := l.Join(t, phone, at)
		l.Leave(t, phone, b.RegistrationID)
		var all []string
		for _, e := range ears {
			for _, v := range e.next(4) {
				all = append(all, v.text)
			}
		}
		for _, text := range all {
			require.NotContains(t, text, "2001:db9")
			for _, found := range regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`).FindAllString(text, -1) {
				require.Equal(t, a.GroupIP.String(), found, "%s", text)
			}
		}
		timeless := regexp.MustCompile(`"time":"[^"]*"`).ReplaceAllString(all[1], `"time":""`)
		require.JSONEq(t, fmt.Sprintf(`{"specversion":"1.0","id":"%[1]s/2","source":"/v1/groups/%[1]s","type":"groupcast.member.joined","time":"",
			"datacontenttype":"application/json","sequence":"0000000002","data":{"groupId":"%[1]s","premisesId":%[2]q,"groupName":"door","groupIP":%[3]q,
			"generation":1,"rev":2,"state":1,"members":[{"type":"Device","id":"%[4]s","role":"source","name":"camera"},
			{"type":"Device","id":"%[5]s","role":"destination","name":"phone","consent":"pending"}]}}`, g, l.Premises.ID, a.GroupIP, camera.Device.ID, phone.Device.ID), timeless)
	})
}

// TestWhoHearsWhat goes through the kinds of callers, all over the same account's life.
func TestWhoHearsWhat(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, second := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DeviceCamera, "second")
		phone, receiver := l.Device(t, models.DevicePhone, "phone"), l.Device(t, models.DeviceReceiver, "receiver")
		upload := l.Service(t, "svc-upload", 0)
		other := l.NewHome(t)
		stranger := other.Device(t, models.DevicePhone, "stranger")
		all := map[string]*ear{
			"camera": l.listen(l.as(camera), "", nil), "second": l.listen(l.as(second), "", nil), "phone": l.listen(l.as(phone), "", nil),
			"receiver": l.listen(l.as(receiver), "", nil), "upload": l.listen(l.as(upload.Principal), "", nil), "user": l.listen(l.user(), "", nil),
			"stranger": l.listen(l.as(stranger), "", nil),
		}
		a := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		p := l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		l.Device(t, models.DeviceTablet, "tablet")
		all["phone"].hears("group.created 0", "member.joined 1", "device.added 0")
		all["camera"].hears("group.created 0", "member.joined 1", "device.added 0")
		l.Leave(t, phone, p.RegistrationID)
		b := l.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "door", a.GroupIP))
		l.Leave(t, upload.Principal, b.RegistrationID)
		all["camera"].hears("member.left 0", "member.joined 1", "member.left 0")
		l.Leave(t, camera, a.RegistrationID)
		all["camera"].hears("group.ended 0")
		all["second"].hears("device.added 0")
		all["receiver"].hears("device.added 0")
		all["upload"].hears("group.created 0", "member.joined 1", "member.left 0", "member.joined 1", "member.left 0", "group.ended 0")
		all["user"].hears("group.created 0", "member.joined 1", "device.added 0", "member.left 0", "member.joined 1", "member.left 0", "group.ended 0")
		for _, e := range all {
			e.nothing(l)
		}
		_, err := l.streams.Open(ctx, l.as(l.Gateway), l.groupOf(t, camera), nil)
		servertest.Refused(t, models.CodeForbidden, err)
	})
}

// groupOf makes a group and gives it.
func (l *lab) groupOf(t *testing.T, camera models.Principal) models.GroupID {
	t.Helper()
	l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "made"))
	return l.group("made")
}

// TestAttackForeignEvent is row 15: what is recorded while a service is linked and read after that is not delivered, nor what came before a new
// link; the end of the link is the last that it hears. A group's stream ends.
func TestAttackForeignEvent(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		upload, thumbnail := l.Service(t, "svc-upload", 0), l.Service(t, "svc-thumbnail", 0)
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		all, of := l.listen(l.as(upload.Principal), "", nil), l.listen(l.as(upload.Principal), l.group("door"), nil)
		stays := l.listen(l.as(thumbnail.Principal), "", nil)
		for _, e := range []*ear{all, of, stays} {
			e.hears("group.state 0")
		}
		p := l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door")) // published
		require.NoError(t, l.Accounts.DeleteLink(ctx, "svc-upload", l.Account.ID))  // unlinked before it fetches
		all.hears("link.revoked 0")
		all.nothing(l)
		require.NoError(t, l.streams.Check(ctx))
		of.over(eventstreams.Unlinked)
		_, err := l.streams.Open(ctx, l.as(upload.Principal), l.group("door"), nil)
		servertest.Refused(t, models.CodeNotFound, err)
		l.Leave(t, phone, p.RegistrationID)
		l.db.Advance(t, time.Second)
		again := l.Service(t, "svc-upload", 0)
		l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		heard := all.next(2)
		require.Equal(t, []string{"link.granted 0", "member.joined 1"}, []string{heard[0].String(), heard[1].String()})
		require.Equal(t, again.Link.ServiceAccountID.String(), heard[1].Data.ServiceAccountID)
		stays.hears("member.joined 1", "member.left 0", "member.joined 1")
		for _, v := range stays.pending {
			require.NotContains(t, v.text, string(l.Account.ID))
		}
	})
}

// TestAttackStreamOutlivesToken is row 18: with the token's time, the row that it names, the session, the membership. A check comes every
// CheckEvery, so no stream outlives its right by more than that and its look.
func TestAttackStreamOutlivesToken(t *testing.T) {
	require.LessOrEqual(t, eventstreams.CheckEvery, 4*time.Second)
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone, tablet := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone"), l.Device(t, models.DeviceTablet, "tablet")
		upload := l.Service(t, "svc-upload", 0)
		a := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		p := l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		l.Join(t, tablet, servertest.Destination(tablet, "198.51.99.2", "door"))
		g := l.group("door")
		all := map[string]*ear{}
		open := func() {
			for name, by := range map[string]eventstreams.Caller{
				"camera": l.as(camera), "phone": l.as(phone), "tablet": l.as(tablet), "upload": l.as(upload.Principal), "user": l.user(),
			} {
				all[name], all[name+" all"] = l.listen(by, g, nil), l.listen(by, "", nil)
				all[name].next(1)
				all[name+" all"].next(1)
			}
		}
		goOn := func(names ...string) {
			for _, n := range names {
				_, err := all[n].Next(ctx, 0)
				require.NoError(t, err, n)
			}
		}
		open()
		require.NoError(t, l.streams.Check(ctx))
		l.Leave(t, phone, p.RegistrationID)
		all["phone"].over(eventstreams.Left)
		goOn("phone all", "camera", "tablet", "upload", "user")
		_, err := l.streams.Open(ctx, l.as(phone), g, &all["phone"].last)
		servertest.Refused(t, models.CodeForbidden, err)

		require.NoError(t, l.Accounts.DeleteDevice(ctx, l.Account.ID, tablet.Device.ID))
		require.NoError(t, l.streams.Check(ctx))
		all["tablet"].over(eventstreams.Revoked)
		all["tablet all"].over(eventstreams.Revoked)
		l.db.Exec(t, "UPDATE services SET not_before = "+strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10))
		delete(l.sessions, "s")
		require.NoError(t, l.streams.Check(ctx))
		for _, name := range []string{"upload", "user"} {
			all[name].over(eventstreams.Revoked)
			all[name+" all"].over(eventstreams.Revoked)
		}
		goOn("camera", "camera all", "phone all")

		l.now.Add(3599)
		require.NoError(t, l.streams.Check(ctx))
		goOn("camera", "camera all", "phone all")
		parked := make(chan error)
		go func() {
			for {
				if _, err := all["camera"].Next(ctx, time.Minute); err != nil {
					parked <- err
					return
				}
			}
		}()
		l.now.Add(1)
		l.Leave(t, camera, a.RegistrationID) // nobody hears it, even before the check
		all["phone all"].over(eventstreams.TokenExpired)
		require.NoError(t, l.streams.Check(ctx))
		require.Error(t, <-parked)
		all["camera all"].over(eventstreams.TokenExpired)
	})
}

// TestTheEndOfAGroup is told to whoever was in it, and then the stream ends; also to whoever comes back later.
func TestTheEndOfAGroup(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		a := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		g := l.group("door")
		e, gone := l.listen(l.as(phone), g, nil), l.listen(l.as(phone), g, nil)
		e.hears("group.state 1")
		gone.hears("group.state 1")
		gone.Close()
		l.Leave(t, camera, a.RegistrationID)
		e.hears("group.ended 0")
		e.over(eventstreams.GroupEnded)
		back := l.listen(l.as(phone), g, &gone.last)
		back.hears("group.ended 0")
		back.over(eventstreams.GroupEnded)
		_, err := l.streams.Open(ctx, l.as(phone), g, &back.last)
		servertest.Refused(t, models.CodeNotFound, err)
		stranger := l.NewHome(t).Device(t, models.DevicePhone, "stranger")
		_, err = l.streams.Open(ctx, l.as(stranger), g, &gone.last)
		servertest.Refused(t, models.CodeNotFound, err)
	})
}

// TestResync: a place that can't be gone on from gives how everything is now.
func TestResync(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "yard"))
		l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		g, user := l.group("door"), l.user()
		resync := func(group models.GroupID, cursor, why string, events int) {
			t.Helper()
			st, err := l.streams.Open(ctx, user, group, &cursor)
			require.NoError(t, err)
			defer st.Close()
			b, err := st.Next(ctx, 0)
			require.NoError(t, err)
			require.Equal(t, why, b.Resync)
			require.Equal(t, events, len(b.Events))
			require.NotEmpty(t, b.Cursor)
			require.False(t, b.More)
			again, err := st.Next(ctx, 0)
			require.NoError(t, err)
			require.Empty(t, again.Resync)
			require.Empty(t, again.Events)
		}
		e, foreign := l.listen(user, "", nil), l.listen(l.as(phone), "", nil)
		e.next(2)
		foreign.next(2)
		resync("", "nonsense", eventstreams.ResyncUnknown, 2)
		resync("", foreign.last, eventstreams.ResyncUnknown, 2)
		resync("", e.last[:len(e.last)-2]+"AA", eventstreams.ResyncUnknown, 2)
		resync(g, "07", eventstreams.ResyncUnknown, 1)
		resync(g, "-1", eventstreams.ResyncUnknown, 1)
		resync(g, "99", eventstreams.ResyncUnknown, 1)
		resync(g, "1", "", 1)
		resync("", e.last, "", 0)
		l.Leave(t, phone, l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "yard")).RegistrationID)
		require.NoError(t, l.tail.Look(ctx))
		resync("", e.last, "", 2)
		l.db.Exec(t, "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - 1")
		resync("", e.last, eventstreams.ResyncTooOld, 2)
		resync(g, "1", eventstreams.ResyncTooOld, 1)
		resync(g, "2", "", 0)
		l.db.Exec(t, "UPDATE installation SET epoch = '0123456789abcdef'")
		resync("", e.last, eventstreams.ResyncUnknown, 2)
	})
}

// TestAConsentThatChanged: a service that goes on from before hears what its consent of then let it hear and that of now does, and nothing of a time
// in which it didn't cover the premises.
func TestAConsentThatChanged(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		upload := l.Service(t, "svc-upload", 0)
		garden, err := l.Accounts.CreatePremises(ctx, l.Account.ID, "garden", false)
		require.NoError(t, err)
		scopes := upload.Link.Scopes
		consent := func(scopes []string, premises ...models.PremisesID) {
			t.Helper()
			want := upload.Link
			want.Consent = models.Consent{Scopes: scopes, Premises: premises}
			_, err := l.Accounts.PutLink(ctx, want)
			require.NoError(t, err)
			time.Sleep(5 * time.Millisecond) // times are in milliseconds
		}
		move := func(n int) {
			l.Join(t, phone, servertest.Destination(phone, fmt.Sprint("198.51.99.", n), "groupcast1"))
		}
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "groupcast1"))
		began := l.listen(l.as(upload.Principal), "", nil).last
		again := func(want ...string) {
			t.Helper()
			require.NoError(t, l.tail.Look(ctx))
			e := l.listen(l.as(upload.Principal), "", &began)
			e.hears(want...)
			e.nothing(l)
			e.Close()
		}
		time.Sleep(5 * time.Millisecond)
		move(1)
		again("member.joined 1")
		consent(scopes, l.Premises.ID)
		move(2)
		again("member.joined 1", "link.granted 0", "member.moved 1")
		consent(scopes, garden.ID)
		move(3)
		again("link.granted 0", "link.granted 0")
		consent([]string{models.ScopeRegister}, l.Premises.ID)
		move(4)
		again("link.granted 0", "link.granted 0", "link.granted 0")
		consent(scopes)
		move(5)
		again("member.joined 1", "link.granted 0", "member.moved 1", "link.granted 0", "link.granted 0", "link.granted 0", "member.moved 1")
		// What was granted before is forgotten once there are no events of that time.
		before := len(l.db.Ints(t, "SELECT granted_at FROM past_consents"))
		require.Equal(t, 4, before)
		l.db.Advance(t, store.EventRetention+time.Minute)
		consent(scopes, l.Premises.ID)
		require.Len(t, l.db.Ints(t, "SELECT granted_at FROM past_consents"), 1)
		require.NoError(t, l.Accounts.DeleteLink(ctx, "svc-upload", l.Account.ID))
		require.Empty(t, l.db.Ints(t, "SELECT granted_at FROM past_consents"))
	})
}

// TestResumeAfterDisconnects: writers at several groups, and a listener that is cut off fifty times. Nothing is missing and nothing comes twice.
func TestResumeAfterDisconnects(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		const writers, rounds, cuts = 4, 60, 50
		names, cameras := make([]string, writers), make([]models.Principal, writers)
		for i := range writers {
			names[i], cameras[i] = fmt.Sprint("g", i), l.Device(t, models.DeviceCamera, fmt.Sprint("camera", i))
			l.Join(t, cameras[i], servertest.Source(cameras[i], fmt.Sprintf("172.168.0.%d", 10+i), names[i]))
		}
		upload := l.Service(t, "svc-upload", 0)
		whole, of := l.listen(l.as(upload.Principal), "", nil), l.listen(l.user(), l.group("g0"), nil)
		whole.next(writers)
		of.next(1)
		var writing sync.WaitGroup
		for i := range writers {
			phone := l.Device(t, models.DevicePhone, fmt.Sprint("phone", i))
			writing.Go(func() {
				for range rounds {
					a, err := l.Registrations.Join(ctx, phone, servertest.Destination(phone, "198.51.99.9", names[i]))
					if err == nil {
						_, _, err = l.Registrations.Leave(ctx, phone, a.RegistrationID)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		heard := map[string][]int{}
		for cut := 0; len(heard["whole g"]) < writers*2*rounds; cut++ {
			require.Less(t, cut, 100*cuts)
			if cut < cuts {
				whole.Close()
				last := whole.last
				whole = l.listen(l.as(upload.Principal), "", &last)
			}
			for _, v := range whole.next(min(5, writers*2*rounds-len(heard["whole g"]))) {
				heard[v.Data.GroupID] = append(heard[v.Data.GroupID], v.Data.Rev)
				heard["whole g"] = append(heard["whole g"], v.Data.Rev)
			}
			// A client that is cut off goes on from the last event that it took, which may be in the middle of a batch.
			for len(whole.pending) > 0 {
				for _, v := range whole.next(len(whole.pending)) {
					heard[v.Data.GroupID] = append(heard[v.Data.GroupID], v.Data.Rev)
					heard["whole g"] = append(heard["whole g"], v.Data.Rev)
				}
			}
		}
		writing.Wait()
		for group, revs := range heard {
			if group == "whole g" {
				continue
			}
			require.Len(t, revs, 2*rounds)
			for i, rev := range revs {
				require.Equal(t, i+2, rev, "group %s", group)
			}
		}
		whole.nothing(l)
		var revs []int
		for cut := range 2 * rounds {
			if cut < cuts {
				of.Close()
				last := strconv.Itoa(cut + 1)
				of = l.listen(l.user(), l.group("g0"), &last)
			}
			revs = append(revs, of.next(1)[0].Data.Rev)
		}
		for i, rev := range revs {
			require.Equal(t, i+2, rev)
		}
	})
}

// TestTheLateCommit: on Postgres an event with a lower id may be committed after one with a higher id, also by a transaction that began later.
// A stream over many groups waits for it.
func TestTheLateCommit(t *testing.T) {
	db := storetest.Postgres(t)
	l := newLab(t, db)
	groups := map[string]models.GroupID{}
	for i, name := range []string{"early", "slow", "fast"} {
		camera := l.Device(t, models.DeviceCamera, name)
		l.Join(t, camera, servertest.Source(camera, fmt.Sprint("172.168.0.", 5+i), name))
		groups[name] = l.group(name)
	}
	e := l.listen(l.user(), "", nil)
	e.next(3)
	quick := l.listen(l.user(), groups["fast"], nil)
	quick.next(1)
	change := func(began chan<- struct{}, goOn <-chan struct{}, steps ...string) chan error {
		done := make(chan error, 1)
		go func() {
			done <- db.Write(ctx, func(tx *store.Tx) error {
				for i, name := range steps {
					if err := tx.AppendGroupEvents(models.EventGroupChanged, []models.GroupID{groups[name]}); err != nil {
						return err
					}
					if i == 0 {
						if _, err := tx.State(groups[name]); err != nil { // what was appended goes to the database with this
							return err
						}
						close(began)
						<-goOn
					}
				}
				return nil
			})
		}()
		return done
	}
	began, goOn := make(chan struct{}), make(chan struct{})
	first := change(began, goOn, "early", "fast")
	<-began
	beganToo, release := make(chan struct{}), make(chan struct{})
	second := change(beganToo, release, "slow")
	<-beganToo
	close(goOn)
	require.NoError(t, <-first)
	require.Equal(t, 2, quick.next(1)[0].Data.Rev, "who listens to one group waits for no other")
	some, err := e.take(300 * time.Millisecond)
	require.NoError(t, err)
	require.False(t, some, "%v", e.pending)
	close(release)
	require.NoError(t, <-second)
	var order []string
	for _, v := range e.next(3) {
		order = append(order, v.Data.GroupID)
	}
	require.Equal(t, []string{string(groups["early"]), string(groups["slow"]), string(groups["fast"])}, order)
}

// TestAnotherReplica: what is recorded there is heard here when the table is looked at, without any hint.
func TestAnotherReplica(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		s, _, tail := l.replica(l.db.Store, false, 1000) // no hint reaches it
		var ears []*ear
		for _, group := range []models.GroupID{"", l.group("door")} {
			st, err := s.Open(ctx, l.as(camera), group, nil)
			require.NoError(t, err)
			defer st.Close()
			ears = append(ears, &ear{t: t, Stream: st})
			ears[len(ears)-1].hears("group.state 0")
		}
		heard := make(chan string, 2)
		for _, e := range ears {
			go func() { // it waits for nothing but being woken
				_, err := e.take(time.Hour)
				assert.NoError(t, err)
				heard <- fmt.Sprint(e.pending)
			}()
		}
		l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
		require.NoError(t, tail.Look(ctx))
		for range ears {
			select {
			case all := <-heard:
				require.Contains(t, all, "member.joined 1")
			case <-time.After(time.Minute):
				t.Fatal("nobody woke it")
			}
		}
	})
}

// TestHintsInAnyOrder: hints that come twice, too early, out of order or never change nothing of what is heard.
func TestHintsInAnyOrder(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		g := l.group("door")
		s, hub, tail := l.replica(l.db.Store, false, 1000)
		rev := 1
		rapid.Check(t, func(r *rapid.T) {
			st, err := s.Open(ctx, l.as(camera), g, new(strconv.Itoa(rev)))
			require.NoError(r, err)
			defer st.Close()
			st2, err := s.Open(ctx, l.as(camera), "", nil)
			require.NoError(r, err)
			defer st2.Close()
			one, all := &ear{t: t, Stream: st}, &ear{t: t, Stream: st2}
			all.next(1)
			var want []string
			for range rapid.IntRange(1, 4).Draw(r, "changes") {
				a := l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
				l.Leave(t, phone, a.RegistrationID)
				want = append(want, fmt.Sprint(rev+1), fmt.Sprint(rev+2))
				rev += 2
				for _, hint := range rapid.SliceOfN(rapid.IntRange(0, rev+3), 0, 5).Draw(r, "hints") {
					hub.Wake(models.EventPlace{EventStream: models.EventStream{AccountID: l.Account.ID, GroupID: g}, Rev: int64(hint)})
				}
				_, err := one.take(0)
				require.NoError(r, err)
				if rapid.Bool().Draw(r, "look") {
					require.NoError(r, tail.Look(ctx))
					_, err := all.take(0)
					require.NoError(r, err)
				}
			}
			require.NoError(r, tail.Look(ctx))
			require.NoError(r, tail.Look(ctx))
			for _, e := range []*ear{one, all} {
				var got []string
				for _, v := range e.next(len(want)) {
					got = append(got, fmt.Sprint(v.Data.Rev))
				}
				require.Equal(r, want, got)
			}
		})
	})
}

// TestLimits: so many streams and no more, of one caller and of all; and an end gives its place free.
func TestLimits(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		s, _, _ := l.replica(l.db.Store, false, eventstreams.MaxPerCaller+1)
		phone, tablet := l.Device(t, models.DevicePhone, "phone"), l.Device(t, models.DeviceTablet, "tablet")
		var last *eventstreams.Stream
		for range eventstreams.MaxPerCaller {
			st, err := s.Open(ctx, l.as(phone), "", nil)
			require.NoError(t, err)
			last = st
		}
		_, err := s.Open(ctx, l.as(phone), "", nil)
		servertest.Refused(t, models.CodeRateLimited, err)
		_, err = s.Open(ctx, l.as(tablet), "", nil)
		require.NoError(t, err)
		_, err = s.Open(ctx, l.as(tablet), "", nil)
		servertest.Refused(t, models.CodeOverloaded, err)
		last.Close()
		last.Close()
		require.Equal(t, eventstreams.MaxPerCaller, s.Streams())
		_, err = s.Open(ctx, l.as(phone), "g_none", nil)
		servertest.Refused(t, models.CodeNotFound, err)
		require.Equal(t, eventstreams.MaxPerCaller, s.Streams(), "a refusal takes no place")
	})
}

// TestDrain: all end within the time, not all at once, and nobody may begin.
func TestDrain(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		var waiting sync.WaitGroup
		for i := range 20 {
			phone := l.Device(t, models.DevicePhone, fmt.Sprint(i))
			st := l.listen(l.as(phone), "", nil)
			waiting.Go(func() {
				defer st.Close()
				for {
					if _, err := st.take(time.Minute); err != nil {
						return
					}
				}
			})
		}
		l.streams.Drain(ctx, 300*time.Millisecond)
		require.Zero(t, l.streams.Streams())
		waiting.Wait()
		_, err := l.streams.Open(ctx, l.user(), "", nil)
		servertest.Refused(t, models.CodeUnavailable, err)
	})
}

// TestAttackStalledListener is row 17 inside: a stream that nobody takes from holds nothing of what happens, and delays nobody.
// The daemon's test of the same row has a real socket.
func TestAttackStalledListener(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		camera, phone := l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
		l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		var stalled []*ear
		for range eventstreams.MaxPerCaller - 1 {
			stalled = append(stalled, l.listen(l.as(camera), l.group("door"), nil))
		}
		e := l.listen(l.as(camera), l.group("door"), nil)
		e.next(1)
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		for range 150 {
			a := l.Join(t, phone, servertest.Destination(phone, "198.51.99.1", "door"))
			l.Leave(t, phone, a.RegistrationID)
			e.hears("member.joined 1", "member.left 0")
		}
		require.Less(t, heap(), before+4<<20)
		b, err := stalled[0].Next(ctx, 0)
		require.NoError(t, err)
		require.Equal(t, 100, len(b.Events), "one batch and no more")
	})
}
