package events_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/accounts"
	consentservice "github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// messages are the schemas of the AsyncAPI document's messages.
func messages(t *testing.T) map[string]*openapi3.Schema {
	t.Helper()
	var document struct {
		Components struct {
			Messages map[string]struct {
				Payload struct {
					Ref string `yaml:"$ref"`
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(openapi.Events, &document))
	loader := openapi3.NewLoader()
	contract, err := loader.LoadFromData(openapi.Public)
	require.NoError(t, err)
	all := map[string]*openapi3.Schema{}
	for name, m := range document.Components.Messages {
		file, schema := filepath.Split(m.Payload.Ref)
		require.Equal(t, "./openapi.yaml#/components/schemas/", file)
		require.Contains(t, contract.Components.Schemas, schema)
		all[name] = contract.Components.Schemas[schema].Value
	}
	require.Len(t, all, 2)
	return all
}

// TestTheHTTPChannelsAreThoseOfTheContract: an operation of the AsyncAPI document over HTTP has the name, method and path of the contract's.
func TestTheHTTPChannelsAreThoseOfTheContract(t *testing.T) {
	var document struct {
		Channels   map[string]struct{ Address string }
		Operations map[string]struct {
			Channel struct {
				Ref string `yaml:"$ref"`
			}
			Bindings struct{ HTTP struct{ Method string } }
		}
	}
	require.NoError(t, yaml.Unmarshal(openapi.Events, &document))
	contract, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	require.NoError(t, err)
	channels := 0
	for _, c := range document.Channels {
		if len(c.Address) > 0 && c.Address[0] == '/' {
			channels++
		}
	}
	for name, o := range document.Operations {
		c, known := document.Channels[filepath.Base(o.Channel.Ref)]
		require.True(t, known, "%s: there is no %s", name, o.Channel.Ref)
		if o.Bindings.HTTP.Method == "" {
			continue
		}
		path := contract.Paths.Find(c.Address)
		require.NotNil(t, path, c.Address)
		require.Equal(t, name, path.GetOperation(o.Bindings.HTTP.Method).OperationID)
		channels--
	}
	require.Zero(t, channels, "each channel over HTTP has an operation")
}

// heard is what the account and its linked services hear of the account, checked against the contract.
type heard struct {
	t        *testing.T
	s        *events.Service
	messages map[string]*openapi3.Schema
	account  models.AccountID
	types    map[models.EventType]bool
}

// uplink is the gateway's, which copies come from.
const uplink = "203.0.113.1"

// address finds anything in an event that looks like an address but the group IP.
var address = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`)

// stream reads a whole stream: without a gap from 1 on, each event one of the contract. It gives "type rev" of each.
func (h *heard) stream(group models.GroupID) (all []models.Event, told []string) {
	h.t.Helper()
	of := models.EventStream{AccountID: h.account, GroupID: group}
	batch, err := h.s.After(ctx, of, 0)
	require.NoError(h.t, err)
	require.False(h.t, batch.Gap)
	for i, e := range batch.Events {
		require.Equal(h.t, of, e.EventStream)
		require.EqualValues(h.t, i+1, e.Rev, "without a gap")
		h.types[e.Type] = true
		told = append(told, string(e.Type))
		h.check(e, events.Listener{})
	}
	require.EqualValues(h.t, len(batch.Events), batch.Newest)
	return batch.Events, told
}

// check checks what a listener gets, and gives its data.
func (h *heard) check(e models.Event, to events.Listener) map[string]any {
	h.t.Helper()
	text, err := events.JSON(e, to)
	require.NoError(h.t, err)
	var value map[string]any
	require.NoError(h.t, json.Unmarshal(text, &value))
	message := "accountEvent"
	if e.GroupID != "" {
		message = "groupEvent"
	}
	require.NoError(h.t, h.messages[message].VisitJSON(value, openapi3.EnableFormatValidation(), openapi3.MultiErrors()), "%s", text)
	require.Equal(h.t, "groupcast."+string(e.Type), value["type"])
	for _, found := range address.FindAllString(string(text), -1) {
		require.NotNil(h.t, e.Group, "%s", text)
		require.Contains(h.t, []string{e.Group.IP.String(), uplink}, found, "no address but the group IP and what copies come from: %s", text)
	}
	if to.ServiceID != "" {
		require.NotContains(h.t, string(text), h.account, "a service never learns the account's id")
	}
	data, ok := value["data"].(map[string]any)
	require.True(h.t, ok)
	return data
}

// TestEveryEventIsOfTheContract goes through all that can happen in an account.
func TestEveryEventIsOfTheContract(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h := s.NewHome(t)
		hear := &heard{t: t, s: events.New(db.Store), messages: messages(t), account: h.Account.ID, types: map[models.EventType]bool{}}
		upload, thumbnail := h.Service(t, "svc-upload", 2908757376510572177), h.Service(t, "svc-thumbnail", 0)
		_, err := s.Accounts.ChangeAccount(ctx, h.Account.ID, accounts.Change{JoinPolicy: &models.JoinPolicy{
			Devices:  []models.DeviceRule{{Type: models.DevicePhone}, {Type: models.DeviceReceiver, Model: "RX-1"}},
			Services: []models.ServiceID{"svc-upload", "svc-thumbnail"},
		}})
		require.NoError(t, err)
		camera, second := h.Device(t, models.DeviceCamera, `the "front" door's camera`), h.Device(t, models.DeviceCamera, "second")
		phone, tablet := h.Device(t, models.DevicePhone, "phone"), h.Device(t, models.DeviceTablet, "tablet")

		a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "groupcast1"))
		u := h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "groupcast1", a.GroupIP))
		h.Join(t, thumbnail.Principal, servertest.ServiceDestination(thumbnail, "69.252.80.75", "groupcast1", a.GroupIP))
		p := h.Join(t, phone, servertest.Destination(phone, "71.230.36.162", "groupcast1"))
		at := servertest.Destination(phone, "71.230.36.163", "groupcast1")
		h.Join(t, phone, at)
		at.Port = 5004
		h.Join(t, phone, at)
		at.Name = "hers"
		h.Join(t, phone, at)
		h.Join(t, phone, at) // a renewal says nothing
		report := func(sequence int64, senders []models.SenderPorts, consents []models.SenderConsent) {
			_, err := s.Consents.Report(ctx, h.Gateway, consentservice.Report{NodeID: h.Gateway.Device.ID, Sequence: sequence, Senders: senders, Consents: consents})
			require.NoError(t, err)
		}
		report(1, []models.SenderPorts{{RegistrationID: a.RegistrationID, Port: 40000}},
			[]models.SenderConsent{{RegistrationID: p.RegistrationID, SenderID: a.RegistrationID, State: models.ConsentLive}})
		b := h.Join(t, second, servertest.Source(second, "172.168.0.6", "groupcast1"))
		h.Leave(t, second, b.RegistrationID)
		h.Leave(t, upload.Principal, u.RegistrationID)
		require.NoError(t, s.Accounts.DeleteLink(ctx, "svc-thumbnail", h.Account.ID))
		short := servertest.Destination(tablet, "198.51.99.20", "groupcast1")
		ttl := 30
		short.TTL = &ttl
		h.Join(t, tablet, short)
		_, err = expiry.New(db.Store, slog.New(slog.DiscardHandler)).Look(ctx) // begins to look
		require.NoError(t, err)
		db.Advance(t, time.Minute)
		_, err = expiry.New(db.Store, slog.New(slog.DiscardHandler)).Look(ctx)
		require.NoError(t, err)
		group, _, err := s.Groups.List(ctx, phone, groups.Filter{}, models.Page{})
		require.NoError(t, err)
		require.Len(t, group, 1)
		require.EqualValues(t, 14, group[0].Rev, "whoever missed something reads what there is, and as of which event")
		h.Leave(t, phone, p.RegistrationID)
		h.Leave(t, camera, a.RegistrationID)

		all, told := hear.stream(group[0].ID)
		require.Equal(t, []string{
			"group.created", "member.joined", "member.joined", "member.joined", "member.moved", "member.moved", "group.changed",
			"consent.changed", "member.joined", "member.left", "member.left", "member.left", "member.joined", "member.expired", "member.left", "group.ended",
		}, told)
		var states []int
		for _, e := range all {
			states = append(states, e.Group.State)
			require.Equal(t, group[0].IP, e.Group.IP)
			require.Equal(t, h.Premises.ID, e.PremisesID)
		}
		require.Equal(t, []int{0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 2, 1, 2, 1, 0, 0}, states)
		require.Equal(t, []models.Member{
			{Type: models.MemberDevice, ID: camera.Device.ID, Role: models.RoleSource, Name: `the "front" door's camera`},
			{Type: models.MemberService, ID: 2908757376510572177, Role: models.RoleDestination, Name: "svc-upload", Consent: models.ConsentPending},
			{Type: models.MemberService, ID: thumbnail.Link.ServiceAccountID, Role: models.RoleDestination, Name: "svc-thumbnail", Consent: models.ConsentPending},
			{Type: models.MemberDevice, ID: phone.Device.ID, Role: models.RoleDestination, Name: "hers", Consent: models.ConsentLive},
		}, all[7].Group.Members)
		require.Empty(t, all[15].Group.Members)

		// Where the copies come from: for the account, and for a service while it is a destination.
		place := []any{map[string]any{"sourceId": camera.Device.ID.String(), "address": uplink, "port": float64(40000)}}
		require.NotContains(t, hear.check(all[6], events.Listener{}), "senders")
		require.Equal(t, place, hear.check(all[7], events.Listener{})["senders"])
		require.Equal(t, place, hear.check(all[7], events.Listener{ServiceID: "svc-upload", ServiceAccountID: 2908757376510572177})["senders"])
		require.NotContains(t, hear.check(all[7], events.Listener{ServiceID: "svc-live", ServiceAccountID: 7}), "senders")
		require.NotContains(t, hear.check(all[11], events.Listener{ServiceID: "svc-upload", ServiceAccountID: 2908757376510572177}), "senders", "it left")

		// What creates a group carries the policy; a service sees whether it is meant, and nobody else.
		require.Equal(t, map[string]any{
			"devices":  []any{map[string]any{"deviceType": "phone"}, map[string]any{"deviceType": "receiver", "model": "RX-1"}},
			"services": []any{"svc-upload", "svc-thumbnail"},
		}, hear.check(all[0], events.Listener{})["joinPolicy"])
		to := events.Listener{ServiceID: "svc-upload", ServiceAccountID: 2908757376510572177}
		for i, e := range all {
			data := hear.check(e, to)
			require.Equal(t, "2908757376510572177", data["serviceAccountId"])
			if i == 0 {
				require.Equal(t, map[string]any{"devices": []any{}, "services": []any{"svc-upload"}}, data["joinPolicy"])
			} else {
				require.NotContains(t, data, "joinPolicy")
			}
		}
		require.Equal(t, map[string]any{"devices": []any{}, "services": []any{}},
			hear.check(all[0], events.Listener{ServiceID: "svc-live", ServiceAccountID: 7})["joinPolicy"])

		// The pool has 22 addresses, one in quarantine; with the 17th that is taken, 4 are free.
		for i := range 21 {
			h.Join(t, camera, servertest.Source(camera, "172.168.0.5", fmt.Sprint("g", i)))
		}
		network, stop := models.FanoutNetwork, models.OnRelayLossStop
		for range 2 {
			_, err = s.Accounts.ChangePremises(ctx, h.Account.ID, h.Premises.ID, accounts.PremisesChange{Fanout: &network})
			require.NoError(t, err)
			_, err = s.Accounts.ChangePremises(ctx, h.Account.ID, h.Premises.ID, accounts.PremisesChange{OnRelayLoss: &stop})
			require.NoError(t, err)
		}
		all, told = hear.stream("")
		require.Equal(t, []string{
			"device.added", "link.granted", "link.granted", "device.added", "device.added", "device.added", "device.added", "link.revoked",
			"pool.nearly-exhausted", "premises.changed", "premises.changed",
		}, told, "the pool says so once, and a change of nothing nothing")
		require.Equal(t, models.Pool{Size: 22, Allocated: 17, Quarantined: 1}, all[8].Pool.Pool)
		require.Equal(t, map[string]any{"premisesId": string(h.Premises.ID), "name": h.Premises.Name, "fanout": "network", "onRelayLoss": "stop", "copiedAt": "nowhere"},
			hear.check(all[10], events.Listener{})["premises"])
		for _, e := range all {
			concerned := e.Link != nil && e.Link.ServiceID == "svc-upload"
			require.Equal(t, concerned, to.Concerns(e), e.Type)
			if !concerned {
				_, err := events.JSON(e, to)
				require.Error(t, err)
			} else {
				require.NotContains(t, hear.check(e, to), "accountRev")
			}
		}
		require.Equal(t, []models.EventType{
			models.EventConsentChanged, models.EventDeviceAdded, models.EventGroupChanged, models.EventGroupCreated, models.EventGroupEnded, models.EventLinkGranted, models.EventLinkRevoked,
			models.EventMemberExpired, models.EventMemberJoined, models.EventMemberLeft, models.EventMemberMoved, models.EventPoolNearlyExhausted, models.EventPremisesChanged,
		}, slices.Sorted(maps.Keys(hear.types)), "all there is was checked")
	})
}

