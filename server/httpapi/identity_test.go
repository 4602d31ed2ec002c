package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/authz"
	"github.com/groupcast/groupcast/server/edgetest"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

// labs runs a test on both databases.
func labs(t *testing.T, test func(t *testing.T, l *edgetest.Lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { test(t, edgetest.New(t, db)) })
}

// work is what a request cost: its statements, without the values, and its password hashes.
type work struct {
	Statements []string
	Hashes     uint64
}

func costOf(l *edgetest.Lab, f func()) work {
	before := l.Hasher.Hashes()
	statements := l.DB.Statements(f)
	// The hub's own look at the revisions falls into any request.
	statements = slices.DeleteFunc(statements, func(s string) bool { return strings.Contains(s, "FROM gateways WHERE revision") })
	return work{statements, l.Hasher.Hashes() - before}
}

// withoutInstance is an answer without what names the request.
func withoutInstance(t testing.TB, body string) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &m), body)
	delete(m, "instance")
	return m
}

// TestAttackPasswordGuessingIsCountedInWork is row 4 of the threat model.
func TestAttackPasswordGuessingIsCountedInWork(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		l.User(t, h.Account.ID, "anna")
		try := func(name string) (edgetest.Answer, work) {
			var a edgetest.Answer
			w := costOf(l, func() {
				a = l.Do(t, http.MethodPost, "/v1/login", fmt.Sprintf(`{"userName":%q,"password":"not the right words"}`, name))
			})
			return a, w
		}
		_, _ = try("warm-up") // connections and prepared statements
		known, dear := try("anna")
		unknown, cheap := try("nobody")
		require.Equal(t, http.StatusUnauthorized, known.Status, known.Body)
		assert.Equal(t, withoutInstance(t, known.Body), withoutInstance(t, unknown.Body))
		assert.EqualValues(t, 1, dear.Hashes)
		assert.Equal(t, dear, cheap, "the same hashes and the same statements")
		assert.NotEmpty(t, dear.Statements)

		// A thousand tries from one place, at one name and at a thousand.
		before := l.Hasher.Hashes()
		for i := range 1000 {
			name := "anna"
			if i%2 == 1 {
				name = fmt.Sprint("name", i)
			}
			_, _ = try(name)
		}
		// Ten failures of a place are free; then the delays of passwords.Delays let one try pass after 1, 2, 4 … seconds.
		assert.LessOrEqual(t, l.Hasher.Hashes()-before, uint64(20))
	})
}

