package registrations

import (
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// unlocked is how many more registrations an account may be short of its quota for its others not to be waited for. It is far more than
// transactions can run at once, so that none of them that is under way matters before the account is locked.
const unlocked = 1000

// upTo is how many registrations of an account have to be counted.
func (o Options) upTo() int { return o.Quotas.RegistrationsPerAccount }

// checkQuotas refuses a member that is about to be added if it is one too many: of its group, whose gateway is locked, or of its account. Members
// at different gateways don't wait for each other unless the account comes near its quota; then one counts what the other added.
func (s *Service) checkQuotas(tx *store.Tx, r models.Registration, c store.Counts) error {
	q := s.opts.Quotas
	if limit := q.DestinationsPerGroup; limit > 0 && r.Key.Role == models.RoleDestination && c.State >= limit {
		return models.QuotaExceeded(models.QuotaDestinations, limit, c.State, "Wait until one leaves the group, end one, or ask the operator for more.")
	}
	limit := q.RegistrationsPerAccount
	if limit == 0 || c.Registrations < limit-unlocked {
		return nil
	}
	if _, _, err := tx.LockAccount(r.AccountID); err != nil {
		return err
	}
	all, err := tx.CountRegistrations(r.AccountID, limit)
	if err == nil && all >= limit {
		err = models.QuotaExceeded(models.QuotaRegistrations, limit, all, "End what isn't needed any more, or ask the operator for more.")
	}
	return err
}

// checkGroups refuses a group that was just created if it is one too many of its premises, of which another gateway may create one at the same
// moment.
func (s *Service) checkGroups(tx *store.Tx, g models.Group) error {
	limit := s.opts.Quotas.GroupsPerPremises
	if limit == 0 {
		return nil
	}
	if _, _, err := tx.LockAccount(g.AccountID); err != nil {
		return err
	}
	all, err := tx.CountGroups(g.AccountID, g.PremisesID)
	if err == nil && all > limit {
		err = models.QuotaExceeded(models.QuotaGroups, limit, all-1, "Let the camera join a group that is there, end one, or ask the operator for more.")
	}
	return err
}