// TestAReaderHearsOfAGap: what was missed is said, whether it was swept, or is of a life of the database that a restore ended.
func TestAReaderHearsOfAGap(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h := s.NewHome(t)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		for range 3 {
			h.Leave(t, phone, h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g")).RegistrationID)
		}
		all, _, err := s.Groups.List(ctx, phone, groups.Filter{}, models.Page{})
		require.NoError(t, err)
		of := models.EventStream{AccountID: h.Account.ID, GroupID: all[0].ID}
		read := events.New(db.Store)
		after := func(rev int64) (revs []int64, gap bool) {
			b, err := read.After(ctx, of, rev)
			require.NoError(t, err)
			require.EqualValues(t, 7, b.Newest)
			for _, e := range b.Events {
				revs = append(revs, e.Rev)
			}
			return revs, b.Gap
		}
		for _, c := range []struct {
			rev  int64
			want []int64
			gap  bool
		}{{0, []int64{1, 2, 3, 4, 5, 6, 7}, false}, {5, []int64{6, 7}, false}, {7, nil, false}, {8, nil, true}} {
			revs, gap := after(c.rev)
			require.Equal(t, c.want, revs, "after %d", c.rev)
			require.Equal(t, c.gap, gap, "after %d", c.rev)
		}
		db.Exec(t, "DELETE FROM events WHERE rev < 5")
		for _, c := range []struct {
			rev  int64
			want []int64
			gap  bool
		}{{0, []int64{5, 6, 7}, true}, {3, []int64{5, 6, 7}, true}, {4, []int64{5, 6, 7}, false}, {7, nil, false}} {
			revs, gap := after(c.rev)
			require.Equal(t, c.want, revs, "after %d", c.rev)
			require.Equal(t, c.gap, gap, "after %d", c.rev)
		}
		db.Exec(t, "DELETE FROM events")
		_, gap := after(6)
		require.True(t, gap, "the group itself knows its newest event")
		_, gap = after(7)
		require.False(t, gap)

		foreign, err := read.After(ctx, models.EventStream{AccountID: s.NewAccount(t, false).Account.ID, GroupID: of.GroupID}, 0)
		require.NoError(t, err)
		require.Empty(t, foreign.Events)
		require.Zero(t, foreign.Newest, "another account's group is none")
	})
}
