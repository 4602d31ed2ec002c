package relays_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// lab is homes and relays on one database.
type lab struct {
	*servertest.Services
	relays *relays.Service
	t      *testing.T
}

func each(t *testing.T, test func(t *testing.T, l lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		test(t, lab{servertest.On(db, db.Store), relays.New(db.Store, relays.Options{}), t})
	})
}

func key(n int) (k models.TunnelKey) {
	k[0], k[1], k[2] = byte(n), byte(n>>8), 1
	return k
}

// relay makes one that has declared itself, asked, and may serve all.
func (l lab) relay(n int) models.Principal {
	l.t.Helper()
	ticket, err := l.relays.Create(ctx, fmt.Sprint("relay-", n))
	require.NoError(l.t, err)
	require.NoError(l.t, l.relays.SetMay(ctx, ticket.RelayID, true, nil))
	p, err := l.relays.Principal(ctx, ticket.RelayID)
	require.NoError(l.t, err)
	at := netip.AddrFrom4([4]byte{96, 114, 20, byte(n)})
	_, err = l.relays.Declare(ctx, p, relays.Declaration{RelayID: ticket.RelayID, TunnelKey: key(1000 + n), Endpoint: netip.AddrPortFrom(at, 51820), Uplink: at})
	require.NoError(l.t, err)
	p, err = l.relays.Principal(ctx, ticket.RelayID)
	require.NoError(l.t, err)
	l.ask(p)
	return p
}

// ask polls as the relay would, with what it has now.
func (l lab) ask(p models.Principal) models.GroupInformation {
	l.t.Helper()
	i := l.information(p.Relay.ID)
	require.NoError(l.t, l.DB.RecordPolls(ctx, []models.Poll{{GatewayID: p.Relay.ID, Relay: true, Epoch: i.Epoch, Revision: i.Revision}}))
	return i
}

func (l lab) information(id models.ID) models.GroupInformation {
	l.t.Helper()
	all, err := l.Groups.Information(ctx, []models.ID{id})
	require.NoError(l.t, err)
	require.Contains(l.t, all, id)
	return all[id]
}

func (l lab) look() {
	l.t.Helper()
	require.NoError(l.t, l.relays.Look(ctx))
}

type house struct {
	*servertest.Home
	camera, phone registrations.Answer
	cam           models.Principal
}

// house is a home whose gateway has a tunnel, with a camera and a phone in a group at 172.168.0.233.
func (l lab) house(n int) house {
	l.t.Helper()
	h := house{Home: l.NewHome(l.t)}
	d := h.Declaration("172.168.0.233-172.168.0.254")
	d.TunnelKey = key(n)
	_, _, err := h.Gateways.Declare(ctx, h.Gateway, d)
	require.NoError(l.t, err)
	h.cam = h.Device(l.t, models.DeviceCamera, "camera")
	h.camera = h.Join(l.t, h.cam, servertest.Source(h.cam, "172.168.0.5", "g"))
	phone := h.Device(l.t, models.DevicePhone, "phone")
	h.phone = h.Join(l.t, phone, servertest.Destination(phone, fmt.Sprintf("198.51.99.%d", n), "g"))
	return h
}

func (h house) fanout(t *testing.T, to models.Fanout, loss models.OnRelayLoss) models.Premises {
	t.Helper()
	p, err := h.Accounts.ChangePremises(ctx, h.Account.ID, h.Premises.ID, accounts.PremisesChange{Fanout: &to, OnRelayLoss: &loss})
	require.NoError(t, err)
	return p
}

func (h house) copiedAt(t *testing.T) models.CopiedAt {
	t.Helper()
	p, err := h.Accounts.Premises(ctx, h.Premises.ID)
	require.NoError(t, err)
	return p.CopiedAt
}

