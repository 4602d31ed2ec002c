package authz_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/authz"
)

func parse(t *testing.T, text []byte) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(text)
	require.NoError(t, err)
	return doc
}

// TestDecisionsOfTheContract states for the whole contract who may do what. Whoever adds an operation has to add it here.
func TestDecisionsOfTheContract(t *testing.T) {
	device, gateway, relay, service, user, operator := models.KindDevice, models.KindGateway, models.KindRelay, models.KindService, models.KindUser, models.KindOperator
	for name, c := range map[string]struct {
		text []byte
		want map[string][]models.Kind // nil: anyone
	}{
		"public": {openapi.Public, map[string][]models.Kind{
			"register":          {device, service},
			"listRegistrations": {device, service},
			"getRegistration":   {device, service},
			"leave":             {device, service, user},
			"listGroups":        {device, gateway, service, user},
			"getGroup":          {device, gateway, service, user},
			"listen":            {device, service, user},
			"listenToGroup":     {device, service, user},
			"declareGateway":    {gateway},
			"declareTunnel":     {device}, "getTunnelInformation": {device},
			"getGateway":          {gateway},
			"getGroupInformation": {gateway},
			"reportConsents":      {gateway},
			"declareRelay":        {relay},
			"getRelayInformation": {relay},
			"reportRelayConsents": {relay},
			"getHealth":           nil,
			"getReadiness":        nil,
			"requestToken":        nil,
			"authorizeDevice":     nil,
			"enrol":               nil,
			"revokeToken":         nil,
			"getIssuerMetadata":   nil,
			"getKeys":             nil,
			"signUp":              nil,
			"login":               nil,
			"logout":              {user},
			"getAccount":          {user},
			"changeAccount":       {user},
			"changePassword":      {user},
			"confirm":             {user},
			"listLinks":           {user},
			"linkService":         {user},
			"unlinkService":       {user},
			"listPremises":        {user},
			"createPremises":      {user},
			"changePremises":      {user},
			"deletePremises":      {user},
			"createTicket":        {user},
			"createWebhook":       {service},
			"listWebhooks":        {service},
			"getWebhook":          {service},
			"changeWebhook":       {service},
			"deleteWebhook":       {service},
			"rotateWebhook":       {service},
			"testWebhook":         {service},
			"changeDevice":        {user},
			"listDevices":         {user, device, gateway},
			"getDevice":           {user, device, gateway},
			"removeDevice":        {user, device, gateway},
		}},
		"admin": {openapi.Admin, map[string][]models.Kind{
			"createAccount": {operator}, "listAccounts": {operator}, "createPremises": {operator}, "createDevice": {operator},
			"changeDevice": {operator}, "deleteDevice": {operator}, "createService": {operator}, "getService": {operator}, "changeService": {operator}, "createLink": {operator},
			"deleteLink": {operator}, "createToken": {operator}, "decideDeviceGrant": {operator}, "deleteServiceCredential": {operator},
			"createTicket": {operator}, "listSigningKeys": {operator}, "listServiceCredentials": {operator}, "listAudit": {operator},
			"verifyAudit": {operator}, "rotateSigningKeys": {operator}, "createServiceCredential": {operator}, "createInvitation": {operator}, "createIdentity": {operator}, "deleteIdentity": {operator}, "rotateEpoch": {operator}, "createRelay": {operator}, "listRelays": {operator}, "deleteRelay": {operator}, "createRelayTicket": {operator}, "setRelayPremises": {operator}, "getQueueConfiguration": {operator},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			table, err := authz.Load(parse(t, c.text))
			require.NoError(t, err)
			assert.ElementsMatch(t, slices.Collect(maps.Keys(c.want)), slices.Collect(maps.Keys(table)))
			for op, allowed := range c.want {
				for _, kind := range []models.Kind{device, gateway, relay, service, user, operator} {
					all := []string{"gc:register", "gc:notify", "gc:groups.read", "gc:consent.report", "gc:events", "gc:account", "gc:devices", "gc:links"}
					err := table.Decide(op, &models.Principal{Kind: kind, Scopes: all, Fresh: true})
					if allowed == nil || slices.Contains(allowed, kind) {
						assert.NoError(t, err, "%s by %s", op, kind)
					} else {
						assertCode(t, models.CodeForbidden, err)
					}
					if allowed != nil && kind != operator {
						assertCode(t, models.CodeForbidden, table.Decide(op, &models.Principal{Kind: kind, Scopes: []string{"gc:other"}}))
					}
				}
				if allowed != nil {
					assertCode(t, models.CodeUnauthenticated, table.Decide(op, nil))
				}
			}
		})
	}
}

