package audit

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Actor is who does something. The zero Actor is somebody who did not say who they are.
type Actor struct{ text string }

// By is an authenticated caller.
func By(p models.Principal) Actor {
	switch p.Kind {
	case "":
		return Actor{}
	case models.KindDevice, models.KindGateway:
		return Actor{string(p.Kind) + "/" + p.Device.ID.String()}
	case models.KindService:
		return Actor{string(p.Kind) + "/" + string(p.Service.ID)}
	case models.KindUser:
		return Actor{string(p.Kind) + "/" + p.UserID}
	default:
		return Actor{string(p.Kind)}
	}
}

// System is groupcast itself, for example when a lease ends.
var System = Actor{"system"}

// Object is what something is done to. The zero Object is the service as a whole.
type Object struct{ text string }

// OfAccount names an account.
func OfAccount(id models.AccountID) Object { return Object{"account/" + string(id)} }

// OfPremises names a premises.
func OfPremises(id models.PremisesID) Object { return Object{"premises/" + string(id)} }

// OfDevice names a device or gateway.
func OfDevice(id models.ID) Object { return Object{"device/" + id.String()} }

// OfService names a service.
func OfService(id models.ServiceID) Object { return Object{"service/" + string(id)} }

// OfGroup names one life of a group.
func OfGroup(id models.GroupID) Object { return Object{"group/" + string(id)} }

// OfRegistration names a member's lease.
func OfRegistration(id models.RegistrationID) Object { return Object{"registration/" + string(id)} }

// OfUser is somebody who logs in.
func OfUser(id string) Object { return Object{"user/" + id} }

// OfWebhook is where a service wants its events sent.
func OfWebhook(id models.WebhookID) Object { return Object{"webhook/" + string(id)} }

// Action is what is done.
type Action struct{ text string }

// The actions. Renewing a lease is none (SPEC §5).
var (
	AccountCreate    = Action{"account.create"}
	AccountChange    = Action{"account.change"}
	UserCreate       = Action{"user.create"}
	PasswordChange   = Action{"password.change"}
	InvitationCreate = Action{"invitation.create"}
	Login            = Action{"login"}
	Logout           = Action{"logout"}
	Confirm          = Action{"confirm"}
	PremisesCreate   = Action{"premises.create"}
	PremisesChange   = Action{"premises.change"}
	PremisesRemove   = Action{"premises.remove"}
	TicketCreate     = Action{"ticket.create"}
	DeviceEnrol      = Action{"device.enrol"}
	DeviceApprove    = Action{"device.approve"}
	DeviceDeny       = Action{"device.deny"}
	DeviceChange     = Action{"device.change"}
	DeviceRemove     = Action{"device.remove"}
	DeviceKeyReplace = Action{"device.key.replace"}
	ServiceCreate    = Action{"service.create"}
	ServiceChange    = Action{"service.change"}
	LinkPut          = Action{"link.put"}
	LinkEnd          = Action{"link.end"}
	TokenIssue       = Action{"token.issue"}
	TokenRevoke      = Action{"token.revoke"}
	KeyRotate        = Action{"key.rotate"}
	WebhookCreate    = Action{"webhook.create"}
	WebhookChange    = Action{"webhook.change"}
	WebhookRotate    = Action{"webhook.rotate"}
	WebhookDelete    = Action{"webhook.delete"}
	WebhookDisable   = Action{"webhook.disable"} // by groupcast: it answered 410, or failed for days
	GatewayDeclare   = Action{"gateway.declare"}
	GroupJoin        = Action{"group.join"}
	GroupMove        = Action{"group.move"}
	GroupLeave       = Action{"group.leave"}
	GroupExpire      = Action{"group.expire"}
	Request          = Action{"request"} // any other request, for its refusal
)

// Entry is what a row tells.
type Entry struct {
	Actor   Actor
	Account models.AccountID
	Action  Action
	Object  Object
	// Refused is the code of the refusal; empty if it was done.
	Refused models.Code
	// Source is where the caller is; the row keeps its network only.
	Source netip.Addr
	// RequestID is the id that the edge gave the request.
	RequestID string
}

// What is text in an Entry has a form that no token, secret or address has: a code is letters, and a request id is short.
var (
	codeForm      = regexp.MustCompile(`^[a-z][a-z_-]{0,39}$`)
	requestIDForm = regexp.MustCompile(`^[0-9A-Za-z_-]{0,40}$`)
)

// Record writes a row in the transaction. It is sealed after commit.
func Record(tx *store.Tx, e Entry) error {
	if e.Action.text == "" {
		return fmt.Errorf("audit: an entry without an action")
	}
	if !requestIDForm.MatchString(e.RequestID) {
		return fmt.Errorf("audit: the request id is not one of ours")
	}
	row := models.AuditRow{
		ID: models.NewAuditID(), Actor: e.Actor.text, AccountID: e.Account, Action: e.Action.text, Object: e.Object.text, Result: "ok",
		Source: models.SourcePrefix(e.Source), RequestID: e.RequestID,
	}
	if row.Actor == "" {
		row.Actor = "anonymous"
	}
	if e.Refused != "" {
		if !codeForm.MatchString(string(e.Refused)) {
			return fmt.Errorf("audit: the reason of a refusal is not a code")
		}
		row.Result, row.Reason = "refused", string(e.Refused)
	}
	if err := tx.InsertAuditRow(row); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}