// consented reports that the phone has consented to a node.
func (h house) consented(t *testing.T, by models.Principal, id models.ID, sequence int64, state models.ConsentState) consents.Answer {
	t.Helper()
	a, err := h.Consents.Report(ctx, by, consents.Report{
		NodeID: id, Sequence: sequence, Senders: []models.SenderPorts{{RegistrationID: h.camera.RegistrationID, Port: 40001}},
		Consents: []models.SenderConsent{{RegistrationID: h.phone.RegistrationID, SenderID: h.camera.RegistrationID, State: state, Learned: netip.MustParseAddrPort("198.51.99.1:5004")}},
	})
	require.NoError(t, err)
	require.True(t, a.Applied)
	return a
}

func (l lab) of(relay models.Principal) (premises []models.PremisesID) {
	l.t.Helper()
	for _, h := range l.information(relay.Relay.ID).Homes {
		premises = append(premises, h.PremisesID)
	}
	return premises
}

// TestRelayCopiesWhenItIsReady: make before break. The gateway copies until the relay has acknowledged the premises and has the consents that the gateway
// has, or had three seconds to get them; and then one node copies.
func TestRelayCopiesWhenItIsReady(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		h, r := l.house(1), l.relay(1)
		h.consented(t, h.Gateway, h.Gateway.Device.ID, 1, models.ConsentLive)
		require.Equal(t, models.FanoutHome, h.Information(t).Fanout)
		before := l.information(r.Relay.ID).Revision
		require.Equal(t, models.CopiedHome, h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome).CopiedAt)
		info := h.Information(t)
		require.Equal(t, models.FanoutNetwork, info.Fanout)
		require.NotNil(t, info.Relay)
		require.False(t, info.Relay.Forwarding)
		require.Equal(t, r.Relay.TunnelKey, info.Relay.Relay.TunnelKey)
		require.Greater(t, l.information(r.Relay.ID).Revision, before)
		require.Len(t, info.Groups, 1, "the groups stay with the gateway")

		h.consented(t, r, r.Relay.ID, 1, models.ConsentLive)
		l.look()
		require.False(t, h.Information(t).Relay.Forwarding, "not acknowledged")
		h.consented(t, r, r.Relay.ID, 2, models.ConsentPending)
		of := l.ask(r)
		require.Len(t, of.Homes, 1)
		require.Equal(t, []models.RelayPremises{{PremisesID: h.Premises.ID, GatewayID: h.Gateway.Device.ID, TunnelKey: key(1), TunnelAddress: info.TunnelAddress}}, of.Homes[0].Gateways)
		require.Len(t, of.Homes[0].Groups, 1)
		l.look()
		require.False(t, h.Information(t).Relay.Forwarding, "the phone hasn't consented to the relay")
		require.Equal(t, models.CopiedHome, h.copiedAt(t))
		h.consented(t, r, r.Relay.ID, 3, models.ConsentLive)
		l.Woken.Take()
		l.look()
		require.True(t, h.Information(t).Relay.Forwarding)
		require.Equal(t, of.Revision, l.information(r.Relay.ID).Revision, "who copies is no news for the relay")
		woken := l.Woken.Take()
		require.Contains(t, woken, h.Gateway.Device.ID)
		require.NotContains(t, woken, r.Relay.ID)
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))

		// The consent that is shown is that with the relay, and the places are those of both.
		h.consented(t, h.Gateway, h.Gateway.Device.ID, 2, models.ConsentLost)
		all, err := l.Groups.Information(ctx, []models.ID{r.Relay.ID})
		require.NoError(t, err)
		require.Len(t, all, 1)
		state := l.DB.Texts(t, "SELECT state FROM consents WHERE counts ORDER BY state")
		require.Equal(t, []string{"live"}, state)

		h.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.Equal(t, models.FanoutHome, h.Information(t).Fanout)
		h.Acknowledge(t)
		l.look()
		require.Empty(t, l.of(r))
		require.Equal(t, []string{"lost"}, l.DB.Texts(t, "SELECT state FROM consents WHERE counts"), "what the relay said is forgotten")

		// A destination that never consents delays it by three seconds only.
		h.consented(t, h.Gateway, h.Gateway.Device.ID, 3, models.ConsentLive)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		l.ask(r)
		l.look()
		require.False(t, h.Information(t).Relay.Forwarding)
		l.DB.Advance(t, store.RelayReadyAfter)
		l.ask(r)
		l.look()
		require.True(t, h.Information(t).Relay.Forwarding)
	})
}

