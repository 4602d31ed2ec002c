package models_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
)

func TestWhoJoinsByThePolicy(t *testing.T) {
	byType := models.JoinPolicy{Devices: []models.DeviceRule{{Type: models.DevicePhone}, {Type: models.DeviceTablet}}, Services: []models.ServiceID{"svc-upload", "svc-thumbnail"}}
	byModel := models.JoinPolicy{Devices: []models.DeviceRule{{Type: models.DeviceReceiver, Model: "RX-1"}, {Type: models.DeviceReceiver, Model: "RX-2"}}}
	for _, c := range []struct {
		policy models.JoinPolicy
		device models.DeviceType
		model  string
		want   bool
	}{
		{byType, models.DevicePhone, "", true},
		{byType, models.DevicePhone, "any model", true},
		{byType, models.DeviceTablet, "", true},
		{byType, models.DeviceLaptop, "", false},
		{byType, models.DeviceCamera, "", false},
		{byType, models.DeviceGateway, "", false},
		{byType, "", "", false},
		{byModel, models.DeviceReceiver, "RX-1", true},
		{byModel, models.DeviceReceiver, "RX-2", true},
		{byModel, models.DeviceReceiver, "RX-3", false},
		{byModel, models.DeviceReceiver, "rx-1", false},
		{byModel, models.DeviceReceiver, "", false},
		{byModel, models.DevicePhone, "RX-1", false},
		{models.JoinPolicy{}, models.DevicePhone, "", false},
	} {
		assert.Equal(t, c.want, c.policy.AdmitsDevice(c.device, c.model), "%+v", c)
	}
	for id, want := range map[models.ServiceID]bool{"svc-upload": true, "svc-thumbnail": true, "svc-live": false, "": false, "SVC-UPLOAD": false} {
		assert.Equal(t, want, byType.AdmitsService(id), id)
		assert.False(t, models.JoinPolicy{}.AdmitsService(id), "nobody joins without a policy")
	}
}

func TestNormalJoinPolicy(t *testing.T) {
	p := models.JoinPolicy{
		Devices:  []models.DeviceRule{{Type: models.DevicePhone}, {Type: models.DevicePhone, Model: "P"}, {Type: models.DevicePhone}},
		Services: []models.ServiceID{"svc-b", "svc-a", "svc-b"},
	}
	n, err := p.Normal()
	require.NoError(t, err)
	assert.Equal(t, models.JoinPolicy{Devices: p.Devices[:2], Services: p.Services[:2]}, n)
	n, err = models.JoinPolicy{}.Normal()
	require.NoError(t, err)
	assert.Equal(t, models.JoinPolicy{}, n)
	_, err = models.JoinPolicy{Devices: []models.DeviceRule{{Type: models.DeviceGateway}}}.Normal()
	var refusal *models.Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, models.CodeBadRequest, refusal.Code)
}
