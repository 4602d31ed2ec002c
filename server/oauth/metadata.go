package oauth

import (
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/tokens"
)

// Metadata is what the issuer can do (RFC 8414).
type Metadata struct {
	Scopes         []string
	Grants         []string
	Authentication []string
	// Algs are those of client assertions and of proofs.
	Algs []string
}

// Metadata describes the issuer.
func (s *Service) Metadata() Metadata {
	m := Metadata{
		Grants:         []string{GrantClientCredentials, GrantRefreshToken, GrantDeviceCode},
		Authentication: []string{"client_secret_basic", "private_key_jwt", "none"},
		Algs:           []string{"EdDSA", "Ed25519", "ES256"},
	}
	for _, kind := range []models.Kind{models.KindDevice, models.KindGateway, models.KindRelay, models.KindService, models.KindUser} {
		m.Scopes = append(m.Scopes, tokens.Scopes(kind)...)
	}
	slices.Sort(m.Scopes)
	m.Scopes = slices.Compact(m.Scopes)
	return m
}
