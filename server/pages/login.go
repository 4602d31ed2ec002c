package pages

import (
	"net/http"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/users"
)

const (
	fieldNext        = "next"
	fieldUserName    = "userName"
	fieldAccountName = "accountName"
	fieldName        = "name"
	queryDone        = "done"
)

func (p site) loginPage(v *httpapi.Visit) error {
	done := ""
	if v.Request.URL.Query().Get(queryDone) == "logged-out" {
		done = "You are logged out."
	}
	return p.loginForm(v, http.StatusOK, view{Done: done}, v.Request.URL.Query().Get(fieldNext), "")
}

func (p site) loginForm(v *httpapi.Visit, status int, w view, next, name string) error {
	if next = known(next); next == pathAccount {
		next = ""
	}
	w.Title, w.Narrow = "Log in", true
	w.Body = map[string]any{"Next": next, "UserName": name, "SignUp": p.Users.SignUp() != users.SignUpClosed}
	return p.show(v, status, "login", w)
}

func (p site) login(v *httpapi.Visit) error {
	v.Again = func(status int, e *models.Error) error {
		return p.loginForm(v, status, view{Alert: sentence(e)}, v.Field(fieldNext), v.Field(fieldUserName))
	}
	token, _, err := p.Users.LogIn(v.Context(), v.Field(fieldUserName), v.Field(httpapi.FieldPassword))
	if err != nil {
		return err
	}
	v.SetSession(token)
	return seeOther(v, known(v.Field(fieldNext)))
}

func (p site) logout(v *httpapi.Visit) error {
	if err := p.Users.LogOut(v.Context(), v.Principal); err != nil {
		return err
	}
	v.SetSession("")
	return seeOther(v, pathLogin+"?"+queryDone+"=logged-out")
}

func (p site) signUpPage(v *httpapi.Visit) error { return p.signUpForm(v, http.StatusOK, view{}) }

func (p site) signUpForm(v *httpapi.Visit, status int, w view) error {
	w.Title, w.Narrow = "Create an account", true
	w.Body = map[string]any{
		"AccountName": v.Field(fieldAccountName), "UserName": v.Field(fieldUserName), "ByInvitation": p.Users.SignUp() == users.SignUpInvite,
	}
	return p.show(v, status, "sign-up", w)
}

func (p site) signUp(v *httpapi.Visit) error {
	v.Again = func(status int, e *models.Error) error { return p.signUpForm(v, status, view{Alert: sentence(e)}) }
	name, password := v.Field(fieldUserName), v.Field(httpapi.FieldPassword)
	_, err := p.Users.Create(v.Context(), users.NewUser{
		Name: name, Password: password, AccountName: v.Field(fieldAccountName), Invitation: v.Field("invitation"),
	})
	if err != nil {
		return err
	}
	token, _, err := p.Users.LogIn(v.Context(), name, password)
	if err != nil {
		return err
	}
	v.SetSession(token)
	return seeOther(v, pathAccount)
}
