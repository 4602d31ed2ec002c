// Package enrolment lets a device into a premises with a single-use ticket and a public key of its own (RFC 7591 with an initial access
// token; design: identity.md §4.2). A key belongs to one device of one account until the device is removed: whoever buys a used camera
// can't claim it while its last owner still has it.
//
// It never sees a private key, and never decides who may make a ticket.
package enrolment

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
)

// TicketLife is how long a ticket is good.
const TicketLife = 15 * time.Minute

// ClientPrefix begins the client id of an enrolled device; the thumbprint of its key follows. No service's id can hold it.
const ClientPrefix = "dk_"

// RelayClientPrefix does the same for a relay.
const RelayClientPrefix = "rk_"

// Service makes and takes tickets.
type Service struct {
	store    *store.Store
	accounts *accounts.Service
	relays   *relays.Service
}

// New makes the service.
func New(st *store.Store, a *accounts.Service, r *relays.Service) *Service {
	return &Service{store: st, accounts: a, relays: r}
}

// NewTicket says what a ticket is for.
type NewTicket struct {
	PremisesID models.PremisesID
	// DeviceType is what the device will be. With DeviceID it may be empty.
	DeviceType models.DeviceType
	// DeviceID names the device of this premises whose lost key is replaced; 0 makes a new device.
	DeviceID models.ID
	// Name is what people call the new device; empty leaves it to the device.
	Name string
	// NoPoP is for devices that can't prove possession of a key at each request.
	NoPoP bool
}

// Create makes a ticket, which is shown once. account is the caller's; empty, for operators, lets every account's premises be named.
// What is missing or another account's is CodeNotFound.
func (s *Service) Create(ctx context.Context, account models.AccountID, n NewTicket) (ticket string, t models.Ticket, err error) {
	ticket = secrets.New()
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		p, found, err := tx.Premises(n.PremisesID)
		if err != nil {
			return err
		}
		if !found || account != "" && p.AccountID != account {
			return models.NotFound()
		}
		t = models.Ticket{AccountID: p.AccountID, PremisesID: p.ID, DeviceType: n.DeviceType, DeviceID: n.DeviceID, Name: n.Name, PoP: !n.NoPoP}
		if n.DeviceID != 0 {
			d, found, err := tx.Device(n.DeviceID)
			if err != nil {
				return err
			}
			if !found || d.AccountID != p.AccountID || d.PremisesID != p.ID {
				return models.NotFound()
			}
			if n.DeviceType != "" && n.DeviceType != d.Type {
				return models.Errorf(models.CodeBadRequest, "The device is a %s; leave deviceType out, or make a ticket for a new device.", d.Type)
			}
			t.DeviceType, t.PoP = d.Type, d.PoP
		}
		if t.DeviceType == "" {
			return models.Errorf(models.CodeBadRequest, "Say which deviceType the ticket is for.")
		}
		if t, err = tx.InsertTicket(secrets.Hash(ticket), t, TicketLife); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: t.AccountID, Action: audit.TicketCreate, Object: audit.OfPremises(t.PremisesID)})
	})
	if err != nil {
		return "", models.Ticket{}, err
	}
	return ticket, t, nil
}

// Request is a device that wants to be let in.
type Request struct {
	Ticket string
	// Key is the device's public key, and JWK its JSON. Whoever calls has seen a proof that the device holds the private half.
	Key    dpop.Key
	JWK    string
	Name   string
	Model  string
	Serial string
}

// Enrolled is a device that was let in, or a relay.
type Enrolled struct {
	Device models.Device
	// RelayID is 0 for a device.
	RelayID  models.ID
	ClientID string
}

// Enrol uses a ticket up. A ticket that is unknown, used or over is CodeInvalidGrant; a key that another device has is
// CodeAlreadyExists, and the ticket stays good.
func (s *Service) Enrol(ctx context.Context, r Request) (Enrolled, error) {
	var d models.Device
	var relay models.ID
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		d, relay = models.Device{}, 0
		t, found, err := tx.TakeTicket(secrets.Hash(r.Ticket))
		if err != nil {
			return err
		}
		if !found {
			if relay, found, err = s.relays.Enrol(ctx, tx, r.Ticket, r.Key.Thumbprint, r.JWK); err != nil {
				return err
			}
			if found {
				_, held, err := tx.DeviceKey(r.Key.Thumbprint)
				if err == nil && held {
					err = keyTaken()
				}
				return err
			}
			return models.Errorf(models.CodeInvalidGrant, "The ticket is unknown, was used, or is older than %s. Ask for a new one.", TicketLife)
		}
		n := accounts.NewDevice{PremisesID: t.PremisesID, Type: t.DeviceType, Name: t.Name, Model: r.Model, NoPoP: !t.PoP}
		if n.Name == "" {
			n.Name = r.Name
		}
		if d, err = s.Admit(tx, t.DeviceID, n, models.DeviceKey{Thumbprint: r.Key.Thumbprint, JWK: r.JWK, Serial: r.Serial}); err != nil {
			return err
		}
		action := audit.DeviceEnrol
		if t.DeviceID != 0 {
			action = audit.DeviceKeyReplace
		}
		return audit.Note(ctx, tx,
			audit.Entry{Account: d.AccountID, Action: audit.TicketRedeem, Object: audit.OfPremises(d.PremisesID)},
			audit.Entry{Account: d.AccountID, Action: action, Object: audit.OfDevice(d.ID)})
	})
	client := ClientPrefix
	if relay != 0 {
		client = RelayClientPrefix
	}
	return Enrolled{Device: d, RelayID: relay, ClientID: client + r.Key.Thumbprint}, err
}

// Admit gives a key to a device: to the one that is named, whose old key and tokens end with that, or to a new one. It is a step of a
// transaction.
func (s *Service) Admit(tx *store.Tx, replaces models.ID, n accounts.NewDevice, k models.DeviceKey) (d models.Device, err error) {
	holder, held, err := tx.DeviceKey(k.Thumbprint)
	if err != nil {
		return d, err
	}
	if held && holder.DeviceID != replaces {
		return d, keyTaken()
	}
	if held, err = tx.HasRelayKey(k.Thumbprint); err != nil {
		return d, err
	}
	if held {
		return d, keyTaken()
	}
	if replaces == 0 {
		if n.Name == "" {
			n.Name = string(n.Type)
		}
		if d, err = s.accounts.AddDevice(tx, n); err != nil {
			return d, err
		}
	} else {
		var found bool
		if err = tx.EndDeviceTokens(replaces); err != nil {
			return d, err
		}
		if d, found, err = tx.Device(replaces); err != nil {
			return d, err
		}
		if !found {
			return d, models.NotFound()
		}
	}
	k.DeviceID = d.ID
	err = tx.PutDeviceKey(k)
	if s.store.IsDuplicate(err) { // somebody was faster
		return d, keyTaken()
	}
	return d, err
}

// Key reads the key of a device by its client id.
func (s *Service) Key(ctx context.Context, thumbprint string) (models.DeviceKey, bool, error) {
	return s.store.DeviceKey(ctx, thumbprint)
}

func keyTaken() error {
	return models.Errorf(models.CodeAlreadyExists, "This key belongs to a device that is enrolled already. Its owner has to remove that device first; or make "+
		"a new key.")
}
