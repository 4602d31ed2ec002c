package pages

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/tokens"
)

// TestEveryScopeIsSaidInWords keeps an approval from granting something that the page doesn't say.
func TestEveryScopeIsSaidInWords(t *testing.T) {
	for client, kind := range map[string]models.Kind{
		devicegrant.ClientDevice: models.KindDevice, devicegrant.ClientGateway: models.KindGateway, devicegrant.ClientApp: models.KindUser,
	} {
		all := may(models.DeviceGrant{ClientID: client})
		assert.Len(t, all, len(tokens.Scopes(kind)), "nothing asked for is everything")
		for i, scope := range tokens.Scopes(kind) {
			assert.NotEqual(t, scope, all[i], "%s of a %s has no words", scope, kind)
			assert.Equal(t, []string{all[i]}, may(models.DeviceGrant{ClientID: client, Scope: scope}), "only what was asked for")
		}
		assert.Equal(t, []string{"gc:new"}, may(models.DeviceGrant{ClientID: client, Scope: "gc:new"}), "rather its name than nothing")
	}
}

func TestFaultsNameTheFieldAsTheFormDoes(t *testing.T) {
	e := models.Errorf(models.CodeBadRequest, "x").With(problem.FieldErrors, []problem.FieldError{
		{Pointer: "/userName", Detail: "Give a string of 3 to 64 characters that matches ^[a-z]$."},
	})
	assert.Equal(t, "User name: Give a string of 3 to 64 characters, as the form says.", sentence(e))
}

func TestWhereALogInLeads(t *testing.T) {
	for next, want := range map[string]string{
		"": "/account", "/account": "/account", "/device": "/device", "/device?user_code=bcdf ghjk": "/device?user_code=bcdf+ghjk",
		"/device?user_code=BCDF-GHJK&done=approve": "/device?user_code=BCDF-GHJK", "/account/password": "/account/password", "/logout": "/account",
		"//device": "/account", "http:/device": "/account", "/device#x": "/device",
	} {
		assert.Equal(t, want, known(next), next)
	}
}
