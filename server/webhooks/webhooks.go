// Package webhooks sends partners the events that concern them, as Standard Webhooks (standardwebhooks.com): Service keeps where they want them,
// Courier delivers.
//
// What is to be delivered is noted by the store in the transaction of the event itself; this package finds it there, asks for the link again with
// each event it reads, and never connects to anything but through server/outbound (docs/adr/0030).
package webhooks

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/outbound"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// Limit is how many webhooks a service may have.
	Limit = 10
	// Overlap is how long an old secret signs beside the new one.
	Overlap = 24 * time.Hour
	// maxURL bounds a URL.
	maxURL = 2048
	// secretPrefix and secretSize are the form of a secret (Standard Webhooks, "Signature scheme").
	secretPrefix = "whsec_"
	secretSize   = 32
)

// Secret is what signs, in the form that partners configure. It doesn't print itself.
type Secret struct{ text string }

// Reveal gives the text, for the one answer that shows it.
func (s Secret) Reveal() string { return s.text }

// Format keeps the secret out of whatever prints it.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, secretPrefix+"…") }

// types are those a service can hear of.
var types = []models.EventType{
	models.EventGroupCreated, models.EventGroupChanged, models.EventGroupEnded, models.EventMemberJoined, models.EventMemberLeft, models.EventMemberExpired,
	models.EventMemberMoved, models.EventConsentChanged, models.EventLinkGranted, models.EventLinkRevoked,
}

// Service keeps webhooks.
type Service struct {
	store *store.Store
	kek   *keys.KEK
	rules outbound.Rules
}

// New makes the service. The rules say which URLs are taken.
func New(st *store.Store, kek *keys.KEK, rules outbound.Rules) *Service {
	return &Service{store: st, kek: kek, rules: rules}
}

// Change is what a webhook is to become. What is nil stays.
type Change struct {
	URL     *string
	Types   *[]string // as in the envelope of an event; none is all
	Enabled *bool
}

// Create adds a webhook of a service and draws its secret, which is not shown again. It hears what happens from now on.
func (s *Service) Create(ctx context.Context, service models.ServiceID, target string, wanted []string) (w models.Webhook, secret Secret, err error) {
	w = models.Webhook{ID: models.NewWebhookID(), ServiceID: service}
	if w.URL, err = s.checkURL(target); err != nil {
		return w, Secret{}, err
	}
	if w.Types, err = parseTypes(wanted); err != nil {
		return w, Secret{}, err
	}
	secret = draw()
	w.Secret = s.kek.Seal(purpose(w.ID), []byte(secret.text))
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.LockService(service)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		n, err := tx.CountWebhooks(service)
		if err != nil {
			return err
		}
		if n >= Limit {
			return models.QuotaExceeded(models.QuotaWebhooks, Limit, n, "Delete one first, or change it.")
		}
		if err := tx.InsertWebhook(w); err != nil {
			return err
		}
		if w, _, err = tx.Webhook(service, w.ID); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.WebhookCreate, Object: audit.OfWebhook(w.ID)})
	})
	return w, secret, err
}

// Get reads a webhook of a service.
func (s *Service) Get(ctx context.Context, service models.ServiceID, id models.WebhookID) (models.Webhook, error) {
	w, found, err := s.store.Webhook(ctx, service, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return w, err
}

// List reads a page of a service's webhooks, oldest first, and the token of the next page, which is empty on the last.
func (s *Service) List(ctx context.Context, service models.ServiceID, page models.Page) (all []models.Webhook, next string, err error) {
	after, err := page.After(models.ListWebhooks)
	if err != nil {
		return nil, "", err
	}
	all, err = s.store.WebhookPage(ctx, service, after, page.Limit()+1)
	all, next = models.Cut(all, page, models.ListWebhooks, func(w models.Webhook) string { return string(w.ID) })
	return all, next, err
}

// Change changes a webhook. One that is enabled hears from then on; what happened while it was disabled is not told.
func (s *Service) Change(ctx context.Context, service models.ServiceID, id models.WebhookID, c Change) (w models.Webhook, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if w, err = find(tx, service, id); err != nil {
			return err
		}
		if c.URL != nil {
			if w.URL, err = s.checkURL(*c.URL); err != nil {
				return err
			}
		}
		if c.Types != nil {
			if w.Types, err = parseTypes(*c.Types); err != nil {
				return err
			}
		}
		if err := tx.UpdateWebhook(w); err != nil {
			return err
		}
		switch {
		case c.Enabled == nil:
		case *c.Enabled:
			err = tx.EnableWebhook(id)
		default:
			_, err = tx.DisableWebhook(id, models.WebhookPaused)
		}
		if err != nil {
			return err
		}
		if w, err = find(tx, service, id); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.WebhookChange, Object: audit.OfWebhook(id)})
	})
	return w, err
}

