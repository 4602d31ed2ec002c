package relays_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/store"
)

// heard is where the account's listeners heard that the premises are copied, one after the other.
func (l lab) heard(h house) (all []models.CopiedAt) {
	l.t.Helper()
	of, rev := models.EventStream{AccountID: h.Account.ID}, int64(0)
	for {
		b, err := events.New(l.DB.Store).After(ctx, of, rev)
		require.NoError(l.t, err)
		for _, e := range b.Events {
			if rev = e.Rev; e.Type == models.EventPremisesChanged {
				require.Equal(l.t, h.Premises.ID, e.PremisesID)
				require.Equal(l.t, e.PremisesID, e.Premises.ID)
				all = append(all, e.Premises.CopiedAt)
			}
		}
		if len(b.Events) == 0 {
			return all
		}
	}
}

// noted is what the audit log says of relays since the last time: who, what, to what, whose.
func (l lab) noted(since *int) (all []string) {
	l.t.Helper()
	rows, next, err := audit.List(ctx, l.DB.Store, models.AuditFilter{}, models.Page{Size: 500})
	require.NoError(l.t, err)
	require.Empty(l.t, next)
	for _, r := range slices.Backward(rows[:len(rows)-*since]) { // newest first
		if r.Result == "ok" && (strings.HasPrefix(r.Action, "relay.") || r.Action == "ticket.create") {
			all = append(all, fmt.Sprintf("%s %s %s of %q", r.Actor, r.Action, r.Object, r.AccountID))
		}
	}
	*since = len(rows)
	return all
}

// TestAccountsHearWhereCopiesAreMade: an account's listeners hear each change of copiedAt: by the account holder, by who looks after the assignments, and by a
// restore. What stays isn't told again.
func TestAccountsHearWhereCopiesAreMade(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		h, other, waits := l.house(1), l.house(2), l.house(3)
		// The policy doesn't take the gateway's copies away before a relay was there, unless it is what changes.
		require.Equal(t, models.CopiedHome, h.fanout(t, models.FanoutNetwork, models.OnRelayLossStop).CopiedAt)
		require.Equal(t, models.CopiedHome, waits.fanout(t, models.FanoutNetwork, models.OnRelayLossHome).CopiedAt)
		require.Equal(t, models.CopiedNowhere, waits.fanout(t, models.FanoutNetwork, models.OnRelayLossStop).CopiedAt)
		require.Equal(t, models.CopiedHome, waits.fanout(t, models.FanoutNetwork, models.OnRelayLossHome).CopiedAt)
		require.Equal(t, []models.CopiedAt{models.CopiedHome, models.CopiedNowhere, models.CopiedHome}, l.heard(waits))

		r := l.relay(1)
		l.look() // it is assigned
		require.Equal(t, models.CopiedHome, waits.fanout(t, models.FanoutNetwork, models.OnRelayLossStop).CopiedAt, "it is about to be ready")
		l.ask(r)
		l.look() // it copies
		l.look()
		want := []models.CopiedAt{models.CopiedHome, models.CopiedHome, models.CopiedNetwork}
		require.Equal(t, want, l.heard(h))

		// After a restore nobody knows what the relay holds.
		_, err := l.DB.BeginLife(ctx, func(store.Watch) bool { return true }, func(*store.Tx, store.Life) error { return nil })
		require.NoError(t, err)
		want = append(want, models.CopiedNowhere)
		require.Equal(t, want, l.heard(h))
		l.ask(r)
		l.look()
		want = append(want, models.CopiedNetwork)
		require.Equal(t, want, l.heard(h))

		l.DB.Advance(t, models.RelayLiveFor+time.Second)
		l.look()
		l.look()
		want = append(want, models.CopiedNowhere)
		require.Equal(t, want, l.heard(h))
		h.fanout(t, models.FanoutHome, models.OnRelayLossStop)
		require.Equal(t, append(want, models.CopiedHome), l.heard(h))
		require.Empty(t, l.heard(other), "what is another's is nobody's business")
	})
}

// TestWhatRelaysDoIsNoted: each change of a relay is in the operator's audit log, and who serves premises in that of their account.
func TestWhatRelaysDoIsNoted(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		h, since := l.house(1), 0
		l.noted(&since)
		ticket, err := l.relays.Create(ctx, "relay")
		require.NoError(t, err)
		id := ticket.RelayID
		relay, premises := "relay/"+id.String(), "premises/"+string(h.Premises.ID)
		operators := func(actor, action string) string { return fmt.Sprintf("%s %s %s of %q", actor, action, relay, "") }
		accounts := func(action string) string { return fmt.Sprintf("system %s %s of %q", action, premises, h.Account.ID) }
		operator := audit.WithCaller(ctx, audit.Caller{Principal: models.Principal{Kind: models.KindOperator}})
		ticket, err = l.relays.NewTicket(operator, id)
		require.NoError(t, err)
		require.Equal(t, []string{operators("system", "relay.create"), operators("operator", "ticket.create")}, l.noted(&since))
		require.NoError(t, l.DB.Write(ctx, func(tx *store.Tx) error {
			_, ok, err := l.relays.Enrol(ctx, tx, ticket.Secret, "thumbprint", "{}")
			require.True(t, ok)
			return err
		}))
		require.NoError(t, l.relays.SetMay(operator, id, true, nil))
		require.Equal(t, []string{operators("system", "relay.enrol"), operators("operator", "relay.change")}, l.noted(&since))

		p, err := l.relays.Principal(ctx, id)
		require.NoError(t, err)
		at := netip.MustParseAddr("96.114.20.1")
		d := relays.Declaration{RelayID: id, TunnelKey: key(1001), Endpoint: netip.AddrPortFrom(at, 51820), Uplink: at}
		for range 2 {
			_, err = l.relays.Declare(audit.WithCaller(ctx, audit.Caller{Principal: p}), p, d)
			require.NoError(t, err)
		}
		require.Equal(t, []string{operators(relay, "relay.declare")}, l.noted(&since), "the same again isn't noted")

		l.ask(p)
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Equal(t, []string{accounts("relay.assign")}, l.noted(&since))
		l.ask(p)
		l.look()
		l.look()
		require.Equal(t, []string{accounts("relay.forward")}, l.noted(&since))
		require.NoError(t, l.relays.Remove(operator, id))
		l.look()
		l.look()
		require.Equal(t, []string{operators("operator", "relay.remove"), accounts("relay.assign")}, l.noted(&since))
	})
}
