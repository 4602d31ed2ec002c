// Package addresspool picks the group IP that a new group gets. It is pure: rows in, one row out (SPEC §5).
//
// The cycle of an address is free → allocated → quarantined → free. Release is not free: a camera that hasn't noticed the end of
// its group goes on sending to the old address, and a gateway that hasn't heard of it goes on copying. So an address is handed
// to another group only after a cooldown, and after the gateway acknowledged a revision without the old group or was silent for
// so long that it stopped copying. The old group itself may have it back at once: nobody else's stream can get there.
//
// The package never reads or writes the database. The caller holds the gateway's lock, or two groups would get one address.
package addresspool

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
)

// cooldownMargin is what the cooldown is longer than the time for which a gateway copies without hearing from the service.
const cooldownMargin = 60 * time.Second

// Cooldown is how long a released address stays away from other groups at least.
func Cooldown(maxStale time.Duration) time.Duration { return maxStale + cooldownMargin }

// Policy says when a quarantined address may go to another group.
type Policy struct {
	// Cooldown is how long it must have been released.
	Cooldown time.Duration
	// Acknowledged is the newest revision that every gateway which may still copy says it holds.
	Acknowledged int64
	// SilentAt is when gateways that don't acknowledge count as silent; zero if they do already.
	SilentAt time.Time
}

// NewPolicy makes the policy for a gateway. It last acknowledged the revision acked and polled at polledAt, zero if never.
func NewPolicy(maxStale time.Duration, acked int64, polledAt, now time.Time) Policy {
	p := Policy{Cooldown: Cooldown(maxStale), Acknowledged: acked}
	if silent := polledAt.Add(maxStale); !polledAt.IsZero() && now.Before(silent) {
		p.SilentAt = silent
	} else {
		p.Acknowledged = math.MaxInt64
	}
	return p
}

// Reusable tells whether an address may go to any group.
func (p Policy) Reusable(a models.Address, now time.Time) bool {
	switch a.State {
	case models.AddressFree:
		return true
	case models.AddressQuarantined:
		return !now.Before(a.ReleasedAt.Add(p.Cooldown)) && a.ReleasedRevision <= p.Acknowledged && !now.Before(a.HeldUntil)
	default:
		return false
	}
}

// freeAt is the earliest instant at which a quarantined address is reusable for sure.
func (p Policy) freeAt(a models.Address) time.Time {
	at := a.ReleasedAt.Add(p.Cooldown)
	if at.Before(a.HeldUntil) {
		at = a.HeldUntil
	}
	if a.ReleasedRevision > p.Acknowledged && at.Before(p.SilentAt) {
		return p.SilentAt
	}
	return at
}

// Within gives the rows whose address lies in the declared range, in the order of the addresses. Rows outside it are those of a
// range that was declared before.
func Within(rows []models.Address, r models.AddrRange) []models.Address {
	within := slices.DeleteFunc(slices.Clone(rows), func(a models.Address) bool { return !r.Contains(a.IP) })
	slices.SortFunc(within, func(a, b models.Address) int { return a.IP.Compare(b.IP) })
	return within
}

