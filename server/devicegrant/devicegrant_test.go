package devicegrant_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/edgetest"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func labs(t *testing.T, test func(t *testing.T, l *edgetest.Lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { test(t, edgetest.New(t, db)) })
}

func TestWhatMayAsk(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		for _, r := range []devicegrant.Request{
			{ClientID: devicegrant.ClientDevice, DeviceType: models.DeviceGateway},
			{ClientID: devicegrant.ClientGateway, DeviceType: models.DeviceCamera},
			{ClientID: devicegrant.ClientApp, DeviceType: models.DevicePhone},
			{ClientID: "gc-other"},
			{},
		} {
			_, err := l.Grants.Begin(t.Context(), r)
			servertest.Refused(t, models.CodeBadRequest, err)
		}
		// One network lets so many devices wait, and another one is not kept from it.
		ask := func(from string) error {
			_, err := l.Grants.Begin(t.Context(), devicegrant.Request{ClientID: devicegrant.ClientDevice, Remote: netip.MustParseAddr(from)})
			return err
		}
		for range devicegrant.MaxPending {
			require.NoError(t, ask("198.51.100.7"))
		}
		servertest.Refused(t, models.CodeRateLimited, ask("198.51.100.8"))
		require.NoError(t, ask("203.0.113.7"))
		l.DB.Advance(t, devicegrant.Life)
		require.NoError(t, ask("198.51.100.7"), "those that ended don't count")
	})
}

// TestPollsOfADevice goes through the answers of RFC 8628 §3.5.
func TestPollsOfADevice(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		k, thief := edgetest.NewKey(t), edgetest.NewKey(t)
		ctx := t.Context()
		approver := devicegrant.Approver{AccountID: h.Account.ID, UserID: "u", Fresh: true, Typed: true}
		begin := func(client string, jkt string) devicegrant.Begun {
			g, err := l.Grants.Begin(ctx, devicegrant.Request{ClientID: client, JKT: jkt, Model: "M1"})
			require.NoError(t, err)
			return g
		}
		poll := func(g devicegrant.Begun, who edgetest.Key) error {
			_, err := l.Grants.Redeem(ctx, g.DeviceCode, devicegrant.ClientDevice, who.Key)
			return err
		}
		g := begin(devicegrant.ClientDevice, k.Thumbprint)
		servertest.Refused(t, models.CodeAuthorizationPending, poll(g, k))
		servertest.Refused(t, models.CodeSlowDown, poll(g, k))
		l.DB.Advance(t, devicegrant.Interval)
		servertest.Refused(t, models.CodeSlowDown, poll(g, k)) // it has become ten seconds, and this makes it fifteen
		l.DB.Advance(t, 2*devicegrant.Interval)
		servertest.Refused(t, models.CodeSlowDown, poll(g, k))
		l.DB.Advance(t, 4*devicegrant.Interval)
		servertest.Refused(t, models.CodeAuthorizationPending, poll(g, k))
		servertest.Refused(t, models.CodeInvalidGrant, poll(g, thief))
		_, err := l.Grants.Redeem(ctx, g.DeviceCode, devicegrant.ClientGateway, k.Key)
		servertest.Refused(t, models.CodeInvalidGrant, err)
		l.DB.Advance(t, devicegrant.Life)
		servertest.Refused(t, models.CodeExpiredToken, poll(g, k))
		_, err = l.Grants.Decide(ctx, approver, g.UserCode, devicegrant.Decision{Approve: true, PremisesID: h.Premises.ID})
		servertest.Refused(t, models.CodeNotFound, err)
		l.DB.Advance(t, 24*time.Hour)
		_, err = l.DB.Sweep(ctx)
		require.NoError(t, err)
		servertest.Refused(t, models.CodeInvalidGrant, poll(g, k))

		// Refused: it hears so once, and is gone.
		g = begin(devicegrant.ClientDevice, k.Thumbprint)
		_, err = l.Grants.Decide(ctx, approver, g.UserCode, devicegrant.Decision{})
		require.NoError(t, err)
		servertest.Refused(t, models.CodeAccessDenied, poll(g, k))
		servertest.Refused(t, models.CodeInvalidGrant, poll(g, k))

		// A key that is another device's already makes none, and neither does one that is approved elsewhere.
		g = begin(devicegrant.ClientDevice, "")
		_, err = l.Grants.Decide(ctx, approver, g.UserCode, devicegrant.Decision{Approve: true, PremisesID: h.Premises.ID, Name: "porch"})
		require.NoError(t, err)
		r, err := l.Grants.Redeem(ctx, g.DeviceCode, devicegrant.ClientDevice, k.Key)
		require.NoError(t, err)
		assert.Equal(t, "porch", r.Device.Name)
		assert.NotEmpty(t, r.RefreshToken)
		other := l.NewHome(t)
		g = begin(devicegrant.ClientDevice, k.Thumbprint)
		_, err = l.Grants.Decide(ctx, devicegrant.Approver{AccountID: other.Account.ID, Fresh: true, Typed: true}, g.UserCode, devicegrant.Decision{Approve: true, PremisesID: other.Premises.ID})
		require.NoError(t, err)
		servertest.Refused(t, models.CodeInvalidGrant, poll(g, k))
		assert.Len(t, l.DB.Ints(t, "SELECT device_id FROM device_keys"), 1)
	})
}

