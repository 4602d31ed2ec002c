// Package users is about the people who act for an account: signing up, logging in, sessions, and the password (design: identity.md §4).
//
// It never reads a cookie or writes an answer, and never decides which operation a user may call.
package users

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/passwords"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/tokens"
)

const (
	// Idle is how long a session lives unused.
	Idle = 12 * time.Hour
	// Life is how long a session lives at most.
	Life = 7 * 24 * time.Hour
	// Fresh is how long after the password was typed what is dangerous may be done.
	Fresh = 5 * time.Minute
	// InvitationLife is how long an invitation is good.
	InvitationLife = 7 * 24 * time.Hour
	// touchAfter is how stale the record of a session's last use may be, so that not every request writes.
	touchAfter = time.Minute
)

// SignUp says who may create an account.
type SignUp string

// The values of the setting sign-up.
const (
	SignUpOpen   SignUp = "open"
	SignUpInvite SignUp = "invite"
	SignUpClosed SignUp = "closed"
)

// Service keeps users and their sessions.
type Service struct {
	store    *store.Store
	accounts *accounts.Service
	hasher   *passwords.Hasher
	delays   *passwords.Delays
	signUp   SignUp
}

// New makes the service.
func New(st *store.Store, a *accounts.Service, h *passwords.Hasher, d *passwords.Delays, s SignUp) *Service {
	return &Service{store: st, accounts: a, hasher: h, delays: d, signUp: s}
}

// SignUp says who may create an account here.
func (s *Service) SignUp() SignUp { return s.signUp }

// NewUser is who signs up.
type NewUser struct {
	Name     string
	Password string
	// AccountName names the new account; with an invitation to an account that exists it means nothing.
	AccountName string
	Invitation  string
}

// Create signs somebody up: a new account with its first user, or a further user of the account that the invitation names.
func (s *Service) Create(ctx context.Context, n NewUser) (u models.User, err error) {
	if s.signUp == SignUpClosed || s.signUp != SignUpOpen && n.Invitation == "" {
		return u, models.Errorf(models.CodeForbidden, "Not everybody can sign up here. Ask the operator for an invitation.")
	}
	encoded, err := s.hasher.Hash(ctx, n.Password)
	if err != nil {
		return u, err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		u = models.User{ID: models.NewUserID(), Name: canonical(n.Name), PasswordHash: encoded}
		if n.Invitation != "" {
			account, found, err := tx.TakeInvitation(secrets.Hash(n.Invitation))
			if err != nil {
				return err
			}
			if !found {
				return models.Errorf(models.CodeForbidden, "The invitation is unknown, was used or is too old. Ask the operator for another one.")
			}
			u.AccountID = account
		}
		if u.AccountID == "" {
			a, err := s.accounts.AddAccount(ctx, tx, n.AccountName)
			if err != nil {
				return err
			}
			u.AccountID = a.ID
		}
		if u, err = tx.InsertUser(u); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: u.AccountID, Action: audit.UserCreate, Object: audit.OfUser(u.ID)})
	})
	if s.store.IsDuplicate(err) {
		return u, models.Errorf(models.CodeAlreadyExists, "Somebody has this user name already. Choose another one.")
	}
	return u, err
}

// Invite makes an invitation, which is shown once: for a new account or, if one is named, for a further user of it.
func (s *Service) Invite(ctx context.Context, account models.AccountID) (invitation string, err error) {
	invitation = secrets.New()
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.InsertInvitation(secrets.Hash(invitation), account, InvitationLife); err != nil {
			return err
		}
		e := audit.Entry{Account: account, Action: audit.InvitationCreate}
		if account != "" {
			e.Object = audit.OfAccount(account)
		}
		return audit.Note(ctx, tx, e)
	})
	if s.store.IsReference(err) {
		err = models.Errorf(models.CodeNotFound, "There is no account %s. Create it first.", account)
	}
	return invitation, err
}

// errWrong is the same for an unknown name and for a wrong password.
func errWrong() *models.Error {
	return models.Errorf(models.CodeUnauthenticated, "User name or password is wrong.")
}

func tooEarly(wait time.Duration) *models.Error {
	seconds := int((wait + time.Second - 1) / time.Second)
	return models.Errorf(models.CodeRateLimited, "The last tries failed. Wait %d s before the next one.", seconds).With(problem.RetryAfter, seconds)
}