// Pick chooses the address for a new group and returns it as it is to be stored: allocated, one generation on; the caller adds
// the group's id. The rules, first match:
//
//  1. The address that was asked for, if want is valid: CodeNotFound if it isn't in the pool, CodeGroupIPTaken if it may not go
//     to this group.
//  2. The address that a group of this name had last, so that cameras and viewers find it where it was.
//  3. Of the reusable ones the longest idle, never used ones before all others, then the lowest.
//
// If there is none it is CodePoolExhausted with the pool's figures.
func Pick(rows []models.Address, want netip.Addr, groupName string, now time.Time, policy Policy) (models.Address, error) {
	mayHave := func(a models.Address) bool {
		returns := a.State == models.AddressQuarantined && a.LastGroupName == groupName
		return returns || policy.Reusable(a, now)
	}
	if want.IsValid() {
		i := slices.IndexFunc(rows, func(a models.Address) bool { return a.IP == want })
		switch {
		case i < 0:
			return models.Address{}, models.Errorf(models.CodeNotFound,
				"The group IP %s is not in the group range of this premises' gateway. Send groupIP null to be given one.", want)
		case !mayHave(rows[i]):
			return models.Address{}, models.Errorf(models.CodeGroupIPTaken,
				"The group IP %s belongs to another group or is in quarantine after one. Ask for another, or send groupIP null to be given one.", want)
		}
		return handOut(rows[i], groupName), nil
	}
	var best *models.Address
	for i := range rows {
		if a := &rows[i]; mayHave(*a) && (best == nil || better(a, best, groupName)) {
			best = a
		}
	}
	if best == nil {
		return models.Address{}, exhausted(Count(rows, now, policy), now)
	}
	return handOut(*best, groupName), nil
}

// better tells whether the group should rather have a than b.
func better(a, b *models.Address, groupName string) bool {
	aReturns, bReturns := a.LastGroupName == groupName, b.LastGroupName == groupName
	switch {
	case aReturns != bReturns:
		return aReturns
	case aReturns && !a.ReleasedAt.Equal(b.ReleasedAt):
		return a.ReleasedAt.After(b.ReleasedAt) // the group had both; it was last at the one released last
	case !a.ReleasedAt.Equal(b.ReleasedAt):
		return a.ReleasedAt.Before(b.ReleasedAt)
	default:
		return a.IP.Less(b.IP)
	}
}

func handOut(a models.Address, groupName string) models.Address {
	a.State = models.AddressAllocated
	a.LastGroupName = groupName
	a.Generation++
	return a
}

// Count tells how a pool stands. Addresses whose quarantine is over count as free.
func Count(rows []models.Address, now time.Time, policy Policy) models.Pool {
	pool := models.Pool{Size: len(rows)}
	for _, a := range rows {
		switch {
		case a.State == models.AddressAllocated:
			pool.Allocated++
		case !policy.Reusable(a, now):
			pool.Quarantined++
			if at := policy.freeAt(a); pool.NextFreeAt.IsZero() || at.Before(pool.NextFreeAt) {
				pool.NextFreeAt = at
			}
		}
	}
	return pool
}

// scarceShare: a pool is scarce while at most one in so many of its addresses is free.
const scarceShare = 5

// BecomesScarce tells how a pool stands once an address that Pick chose of it is handed out, and whether that made it scarce: at most a
// fifth of it is free now, and more was before.
func BecomesScarce(rows []models.Address, picked models.Address, now time.Time, policy Policy) (after models.Pool, crossed bool) {
	before := Count(rows, now, policy)
	rows = slices.Clone(rows)
	for i := range rows {
		if rows[i].IP == picked.IP {
			rows[i] = picked
		}
	}
	after = Count(rows, now, policy)
	return after, !scarce(before) && scarce(after)
}

func scarce(p models.Pool) bool { return (p.Size-p.Allocated-p.Quarantined)*scarceShare <= p.Size }

func exhausted(pool models.Pool, now time.Time) error {
	err := models.Errorf(models.CodePoolExhausted, "All %d group IPs of this premises' gateway are in use (%d) or in quarantine (%d). "+
		"End a group, declare a larger group range, or wait until nextFreeAt.", pool.Size, pool.Allocated, pool.Quarantined).
		With("poolSize", pool.Size).With("allocated", pool.Allocated).With("quarantined", pool.Quarantined)
	if pool.NextFreeAt.IsZero() {
		return err.With("nextFreeAt", nil)
	}
	wait := math.Ceil(max(pool.NextFreeAt.Sub(now), time.Second).Seconds())
	return err.With("nextFreeAt", pool.NextFreeAt.Format(time.RFC3339)).With("retryAfter", int(wait))
}
