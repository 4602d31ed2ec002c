package relays_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
)

// relayed is a house for which a relay copies.
func (l lab) relayed(n int, by models.Principal) house {
	l.t.Helper()
	h := l.house(n)
	h.consented(l.t, h.Gateway, h.Gateway.Device.ID, 1, models.ConsentLive)
	h.fanout(l.t, models.FanoutNetwork, models.OnRelayLossHome)
	l.ask(by)
	h.consented(l.t, by, by.Relay.ID, int64(n), models.ConsentLive)
	l.look()
	require.True(l.t, h.Information(l.t).Relay.Forwarding)
	require.Equal(l.t, models.CopiedNetwork, h.copiedAt(l.t))
	h.Acknowledge(l.t)
	return h
}

// patient lets gateways that are told to leave a relay take their time, however slow this machine is.
func (l lab) patient() {
	l.t.Helper()
	l.DB.Exec(l.t, "UPDATE gateways SET leaving_until = leaving_until + 3600000 WHERE leaving_id <> 0")
}

// counting are the nodes with whom consents are that count.
func (l lab) counting() []string {
	l.t.Helper()
	return l.DB.Texts(l.t, "SELECT CASE relay_id WHEN 0 THEN 'gateway' ELSE 'relay' END FROM consents WHERE counts ORDER BY relay_id")
}

func destinations(i models.GroupInformation) (n int) {
	for _, h := range i.Homes {
		for _, g := range h.Groups {
			n += len(g.Destinations)
		}
	}
	return n
}

// TestRelayIsLeftOnceTheGatewayHasHeard: make before break, on the way home too. The relay holds the premises until its gateway has acknowledged that it is to copy itself;
// until then it hears of each change and is who copies.
func TestRelayIsLeftOnceTheGatewayHasHeard(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r := l.relay(1)
		h := l.relayed(1, r)
		had := h.Information(t)
		l.ask(r)
		require.Equal(t, models.CopiedNetwork, h.fanout(t, models.FanoutHome, models.OnRelayLossHome).CopiedAt, "the gateway hasn't heard of it")
		told := h.Information(t)
		require.Equal(t, models.FanoutHome, told.Fanout)
		require.Nil(t, told.Relay)
		l.patient()
		require.NoError(t, l.DB.RecordPolls(ctx, []models.Poll{{GatewayID: had.GatewayID, Epoch: had.Epoch, Revision: had.Revision}}))
		l.look()
		require.Len(t, l.of(r), 1, "what it acknowledged was of before")
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))
		require.Equal(t, []string{"relay"}, l.counting())
		h.consented(t, r, r.Relay.ID, 2, models.ConsentPending)
		h.consented(t, r, r.Relay.ID, 3, models.ConsentLive)
		require.Equal(t, []string{"relay"}, l.counting())

		// Who comes and who leaves meanwhile comes and leaves there as well.
		before := l.ask(r)
		l.Woken.Take()
		phone := h.Device(t, models.DevicePhone, "another")
		another := h.Join(t, phone, servertest.Destination(phone, "198.51.99.77", "g"))
		require.Contains(t, l.Woken.Take(), r.Relay.ID)
		now := l.ask(r)
		require.Greater(t, now.Revision, before.Revision)
		require.Equal(t, 2, destinations(now))
		h.Leave(t, phone, another.RegistrationID)
		require.Contains(t, l.Woken.Take(), r.Relay.ID)
		require.Equal(t, 1, destinations(l.ask(r)))

		before = l.ask(r)
		h.Acknowledge(t)
		l.Woken.Take()
		gateway := h.Information(t).Revision
		l.look()
		require.Empty(t, l.of(r))
		woken := l.Woken.Take()
		require.Contains(t, woken, r.Relay.ID)
		require.NotContains(t, woken, h.Gateway.Device.ID, "it has no news")
		require.Equal(t, gateway, h.Information(t).Revision)
		require.Greater(t, l.information(r.Relay.ID).Revision, before.Revision)
		require.Equal(t, models.CopiedHome, h.copiedAt(t))
		require.Equal(t, []string{"gateway"}, l.counting())
		require.Equal(t, []string{"home"}, l.DB.Texts(t, "SELECT fanout FROM premises"))
		l.look()
		require.NotContains(t, l.Woken.Take(), r.Relay.ID, "once")
	})
}

// TestRelayIsLeftInAnyCase: a gateway that says nothing keeps its premises there for some seconds only, one that is removed not at all, and a relay that is dead or
// didn't copy is left at once.
func TestRelayIsLeftInAnyCase(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r := l.relay(1)
		silent, removed := l.relayed(1, r), l.relayed(2, r)
		l.ask(r)
		silent.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		removed.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.Len(t, l.of(r), 2)
		require.NoError(t, l.Accounts.DeleteDevice(ctx, removed.Account.ID, removed.Gateway.Device.ID))
		require.Equal(t, []models.PremisesID{silent.Premises.ID}, l.of(r))
		require.Equal(t, models.CopiedHome, removed.copiedAt(t))
		l.DB.Advance(t, store.RelayLeftAfter)
		l.ask(r)
		l.look()
		require.Empty(t, l.of(r))
		require.Equal(t, models.CopiedHome, silent.copiedAt(t))

		silent.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Len(t, l.of(r), 1)
		silent.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.Empty(t, l.of(r), "nobody forwarded to it")

		dead := l.relayed(3, r)
		l.DB.Advance(t, models.RelayLiveFor)
		l.look()
		require.Empty(t, l.of(r))
		require.Equal(t, models.CopiedHome, dead.copiedAt(t))
		require.Equal(t, models.FanoutHome, dead.Information(t).Fanout)
	})
}