// Rotate gives a webhook another secret, which is not shown again, and lets the one before sign as well for Overlap. Doing it again within that
// time replaces the new one only, so that an answer that got lost does no harm.
func (s *Service) Rotate(ctx context.Context, service models.ServiceID, id models.WebhookID) (w models.Webhook, secret Secret, err error) {
	secret = draw()
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if _, err = find(tx, service, id); err != nil {
			return err
		}
		if err := tx.SetWebhookSecret(id, s.kek.Seal(purpose(id), []byte(secret.text)), Overlap); err != nil {
			return err
		}
		if w, err = find(tx, service, id); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.WebhookRotate, Object: audit.OfWebhook(id)})
	})
	return w, secret, err
}

// Delete removes a webhook.
func (s *Service) Delete(ctx context.Context, service models.ServiceID, id models.WebhookID) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.DeleteWebhook(service, id)
		if err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.WebhookDelete, Object: audit.OfWebhook(id)})
	})
}

func find(tx *store.Tx, service models.ServiceID, id models.WebhookID) (models.Webhook, error) {
	w, found, err := tx.Webhook(service, id)
	if err == nil && !found {
		err = models.NotFound()
	}
	return w, err
}

// secrets opens those of a webhook that sign now, the new one first.
func (s *Service) secrets(w models.Webhook) ([]Secret, error) {
	sealed := [][]byte{w.Secret}
	if w.Overlap {
		sealed = append(sealed, w.OldSecret)
	}
	all := make([]Secret, len(sealed))
	for i, b := range sealed {
		plain, err := s.kek.Open(purpose(w.ID), b)
		if err != nil {
			return nil, err
		}
		all[i] = Secret{string(plain)}
	}
	return all, nil
}

func purpose(id models.WebhookID) string { return "webhook secret " + string(id) }

func draw() Secret {
	var b [secretSize]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return Secret{secretPrefix + base64.StdEncoding.EncodeToString(b[:])}
}

func parseTypes(wanted []string) ([]models.EventType, error) {
	var all []models.EventType
	for _, name := range wanted {
		t := models.EventType(strings.TrimPrefix(name, events.TypePrefix))
		if !strings.HasPrefix(name, events.TypePrefix) || !slices.Contains(types, t) {
			return nil, models.Errorf(models.CodeBadRequest, "eventTypes names a type that a service can't hear of. Give some of %s, or none for all.", typeNames())
		}
		if !slices.Contains(all, t) {
			all = append(all, t)
		}
	}
	return all, nil
}

func typeNames() string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = events.TypePrefix + string(t)
	}
	return strings.Join(names, ", ")
}

// checkURL refuses what could never be called, so that the partner hears it at once. What a name resolves to is decided when it is called.
func (s *Service) checkURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > maxURL || u.Opaque != "":
		return "", badURL("It can't be read as one, or is longer than %d bytes.", maxURL)
	case u.Scheme != "https":
		return "", badURL("It has to begin with https://.")
	case u.User != nil:
		return "", badURL("It must not hold a user name or password; deliveries are signed instead.")
	case u.Fragment != "" || strings.Contains(text, "#"):
		return "", badURL("It must not have a fragment.")
	case u.Hostname() == "":
		return "", badURL("It names no host.")
	}
	port := uint64(443)
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return "", badURL("Its port is none.")
		}
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		if s.rules.Check(netip.AddrPortFrom(a, uint16(port))) != nil {
			return "", badURL("This address or port may not be called: use a public address, port 443.")
		}
		return u.String(), nil
	}
	if likeNumber(host[strings.LastIndexByte(host, '.')+1:]) || net.ParseIP(host) != nil {
		return "", badURL("Its host is a number in a form that not everybody reads the same way. Use a name.")
	}
	if !s.rules.AllowLoopback && !slices.Contains(s.rules.Ports, uint16(port)) {
		return "", badURL("This port may not be called: use 443.")
	}
	return u.String(), nil
}

// likeNumber tells whether some resolver would take a name that ends with the label for an address (WHATWG URL, "ends in a number").
func likeNumber(label string) bool {
	if label == "" {
		return true
	}
	if hex, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

func badURL(format string, args ...any) error {
	return models.Errorf(models.CodeBadURL, "The url can't be used. "+format, args...)
}
