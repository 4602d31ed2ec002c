package audit

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

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
	case models.KindRelay:
		return Actor{string(p.Kind) + "/" + p.Relay.ID.String()}
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

// OfRelay names a relay.
func OfRelay(id models.ID) Object { return Object{"relay/" + id.String()} }

// OfService names a service.
func OfService(id models.ServiceID) Object { return Object{"service/" + string(id)} }

// OfGroup names one life of a group.
func OfGroup(id models.GroupID) Object { return Object{"group/" + string(id)} }

// OfMember names a member's lease in one life of a group.
func OfMember(r models.Registration) Object {
	return Object{"group/" + string(r.GroupID) + "/registration/" + string(r.ID)}
}

// OfCredential names a credential of a service.
func OfCredential(s models.ServiceID, id string) Object {
	return Object{"service/" + string(s) + "/credential/" + id}
}

// OfKey names a signing key by its public kid.
func OfKey(kid string) Object { return Object{"key/" + kid} }

// OfOperation names an operation of the contract.
func OfOperation(id string) Object { return Object{"operation/" + id} }

// OfChain names a place in the audit log's own chain.
func OfChain(at models.AuditHead) Object {
	return Object{"audit/" + strconv.FormatInt(at.Seq, 10) + "." + at.Hash}
}

// OfEpoch names a life of the database.
func OfEpoch(epoch string) Object { return Object{"epoch/" + epoch} }

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
	IdentityAdd      = Action{"identity.add"}
	IdentityRemove   = Action{"identity.remove"}
	Login            = Action{"login"}
	Logout           = Action{"logout"}
	Confirm          = Action{"confirm"}
	PremisesCreate   = Action{"premises.create"}
	PremisesChange   = Action{"premises.change"}
	PremisesRemove   = Action{"premises.remove"}
	TicketCreate     = Action{"ticket.create"}
	TicketRedeem     = Action{"ticket.redeem"}
	DeviceEnrol      = Action{"device.enrol"}
	DeviceApprove    = Action{"device.approve"}
	DeviceDeny       = Action{"device.deny"}
	DeviceChange     = Action{"device.change"}
	DeviceRemove     = Action{"device.remove"}
	DeviceKeyReplace = Action{"device.key.replace"}
	ServiceCreate    = Action{"service.create"}
	CredentialCreate = Action{"credential.create"}
	CredentialRemove = Action{"credential.remove"}
	LinkPut          = Action{"link.put"}
	LinkEnd          = Action{"link.end"}
	TokenIssue       = Action{"token.issue"}
	TokenRevoke      = Action{"token.revoke"}
	KeyCreate        = Action{"key.create"} // it is published, and will sign later
	KeyRotate        = Action{"key.rotate"} // it signs from now on
	KeyRemove        = Action{"key.remove"}
	WebhookCreate    = Action{"webhook.create"}
	WebhookChange    = Action{"webhook.change"}
	WebhookRotate    = Action{"webhook.rotate"}
	WebhookDelete    = Action{"webhook.delete"}
	WebhookDisable   = Action{"webhook.disable"} // by groupcast: it answered 410, or failed for days
	ServiceChange    = Action{"service.change"}
	ConsentExempt    = Action{"consent.exempt"} // copies go to this registration unasked
	GatewayDeclare   = Action{"gateway.declare"}
	RelayCreate      = Action{"relay.create"}
	RelayEnrol       = Action{"relay.enrol"}
	RelayDeclare     = Action{"relay.declare"}
	RelayChange      = Action{"relay.change"} // whom it may serve
	RelayRemove      = Action{"relay.remove"}
	RelayAssign      = Action{"relay.assign"}  // another relay serves the premises, or none
	RelayForward     = Action{"relay.forward"} // the relay of the premises copies now instead of its gateways
	GroupCreate      = Action{"group.create"}
	GroupJoin        = Action{"group.join"}
	GroupMove        = Action{"group.move"}
	GroupLeave       = Action{"group.leave"}
	GroupExpire      = Action{"group.expire"}
	GroupEnd         = Action{"group.end"}
	LifeBegin        = Action{"life.begin"}   // the database was restored, or its epoch rotated
	AuditPrune       = Action{"audit.prune"}  // rows that were older than audit-retention are gone
	Request          = Action{"request"}      // any other request, for its refusal
	RequestMore      = Action{"request.more"} // refusals of more kinds than are told apart
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
	// Count is how many refusals that are alike this is; 0 is 1.
	Count int64
}

// What is text in an Entry has a form that no token, secret or address has: a code is letters, and a request id is short.
var (
	codeForm      = regexp.MustCompile(`^[a-z][a-z_-]{0,39}$`)
	requestIDForm = regexp.MustCompile(`^[0-9A-Za-z_-]{0,40}$`)
)

// Record writes rows in the transaction, with one statement, or none if there are none. They are sealed after commit.
func Record(tx *store.Tx, entries ...Entry) error {
	rows := make([]models.AuditRow, len(entries))
	for i, e := range entries {
		var err error
		if rows[i], err = e.row(); err != nil {
			return err
		}
	}
	if err := tx.InsertAuditRows(rows); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func (e Entry) row() (models.AuditRow, error) {
	if e.Action.text == "" {
		return models.AuditRow{}, fmt.Errorf("audit: an entry without an action")
	}
	if !requestIDForm.MatchString(e.RequestID) {
		return models.AuditRow{}, fmt.Errorf("audit: the request id is not one of ours")
	}
	row := models.AuditRow{
		ID: models.NewAuditID(), Actor: e.Actor.text, AccountID: e.Account, Action: e.Action.text, Object: e.Object.text, Result: "ok",
		Source: models.SourcePrefix(e.Source), RequestID: e.RequestID, Count: max(e.Count, 1),
	}
	if row.Actor == "" {
		row.Actor = "anonymous"
	}
	if e.Refused != "" {
		if !codeForm.MatchString(string(e.Refused)) {
			return models.AuditRow{}, fmt.Errorf("audit: the reason of a refusal is not a code")
		}
		row.Result, row.Reason = "refused", string(e.Refused)
	}
	return row, nil
}