// TestAttackGuessingGroups is row 9: who guesses the name or the address of a group learns nothing, neither by the answer nor by the work.
func TestAttackGuessingGroups(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		own, other := l.NewHome(t), l.NewHome(t)
		camera, theirs := own.Device(t, models.DeviceCamera, "c"), other.Device(t, models.DeviceCamera, "c")
		phone := own.Device(t, models.DevicePhone, "p")
		upload := own.Service(t, "svc-upload", 0)
		otherService := other.Service(t, "svc-other", 0)
		ownGroup := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "garden"))
		theirGroup := l.Join(t, theirs, servertest.Source(theirs, "172.168.0.5", "door"))
		member := l.Join(t, theirs, servertest.Destination(theirs, "198.51.99.9", "door"))
		free := netip.MustParseAddr("172.168.0.250")
		theirGroups, _, err := l.Groups.List(context.Background(), other.Gateway, groups.Filter{}, models.Page{})
		require.NoError(t, err)
		cabin, err := l.Accounts.CreatePremises(context.Background(), own.Account.ID, "Cabin", true)
		require.NoError(t, err)
		cabinGateway := own.Import(t, accounts.NewDevice{PremisesID: cabin.ID, Type: models.DeviceGateway, Name: "g"})
		guesser, service, gateway := l.As(t, phone), l.As(t, upload.Principal), l.As(t, own.Gateway)
		asService := func(id models.ID, name string, ip netip.Addr) string {
			return fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":"96.114.14.140","groupName":%q,"groupIP":%q}`, id, name, ip)
		}
		asPhone := func(name string, ip any) string {
			address, _ := json.Marshal(ip)
			return fmt.Sprintf(`{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","groupName":%q,"groupIP":%s}`, phone.Device.ID, name, address)
		}
		for _, c := range []struct {
			name             string
			who              edgetest.Caller
			method, path     string
			foreign, missing string // bodies, or the ends of the path
		}{
			{
				"a service guesses a name", service, "POST", "/v1/registrations",
				asService(upload.Link.ServiceAccountID, "door", ownGroup.GroupIP), asService(upload.Link.ServiceAccountID, "attic", ownGroup.GroupIP),
			},
			{
				"a service guesses an address", service, "POST", "/v1/registrations",
				asService(upload.Link.ServiceAccountID, "garden", netip.MustParseAddr("172.168.0.234")), asService(upload.Link.ServiceAccountID, "garden", free),
			},
			{
				"a service uses the id of another's link", service, "POST", "/v1/registrations",
				asService(otherService.Link.ServiceAccountID, "door", theirGroup.GroupIP), asService(models.NewID(), "door", theirGroup.GroupIP),
			},
			{"a phone guesses a name", guesser, "POST", "/v1/registrations", asPhone("door", nil), asPhone("attic", nil)},
			{"a phone guesses name and address", guesser, "POST", "/v1/registrations", asPhone("door", theirGroup.GroupIP), asPhone("attic", free)},
			{"a group by its id", guesser, "GET", "/v1/groups/", string(theirGroups[0].Group.ID), string(models.NewGroupID())},
			{"a registration by its id", guesser, "GET", "/v1/registrations/", string(member.RegistrationID), string(models.NewRegistrationID())},
			{"the end of a registration", guesser, "DELETE", "/v1/registrations/", string(member.RegistrationID), string(models.NewRegistrationID())},
			{"a device by its id", guesser, "GET", "/v1/devices/", theirs.Device.ID.String(), models.NewID().String()},
			{"the groups of the account's other gateway", gateway, "GET", "/v1/gateways/", cabinGateway.Device.ID.String() + "/groups", models.NewID().String() + "/groups"},
			{"a gateway's groups", gateway, "GET", "/v1/gateways/", other.Gateway.Device.ID.String() + "/groups", models.NewID().String() + "/groups"},
		} {
			t.Run(c.name, func(t *testing.T) {
				send := func(what string) (edgetest.Answer, work) {
					var a edgetest.Answer
					w := costOf(l, func() {
						if c.method == http.MethodPost {
							a = c.who.Do(t, c.method, c.path, what)
						} else {
							a = c.who.Do(t, c.method, c.path+what, "")
						}
					})
					return a, w
				}
				foreign, foreignWork := send(c.foreign)
				missing, missingWork := send(c.missing)
				assert.Equal(t, http.StatusNotFound, foreign.Status, foreign.Body)
				assert.Equal(t, withoutInstance(t, missing.Body), withoutInstance(t, foreign.Body))
				assert.Equal(t, missingWork, foreignWork)
				assert.NotEmpty(t, missingWork.Statements)
			})
		}
		assert.Len(t, l.DB.Ints(t, "SELECT 1 FROM registrations"), 3, "nothing was made or ended")
	})
}

// operations gives the operations of the public contract with their rules, and their paths with ids that nobody has.
func operations(t *testing.T, each func(op *openapi3.Operation, rule authz.Rule, method, path string)) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	table, err := authz.Load(doc)
	require.NoError(t, err)
	ids := strings.NewReplacer("{premisesId}", string(models.NewPremisesID()), "{deviceId}", models.NewID().String(), "{gatewayId}", models.NewID().String(),
		"{serviceId}", "svc-missing", "{registrationId}", string(models.NewRegistrationID()), "{groupId}", string(models.NewGroupID()))
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		for method, op := range doc.Paths.Value(path).Operations() {
			each(op, table[op.OperationID], method, ids.Replace(path))
		}
	}
}

// callers are one principal of each kind, of one home.
func callers(t *testing.T, l *edgetest.Lab) map[models.Kind]models.Principal {
	t.Helper()
	h := l.NewHome(t)
	l.User(t, h.Account.ID, "anna")
	id := l.DB.Texts(t, "SELECT id FROM users")[0]
	ticket, err := l.Relays.Create(t.Context(), "relay")
	require.NoError(t, err)
	relay, err := l.Relays.Principal(t.Context(), ticket.RelayID)
	require.NoError(t, err)
	return map[models.Kind]models.Principal{
		models.KindRelay:  relay,
		models.KindDevice: h.Device(t, models.DeviceCamera, "c"), models.KindGateway: h.Gateway, models.KindService: h.Service(t, "svc-upload", 0).Principal,
		models.KindUser: {Kind: models.KindUser, AccountID: h.Account.ID, UserID: id},
	}
}

