package pages

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/httpapi"
)

// done are the sentences after something was done, by what the redirect says.
var done = map[string]string{
	"premises-added": "The premises was added.", "premises-removed": "The premises was removed.", "premises-changed": "The premises was changed.", "device-changed": "The device was changed.",
	"device-removed": "The device was removed. Its tokens and everything it sent or received ended.", "linked": "The service may receive now.",
	"unlinked": "The link was ended, and with it everything the service received.", "ended": "Ended.", "password": "The password was changed.",
}

// memberView is a member of a group for people.
type memberView struct {
	Name, Does, Kind, ID, Label string
	RegistrationID              models.RegistrationID
}

type groupView struct {
	Name, Premises, IP, Receivers string
	Members                       []memberView
}

type deviceView struct {
	models.Device
	Kind, Premises string
	Camera         bool
}

// linkView is a consent, and its limits in words, if it has any.
type linkView struct {
	models.NamedLink
	Limits []string
}

func (p site) account(v *httpapi.Visit) error {
	return p.accountPage(v, http.StatusOK, view{Done: done[v.Request.URL.Query().Get(queryDone)]})
}

// back shows the account again with what was refused.
func (p site) back(v *httpapi.Visit) {
	v.Again = func(status int, e *models.Error) error {
		if e.Code == models.CodeNotFound { // what is missing and what is another's is one page, which tells nothing else
			v.Again = nil
			return p.refuse(v, status, e)
		}
		return p.accountPage(v, status, view{Alert: sentence(e)})
	}
}

func (p site) accountPage(v *httpapi.Visit, status int, w view) error {
	ctx, who := v.Context(), v.Principal
	a, err := p.Accounts.Account(ctx, who.AccountID)
	if err != nil {
		return err
	}
	premises, err := p.allPremises(v)
	if err != nil {
		return err
	}
	devices, err := all(ctx, func(ctx context.Context, page models.Page) ([]models.Device, string, error) {
		return p.Accounts.ListDevices(ctx, who.AccountID, page)
	})
	if err != nil {
		return err
	}
	links, err := all(ctx, func(ctx context.Context, page models.Page) ([]models.NamedLink, string, error) {
		return p.Accounts.ListLinks(ctx, who.AccountID, page)
	})
	if err != nil {
		return err
	}
	list, err := all(ctx, func(ctx context.Context, page models.Page) ([]models.GroupState, string, error) {
		return p.Groups.List(ctx, who, groups.Filter{}, page)
	})
	if err != nil {
		return err
	}
	n := namesOf(premises, devices, links)
	w.Title, w.Here = a.Name, pathAccount
	w.Body = map[string]any{
		"Premises": premises, "Devices": n.devices(devices), "Links": n.links(links), "NoLink": len(links) == 0, "Groups": n.groups(list), "Types": deviceTypes,
	}
	return p.show(v, status, "account", w)
}

func (p site) allPremises(v *httpapi.Visit) ([]models.Premises, error) {
	return all(v.Context(), func(ctx context.Context, page models.Page) ([]models.Premises, string, error) {
		return p.Accounts.ListPremises(ctx, v.Principal.AccountID, page)
	})
}

// all reads every page of a list: people look at the whole.
func all[T any](ctx context.Context, list func(context.Context, models.Page) ([]T, string, error)) (whole []T, err error) {
	page := models.Page{Size: 500}
	for {
		part, next, err := list(ctx, page)
		if err != nil {
			return nil, err
		}
		whole = append(whole, part...)
		if next == "" {
			return whole, nil
		}
		page.Token = next
	}
}

// names tell what things are called.
type names struct {
	premises map[models.PremisesID]string
	device   map[models.ID]models.Device
	service  map[models.ID]string // by service account id
}

func namesOf(premises []models.Premises, devices []models.Device, links []models.NamedLink) names {
	n := names{map[models.PremisesID]string{}, map[models.ID]models.Device{}, map[models.ID]string{}}
	for _, p := range premises {
		n.premises[p.ID] = p.Name
	}
	for _, d := range devices {
		n.device[d.ID] = d
	}
	for _, l := range links {
		n.service[l.ServiceAccountID] = l.ServiceName
	}
	return n
}

