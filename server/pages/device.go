package pages

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/httpapi"
)

const (
	fieldCode     = "user_code"
	fieldDecision = "decision"
	fieldPremises = "premisesId"

	approve = "approve"
	refuse  = "refuse"

	// maxCode is how long a code may be typed, with whatever is put between its letters.
	maxCode = 32
	// maxName is how long a device's name may be, as in the contract.
	maxName = 64
)

// isCode tells whether something could be a code as people type it. What can't be one isn't looked up.
func isCode(s string) bool {
	return s != "" && len(s) <= maxCode && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != ' '
	})
}

// devicePage asks for the code. A code in the link is only filled in: looking it up could use up the tries of whoever follows a link of
// somebody else's, and the person has to compare it with the device anyway (RFC 8628 §3.3.1, §5.4).
func (p site) devicePage(v *httpapi.Visit) error {
	w := view{}
	switch v.Request.URL.Query().Get(queryDone) {
	case approve:
		w.Done = "Approved. The device goes on by itself within a few seconds."
	case refuse:
		w.Done = "Refused. The device was told so."
	}
	code := v.Request.URL.Query().Get(fieldCode)
	if !isCode(code) {
		code = ""
	}
	return p.codeForm(v, http.StatusOK, w, code)
}

func (p site) codeForm(v *httpapi.Visit, status int, w view, code string) error {
	w.Title, w.Narrow, w.Here = "Approve a device", true, pathDevice
	w.Body = map[string]any{"Code": code}
	return p.show(v, status, "device", w)
}

// lookUp shows what asks. It changes nothing but the count of wrong codes, so it answers itself.
func (p site) lookUp(v *httpapi.Visit) error {
	code := v.Field(fieldCode)
	v.Again = func(status int, e *models.Error) error { return p.codeForm(v, status, view{Alert: sentence(e)}, code) }
	a := approver(v)
	g, err := p.pending(v, a, code)
	if err != nil {
		return err
	}
	return p.grantForm(v, http.StatusOK, view{}, a, g)
}

func (p site) pending(v *httpapi.Visit, a devicegrant.Approver, code string) (models.DeviceGrant, error) {
	if !isCode(code) {
		return models.DeviceGrant{}, models.Errorf(models.CodeBadRequest, "That is no code. Type the eight letters that the device shows.")
	}
	return p.Grants.Pending(v.Context(), a, code)
}

func approver(v *httpapi.Visit) devicegrant.Approver {
	return devicegrant.Approver{AccountID: v.Principal.AccountID, UserID: v.Principal.UserID, From: v.Remote, Fresh: v.Principal.Fresh}
}

func (p site) grantForm(v *httpapi.Visit, status int, w view, a devicegrant.Approver, g models.DeviceGrant) error {
	premises, err := p.allPremises(v)
	if err != nil {
		return err
	}
	from := "network " + g.SourcePrefix
	if g.SourcePrefix == "" {
		from = "not known"
	}
	fresh := a
	fresh.Fresh = true
	code := devicegrant.Format(g.UserCode)
	w.Title, w.Narrow, w.Here = "Approve this device?", true, pathDevice
	w.Body = map[string]any{
		"Grant": g, "Code": code, "Spelled": spelled(code), "Kind": asks(g), "From": from, "May": may(g),
		"App": g.ClientID == devicegrant.ClientApp, "Premises": premises, "Chosen": v.Field(fieldPremises), "Name": v.Field(fieldName),
		"MustConfirm": a.MustConfirm(g), "Elsewhere": fresh.MustConfirm(g),
	}
	return p.show(v, status, "approve", w)
}

func (p site) decide(v *httpapi.Visit) error {
	code := v.Field(fieldCode)
	a := approver(v)
	v.Again = func(status int, e *models.Error) error { return p.codeForm(v, status, view{Alert: sentence(e)}, code) }
	g, err := p.pending(v, a, code)
	if err != nil {
		return err
	}
	v.Again = func(status int, e *models.Error) error { return p.grantForm(v, status, view{Alert: sentence(e)}, a, g) }
	d := devicegrant.Decision{PremisesID: models.PremisesID(v.Field(fieldPremises)), Name: v.Field(fieldName)}
	switch v.Field(fieldDecision) {
	case approve:
		d.Approve = true
	case refuse:
	default:
		return models.Errorf(models.CodeBadRequest, "Say whether to approve or to refuse.")
	}
	if utf8.RuneCountInString(d.Name) > maxName {
		return models.Errorf(models.CodeBadRequest, "The name is longer than %d characters.", maxName)
	}
	if password := v.Field(httpapi.FieldPassword); d.Approve && password != "" {
		if err := p.Users.Confirm(v.Context(), v.Principal, password); err != nil {
			return err
		}
		a.Fresh, a.Typed = true, true
	}
	if _, err := p.Grants.Decide(v.Context(), a, code, d); err != nil {
		return err
	}
	return seeOther(v, pathDevice+"?"+queryDone+"="+v.Field(fieldDecision))
}
