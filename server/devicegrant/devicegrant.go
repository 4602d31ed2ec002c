// Package devicegrant is the device authorization grant (RFC 8628): a device without a keyboard shows a short code, its account holder
// types it where they are logged in, sees what asks and from where, and approves or refuses. A grant that began with a proof of
// possession is pinned to that key: a stolen device code is worthless.
//
// It issues no tokens, and knows nothing of pages: who approves has been authenticated before.
package devicegrant

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
)

// The clients that may begin a grant.
const (
	ClientDevice  = "gc-device"
	ClientGateway = "gc-gateway"
	ClientApp     = "gc-app"
)

const (
	// Life is how long a grant waits for its account holder.
	Life = 10 * time.Minute
	// Interval is how long a client waits between two polls.
	Interval = 5 * time.Second
	// MaxWrong is how many wrong user codes an approver may type within Life.
	MaxWrong = 5
	// MaxPending is how many grants may wait that were begun from one source prefix.
	MaxPending = 20
	// DeviceRefresh is how long a device's refresh token lives when it isn't used.
	DeviceRefresh = 90 * 24 * time.Hour
	// AppRefresh is how long an app's refresh token lives when it isn't used.
	AppRefresh = 30 * 24 * time.Hour

	// Twenty letters that can't be taken for each other and spell no words: 20^8 codes, 34.5 bits.
	alphabet   = "BCDFGHJKLMNPQRSTVWXZ"
	codeLength = 8
)

// Service keeps the grants.
type Service struct {
	store     *store.Store
	enrolment *enrolment.Service
	// wrong bounds wrong codes of all approvers together: with 34.5 bits that keeps guessing hopeless.
	wrong *rate.Limiter
}

// New makes the service.
func New(st *store.Store, e *enrolment.Service) *Service {
	return &Service{store: st, enrolment: e, wrong: rate.NewLimiter(1, 10)}
}

// Request is what a device asks for.
type Request struct {
	ClientID   string
	Scope      string
	DeviceType models.DeviceType
	Model      string
	Serial     string
	// JKT is the key that made the request's proof; empty if it came without.
	JKT string
	// Remote is where the request came from.
	Remote netip.Addr
}

// Begun is a grant that waits.
type Begun struct {
	DeviceCode string
	// UserCode is for people: four letters, a dash, four letters.
	UserCode string
	Life     time.Duration
	Interval time.Duration
}

// Begin begins a grant. Too many that wait from one place are CodeRateLimited.
func (s *Service) Begin(ctx context.Context, r Request) (Begun, error) {
	g := models.DeviceGrant{
		ClientID: r.ClientID, Scope: r.Scope, DeviceType: r.DeviceType, Model: r.Model, Serial: r.Serial, JKT: r.JKT,
		SourcePrefix: prefix(r.Remote), Interval: Interval,
	}
	switch {
	case r.ClientID == ClientGateway && (r.DeviceType == "" || r.DeviceType == models.DeviceGateway):
		g.DeviceType = models.DeviceGateway
	case r.ClientID == ClientDevice && r.DeviceType == "":
		g.DeviceType = models.DeviceOther
	case r.ClientID == ClientDevice && r.DeviceType != models.DeviceGateway:
	case r.ClientID == ClientApp && r.DeviceType == "":
	default:
		return Begun{}, models.Errorf(models.CodeBadRequest, "This device_type doesn't go with client_id %s; a gateway is %s.", r.ClientID, ClientGateway)
	}
	waiting, err := s.store.PendingDeviceGrants(ctx, g.SourcePrefix)
	if err != nil {
		return Begun{}, err
	}
	if waiting >= MaxPending {
		return Begun{}, models.Errorf(models.CodeRateLimited, "Too many devices wait for an approval from there. Try again in a few minutes.").
			With(problem.RetryAfter, 60)
	}
	code := secrets.New()
	for range 5 {
		g.UserCode = userCode()
		err = s.store.InsertDeviceGrant(ctx, secrets.Hash(code), g, Life)
		if !s.store.IsDuplicate(err) {
			break
		}
	}
	if err != nil {
		return Begun{}, err
	}
	return Begun{DeviceCode: code, UserCode: Format(g.UserCode), Life: Life, Interval: Interval}, nil
}

// Approver is an account holder who is logged in.
type Approver struct {
	AccountID models.AccountID
	UserID    string
	// From is where the approver is.
	From netip.Addr
	// Fresh says that the password was typed within the last minutes, and Typed that it was typed for this very decision. An operator,
	// who has none, has both.
	Fresh, Typed bool
}

// MustConfirm tells whether the approver has to type the password for an approval: always if that was long ago, and for this very decision
// if the device is in another network than the approver. Who was talked into typing a stranger's code gets a second look at it.
func (a Approver) MustConfirm(g models.DeviceGrant) bool {
	elsewhere := g.SourcePrefix == "" || g.SourcePrefix != prefix(a.From)
	return !a.Fresh || elsewhere && !a.Typed
}