// TestRelayIsLeftForAnother: between two relays that live it is the same. The gateway copies from when it has heard of the other one until that is ready. Whoever comes back before
// the gateway has heard anything has never left.
func TestRelayIsLeftForAnother(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		a := l.relay(1)
		h := l.relayed(1, a)
		b := l.relay(2)
		require.NoError(t, l.relays.SetMay(ctx, a.Relay.ID, false, nil))
		l.ask(a)
		l.ask(b)
		l.look()
		l.patient()
		info := h.Information(t)
		require.Equal(t, b.Relay.ID, info.Relay.Relay.ID)
		require.False(t, info.Relay.Forwarding)
		require.Len(t, l.of(a), 1)
		require.Len(t, l.of(b), 1)
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))
		l.Woken.Take()
		phone := h.Device(t, models.DevicePhone, "another")
		h.Leave(t, phone, h.Join(t, phone, servertest.Destination(phone, "198.51.99.77", "g")).RegistrationID)
		woken := l.Woken.Take()
		require.Contains(t, woken, a.Relay.ID)
		require.Contains(t, woken, b.Relay.ID)
		// The other one is ready before the gateway has heard of anything.
		l.ask(b)
		h.consented(t, b, b.Relay.ID, 1, models.ConsentLive)
		require.Equal(t, []string{"relay"}, l.DB.Texts(t, fmt.Sprintf("SELECT 'relay' FROM consents WHERE counts AND relay_id = %d", a.Relay.ID)))
		l.look()
		require.True(t, h.Information(t).Relay.Forwarding)
		require.Equal(t, []string{"relay"}, l.DB.Texts(t, fmt.Sprintf("SELECT 'relay' FROM consents WHERE counts AND relay_id = %d", b.Relay.ID)))
		require.Equal(t, []string{"relay"}, l.counting())
		require.Len(t, l.of(a), 1)
		h.Acknowledge(t)
		l.look()
		require.Empty(t, l.of(a))
		require.Len(t, l.of(b), 1)
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))
		require.Equal(t, []string{"relay"}, l.counting())

		l.ask(b)
		h.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.False(t, h.Information(t).Relay.Forwarding)
		l.ask(b)
		l.look()
		require.True(t, h.Information(t).Relay.Forwarding, "the relay doesn't report again what it has reported")
		now := l.information(b.Relay.ID).Revision
		l.DB.Advance(t, store.RelayLeftAfter)
		l.ask(b)
		l.look()
		require.Len(t, l.of(b), 1)
		require.Equal(t, now, l.information(b.Relay.ID).Revision, "it was not left")
		require.Equal(t, []string{"relay"}, l.counting())

		// Two changes before the gateway has heard of one: home, and to the first relay, which is not the one that it forwards to.
		l.ask(b)
		h.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		require.NoError(t, l.relays.SetMay(ctx, a.Relay.ID, true, nil))
		require.NoError(t, l.relays.SetMay(ctx, b.Relay.ID, false, nil))
		l.ask(a)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Equal(t, a.Relay.ID, h.Information(t).Relay.Relay.ID)
		require.Len(t, l.of(a), 1)
		require.Len(t, l.of(b), 1)
		h.Acknowledge(t)
		l.look()
		require.Len(t, l.of(a), 1)
		require.Empty(t, l.of(b))
	})
}

// TestAddressWaitsForTheRelayThatIsLeft: a group that ends while a relay is being left gives its IP to nobody until that relay has acknowledged it, and what it acknowledged
// while it still held the premises is not enough.
func TestAddressWaitsForTheRelayThatIsLeft(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		r := l.relay(1)
		h := l.relayed(1, r)
		l.ask(r)
		h.fanout(t, models.FanoutHome, models.OnRelayLossHome)
		had := l.ask(r)
		h.Leave(t, h.cam, h.camera.RegistrationID)
		// Time passes, and no one looks.
		l.DB.Advance(t, servertest.Cooldown)
		h.Acknowledge(t)
		asks := func(i models.GroupInformation) {
			t.Helper()
			require.NoError(t, l.DB.RecordPolls(ctx, []models.Poll{{GatewayID: r.Relay.ID, Relay: true, Epoch: i.Epoch, Revision: i.Revision}}))
		}
		quarantined := func() int {
			t.Helper()
			_, pool, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
			require.NoError(t, err)
			return pool.Quarantined
		}
		asks(had)
		require.Equal(t, 1, quarantined(), "it holds the group still")
		l.look()
		require.Empty(t, l.of(r))
		asks(had)
		require.Equal(t, 1, quarantined(), "it has not heard that it was left")
		l.ask(r)
		require.Zero(t, quarantined())
	})
}