func TestAnOperationThatNobodyDeclaredIsDenied(t *testing.T) {
	table, err := authz.Load(parse(t, openapi.Public))
	require.NoError(t, err)
	assertCode(t, models.CodeForbidden, table.Decide("dropEverything", &models.Principal{Kind: models.KindOperator}))
	assertCode(t, models.CodeForbidden, table.Decide("", nil))
}

func assertCode(t *testing.T, code models.Code, err error) {
	t.Helper()
	var e *models.Error
	if assert.ErrorAs(t, err, &e) {
		assert.Equal(t, code, e.Code)
		assert.NotEmpty(t, e.Detail)
	}
}

func TestAContractWithAHoleIsNotLoaded(t *testing.T) {
	const whole = `
openapi: 3.0.3
info: {title: t, version: "1"}
security: [{token: ["gc:a"]}]
paths:
  /x:
    get:
      operationId: x
      x-gc-authz: {kinds: [device], scope: "gc:a", rule: r}
      responses: {"200": {description: d}}
components:
  securitySchemes:
    token: {type: oauth2, flows: {clientCredentials: {tokenUrl: /t, scopes: {"gc:a": a, "gc:b": b}}}}
    bare: {type: apiKey, in: header, name: Authorization}
`
	_, err := authz.Load(parse(t, []byte(whole)))
	require.NoError(t, err)
	const rule = `x-gc-authz: {kinds: [device], scope: "gc:a", rule: r}`
	for _, c := range []struct{ old, new, want string }{
		{rule, "tags: [a]", "x-gc-authz is missing"},
		{rule, `x-gc-authz: {kinds: [devices], scope: "gc:a", rule: r}`, `"devices" is no kind`},
		{rule, `x-gc-authz: {kinds: [device, device], scope: "gc:a", rule: r}`, "stands twice"},
		{rule, `x-gc-authz: {kinds: [], scope: "gc:a", rule: r}`, "kinds is empty"},
		{rule, `x-gc-authz: {kinds: [device, anyone], scope: "gc:a", rule: r}`, `"anyone" is no kind`},
		{rule, `x-gc-authz: {kinds: [anyone], rule: r}`, "an operation for anyone"},
		{rule, `x-gc-authz: {kind: [device], scope: "gc:a", rule: r}`, "unknown field"},
		{rule, `x-gc-authz: {kinds: device, scope: "gc:a", rule: r}`, "cannot unmarshal"},
		{rule, `x-gc-authz: {kinds: [device], scope: "gc:a"}`, "rule is missing"},
		{rule, `x-gc-authz: {kinds: [device], scope: "gc:b", rule: r}`, "security asks for the scopes [gc:a]"},
		{rule, `x-gc-authz: {kinds: [device], rule: r}`, "security asks for the scopes [gc:a]"},
		{`security: [{token: ["gc:a"]}]`, `security: [{token: ["gc:a", "gc:b"]}]`, "security asks for"},
		{`security: [{token: ["gc:a"]}]`, `security: [{token: ["gc:a"]}, {}]`, "without credentials"},
		{`security: [{token: ["gc:a"]}]`, `security: []`, "security is missing"},
		{`security: [{token: ["gc:a"]}]`, `security: [{other: []}]`, "other is not declared"},
		{`security: [{token: ["gc:a"]}]`, `security: [{bare: []}]`, "knows the scope gc:a"},
		{`"gc:a": a, `, "", "scope gc:a is not declared"},
		{"operationId: x", "summary: x", "operationId is missing"},
	} {
		broken := strings.Replace(whole, c.old, c.new, 1)
		require.NotEqual(t, whole, broken)
		_, err := authz.Load(parse(t, []byte(broken)))
		if assert.Error(t, err, c.new) {
			assert.Contains(t, err.Error(), "GET /x: ")
			assert.Contains(t, err.Error(), c.want)
		}
	}
}