func (n names) devices(list []models.Device) []deviceView {
	views := make([]deviceView, len(list))
	for i, d := range list {
		views[i] = deviceView{d, kindWords(d.Type), n.premises[d.PremisesID], d.Type == models.DeviceCamera}
	}
	return views
}

func (n names) links(list []models.NamedLink) []linkView {
	views := make([]linkView, len(list))
	for i, l := range list {
		views[i].NamedLink = l
		limit := func(format string, args ...any) {
			views[i].Limits = append(views[i].Limits, fmt.Sprintf(format, args...))
		}
		if slices.ContainsFunc(models.ServiceScopes(), func(scope string) bool { return !l.Grants(scope) }) {
			limit("It may only use %s.", strings.Join(l.Scopes, ", "))
		}
		if l.Premises != nil {
			where := make([]string, len(l.Premises))
			for j, id := range l.Premises {
				where[j] = n.premises[id]
			}
			limit("Only at %s.", strings.Join(where, ", "))
		}
		switch {
		case !l.Live:
			limit("It is over.")
		case !l.ExpiresAt.IsZero():
			limit("It ends on %s UTC.", l.ExpiresAt.UTC().Format("2 January 2006 at 15:04"))
		}
	}
	return views
}

func (n names) groups(list []models.GroupState) []groupView {
	views := make([]groupView, len(list))
	for i, g := range list {
		views[i] = groupView{Name: g.Name, Premises: n.premises[g.PremisesID], IP: g.IP.String(), Receivers: "nobody receives"}
		switch {
		case g.State == 1:
			views[i].Receivers = "1 receives"
		case g.State > 1:
			views[i].Receivers = fmt.Sprintf("%d receive", g.State)
		}
		for _, m := range g.Members {
			views[i].Members = append(views[i].Members, n.member(g, m))
		}
	}
	return views
}

// member is called as in the lists of devices and services, or else as it called itself.
func (n names) member(g models.GroupState, m models.Member) memberView {
	view := memberView{Name: m.Name, Does: "receives", Kind: "Service", ID: m.ID.String(), RegistrationID: m.RegistrationID}
	if m.Role == models.RoleSource {
		view.Does = "sends"
	}
	if d, ok := n.device[m.ID]; ok && (m.Type == models.MemberDevice || n.service[m.ID] == "") {
		view.Name, view.Kind = d.Name, kindWords(d.Type)
	} else if name := n.service[m.ID]; name != "" {
		view.Name = name
	}
	if view.Name == "" {
		view.Name = view.ID
	}
	view.Label = view.Name + ", which " + view.Does + " " + g.Name
	return view
}

func doneAt(v *httpapi.Visit, what string) error {
	return seeOther(v, pathAccount+"?"+queryDone+"="+what)
}

func (p site) createPremises(v *httpapi.Visit) error {
	p.back(v)
	if _, err := p.Accounts.CreatePremises(v.Context(), v.Principal.AccountID, v.Field(fieldName), false); err != nil {
		return err
	}
	return doneAt(v, "premises-added")
}

func (p site) changePremises(v *httpapi.Visit) error {
	p.back(v)
	var change accounts.PremisesChange
	if fanout := models.Fanout(v.Field("fanout")); fanout != "" {
		change.Fanout = &fanout
	}
	if loss := models.OnRelayLoss(v.Field("onRelayLoss")); loss != "" {
		change.OnRelayLoss = &loss
	}
	if _, err := p.Accounts.ChangePremises(v.Context(), v.Principal.AccountID, models.PremisesID(v.Field(fieldPremises)), change); err != nil {
		return err
	}
	return doneAt(v, "premises-changed")
}

func (p site) removePremises(v *httpapi.Visit) error {
	p.back(v)
	if err := p.Accounts.DeletePremises(v.Context(), v.Principal.AccountID, models.PremisesID(v.Field(fieldPremises))); err != nil {
		return err
	}
	return doneAt(v, "premises-removed")
}