// TestPremisesOfADeadRelayMove: to the other, by the policy of the account holder if there is none, and back when one lives.
func TestPremisesOfADeadRelayMove(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		a, b := l.relay(1), l.relay(2)
		if a.Relay.ID > b.Relay.ID { // of two with as many the lower id gets the next
			a, b = b, a
		}
		stop, home, third := l.house(1), l.house(2), l.house(3)
		stop.fanout(t, models.FanoutNetwork, models.OnRelayLossStop)
		home.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		third.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Len(t, l.of(a), 2, "spread")
		require.Len(t, l.of(b), 1)
		l.ask(a)
		l.ask(b)
		l.look()
		require.Equal(t, models.CopiedNetwork, stop.copiedAt(t))
		require.Equal(t, models.CopiedNetwork, home.copiedAt(t))

		l.DB.Advance(t, models.RelayLiveFor+time.Second)
		l.ask(b)
		l.look()
		require.Empty(t, l.of(a))
		require.Len(t, l.of(b), 3)
		i := stop.Information(t)
		require.Equal(t, models.FanoutNetwork, i.Fanout)
		require.True(t, i.Relay == nil || i.Relay.Forwarding, "with the policy stop its gateway never copies meanwhile")
		l.ask(b)
		l.look()
		for _, h := range []house{stop, home, third} {
			require.True(t, h.Information(t).Relay.Forwarding)
			require.Equal(t, b.Relay.ID, h.Information(t).Relay.Relay.ID)
		}

		l.DB.Advance(t, models.RelayLiveFor+time.Second)
		l.look()
		require.Equal(t, models.CopiedNowhere, stop.copiedAt(t))
		i = stop.Information(t)
		require.Equal(t, models.FanoutNetwork, i.Fanout)
		require.Nil(t, i.Relay)
		require.Equal(t, models.CopiedHome, home.copiedAt(t))
		require.Equal(t, models.FanoutHome, home.Information(t).Fanout)

		// The account holder may change the policy meanwhile.
		require.Equal(t, models.CopiedHome, stop.fanout(t, models.FanoutNetwork, models.OnRelayLossHome).CopiedAt)
		require.Equal(t, models.CopiedNowhere, stop.fanout(t, models.FanoutNetwork, models.OnRelayLossStop).CopiedAt)
		l.ask(a)
		l.look()
		require.Len(t, l.of(a), 3)
		l.ask(a)
		l.look()
		require.Equal(t, models.CopiedNetwork, stop.copiedAt(t))

		require.NoError(t, l.relays.Remove(ctx, a.Relay.ID))
		_, err := l.relays.Principal(ctx, a.Relay.ID)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		l.look()
		require.Equal(t, models.CopiedHome, third.copiedAt(t))
	})
}