// TestMatrixOfScopes calls every operation with a token of the right kind that lacks just the scope it needs, and one that has nothing else.
func TestMatrixOfScopes(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		who := callers(t, l)
		cells := 0
		operations(t, func(op *openapi3.Operation, rule authz.Rule, method, path string) {
			for _, kind := range rule.Kinds {
				others := slices.DeleteFunc(tokens.Scopes(kind), func(s string) bool { return s == rule.Scope })
				require.Len(t, others, len(tokens.Scopes(kind))-1, "%s: a %s can't get the scope %s that it needs", op.OperationID, kind, rule.Scope)
				a := l.As(t, who[kind], others...).Do(t, method, path, "")
				assert.Equal(t, http.StatusForbidden, a.Status, "%s by a %s: %s", op.OperationID, kind, a.Body)
				assert.Equal(t, "forbidden", a.Code(), op.OperationID)
				assert.Contains(t, a.Body, rule.Scope)
				a = l.As(t, who[kind], rule.Scope).Do(t, method, path, "")
				assert.NotContains(t, a.Body, "lacks the scope", "%s by a %s", op.OperationID, kind)
				assert.NotEqual(t, http.StatusUnauthorized, a.Status, "%s by a %s: %s", op.OperationID, kind, a.Body)
				cells++
			}
		})
		assert.Greater(t, cells, 25)
	})
}

// TestMatrixOfStaleSessions calls every operation as a user who typed the password too long ago: what the contract calls fresh wants it again,
// before it looks at anything else, and nothing else does. An app is never fresh.
func TestMatrixOfStaleSessions(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		who := callers(t, l)
		cookie := l.LogIn(t, "anna")
		app := l.As(t, who[models.KindUser])
		l.DB.Advance(t, users.Fresh)
		fresh := 0
		operations(t, func(op *openapi3.Operation, rule authz.Rule, method, path string) {
			if !slices.Contains(rule.Kinds, models.KindUser) || op.OperationID == "logout" {
				assert.False(t, rule.Fresh, "%s: fresh is for users", op.OperationID)
				return
			}
			for _, a := range []edgetest.Answer{l.Do(t, method, path, "", "Cookie", cookie), app.Do(t, method, path, "")} {
				if rule.Fresh {
					fresh++
					assert.Equal(t, http.StatusForbidden, a.Status, "%s: %s", op.OperationID, a.Body)
				}
				assert.Equal(t, rule.Fresh, a.Code() == "confirm-first", "%s: %s", op.OperationID, a.Body)
			}
		})
		assert.GreaterOrEqual(t, fresh, 10)
	})
}

// TestSessionsEnd moves the clock to both sides of each end of a session.
func TestSessionsEnd(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		cookie := l.User(t, h.Account.ID, "anna")
		get := func() int { return l.Do(t, http.MethodGet, "/v1/account", "", "Cookie", cookie).Status }
		dangerous := func() string {
			return l.Do(t, http.MethodPut, "/v1/account/services/svc-missing", "", "Cookie", cookie).Code()
		}
		const moment = 10 * time.Second // what the test itself takes at most
		assert.Equal(t, "not-found", dangerous(), "fresh from the login")
		l.DB.Advance(t, users.Fresh-moment)
		assert.Equal(t, "not-found", dangerous())
		l.DB.Advance(t, moment)
		assert.Equal(t, "confirm-first", dangerous())
		a := l.Do(t, http.MethodPost, "/v1/account/confirm", fmt.Sprintf(`{"password":%q}`, edgetest.Password), "Cookie", cookie)
		require.Equal(t, http.StatusNoContent, a.Status, a.Body)
		assert.Equal(t, "not-found", dangerous(), "fresh again")

		// Used in time it lives on, for a week in all.
		began := users.Fresh
		const step = users.Idle - 2*time.Minute // a use within a minute of the last one isn't recorded
		for began+step < users.Life-moment {
			l.DB.Advance(t, step)
			began += step
			require.Equal(t, http.StatusOK, get(), "%s after its begin", began)
		}
		l.DB.Advance(t, users.Life-moment-began)
		assert.Equal(t, http.StatusOK, get())
		l.DB.Advance(t, moment)
		assert.Equal(t, http.StatusUnauthorized, get(), "however often it was used")

		cookie = l.LogIn(t, "anna")
		l.DB.Advance(t, users.Idle-moment)
		require.Equal(t, http.StatusOK, get())
		l.DB.Advance(t, users.Idle-moment)
		require.Equal(t, http.StatusOK, get(), "each use counts")
		l.DB.Advance(t, users.Idle)
		assert.Equal(t, http.StatusUnauthorized, get())
		assert.Equal(t, http.StatusUnauthorized, get(), "an ended session is not woken by a use")
	})
}