// LogIn begins a session and gives its token, which goes into the cookie and nowhere else. The caller of the context says where from.
func (s *Service) LogIn(ctx context.Context, name, password string) (token string, u models.User, err error) {
	c, _ := audit.CallerOf(ctx)
	network := models.SourcePrefix(c.Source)
	name = canonical(name)
	u, known, found, err := s.store.UserByName(ctx, name, network)
	if err != nil {
		return "", u, err
	}
	attempt, wait := s.delays.Begin(name, c.Source, known)
	if wait > 0 {
		return "", models.User{}, tooEarly(wait)
	}
	outcome, err := s.hasher.Check(ctx, password, u.PasswordHash)
	if err != nil {
		return "", models.User{}, err
	}
	if !found || !outcome.Match {
		e := audit.Entry{Account: u.AccountID, Action: audit.Login, Refused: models.CodeUnauthenticated}
		if found {
			e.Object = audit.OfUser(u.ID)
		}
		err = s.store.Write(ctx, func(tx *store.Tx) error { return audit.Note(ctx, tx, e) })
		return "", models.User{}, errors.Join(err, errWrong())
	}
	attempt.Succeeded()
	again := ""
	if outcome.Rehash {
		if again, err = s.hasher.Hash(ctx, password); err != nil {
			return "", models.User{}, err
		}
	}
	token = secrets.New()
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if again != "" {
			if err := tx.Rehash(u.ID, u.PasswordHash, again); err != nil {
				return err
			}
		}
		if network.IsValid() {
			if err := tx.KeepNetwork(u.ID, network); err != nil {
				return err
			}
		}
		if err := tx.InsertSession(secrets.Hash(token), u.ID); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{
			Actor: audit.By(models.Principal{Kind: models.KindUser, UserID: u.ID}), Account: u.AccountID, Action: audit.Login, Object: audit.OfUser(u.ID),
		})
	})
	return token, u, err
}

// Principal tells who has a session, with everything that users may be granted.
func (s *Service) Principal(ctx context.Context, token string) (models.Principal, error) {
	hash := secrets.Hash(token)
	v, found, err := s.store.Session(ctx, hash, Idle, Life)
	if err != nil {
		return models.Principal{}, err
	}
	if !found {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "The session has ended. Log in again.")
	}
	if v.Idle > touchAfter {
		if err := s.store.TouchSession(ctx, hash); err != nil {
			return models.Principal{}, err
		}
	}
	return models.Principal{
		Kind: models.KindUser, AccountID: v.User.AccountID, UserID: v.User.ID, Scopes: tokens.Scopes(models.KindUser), Fresh: v.Confirmed < Fresh, Session: hash,
	}, nil
}

// SessionLives tells whether a session has not ended. Asking is no use of it.
func (s *Service) SessionLives(ctx context.Context, hash []byte) (bool, error) {
	_, found, err := s.store.Session(ctx, hash, Idle, Life)
	return found, err
}

// AppPrincipal tells for whom an app's token speaks, as a caller without scopes. A user that is gone is CodeUnauthenticated, and so is a
// token from before the last change of the password.
func (s *Service) AppPrincipal(ctx context.Context, t tokens.Subject) (models.Principal, error) {
	u, found, err := s.store.User(ctx, t.Account, t.UserID)
	if err != nil {
		return models.Principal{}, err
	}
	if !found || t.IssuedAt.Before(u.NotBefore) {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "The user of this token is gone, or has changed the password. Connect the app again.")
	}
	return models.Principal{Kind: models.KindUser, AccountID: u.AccountID, UserID: u.ID}, nil
}

// ExternalPrincipal tells for whom the token of an external issuer speaks, as a caller without scopes. Only whom the operator has made known
// is somebody here; all others are CodeUnauthenticated. It is never fresh: what the issuer asked the user for isn't known.
func (s *Service) ExternalPrincipal(ctx context.Context, t tokens.Subject) (models.Principal, error) {
	u, found, err := s.store.UserByIdentity(ctx, t.Issuer, t.ExternalID)
	if err != nil {
		return models.Principal{}, err
	}
	if !found || t.IssuedAt.Before(u.NotBefore) {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated,
			"The issuer's user is nobody here, or has changed the password since. Get a new token, or ask the operator to make the identity known.")
	}
	return models.Principal{Kind: models.KindUser, AccountID: u.AccountID, UserID: u.ID}, nil
}

// AddIdentity says whom a user of an account is at an external issuer; saying it again changes nothing. Somebody who is another user already
// is CodeAlreadyExists.
func (s *Service) AddIdentity(ctx context.Context, account models.AccountID, userName, issuer, subject string) (i models.Identity, err error) {
	u, err := s.ByName(ctx, account, userName)
	if err != nil {
		return i, err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		want := models.Identity{ID: models.NewIdentityID(), Issuer: issuer, Subject: subject, UserID: u.ID}
		if i, err = tx.InsertIdentity(want); err != nil {
			return err
		}
		switch {
		case i.ID == want.ID:
			return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.IdentityAdd, Object: audit.OfUser(u.ID)})
		case i.UserID != u.ID:
			return models.Errorf(models.CodeAlreadyExists, "This subject of the issuer is another user already. Remove that identity first.")
		}
		return nil
	})
	return i, err
}