func TestDecisions(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h, other := l.NewHome(t), l.NewHome(t)
		ctx := t.Context()
		approver := devicegrant.Approver{AccountID: h.Account.ID, UserID: "u", Fresh: true, Typed: true}
		g, err := l.Grants.Begin(ctx, devicegrant.Request{ClientID: devicegrant.ClientDevice, DeviceType: models.DeviceCamera, Model: "M1", Serial: "0042", Remote: netip.MustParseAddr("198.51.100.7")})
		require.NoError(t, err)
		plain := strings.ReplaceAll(g.UserCode, "-", "")
		for _, typed := range []string{g.UserCode, plain, strings.ToLower(plain), strings.ToLower(g.UserCode), plain[:2] + " " + plain[2:]} {
			seen, err := l.Grants.Pending(ctx, approver, typed)
			require.NoError(t, err, "every spelling of a person is the code")
			assert.Equal(t, "M1 0042 198.51.100.0/24", seen.Model+" "+seen.Serial+" "+seen.SourcePrefix)
		}
		for _, p := range []models.PremisesID{other.Premises.ID, models.NewPremisesID(), ""} {
			_, err = l.Grants.Decide(ctx, approver, g.UserCode, devicegrant.Decision{Approve: true, PremisesID: p})
			servertest.Refused(t, models.CodeNotFound, err)
		}
		seen, err := l.Grants.Pending(ctx, approver, g.UserCode)
		require.NoError(t, err)
		assert.Equal(t, models.GrantPending, seen.Status, "what is refused decides nothing")
		assert.Equal(t, "short", devicegrant.Format("short"))

		// Each approver has five wrong codes; then not even the right one is looked at, until the time is over.
		for range devicegrant.MaxWrong {
			_, err = l.Grants.Pending(ctx, approver, "BBBB-BBBB")
			servertest.Refused(t, models.CodeNotFound, err)
		}
		_, err = l.Grants.Pending(ctx, approver, g.UserCode)
		servertest.Refused(t, models.CodeRateLimited, err)
		_, err = l.Grants.Pending(ctx, devicegrant.Approver{AccountID: other.Account.ID, UserID: "v"}, g.UserCode)
		require.NoError(t, err, "another one may")
		l.DB.Advance(t, devicegrant.Life)
		_, err = l.Grants.Pending(ctx, approver, g.UserCode)
		servertest.Refused(t, models.CodeNotFound, err)
	})
}

// TestHostileGuessesOfAllApproversTogether: a thousand guesses by a thousand approvers hit nothing, and most aren't even looked up.
func TestHostileGuessesOfAllApproversTogether(t *testing.T) {
	l := edgetest.New(t, storetest.SQLite(t))
	_, err := l.Grants.Begin(t.Context(), devicegrant.Request{ClientID: devicegrant.ClientDevice})
	require.NoError(t, err)
	began := time.Now()
	lookedUp := 0
	for i := range 1000 {
		_, err := l.Grants.Pending(t.Context(), devicegrant.Approver{AccountID: models.NewAccountID(), UserID: "u"}, "BCDF-"+strings.Repeat("GHJK"[i%4:i%4+1], 4))
		e, ok := err.(*models.Error) //nolint:errorlint // it is not wrapped
		require.True(t, ok, "%v", err)
		if e.Code == models.CodeNotFound {
			lookedUp++
		}
	}
	assert.LessOrEqual(t, lookedUp, 10+int(time.Since(began)/time.Second)+1, "ten, and one a second")
}
