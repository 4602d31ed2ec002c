package enrolment_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/edgetest"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func TestTickets(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := edgetest.New(t, db)
		h, other := l.NewHome(t), l.NewHome(t)
		ctx := t.Context()
		camera, theirs := h.Device(t, models.DeviceCamera, "c"), other.Device(t, models.DeviceCamera, "c")
		for name, c := range map[string]struct {
			n    enrolment.NewTicket
			want models.Code
		}{
			"another's premises":           {enrolment.NewTicket{PremisesID: other.Premises.ID, DeviceType: models.DeviceCamera}, models.CodeNotFound},
			"no premises":                  {enrolment.NewTicket{PremisesID: models.NewPremisesID(), DeviceType: models.DeviceCamera}, models.CodeNotFound},
			"another's device":             {enrolment.NewTicket{PremisesID: h.Premises.ID, DeviceID: theirs.Device.ID}, models.CodeNotFound},
			"no device":                    {enrolment.NewTicket{PremisesID: h.Premises.ID, DeviceID: models.NewID()}, models.CodeNotFound},
			"the device as something else": {enrolment.NewTicket{PremisesID: h.Premises.ID, DeviceID: camera.Device.ID, DeviceType: models.DevicePhone}, models.CodeBadRequest},
			"no type":                      {enrolment.NewTicket{PremisesID: h.Premises.ID}, models.CodeBadRequest},
		} {
			ticket, _, err := l.Enrolment.Create(ctx, h.Account.ID, c.n)
			servertest.Refused(t, c.want, err)
			assert.Empty(t, ticket, name)
		}
		create := func(n enrolment.NewTicket) string {
			n.PremisesID = h.Premises.ID
			ticket, _, err := l.Enrolment.Create(ctx, h.Account.ID, n)
			require.NoError(t, err)
			assert.NotContains(t, l.DB.Texts(t, "SELECT name FROM enrolment_tickets"), ticket)
			return ticket
		}
		use := func(ticket string, k edgetest.Key) (models.Device, error) {
			e, err := l.Enrolment.Enrol(ctx, enrolment.Request{Ticket: ticket, Key: k.Key, JWK: string(k.Public(t)), Name: "own name", Model: "M1", Serial: "1"})
			return e.Device, err
		}
		// Just in time, and too late.
		inTime, late := create(enrolment.NewTicket{DeviceType: models.DeviceCamera, NoPoP: true}), create(enrolment.NewTicket{DeviceType: models.DeviceCamera})
		l.DB.Advance(t, enrolment.TicketLife-time.Minute)
		k := edgetest.NewKey(t)
		d, err := use(inTime, k)
		require.NoError(t, err)
		assert.Equal(t, "own name", d.Name)
		assert.False(t, d.PoP)
		assert.Equal(t, h.Account.ID, d.AccountID)
		l.DB.Advance(t, time.Minute)
		_, err = use(late, edgetest.NewKey(t))
		servertest.Refused(t, models.CodeInvalidGrant, err)

		// A lost key: the device stays, what it was granted to prove stays, and its old key is free.
		replacement := edgetest.NewKey(t)
		ticket := create(enrolment.NewTicket{DeviceID: d.ID, Name: "ignored"})
		_, err = use(create(enrolment.NewTicket{DeviceType: models.DeviceCamera}), k)
		servertest.Refused(t, models.CodeAlreadyExists, err)
		again, err := use(ticket, replacement)
		require.NoError(t, err)
		assert.Equal(t, d.ID, again.ID)
		assert.Equal(t, d.Name, again.Name)
		assert.False(t, again.PoP)
		held, found, err := l.Enrolment.Key(ctx, replacement.Thumbprint)
		require.NoError(t, err)
		assert.True(t, found)
		assert.Equal(t, d.ID, held.DeviceID)
		_, found, err = l.Enrolment.Key(ctx, k.Thumbprint)
		require.NoError(t, err)
		assert.False(t, found)
		_, err = use(ticket, edgetest.NewKey(t))
		servertest.Refused(t, models.CodeInvalidGrant, err)
		second, err := use(create(enrolment.NewTicket{DeviceType: models.DevicePhone, Name: "given"}), k)
		require.NoError(t, err)
		assert.NotEqual(t, d.ID, second.ID)
		assert.Equal(t, "given", second.Name)

		// A device that is removed takes the tickets for its key with it.
		ticket = create(enrolment.NewTicket{DeviceID: second.ID})
		require.NoError(t, l.Accounts.DeleteDevice(ctx, h.Account.ID, second.ID))
		_, err = use(ticket, edgetest.NewKey(t))
		servertest.Refused(t, models.CodeInvalidGrant, err)
	})
}