// RemoveIdentity ends it: the issuer's tokens for that subject are refused from then on.
func (s *Service) RemoveIdentity(ctx context.Context, id string) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.DeleteIdentity(id)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		return audit.Note(ctx, tx, audit.Entry{Account: u.AccountID, Action: audit.IdentityRemove, Object: audit.OfUser(u.ID)})
	})
}

// ByName reads a user of an account by the name that they log in with; it is for operators.
func (s *Service) ByName(ctx context.Context, account models.AccountID, name string) (models.User, error) {
	u, _, found, err := s.store.UserByName(ctx, canonical(name), netip.Prefix{})
	if err == nil && (!found || u.AccountID != account) {
		err = models.Errorf(models.CodeNotFound, "The account has no such user. Check the name, or invite the user first.")
	}
	return u, err
}

// Login implements oauth.Users.
func (s *Service) Login(ctx context.Context, account models.AccountID, userID string) (tokens.Login, error) {
	u, found, err := s.store.User(ctx, account, userID)
	if err == nil && !found {
		err = models.Errorf(models.CodeInvalidGrant, "The user is gone. Connect the app again.")
	}
	// An app never counts as freshly logged in: all that is known is since when the password is what it is.
	at := u.CreatedAt
	if u.NotBefore.After(at) {
		at = u.NotBefore
	}
	return tokens.Login{UserID: userID, AccountID: account, ACR: "pwd", At: at, NotBefore: u.NotBefore}, err
}

// LogOut ends the caller's session.
func (s *Service) LogOut(ctx context.Context, p models.Principal) error {
	if p.Session == nil {
		return noSession()
	}
	return s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.DeleteSession(p.Session); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: p.AccountID, Action: audit.Logout, Object: audit.OfUser(p.UserID)})
	})
}

func noSession() error {
	return models.Errorf(models.CodeForbidden, "This is for somebody who is logged in with a browser, not for an app.")
}

// Confirm makes the caller's session fresh.
func (s *Service) Confirm(ctx context.Context, p models.Principal, password string) error {
	if p.Session == nil {
		return noSession()
	}
	if _, err := s.check(ctx, p, password); err != nil {
		return err
	}
	return s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.ConfirmSession(p.Session); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: p.AccountID, Action: audit.Confirm, Object: audit.OfUser(p.UserID)})
	})
}

// ChangePassword needs the old password. Every other session and every app of the user ends.
func (s *Service) ChangePassword(ctx context.Context, p models.Principal, old, password string) error {
	u, err := s.check(ctx, p, old)
	if err != nil {
		return err
	}
	encoded, err := s.hasher.Hash(ctx, password)
	if err != nil {
		return err
	}
	return s.store.Write(ctx, func(tx *store.Tx) error {
		changed, err := tx.SetPassword(u.ID, u.PasswordHash, encoded)
		if err != nil {
			return err
		}
		if !changed {
			return wrongPassword()
		}
		if err := tx.DeleteOtherSessions(u.ID, append([]byte{}, p.Session...)); err != nil {
			return err
		}
		if err := tx.DeleteRefreshTokensOfUser(u.AccountID, u.ID); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: u.AccountID, Action: audit.PasswordChange, Object: audit.OfUser(u.ID)})
	})
}

func wrongPassword() error {
	return models.Errorf(models.CodeForbidden, "The password is wrong.")
}

// check holds a password against the caller's own, with the same delays as a login.
func (s *Service) check(ctx context.Context, p models.Principal, password string) (models.User, error) {
	c, _ := audit.CallerOf(ctx)
	u, found, err := s.store.User(ctx, p.AccountID, p.UserID)
	if err != nil {
		return u, err
	}
	if !found {
		return u, models.Errorf(models.CodeUnauthenticated, "The user is gone.")
	}
	attempt, wait := s.delays.Begin(u.Name, c.Source, true)
	if wait > 0 {
		return u, tooEarly(wait)
	}
	outcome, err := s.hasher.Check(ctx, password, u.PasswordHash)
	if err != nil {
		return u, err
	}
	if !outcome.Match {
		err := s.store.Write(ctx, func(tx *store.Tx) error {
			return audit.Note(ctx, tx, audit.Entry{
				Account: u.AccountID, Action: audit.Confirm, Object: audit.OfUser(u.ID), Refused: models.CodeForbidden,
			})
		})
		return u, errors.Join(err, wrongPassword())
	}
	attempt.Succeeded()
	return u, nil
}

// canonical is the one spelling of a user name.
func canonical(name string) string { return strings.ToLower(name) }