// Pending tells what asks with this user code, in whatever spelling it was typed. A code that nobody asks with is CodeNotFound; after
// MaxWrong of them it is CodeRateLimited, whatever the code.
func (s *Service) Pending(ctx context.Context, a Approver, typed string) (g models.DeviceGrant, err error) {
	var refusal error
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		g, refusal, err = s.find(tx, a, typed)
		return err
	})
	if err == nil {
		err = refusal
	}
	return g, err
}

// Decision is what the account holder said.
type Decision struct {
	Approve bool
	// PremisesID is where the device will be; it isn't needed for an app.
	PremisesID models.PremisesID
	// Name is what people call the device; empty leaves it to its type.
	Name string
}

// Decide approves or refuses, once. A premises of another account is CodeNotFound; an approval that the password is missing for is
// CodeConfirmFirst, and the grant goes on waiting.
func (s *Service) Decide(ctx context.Context, a Approver, typed string, d Decision) (g models.DeviceGrant, err error) {
	var refusal error
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if g, refusal, err = s.find(tx, a, typed); err != nil || refusal != nil {
			return err
		}
		status := models.GrantRefused
		if d.Approve {
			if a.MustConfirm(g) {
				refusal = models.Errorf(models.CodeConfirmFirst, "Type your password to approve this.")
				return nil
			}
			status = models.GrantApproved
			if g.ClientID == ClientApp { // which will be the user
				if _, found, err := tx.User(a.AccountID, a.UserID); err != nil {
					return err
				} else if !found {
					return models.Errorf(models.CodeBadRequest, "An app acts for a user of the account. Say for which.")
				}
			} else {
				p, found, err := tx.Premises(d.PremisesID)
				if err != nil {
					return err
				}
				if !found || p.AccountID != a.AccountID {
					return models.NotFound()
				}
				g.PremisesID = p.ID
			}
		}
		g.AccountID, g.UserID, g.Name, g.Status = a.AccountID, a.UserID, d.Name, status
		done, err := tx.DecideDeviceGrant(g.UserCode, status, g)
		if err == nil && !done {
			return noGrant()
		}
		if err != nil {
			return err
		}
		e := audit.Entry{Account: a.AccountID, Action: audit.DeviceDeny, Object: audit.OfAccount(a.AccountID)}
		if d.Approve {
			e.Action = audit.DeviceApprove
		}
		if g.PremisesID != "" {
			e.Object = audit.OfPremises(g.PremisesID)
		}
		return audit.Note(ctx, tx, e)
	})
	if err == nil {
		err = refusal
	}
	return g, err
}

// find gives the grant that waits with the code, or a refusal. A wrong code is counted, so the transaction commits either way.
func (s *Service) find(tx *store.Tx, a Approver, typed string) (g models.DeviceGrant, refusal, err error) {
	approver := string(a.AccountID) + "/" + a.UserID
	n, err := tx.WrongUserCodes(approver, Life)
	if err != nil {
		return g, nil, err
	}
	if n >= MaxWrong || s.wrong.Tokens() < 1 {
		return g, models.Errorf(models.CodeRateLimited, "Too many wrong codes. Wait a while, then look at the device for its code again.").
			With(problem.RetryAfter, int(Life/time.Second)), nil
	}
	g, found, err := tx.DeviceGrantByUserCode(normal(typed))
	if err != nil || found && g.Status == models.GrantPending {
		return g, nil, err
	}
	s.wrong.Allow()
	return models.DeviceGrant{}, noGrant(), tx.CountWrongUserCode(approver, Life)
}

func noGrant() error {
	return models.Errorf(models.CodeNotFound, "No device waits with this code. Look at the device: a code is good for %d minutes, and once.", int(Life/time.Minute))
}

// Redeemed is what an approved grant gave.
type Redeemed struct {
	// Device is the device that was made or found again; its ID is zero for an app.
	Device models.Device
	// AccountID and UserID are the approver's, for an app.
	AccountID models.AccountID
	UserID    string
	Scope     string
	// RefreshToken is shown once.
	RefreshToken string
}

