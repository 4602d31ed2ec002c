package registrations

import (
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/store"
)

// At most so many registrations at a time, of whatever account, let gateways send unasked checks to one address (SPEC §10). With the number of checks of each
// that bounds what a stranger's address can be made to receive.
const (
	probeSlots    = 4
	probeSlotLife = 60 * time.Second
)

// askConsent decides where copies for a destination may go, and whether its gateway may ask first. own is what the member was before. CodeBadAddress
// is an address that the operator doesn't let the service register.
func askConsent(tx *store.Tx, g models.Gateway, own models.Registration, v *models.Registration) error {
	if v.Key.Role == models.RoleSource {
		return nil
	}
	at := groups.Reach(g, *v)
	var allowed []models.AllowedCIDR
	if v.OwnerService != "" {
		var err error
		if allowed, err = tx.HoldAllowedCIDRs(v.OwnerService); err != nil {
			return err
		}
	}
	policy, mayProbe, ok := policyAt(g, *v, at, allowed)
	if !ok {
		return models.Errorf(models.CodeBadAddress, "The operator lets this service receive in other networks only. Register an address that it was given, or "+
			"ask the operator for this one.")
	}
	v.Policy = policy
	switch {
	case !mayProbe:
		return nil
	case own.ID != "" && !isElsewhere(own, *v): // what was granted to the address still is
		v.Probes = own.Probes
		return nil
	}
	free, err := tx.TakeProbeSlot(at, v.ID, probeSlots, probeSlotLife)
	if free { // else it has to ask first
		v.Probes = models.MaxProbes
	}
	return err
}

// policyAt is what holds for a destination at an address, among the prefixes that its service is allowed; ok is false if it may not be there.
func policyAt(g models.Gateway, v models.Registration, at netip.Addr, allowed []models.AllowedCIDR) (policy models.ConsentPolicy, mayProbe, ok bool) {
	policy, mayProbe = models.PolicyLearned, g.BehindNAT
	if v.OwnerService != "" {
		entry, ok := consents.Entry(allowed, at)
		if !ok {
			return "", false, false
		}
		if policy = models.PolicyStrict; entry.Exempt {
			policy = models.PolicyExempt
		}
		mayProbe = mayProbe || entry.Probe
	}
	// An unasked check needs a port to go to; and whoever is inside the home is in front of the NAT.
	return policy, mayProbe && policy != models.PolicyExempt && v.Port != 0 && !g.IsHost(at), true
}

// move changes a member. At another address it hasn't consented yet.
func move(tx *store.Tx, own, v models.Registration) error {
	if isElsewhere(own, v) {
		if err := tx.ForgetConsent(v.ID); err != nil {
			return err
		}
	}
	return tx.MoveRegistration(v)
}

// ApplyAllowed makes a service's registrations at a gateway that the transaction has locked what the operator allows: it changes where their copies may go,
// and gives those that are where the service may not be.
func ApplyAllowed(tx *store.Tx, g models.Gateway, service models.ServiceID, allowed []models.AllowedCIDR) (beyond []models.RegistrationID, err error) {
	all, err := tx.RegistrationsAt(g.ID, store.Owner{Service: service})
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		policy, mayProbe, ok := policyAt(g, v, groups.Reach(g, v), allowed)
		if !ok {
			beyond = append(beyond, v.ID)
			continue
		}
		probes := v.Probes
		if !mayProbe {
			probes = 0
		}
		if policy == v.Policy && probes == v.Probes {
			continue
		}
		if err := tx.SetPolicy(v.ID, policy, probes); err != nil {
			return nil, err
		}
	}
	return beyond, nil
}

// standing is how the consent of a member stands. Of the senders it has those that its copies come from.
func standing(c store.Consent, r models.Registration) Consent {
	if c.Policy == "" {
		return Consent{}
	}
	at := groups.Reach(c.Gateway, r)
	inside := c.Gateway.IsHost(at)
	v := Consent{Policy: c.Policy, State: c.State, Senders: []models.Sender{}}
	for _, s := range c.Senders {
		// Without a NAT there is one place for both.
		two := slices.ContainsFunc(c.Senders, func(o models.Sender) bool { return o.SourceID == s.SourceID && o.RelayID == s.RelayID && o.Inside })
		if s.At.Addr().Is4() == at.Is4() && (at.Is6() || !two || s.Inside == inside) {
			s.Inside = false // which is for those who hear of both
			if c.Policy == models.PolicyExempt {
				s.Consent = models.ConsentExempt
			}
			v.Senders = append(v.Senders, s)
		}
	}
	return v
}