// TestRelaySeesItsPremisesOnly: equal group IPs of several homes stay apart, nothing of others is in its information, and what it reports of them is unknown.
func TestRelaySeesItsPremisesOnly(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		a, b := l.relay(1), l.relay(2)
		one, two, notInNetwork := l.house(1), l.house(2), l.house(3)
		require.NoError(t, l.relays.SetMay(ctx, a.Relay.ID, false, []models.PremisesID{one.Premises.ID}))
		require.NoError(t, l.relays.SetMay(ctx, b.Relay.ID, false, []models.PremisesID{two.Premises.ID}))
		one.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		two.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		notInNetwork.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.Equal(t, []models.PremisesID{one.Premises.ID}, l.of(a))
		require.Equal(t, []models.PremisesID{two.Premises.ID}, l.of(b))
		answer, err := two.Consents.Report(ctx, a, consents.Report{
			NodeID: a.Relay.ID, Sequence: 1, Senders: []models.SenderPorts{{RegistrationID: two.camera.RegistrationID, Port: 4}, {RegistrationID: one.camera.RegistrationID, Port: 5}},
		})
		require.NoError(t, err)
		require.Equal(t, []models.RegistrationID{two.camera.RegistrationID}, answer.Unknown)
		_, err = two.Consents.Report(ctx, a, consents.Report{NodeID: b.Relay.ID, Sequence: 1})
		servertest.Refused(t, models.CodeNotFound, err)

		// One that may serve no more gives the premises up; the other takes both.
		require.NoError(t, l.relays.SetMay(ctx, b.Relay.ID, true, nil))
		require.NoError(t, l.relays.SetMay(ctx, a.Relay.ID, false, nil))
		l.look()
		require.Empty(t, l.of(a))
		info := l.information(b.Relay.ID)
		require.Len(t, info.Homes, 2)
		at := info.Homes
		require.Equal(t, at[0].Groups[0].IP, at[1].Groups[0].IP)
		require.NotEqual(t, at[0].Groups[0].PremisesID, at[1].Groups[0].PremisesID)
		require.NotEqual(t, at[0].Gateways[0].TunnelAddress, at[1].Gateways[0].TunnelAddress)
		first, err := httpapi.RenderInformation(info)
		require.NoError(t, err)
		again, err := httpapi.RenderInformation(l.information(b.Relay.ID))
		require.NoError(t, err)
		require.Equal(t, string(first), string(again))
		require.NotContains(t, string(first), string(notInNetwork.Premises.ID))

		// Whatever changes a group of its premises raises the relay's revision; what changes elsewhere doesn't.
		camera2 := one.Device(t, models.DeviceCamera, "camera2")
		l.Woken.Take()
		one.Join(t, camera2, servertest.Source(camera2, "172.168.0.6", "h"))
		require.Contains(t, l.Woken.Take(), b.Relay.ID)
		now := l.information(b.Relay.ID)
		require.Greater(t, now.Revision, info.Revision)
		other := notInNetwork.Device(t, models.DeviceCamera, "camera2")
		notInNetwork.Join(t, other, servertest.Source(other, "172.168.0.6", "h"))
		require.Equal(t, now.Revision, l.information(b.Relay.ID).Revision)
	})
}

// TestOnlyWhatChangedIsReadAgain: after a change of one premises the others are those that were written before; and a replica that had nothing gives the
// same bytes, which are those of the contract.
func TestOnlyWhatChangedIsReadAgain(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r := l.relay(1)
		a, b, c := l.house(1), l.house(2), l.house(3)
		homes := func() map[models.PremisesID]*models.RelayHome {
			t.Helper()
			info := l.information(r.Relay.ID)
			body, err := httpapi.RenderInformation(info)
			require.NoError(t, err)
			cold, err := servertest.On(l.DB, l.DB.Store).Groups.Information(ctx, []models.ID{r.Relay.ID})
			require.NoError(t, err)
			elsewhere, err := httpapi.RenderInformation(cold[r.Relay.ID])
			require.NoError(t, err)
			require.Equal(t, string(elsewhere), string(body))
			var said api.RelayInformation
			strict := json.NewDecoder(bytes.NewReader(body))
			strict.DisallowUnknownFields()
			require.NoError(t, strict.Decode(&said))
			again, err := json.Marshal(said)
			require.NoError(t, err)
			require.Equal(t, string(again), string(body))
			all := map[models.PremisesID]*models.RelayHome{}
			for _, h := range info.Homes {
				all[h.PremisesID] = h
			}
			return all
		}
		require.Empty(t, homes())
		for _, h := range []house{a, b, c} {
			h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		}
		before := homes()
		require.Len(t, before, 3)
		phone := b.Device(t, models.DevicePhone, "another")
		b.Join(t, phone, servertest.Destination(phone, "198.51.99.77", "g"))
		now := homes()
		require.Same(t, before[a.Premises.ID], now[a.Premises.ID])
		require.Same(t, before[c.Premises.ID], now[c.Premises.ID])
		require.NotSame(t, before[b.Premises.ID], now[b.Premises.ID])
		require.Len(t, now[b.Premises.ID].Groups[0].Destinations, 2)

		// What it loses is gone, and what it gets again is as it is then.
		a.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.NotContains(t, homes(), a.Premises.ID)
		a.Leave(t, a.cam, a.camera.RegistrationID)
		a.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Empty(t, homes()[a.Premises.ID].Groups)
		require.Same(t, before[c.Premises.ID], homes()[c.Premises.ID])

		// Revisions of another life say nothing.
		_, err := l.DB.BeginLife(ctx, func(store.Watch) bool { return true }, func(*store.Tx, store.Life) error { return nil })
		require.NoError(t, err)
		require.NotSame(t, before[c.Premises.ID], homes()[c.Premises.ID])
	})
}

