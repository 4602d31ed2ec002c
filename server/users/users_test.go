package users_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/edgetest"
	"github.com/groupcast/groupcast/server/passwords"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

func labs(t *testing.T, test func(t *testing.T, l *edgetest.Lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { test(t, edgetest.New(t, db)) })
}

// with is the service of the lab with another setting.
func with(t *testing.T, l *edgetest.Lab, cost passwords.Cost, s users.SignUp) *users.Service {
	t.Helper()
	h, err := passwords.NewHasher(cost, 0)
	require.NoError(t, err)
	return users.New(l.DB.Store, l.Accounts, h, passwords.NewDelays(time.Now), s)
}

func TestInvitationsEnd(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		ctx := t.Context()
		s := with(t, l, passwords.Cost{MemoryKiB: 64, Iterations: 1, Parallelism: 1}, users.SignUpInvite)
		invitation, err := s.Invite(ctx, "")
		require.NoError(t, err)
		sign := func(name, invitation, password string) (models.User, error) {
			return s.Create(ctx, users.NewUser{Name: name, Password: password, AccountName: "Smith", Invitation: invitation})
		}
		_, err = sign("anna", "", edgetest.Password)
		servertest.Refused(t, models.CodeForbidden, err)
		_, err = sign("anna", invitation, "short")
		servertest.Refused(t, models.CodeBadRequest, err)
		u, err := sign("Anna", invitation, edgetest.Password)
		require.NoError(t, err, "a refused password doesn't use the invitation up")
		assert.Equal(t, "anna", u.Name)
		_, err = sign("berta", invitation, edgetest.Password)
		servertest.Refused(t, models.CodeForbidden, err)
		invitation, err = s.Invite(ctx, u.AccountID)
		require.NoError(t, err)
		_, err = sign("ANNA", invitation, edgetest.Password)
		servertest.Refused(t, models.CodeAlreadyExists, err)
		l.DB.Advance(t, users.InvitationLife-time.Minute)
		second, err := sign("berta", invitation, edgetest.Password)
		require.NoError(t, err, "nor does a name that is taken")
		assert.Equal(t, u.AccountID, second.AccountID)
		invitation, err = s.Invite(ctx, "")
		require.NoError(t, err)
		l.DB.Advance(t, users.InvitationLife)
		_, err = sign("clara", invitation, edgetest.Password)
		servertest.Refused(t, models.CodeForbidden, err)
		_, err = s.Invite(ctx, models.NewAccountID())
		servertest.Refused(t, models.CodeNotFound, err)
		closed := with(t, l, passwords.Cost{MemoryKiB: 64, Iterations: 1, Parallelism: 1}, users.SignUpClosed)
		_, err = closed.Create(ctx, users.NewUser{Name: "dora", Password: edgetest.Password, Invitation: "x"})
		servertest.Refused(t, models.CodeForbidden, err)
	})
}

// TestAPasswordIsHashedAnewAtLogin: after the cost was raised, a login stores the same password at the new cost.
func TestAPasswordIsHashedAnewAtLogin(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		l.User(t, l.NewHome(t).Account.ID, "anna")
		stored := func() string { return l.DB.Texts(t, "SELECT password_hash FROM users")[0] }
		before := stored()
		dearer := with(t, l, passwords.Cost{MemoryKiB: 128, Iterations: 1, Parallelism: 1}, users.SignUpOpen)
		_, _, err := dearer.LogIn(t.Context(), "anna", edgetest.Password)
		require.NoError(t, err)
		after := stored()
		assert.NotEqual(t, before, after)
		assert.Contains(t, after, "m=128")
		_, _, err = dearer.LogIn(t.Context(), "ANNA", edgetest.Password)
		require.NoError(t, err)
		assert.Equal(t, after, stored())
	})
}

func TestSessionsAndApps(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		ctx := context.Background()
		h := l.NewHome(t)
		l.User(t, h.Account.ID, "anna")
		token, u, err := l.Users.LogIn(ctx, "anna", edgetest.Password)
		require.NoError(t, err)
		p, err := l.Users.Principal(ctx, token)
		require.NoError(t, err)
		assert.True(t, p.Fresh)
		assert.Equal(t, h.Account.ID, p.AccountID)
		other, _, err := l.Users.LogIn(ctx, "anna", edgetest.Password)
		require.NoError(t, err)

		// An app has no session: it can't confirm or log out, and is never fresh.
		subject := tokens.Subject{Kind: models.KindUser, Account: h.Account.ID, UserID: u.ID, IssuedAt: time.Now()}
		app, err := l.Users.AppPrincipal(ctx, subject)
		require.NoError(t, err)
		assert.False(t, app.Fresh)
		servertest.Refused(t, models.CodeForbidden, l.Users.LogOut(ctx, app))
		servertest.Refused(t, models.CodeForbidden, l.Users.Confirm(ctx, app, edgetest.Password))
		foreign := subject
		foreign.Account = l.NewHome(t).Account.ID
		_, err = l.Users.AppPrincipal(ctx, foreign)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		_, err = l.Users.Login(ctx, foreign.Account, u.ID)
		servertest.Refused(t, models.CodeInvalidGrant, err)
		login, err := l.Users.Login(ctx, h.Account.ID, u.ID)
		require.NoError(t, err)
		assert.Equal(t, "pwd", login.ACR)

		servertest.Refused(t, models.CodeBadRequest, l.Users.ChangePassword(ctx, p, edgetest.Password, "short"))
		require.NoError(t, l.Users.ChangePassword(ctx, p, edgetest.Password, "four other words it is"))
		_, err = l.Users.Principal(ctx, token)
		require.NoError(t, err)
		_, err = l.Users.Principal(ctx, other)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		_, err = l.Users.AppPrincipal(ctx, subject)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		changed, err := l.Users.Login(ctx, h.Account.ID, u.ID)
		require.NoError(t, err)
		assert.True(t, changed.At.After(login.At), "the login is as old as the password")
		require.NoError(t, l.Users.LogOut(ctx, p))
		_, err = l.Users.Principal(ctx, token)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		servertest.Refused(t, models.CodeForbidden, l.Users.ChangePassword(ctx, p, edgetest.Password, "a third password it is"))
		gone := p
		gone.UserID = "u_gone"
		servertest.Refused(t, models.CodeUnauthenticated, l.Users.Confirm(ctx, gone, edgetest.Password))
	})
}