// ticket shows a new ticket, once; so it answers itself. Sending the form again makes another one.
func (p site) ticket(v *httpapi.Visit) error {
	p.back(v)
	n := enrolment.NewTicket{
		PremisesID: models.PremisesID(v.Field(fieldPremises)), DeviceType: models.DeviceType(v.Field("deviceType")), Name: v.Field(fieldName),
		NoPoP: v.Field("proofOfPossession") == "false",
	}
	if text := v.Field("deviceId"); text != "" {
		id, err := models.ParseID(text)
		if err != nil {
			return models.NotFound()
		}
		n.DeviceID = id
	}
	ticket, t, err := p.Enrolment.Create(v.Context(), v.Principal.AccountID, n)
	if err != nil {
		return err
	}
	premises, err := p.allPremises(v)
	if err != nil {
		return err
	}
	return p.show(v, http.StatusCreated, "ticket", view{Title: "A ticket for a device", Narrow: true, Here: pathAccount, Body: map[string]any{
		"Ticket": ticket, "Kind": kindWords(t.DeviceType), "Premises": namesOf(premises, nil, nil).premises[t.PremisesID],
		"Minutes": int(enrolment.TicketLife / time.Minute), "Server": p.URL,
	}})
}

func (p site) changeDevice(v *httpapi.Visit) error {
	p.back(v)
	id, err := models.ParseID(v.Field("deviceId"))
	if err != nil {
		return models.NotFound()
	}
	var change accounts.DeviceChange
	if name := v.Field(fieldName); name != "" {
		change.Name = &name
	}
	if trigger := models.Trigger(v.Field("trigger")); trigger != "" {
		change.Trigger = &trigger
	}
	if _, err := p.Accounts.ChangeDevice(v.Context(), v.Principal.AccountID, id, change); err != nil {
		return err
	}
	return doneAt(v, "device-changed")
}

func (p site) removeDevice(v *httpapi.Visit) error {
	p.back(v)
	id, err := models.ParseID(v.Field("deviceId"))
	if err != nil {
		return models.NotFound()
	}
	if err := p.Accounts.DeleteDevice(v.Context(), v.Principal.AccountID, id); err != nil {
		return err
	}
	return doneAt(v, "device-removed")
}

func (p site) link(v *httpapi.Visit) error {
	p.back(v)
	link := models.Link{ServiceID: models.ServiceID(v.Field("serviceId")), AccountID: v.Principal.AccountID, GrantedBy: v.Principal.UserID}
	if _, err := p.Accounts.PutLink(v.Context(), link); err != nil {
		return err
	}
	return doneAt(v, "linked")
}

func (p site) unlink(v *httpapi.Visit) error {
	p.back(v)
	if err := p.Accounts.DeleteLink(v.Context(), models.ServiceID(v.Field("serviceId")), v.Principal.AccountID); err != nil {
		return err
	}
	return doneAt(v, "unlinked")
}

// end ends what one member sends or receives.
func (p site) end(v *httpapi.Visit) error {
	p.back(v)
	if _, _, err := p.Registrations.Leave(v.Context(), v.Principal, models.RegistrationID(v.Field("registrationId"))); err != nil {
		return err
	}
	return doneAt(v, "ended")
}

func (p site) passwordPage(v *httpapi.Visit) error { return p.passwordForm(v, http.StatusOK, view{}) }

func (p site) passwordForm(v *httpapi.Visit, status int, w view) error {
	w.Title, w.Narrow, w.Here = "Change the password", true, pathAccount
	return p.show(v, status, "password", w)
}

func (p site) changePassword(v *httpapi.Visit) error {
	v.Again = func(status int, e *models.Error) error { return p.passwordForm(v, status, view{Alert: sentence(e)}) }
	if err := p.Users.ChangePassword(v.Context(), v.Principal, v.Field("oldPassword"), v.Field("newPassword")); err != nil {
		return err
	}
	return doneAt(v, "password")
}