// TestNewGatewayJoinsTheRelay: a gateway that comes to a premises which a relay serves already belongs to the relay once it has declared itself, and what
// changes there raises the relay's revision from then on.
func TestNewGatewayJoinsTheRelay(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r, h := l.relay(1), l.house(1)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		l.ask(r)
		l.look()
		l.DB.Advance(t, store.RelayReadyAfter)
		l.ask(r)
		l.look()
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))
		before := l.information(r.Relay.ID)
		second := h.Device(t, models.DeviceGateway, "second")
		require.Equal(t, before.Revision, l.information(r.Relay.ID).Revision)
		l.Woken.Take()
		d := h.Declaration("172.20.0.230-172.20.0.254")
		d.GatewayID, d.LANPrefix, d.GatewayIPv4, d.TunnelKey = second.Device.ID, "172.20.0.0/24", servertest.Addr("172.20.0.1"), key(2)
		_, _, err := h.Gateways.Declare(ctx, second, d)
		require.NoError(t, err)
		require.Contains(t, l.Woken.Take(), r.Relay.ID)
		now := l.information(r.Relay.ID)
		require.Greater(t, now.Revision, before.Revision)
		require.Len(t, now.Homes, 1)
		require.Len(t, now.Homes[0].Gateways, 2)
		require.Equal(t, []string{"true", "true"}, l.forwardings())
		d.TunnelKey = key(3)
		_, _, err = h.Gateways.Declare(ctx, second, d)
		require.NoError(t, err)
		require.Greater(t, l.information(r.Relay.ID).Revision, now.Revision)
	})
}

// forwardings is what the rows of the gateways say.
func (l lab) forwardings() []string {
	l.t.Helper()
	return l.DB.Texts(l.t, "SELECT CASE WHEN w.forwarding AND ra.forwarding THEN 'true' ELSE 'false' END FROM gateways w JOIN relay_assignments ra ON ra.premises_id = w.premises_id AND ra.relay_id = w.relay_id")
}

// TestAddressWaitsForTheRelay: a group IP isn't handed to another group while a live relay that has, or had, the premises hasn't acknowledged that its group
// ended.
func TestAddressWaitsForTheRelay(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r := l.relay(1)
		h := l.house(1)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		l.ask(r)
		had := l.information(r.Relay.ID)
		h.Leave(t, h.cam, h.camera.RegistrationID)
		quarantined := func() int {
			t.Helper()
			_, pool, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
			require.NoError(t, err)
			return pool.Quarantined
		}
		over := func(held models.GroupInformation) {
			t.Helper()
			l.DB.Advance(t, servertest.Cooldown)
			h.Acknowledge(t)
			require.NoError(t, l.DB.RecordPolls(ctx, []models.Poll{{GatewayID: r.Relay.ID, Relay: true, Epoch: held.Epoch, Revision: held.Revision}}))
		}
		over(had)
		require.Equal(t, 1, quarantined(), "the relay asks, and hasn't acknowledged it")
		l.ask(r)
		require.Zero(t, quarantined())

		// It left the premises and doesn't know yet.
		h.camera = h.Join(t, h.cam, servertest.Source(h.cam, "172.168.0.5", "g"))
		had = l.ask(r)
		h.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		h.Leave(t, h.cam, h.camera.RegistrationID)
		over(had)
		require.Equal(t, 1, quarantined())
		l.DB.Advance(t, servertest.MaxStale)
		h.Acknowledge(t)
		require.Zero(t, quarantined(), "a silent relay has stopped copying")
	})
}