// Redeem answers one poll with a device code. An approved grant makes the device, with the key of the proof, and is gone.
func (s *Service) Redeem(ctx context.Context, deviceCode, clientID string, key dpop.Key) (Redeemed, error) {
	jwk, err := key.JWK()
	if err != nil {
		return Redeemed{}, err
	}
	var r Redeemed
	var refusal error
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		r, refusal = Redeemed{}, nil
		g, found, err := tx.PollDeviceGrant(secrets.Hash(deviceCode))
		switch {
		case err != nil:
			return err
		case !found || g.ClientID != clientID || g.JKT != "" && g.JKT != key.Thumbprint:
			refusal = models.Errorf(models.CodeInvalidGrant, "The device code is unknown, was used, or belongs to another client or key.")
			return nil
		case g.Expired:
			refusal = models.Errorf(models.CodeExpiredToken, "The code was not approved within %d minutes. Begin again.", int(Life/time.Minute))
			return nil
		case g.Status == models.GrantRefused:
			refusal = models.Errorf(models.CodeAccessDenied, "The account holder refused.")
			_, err := tx.DeleteDeviceGrant(secrets.Hash(deviceCode))
			return err
		case g.Status == models.GrantPending && g.Early:
			refusal = models.Errorf(models.CodeSlowDown, "Wait five seconds longer between two requests from now on.")
			return nil
		case g.Status == models.GrantPending:
			refusal = models.Errorf(models.CodeAuthorizationPending, "Nobody has decided yet. Ask again after the interval.")
			return nil
		}
		if mine, err := tx.DeleteDeviceGrant(secrets.Hash(deviceCode)); err != nil || !mine {
			refusal = models.Errorf(models.CodeInvalidGrant, "The device code was used.")
			return err
		}
		if r, err = s.admit(tx, g.DeviceGrant, key, jwk); err != nil {
			return err
		}
		if !r.Device.ID.Valid() {
			return audit.Note(ctx, tx, audit.Entry{Account: g.AccountID, Action: audit.TokenIssue, Object: audit.OfUser(r.UserID)})
		}
		return audit.Note(ctx, tx,
			audit.Entry{Account: g.AccountID, Action: audit.DeviceEnrol, Object: audit.OfDevice(r.Device.ID)},
			audit.Entry{Account: g.AccountID, Action: audit.TokenIssue, Object: audit.OfDevice(r.Device.ID)})
	})
	if err == nil {
		err = refusal
	}
	return r, err
}

// admit makes what was approved, and its refresh token.
func (s *Service) admit(tx *store.Tx, g models.DeviceGrant, key dpop.Key, jwk string) (Redeemed, error) {
	r := Redeemed{Scope: g.Scope, RefreshToken: secrets.New()}
	t := models.RefreshToken{JKT: key.Thumbprint, ClientID: g.ClientID, Scope: g.Scope, AccountID: g.AccountID}
	if g.ClientID == ClientApp {
		r.AccountID, r.UserID, t.UserID = g.AccountID, g.UserID, g.UserID
		return r, tx.InsertRefreshToken(secrets.Hash(r.RefreshToken), t, AppRefresh)
	}
	replaces, err := known(tx, g, key)
	if err != nil {
		return Redeemed{}, err
	}
	r.Device, err = s.enrolment.Admit(tx, replaces,
		accounts.NewDevice{PremisesID: g.PremisesID, Type: g.DeviceType, Name: g.Name, Model: g.Model},
		models.DeviceKey{Thumbprint: key.Thumbprint, JWK: jwk, Serial: g.Serial})
	var refusal *models.Error
	if errors.As(err, &refusal) && refusal.Code == models.CodeAlreadyExists {
		return Redeemed{}, models.Errorf(models.CodeInvalidGrant, "%s", refusal.Detail)
	}
	if err != nil {
		return Redeemed{}, err
	}
	t.DeviceID = r.Device.ID
	return r, tx.InsertRefreshToken(secrets.Hash(r.RefreshToken), t, DeviceRefresh)
}

// known finds the device that this key is of already, if the approval is for the very same place and kind: it lost its refresh token
// and keeps its registrations.
func known(tx *store.Tx, g models.DeviceGrant, key dpop.Key) (models.ID, error) {
	held, found, err := tx.DeviceKey(key.Thumbprint)
	if err != nil || !found {
		return 0, err
	}
	d, found, err := tx.Device(held.DeviceID)
	if err != nil || !found || d.AccountID != g.AccountID || d.PremisesID != g.PremisesID || d.Type != g.DeviceType {
		return 0, err
	}
	return d.ID, nil
}

// prefix is what is kept and shown of where a request came from; empty if it is not known.
func prefix(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return models.SourcePrefix(a).String()
}

// Format writes a user code for people.
func Format(code string) string {
	if len(code) != codeLength {
		return code
	}
	return code[:codeLength/2] + "-" + code[codeLength/2:]
}

// normal reads what somebody typed: in any case, with or without dash and spaces.
func normal(typed string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToUpper(typed))
}

func userCode() string {
	code := make([]byte, 0, codeLength)
	var b [1]byte
	for len(code) < codeLength {
		_, _ = rand.Read(b[:])
		if int(b[0]) < 256/len(alphabet)*len(alphabet) { // else the first letters would be likelier
			code = append(code, alphabet[int(b[0])%len(alphabet)])
		}
	}
	return string(code)
}