// TestAttackNothingComesFromTheBody is row 6: whatever a caller writes into any member of a registration, account, premises and device are those of
// the token, and nothing of another account is touched.
func TestAttackNothingComesFromTheBody(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		own, other := l.NewHome(t), l.NewHome(t)
		cabin, err := l.Accounts.CreatePremises(context.Background(), own.Account.ID, "Cabin", true)
		require.NoError(t, err)
		camera, sibling, theirs := own.Device(t, models.DeviceCamera, "c"), own.Device(t, models.DeviceCamera, "s"), other.Device(t, models.DeviceCamera, "c")
		phone, theirPhone := own.Device(t, models.DevicePhone, "p"), other.Device(t, models.DevicePhone, "p")
		upload, foreign := own.Service(t, "svc-upload", 0), other.Service(t, "svc-other", 0)
		group := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "garden"))
		l.Join(t, theirs, servertest.Source(theirs, "172.168.0.5", "door"))
		garage := l.Join(t, theirs, servertest.Source(theirs, "172.168.0.5", "garage"))
		snapshot := func() []string {
			return l.DB.Texts(t, fmt.Sprintf(`SELECT id || ' ' || group_id || ' ' || member_id || ' ' || role FROM registrations WHERE account_id = '%s' ORDER BY id`, other.Account.ID))
		}
		before := snapshot()
		ids := []any{
			camera.Device.ID.String(), sibling.Device.ID.String(), theirs.Device.ID.String(), phone.Device.ID.String(), theirPhone.Device.ID.String(),
			upload.Link.ServiceAccountID.String(), foreign.Link.ServiceAccountID.String(), other.Gateway.Device.ID.String(), "1", int64(theirs.Device.ID),
		}
		// For each member what others have, and what would be one's own.
		drawn := map[string][]any{
			"type": {"Device", "Service", "device"}, "id": ids, "destination": {true, false}, "instance": {"", "1", string(other.Account.ID)[:8]},
			"premisesId":  {string(own.Premises.ID), string(cabin.ID), string(other.Premises.ID), string(models.NewPremisesID())},
			"privateIPv4": {nil, "172.168.0.5", "172.168.0.6", "10.0.0.1"}, "publicIPv4": {nil, "203.0.113.1", "198.51.99.9", "96.114.14.140"}, "IPv6": {nil, "2001:db9::1"},
			"port": {nil, 5000}, "groupName": {"garden", "door", "garage", "attic"}, "groupIP": {nil, group.GroupIP.String(), garage.GroupIP.String(), "172.168.0.250"},
			"TTLs": {nil, 0, 60, 86400}, "deviceType": {"camera", "phone", "gateway"}, "model": {"M1"}, "name": {"x", string(other.Account.ID)},
			"accountId": {string(other.Account.ID)}, "account": {string(other.Account.ID)}, "deviceId": {theirs.Device.ID.String()}, "userId": {"u_x"},
		}
		members := slices.Collect(maps.Keys(doc.Components.Schemas["RegistrationRequest"].Value.Properties))
		for _, name := range members {
			require.Contains(t, drawn, name, "a new member of the request: say here what an attacker would write into it")
		}
		names := slices.Sorted(maps.Keys(drawn))
		who := []struct {
			caller edgetest.Caller
			member models.ID
			source bool
		}{{l.As(t, camera), camera.Device.ID, true}, {l.As(t, phone), phone.Device.ID, false}, {l.As(t, upload.Principal), upload.Link.ServiceAccountID, false}}
		rows := func() map[string]bool {
			all := map[string]bool{}
			for _, id := range l.DB.Texts(t, "SELECT id FROM registrations") {
				all[id] = true
			}
			return all
		}
		seen, taken, refused, outer := rows(), 0, 0, t
		try := func(t rapid.TB, w int, changes map[string]any) {
			who := who[w]
			// What would be let in, so that what is changed is what decides.
			body := map[string]any{"type": "Device", "id": who.member.String(), "destination": !who.source, "groupName": "garden", "publicIPv4": "96.114.14.140"}
			if who.source {
				body["privateIPv4"], body["publicIPv4"] = "172.168.0.5", "203.0.113.1"
			}
			if who.member == upload.Link.ServiceAccountID {
				body["type"], body["groupIP"] = "Service", group.GroupIP.String()
			}
			maps.Copy(body, changes)
			text, err := json.Marshal(body)
			require.NoError(t, err)
			a := who.caller.Do(outer, http.MethodPost, "/v1/registrations", string(text))
			if a.Status != http.StatusOK {
				refused++
				if a.Status >= 500 || a.Status == http.StatusUnauthorized {
					t.Fatalf("%s: %d %s", text, a.Status, a.Body)
				}
				return
			}
			taken++
			for id := range rows() {
				if seen[id] {
					continue
				}
				seen[id] = true
				got := l.DB.Texts(outer, fmt.Sprintf("SELECT account_id || ' ' || member_id || ' ' || role FROM registrations WHERE id = '%s'", id))[0]
				// Only a camera may be a source; it may be a destination, too.
				mine := fmt.Sprintf("%s %s ", own.Account.ID, who.member)
				if got != mine+"destination" && (got != mine+"source" || !who.source) {
					t.Fatalf("%s made %q, which is not of %s", text, got, mine)
				}
			}
			if after := snapshot(); !slices.Equal(before, after) {
				t.Fatalf("%s changed another account: %v", text, after)
			}
		}
		for w := range who {
			for _, name := range names {
				for _, value := range drawn[name] {
					try(t, w, map[string]any{name: value})
				}
			}
		}
		rapid.Check(t, func(r *rapid.T) {
			changes := map[string]any{}
			for range rapid.IntRange(2, 4).Draw(r, "changes") {
				name := rapid.SampledFrom(names).Draw(r, "member")
				changes[name] = rapid.SampledFrom(drawn[name]).Draw(r, "value")
			}
			try(r, rapid.IntRange(0, len(who)-1).Draw(r, "who"), changes)
		})
		assert.Equal(t, before, snapshot())
		assert.Positive(t, taken, "some were let in")
		assert.Positive(t, refused, "some were refused")
		t.Logf("%d taken, %d refused", taken, refused)
	})
}

