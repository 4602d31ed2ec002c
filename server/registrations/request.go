package registrations

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// The bounds of a lease (SPEC §4, §5).
const (
	defaultTTL = 3600 * time.Second
	minTTL     = 30 * time.Second
	maxTTL     = 86400 * time.Second

	minGrace = 5 * time.Second
	maxGrace = 60 * time.Second
)

// lease grants a time to live: what was asked for within the bounds, and a grace of a tenth of it within bounds of its own.
func lease(ttl *int) store.Lease {
	granted := defaultTTL
	if ttl != nil {
		// Compared as numbers of seconds: a large one would overflow as a duration.
		granted = time.Duration(min(max(*ttl, int(minTTL/time.Second)), int(maxTTL/time.Second))) * time.Second
	}
	return store.Lease{TTL: granted, Grace: min(max(granted/10, minGrace), maxGrace)}
}

// renewAfter is a third of the lease, a tenth more or less, so that members that came together don't all renew together.
func renewAfter(ttl time.Duration) int {
	third := ttl / 3
	return int((third*9/10 + rand.N(third/5+1)).Round(time.Second) / time.Second)
}

// member is a request that was understood: who becomes a member of which group, with what.
type member struct {
	// registration lacks what only the group decides: its id, number and group.
	registration models.Registration
	group        store.GroupMatch
	lease        store.Lease
	remote       netip.Addr
	// isService: for a service everything that doesn't match is the same 404 (SPEC §4).
	isService bool
}

func (m member) isSource() bool { return m.registration.Key.Role == models.RoleSource }

// understand decides who the caller is in the group and which addresses it has. It needs no database: what depends on the
// group and its gateway comes later.
func (s *Service) understand(p models.Principal, r Request) (member, error) {
	m := member{
		registration: models.Registration{
			Key:         models.MemberKey{Type: r.Type, ID: r.ID, Role: r.Role, Instance: r.Instance},
			PrivateIPv4: r.PrivateIPv4, PublicIPv4: r.PublicIPv4, IPv6: r.IPv6, Port: r.Port,
			DeviceType: r.DeviceType, Model: r.Model, Name: r.Name,
		},
		group:  store.GroupMatch{PremisesID: r.PremisesID, Name: r.GroupName, IP: r.GroupIP},
		lease:  lease(r.TTL),
		remote: r.RemoteAddr.Unmap(),
	}
	var err error
	switch p.Kind {
	case models.KindDevice:
		err = m.asDevice(p, r)
	case models.KindService:
		err = m.asService(p, r)
	default:
		err = models.Errorf(models.CodeForbidden, "A %s doesn't register. Cameras, receivers and services do.", p.Kind)
	}
	if err != nil {
		return member{}, err
	}
	if err := s.checkAddresses(&m); err != nil {
		return member{}, err
	}
	return m, nil
}

// asDevice: a device registers as itself, or as the app on it (type Service); a source is a camera in its own premises.
func (m *member) asDevice(p models.Principal, r Request) error {
	d := p.Device
	switch {
	case r.ID != d.ID:
		return models.Errorf(models.CodeContradictsToken, "The id is not that of the token's device. Send the device's own id.")
	case r.Type == models.MemberService && !d.Type.RunsApps():
		return models.Errorf(models.CodeContradictsToken,
			"A %s registers with type Device. Only apps on phones, tablets and laptops use type Service with a device's token.", d.Type)
	case r.DeviceType != "" && r.DeviceType != d.Type:
		return models.Errorf(models.CodeContradictsToken, "The deviceType is not that of the token's device, %s. Send that, or leave it out.", d.Type)
	}
	if m.isSource() {
		switch {
		case r.Type == models.MemberService:
			return models.Errorf(models.CodeForbidden, "An app may only be a destination. Send destination true.")
		case d.Type != models.DeviceCamera:
			return models.Errorf(models.CodeForbidden, "A %s may only be a destination. Send destination true; sources are cameras.", d.Type)
		case r.PremisesID != "" && r.PremisesID != p.PremisesID:
			return models.Errorf(models.CodeContradictsToken, "The premisesId is not that of the token. A source registers in its own premises.")
		}
		m.group.PremisesID = p.PremisesID
	}
	m.group.AccountID = p.AccountID
	v := &m.registration
	v.AccountID, v.OwnerDevice, v.DeviceType = p.AccountID, d.ID, d.Type
	v.Model, v.Name = orElse(v.Model, d.Model), orElse(v.Name, d.Name)
	// A device that names no public address is where its request came from (SPEC §4).
	if !v.PublicIPv4.IsValid() && m.remote.Is4() {
		v.PublicIPv4 = m.remote
	}
	if !v.IPv6.IsValid() && m.remote.Is6() {
		v.IPv6 = m.remote
	}
	return nil
}

// asService: a service is a destination under the service account id of a link, and names the group by name and IP.
func (m *member) asService(p models.Principal, r Request) error {
	switch {
	case r.Type != models.MemberService:
		return models.Errorf(models.CodeContradictsToken, "A service's token registers with type Service.")
	case m.isSource():
		return models.Errorf(models.CodeForbidden, "A service may only be a destination. Send destination true.")
	case !r.GroupIP.IsValid():
		return models.NotFound()
	}
	m.isService = true
	m.group.ServiceID, m.group.ServiceAccountID = p.Service.ID, r.ID
	m.registration.OwnerService = p.Service.ID
	m.registration.Name = orElse(m.registration.Name, p.Service.Name)
	return nil
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
