package pages

import (
	"strings"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/tokens"
)

// typeWords is a device type as a choice.
type typeWords struct {
	Type  models.DeviceType
	Words string
}

var deviceTypes = []typeWords{
	{models.DeviceCamera, "Camera"},
	{models.DeviceGateway, "Gateway"},
	{models.DeviceReceiver, "Receiver"},
	{models.DevicePhone, "Phone"},
	{models.DeviceTablet, "Tablet"},
	{models.DeviceLaptop, "Laptop"},
	{models.DeviceOther, "Other device"},
}

func kindWords(t models.DeviceType) string {
	for _, each := range deviceTypes {
		if each.Type == t {
			return each.Words
		}
	}
	return string(t)
}

// asks says what wants to be approved.
func asks(g models.DeviceGrant) string {
	if g.ClientID == devicegrant.ClientApp {
		return "An app, which would act in your name"
	}
	return kindWords(g.DeviceType)
}

// scopeWords say what a scope lets a caller do. A gateway's are other things than a device's.
var scopeWords = map[models.Kind]map[string]string{
	models.KindDevice: {
		"gc:register": "join the groups of your account, to send to them or to receive from them",
		"gc:notify":   "see which groups there are and who is in them, without anybody’s address",
	},
	models.KindGateway: {
		"gc:groups.read":    "copy what the cameras of its premises send, to all who receive it; for that it gets their addresses",
		"gc:notify":         "see which groups there are and who is in them",
		"gc:consent.report": "report which receivers agreed to receive",
	},
	models.KindUser: {
		"gc:account":  "see your account, and add or rename premises",
		"gc:devices":  "rename your devices and change what is copied from them",
		"gc:links":    "see which services may receive",
		"gc:groups":   "see who receives what",
		"gc:register": "end what is sent or received",
		"gc:notify":   "see your groups and devices",
	},
}

// may says in words what an approval grants: what was asked for, or everything of its kind.
func may(g models.DeviceGrant) (all []string) {
	kind := map[string]models.Kind{
		devicegrant.ClientDevice: models.KindDevice, devicegrant.ClientGateway: models.KindGateway, devicegrant.ClientApp: models.KindUser,
	}[g.ClientID]
	scopes := strings.Fields(g.Scope)
	if len(scopes) == 0 {
		scopes = tokens.Scopes(kind)
	}
	for _, s := range scopes {
		words, ok := scopeWords[kind][s]
		if !ok {
			words = s // rather its name than nothing
		}
		all = append(all, words)
	}
	return all
}

// labels of the fields of forms.
var labels = map[string]string{
	"userName": "User name", "password": "Password", "accountName": "Name of the account", "invitation": "Invitation", "name": "Name",
	"oldPassword": "The password until now", "newPassword": "The new password", "user_code": "Code", "deviceType": "What it is",
	"serviceId": "Name of the service", "premisesId": "Where it is", "trigger": "What is copied", "fanout": "Where copies are made", "onRelayLoss": "While no relay in the network is there",
}

// sentence says to people what a refusal means.
func sentence(e *models.Error) string {
	switch {
	case e.Code == models.CodeNotFound && e.Detail == models.NotFound().Detail:
		return "That isn’t here: it has ended already, or it isn’t yours."
	case e.Code == models.CodeBadRequest:
		if all := faults(e); len(all) == 1 {
			return all[0]
		}
	}
	return e.Detail
}

// faults are what is wrong with a form, by the labels of its fields.
func faults(e *models.Error) (all []string) {
	list, _ := e.Fields[problem.FieldErrors].([]problem.FieldError)
	for _, f := range list {
		name := strings.TrimPrefix(f.Pointer, "/")
		detail, _, _ := strings.Cut(f.Detail, " that matches ")
		if detail != f.Detail {
			detail += ", as the form says."
		}
		if label := labels[name]; label != "" {
			detail = label + ": " + detail
		}
		all = append(all, detail)
	}
	return all
}

// spelled is a code for a screen reader, letter by letter.
func spelled(code string) string { return strings.Join(strings.Split(code, ""), " ") }