// TestAttackIDsThatAreOneNumberInJavaScript is row 12 in Go, JSON and both databases; JavaScript is in TestInteropTypeScript.
func TestAttackIDsThatAreOneNumberInJavaScript(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		const near, far models.ID = 664123086043511412, 664123086043511413
		require.InDelta(t, float64(near), float64(far), 0, "in a float they are one")
		cameras := map[models.ID]edgetest.Caller{}
		for i, id := range []models.ID{near, far} {
			cameras[id] = l.As(t, h.Import(t, accounts.NewDevice{ID: id, PremisesID: h.Premises.ID, Type: models.DeviceCamera, Name: fmt.Sprint("camera", i)}))
		}
		for id, other := range map[models.ID]models.ID{near: far, far: near} {
			body := `{"type":"Device","id":%s,"destination":false,"privateIPv4":"172.168.0.%d","publicIPv4":"203.0.113.1","groupName":"g%d"}`
			end := int(id % 100)
			a := cameras[id].Do(t, http.MethodPost, "/v1/registrations", fmt.Sprintf(body, `"`+other.String()+`"`, end, end))
			assert.Equal(t, http.StatusForbidden, a.Status, a.Body)
			a = cameras[id].Do(t, http.MethodPost, "/v1/registrations", fmt.Sprintf(body, other, end, end))
			assert.Equal(t, http.StatusForbidden, a.Status, "nor as a number: %s", a.Body)
			a = cameras[id].Do(t, http.MethodPost, "/v1/registrations", fmt.Sprintf(body, id, end, end))
			require.Equal(t, http.StatusOK, a.Status, a.Body)
			a = cameras[id].Do(t, http.MethodGet, "/v1/registrations", "")
			assert.Contains(t, a.Body, `"id":"`+id.String()+`"`)
			assert.NotContains(t, a.Body, other.String())
		}
		assert.Equal(t, []string{near.String(), far.String()}, l.DB.Texts(t, "SELECT CAST(member_id AS text) FROM registrations ORDER BY member_id"))
		information := l.As(t, h.Gateway).Do(t, http.MethodGet, "/v1/gateways/"+h.Gateway.Device.ID.String()+"/groups", "")
		assert.Contains(t, information.Body, `"g12"`)
		assert.Contains(t, information.Body, `"g13"`)
	})
}
