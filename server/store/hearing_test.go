package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestOneRuleOfWhoHears: the relay, what it takes back, the streams and the webhooks say the same of each consent.
func TestOneRuleOfWhoHears(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h := s.NewHome(t)
		garden, err := s.Accounts.CreatePremises(ctx, h.Account.ID, "garden", false)
		require.NoError(t, err)
		upload, camera := h.Service(t, "svc-upload", 0), h.Device(t, models.DeviceCamera, "camera")
		group := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		now, err := db.Now(ctx)
		require.NoError(t, err)
		only := func(scopes ...string) []string { return scopes }
		for _, c := range []struct {
			name    string
			consent models.Consent
			member  bool
			hears   bool
		}{
			{"events everywhere", models.Consent{Scopes: only(models.ScopeEvents)}, false, true},
			{"events here", models.Consent{Scopes: only(models.ScopeRegister, models.ScopeEvents), Premises: []models.PremisesID{garden.ID, h.Premises.ID}}, false, true},
			{"events elsewhere", models.Consent{Scopes: only(models.ScopeEvents), Premises: []models.PremisesID{garden.ID}}, false, false},
			{"nothing of the kind", models.Consent{Scopes: only(models.ScopeRegister)}, false, false},
			{"as a member that is none", models.Consent{Scopes: only(models.ScopeRegister, models.ScopeNotify)}, false, false},
			{"as a member", models.Consent{Scopes: only(models.ScopeRegister, models.ScopeNotify)}, true, true},
			{"as a member elsewhere", models.Consent{Scopes: only(models.ScopeNotify), Premises: []models.PremisesID{garden.ID}}, false, false},
			{"until a moment ago", models.Consent{Scopes: only(models.ScopeEvents), ExpiresAt: now.Add(-time.Second)}, false, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				link := upload.Link
				link.Consent = c.consent
				require.NoError(t, db.Write(ctx, func(tx *store.Tx) error { _, err := tx.SetConsent(link); return err }))
				// The consent is as old as the event: whether it was in force then is another question.
				db.Exec(t, "UPDATE service_links SET granted_at = 1")
				if c.member {
					h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "door", group.GroupIP))
				}
				all, err := db.UnpublishedEvents(ctx, 1000, nil)
				require.NoError(t, err)
				var last store.WaitingEvent
				for _, e := range all {
					if e.Group != nil {
						last = e
					}
				}
				require.Equal(t, c.hears, len(last.Hearers) == 1, "the relay")
				heard, err := db.HeardGroups(ctx, link, []models.GroupID{last.GroupID})
				require.NoError(t, err)
				require.Equal(t, c.hears, len(heard) == 1, "what the relay takes back")
				one, err := db.GroupEventsHeard(ctx, store.Hearer{Service: "svc-upload"}, last.GroupID, last.Rev-1, 10)
				require.NoError(t, err)
				require.Equal(t, c.hears, len(one) == 1, "a group's stream")
				mixed, err := db.EventsHeard(ctx, store.Hearer{Service: "svc-upload"}, last.ID-1, last.ID, 10)
				require.NoError(t, err)
				require.Equal(t, c.hears, len(mixed) == 1, "a mixed stream")
				db.Exec(t, "DELETE FROM webhooks")
				require.NoError(t, db.Write(ctx, func(tx *store.Tx) error {
					return tx.InsertWebhook(models.Webhook{ID: "w_1", ServiceID: "svc-upload", URL: "https://hooks.example", Secret: []byte{1}})
				}))
				_, found, err := db.NextWebhookEvent(ctx, models.WebhookStream{
					WebhookID: "w_1", ServiceAccountID: link.ServiceAccountID, EventStream: last.EventStream, Rev: last.Rev - 1, NewestRev: last.Rev,
				})
				require.NoError(t, err)
				require.Equal(t, c.hears, found, "a webhook")
			})
		}
	})
}
