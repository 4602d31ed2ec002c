package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/users"
)

// SessionCookie holds the token of a session. By its prefix browsers take it only over TLS, for this host alone and for all its paths.
const SessionCookie = "__Host-groupcast"

// Cookie makes the cookie of a session; an empty token takes it back. Other sites' pages can follow a link with it, and do nothing else.
func Cookie(token string) *http.Cookie {
	c := &http.Cookie{Name: SessionCookie, Value: token, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(users.Life / time.Second)}
	if token == "" {
		c.MaxAge = -1
	}
	return c
}

// sessionToken gives the token of the session that a request is sent with; empty if there is none. Several are as good as none.
func sessionToken(r *http.Request) string {
	if all := r.CookiesNamed(SessionCookie); len(all) == 1 {
		return all[0].Value
	}
	return ""
}

func (h handlers) SignUp(ctx context.Context, r ginserver.SignUpRequestObject) (ginserver.SignUpResponseObject, error) {
	ctx, _ = caller(ctx)
	u, err := h.Users.Create(ctx, users.NewUser{
		Name: r.Body.UserName, Password: r.Body.Password, AccountName: r.Body.AccountName, Invitation: value(r.Body.Invitation),
	})
	if err != nil {
		return nil, err
	}
	a, err := h.Accounts.Account(ctx, u.AccountID)
	return ginserver.SignUp201JSONResponse(accountInfo(a)), err
}

func (h handlers) Login(ctx context.Context, r ginserver.LoginRequestObject) (ginserver.LoginResponseObject, error) {
	ctx, _ = caller(ctx)
	token, u, err := h.Users.LogIn(ctx, r.Body.UserName, r.Body.Password)
	if err != nil {
		return nil, err
	}
	return ginserver.Login200JSONResponse{
		Body:    api.Session{UserName: u.Name, AccountID: u.AccountID, ExpiresIn: int32(users.Life / time.Second)},
		Headers: ginserver.Login200ResponseHeaders{SetCookie: Cookie(token).String()},
	}, nil
}

func (h handlers) Logout(ctx context.Context, _ ginserver.LogoutRequestObject) (ginserver.LogoutResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Users.LogOut(ctx, p); err != nil {
		return nil, err
	}
	return ginserver.Logout204Response{Headers: ginserver.Logout204ResponseHeaders{SetCookie: Cookie("").String()}}, nil
}

func (h handlers) GetAccount(ctx context.Context, _ ginserver.GetAccountRequestObject) (ginserver.GetAccountResponseObject, error) {
	ctx, p := caller(ctx)
	a, err := h.Accounts.Account(ctx, p.AccountID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetAccount200JSONResponse(accountInfo(a)), nil
}

func (h handlers) ChangeAccount(ctx context.Context, r ginserver.ChangeAccountRequestObject) (ginserver.ChangeAccountResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err != nil {
		return nil, err
	}
	change := accounts.Change{Name: r.Body.Name}
	if policy := r.Body.JoinPolicy; policy != nil {
		change.JoinPolicy = &models.JoinPolicy{Services: policy.Services}
		for _, d := range policy.Devices {
			change.JoinPolicy.Devices = append(change.JoinPolicy.Devices, models.DeviceRule{Type: d.DeviceType, Model: value(d.Model)})
		}
	}
	a, err := h.Accounts.ChangeAccount(ctx, account, change)
	if err != nil {
		return nil, err
	}
	return ginserver.ChangeAccount200JSONResponse(accountInfo(a)), nil
}

func accountInfo(a models.Account) api.AccountInfo {
	policy := api.JoinPolicy{Services: append([]models.ServiceID{}, a.JoinPolicy.Services...)}
	policy.Devices = convert(a.JoinPolicy.Devices, func(r models.DeviceRule) api.JoinRule {
		return api.JoinRule{DeviceType: r.Type, Model: orNil(r.Model)}
	})
	return api.AccountInfo{AccountID: a.ID, Name: a.Name, JoinPolicy: policy}
}

func (h handlers) ChangePassword(ctx context.Context, r ginserver.ChangePasswordRequestObject) (ginserver.ChangePasswordResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Users.ChangePassword(ctx, p, r.Body.OldPassword, r.Body.NewPassword); err != nil {
		return nil, err
	}
	return ginserver.ChangePassword204Response{}, nil
}

func (h handlers) Confirm(ctx context.Context, r ginserver.ConfirmRequestObject) (ginserver.ConfirmResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Users.Confirm(ctx, p, r.Body.Password); err != nil {
		return nil, err
	}
	return ginserver.Confirm204Response{}, nil
}

// own is the account of a caller; it is never empty, which would be an operator's.
func own(p models.Principal) (models.AccountID, error) {
	if p.AccountID == "" {
		return "", models.Errorf(models.CodeForbidden, "A %s has no account.", p.Kind)
	}
	return p.AccountID, nil
}
