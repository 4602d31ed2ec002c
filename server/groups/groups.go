// Package groups reads groups: for those who may see them, and as the group information that a gateway forwards by (SPEC §6).
//
// It never changes anything, and never shows one member's address to another; only the gateway that sends the copies
// gets addresses.
package groups

import (
	"context"
	"errors"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Filter narrows a list; empty fields don't.
type Filter struct {
	Name       string
	PremisesID models.PremisesID
}

// Group is a group with its members, sources first, each in the order of joining.
type Group struct {
	models.Group
	Members []models.Member
}

// Service reads groups.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

// List reads a page of the groups that the caller may see, oldest first, and the token of the next page.
func (s *Service) List(ctx context.Context, p models.Principal, f Filter, page models.Page) ([]Group, string, error) {
	return nil, "", errors.ErrUnsupported
}

// Get reads one group that the caller may see.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.GroupID) (Group, error) {
	return Group{}, errors.ErrUnsupported
}

// Information reads, as of one instant, everything that the gateway forwards by.
func (s *Service) Information(ctx context.Context, gatewayID models.ID) (models.GroupInformation, error) {
	return models.GroupInformation{}, errors.ErrUnsupported
}
