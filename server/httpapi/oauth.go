package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/oauth"
)

const noStore = "no-store"

// maxAge lets others keep what says how tokens are verified.
var maxAge = fmt.Sprintf("public, max-age=%d", int(keys.MaxAge/time.Second))

func (h handlers) RequestToken(ctx context.Context, r ginserver.RequestTokenRequestObject) (ginserver.RequestTokenResponseObject, error) {
	ctx, _ = caller(ctx)
	c, err := credentials(r.Body.ClientID, r.Params.Authorization, r.Body.ClientAssertionType, r.Body.ClientAssertion)
	if err != nil {
		return nil, err
	}
	a, err := h.OAuth.Token(ctx, oauth.Request{
		Credentials: c, GrantType: r.Body.GrantType, Scope: value(r.Body.Scope), DeviceCode: value(r.Body.DeviceCode),
		RefreshToken: value(r.Body.RefreshToken), Proofs: proofs(r.Params.DPoP),
	})
	if err != nil {
		return nil, err
	}
	kind := api.Bearer
	if a.Bound {
		kind = api.DPoP
	}
	return ginserver.RequestToken200JSONResponse{
		Body: api.TokenAnswer{
			AccessToken: a.AccessToken, TokenType: kind, ExpiresIn: int32(a.Life / time.Second), RefreshToken: orNil(a.RefreshToken), Scope: orNil(a.Scope),
		},
		Headers: ginserver.RequestToken200ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) AuthorizeDevice(ctx context.Context, r ginserver.AuthorizeDeviceRequestObject) (ginserver.AuthorizeDeviceResponseObject, error) {
	remote := callOf(ctx).remote
	ctx, _ = caller(ctx)
	begun, err := h.OAuth.Authorize(ctx, oauth.DeviceAuthorization{
		Request: devicegrant.Request{
			ClientID: string(r.Body.ClientID), Scope: value(r.Body.Scope), DeviceType: value(r.Body.DeviceType),
			Model: value(r.Body.Model), Serial: value(r.Body.Serial), Remote: remote,
		},
		Proofs: proofs(r.Params.DPoP),
	})
	if err != nil {
		return nil, err
	}
	page := h.OAuth.Issuer + "/device"
	complete := page + "?" + url.Values{"user_code": {begun.UserCode}}.Encode()
	return ginserver.AuthorizeDevice200JSONResponse{
		Body: api.DeviceAuthorization{
			DeviceCode: begun.DeviceCode, UserCode: begun.UserCode, VerificationURI: page, VerificationURIComplete: &complete,
			ExpiresIn: int32(begun.Life / time.Second), Interval: int32(begun.Interval / time.Second),
		},
		Headers: ginserver.AuthorizeDevice200ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) Enrol(ctx context.Context, r ginserver.EnrolRequestObject) (ginserver.EnrolResponseObject, error) {
	ctx, _ = caller(ctx)
	if len(r.Body.Jwks.Keys) != 1 {
		return nil, models.Errorf(models.CodeInvalidClientMetadata, "A device has one key; jwks holds %d.", len(r.Body.Jwks.Keys))
	}
	jwk, err := json.Marshal(r.Body.Jwks.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("write a key: %w", err)
	}
	e, err := h.OAuth.Register(ctx, oauth.Registration{
		Request: enrolment.Request{
			Ticket: r.Body.Ticket, Name: value(r.Body.ClientName), Model: value(r.Body.Model), Serial: value(r.Body.Serial),
		},
		JWK: jwk, Proofs: proofs(r.Params.DPoP),
	})
	if err != nil {
		return nil, err
	}
	return ginserver.Enrol201JSONResponse{
		Body: api.Enrolment{
			ClientID: e.ClientID, TokenEndpointAuthMethod: api.EnrolmentTokenEndpointAuthMethodPrivateKeyJwt, RelayID: orNil(e.RelayID),
			DeviceID: orNil(e.Device.ID), PremisesID: orNil(e.Device.PremisesID), DeviceType: orNil(e.Device.Type),
			ProofOfPossession: e.Device.PoP || e.RelayID != 0,
		},
		Headers: ginserver.Enrol201ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) RevokeToken(ctx context.Context, r ginserver.RevokeTokenRequestObject) (ginserver.RevokeTokenResponseObject, error) {
	ctx, _ = caller(ctx)
	c, err := credentials(r.Body.ClientID, r.Params.Authorization, r.Body.ClientAssertionType, r.Body.ClientAssertion)
	if err != nil {
		return nil, err
	}
	if err := h.OAuth.Revoke(ctx, oauth.Revocation{Credentials: c, Token: r.Body.Token, Proofs: proofs(r.Params.DPoP)}); err != nil {
		return nil, err
	}
	return ginserver.RevokeToken200Response{}, nil
}

func (h handlers) GetIssuerMetadata(context.Context, ginserver.GetIssuerMetadataRequestObject) (ginserver.GetIssuerMetadataResponseObject, error) {
	m := h.OAuth.Metadata()
	return ginserver.GetIssuerMetadata200JSONResponse{
		Body: api.IssuerMetadata{
			Issuer:                            h.OAuth.Issuer,
			TokenEndpoint:                     h.OAuth.Issuer + "/oauth/token",
			DeviceAuthorizationEndpoint:       h.OAuth.Issuer + "/oauth/device_authorization",
			RegistrationEndpoint:              h.OAuth.Issuer + "/oauth/register",
			RevocationEndpoint:                h.OAuth.Issuer + "/oauth/revoke",
			JwksURI:                           h.OAuth.Issuer + "/.well-known/jwks.json",
			ScopesSupported:                   m.Scopes,
			ResponseTypesSupported:            []string{},
			GrantTypesSupported:               m.Grants,
			TokenEndpointAuthMethodsSupported: m.Authentication,
			TokenEndpointAuthSigningAlgValuesSupported: m.Algs,
			DpopSigningAlgValuesSupported:              m.Algs,
		},
		Headers: ginserver.GetIssuerMetadata200ResponseHeaders{CacheControl: maxAge},
	}, nil
}

func (h handlers) GetKeys(context.Context, ginserver.GetKeysRequestObject) (ginserver.GetKeysResponseObject, error) {
	set, err := h.Keys.KeySet()
	if err != nil {
		return nil, err
	}
	answer := api.KeySet{Keys: make([]api.PublicKey, len(set))}
	for i, raw := range set {
		if err := json.Unmarshal(raw, &answer.Keys[i]); err != nil {
			return nil, fmt.Errorf("read a public key: %w", err)
		}
	}
	return ginserver.GetKeys200JSONResponse{Body: answer, Headers: ginserver.GetKeys200ResponseHeaders{CacheControl: maxAge}}, nil
}

// proofs gives the header DPoP; a second one has been refused before.
func proofs(header *string) []string {
	if header == nil {
		return nil
	}
	return []string{*header}
}

// credentials reads what a client authenticates with (RFC 6749 §2.3.1, RFC 7523 §2.2).
func credentials(clientID, authorization, assertionType, assertion *string) (oauth.Credentials, error) {
	c := oauth.Credentials{ClientID: value(clientID), AssertionType: value(assertionType), Assertion: value(assertion)}
	if authorization == nil {
		return c, nil
	}
	scheme, encoded, _ := strings.Cut(*authorization, " ")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	id, secret, ok := strings.Cut(string(raw), ":")
	if !strings.EqualFold(scheme, "Basic") || err != nil || !ok {
		return c, models.Errorf(models.CodeInvalidClient, "The Authorization header here is Basic with client id and secret, or it is left out.")
	}
	c.Basic = true
	var idErr, secretErr error
	c.BasicID, idErr = url.QueryUnescape(id)
	c.BasicSecret, secretErr = url.QueryUnescape(secret)
	if idErr != nil || secretErr != nil {
		return c, models.Errorf(models.CodeInvalidClient, "Percent-encode client id and secret before they are joined (RFC 6749 §2.3.1).")
	}
	return c, nil
}
