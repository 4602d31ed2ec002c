package models

import "slices"

// JoinPolicy says which devices and services of an account are to join every new group by themselves (SPEC §5). It invites and never
// permits: a service in it that the account has no live link with still can't join, nor hear of the group. The zero value invites nobody.
type JoinPolicy struct {
	// Devices are the kinds of devices that join, Services the services.
	Devices  []DeviceRule `json:"devices,omitempty"`
	Services []ServiceID  `json:"services,omitempty"`
}

// DeviceRule matches devices of a type and, unless Model is empty, of exactly that model.
type DeviceRule struct {
	Type  DeviceType `json:"type"`
	Model string     `json:"model,omitempty"`
}

// AdmitsDevice tells whether a device of that type and model is to join.
func (p JoinPolicy) AdmitsDevice(t DeviceType, model string) bool {
	return slices.ContainsFunc(p.Devices, func(r DeviceRule) bool { return r.Type == t && (r.Model == "" || r.Model == model) })
}

// AdmitsService tells whether a service is to join.
func (p JoinPolicy) AdmitsService(id ServiceID) bool { return slices.Contains(p.Services, id) }

// Normal is the same policy with each rule once, in the order of their first mention. A rule for a gateway is CodeBadRequest: gateways copy
// and are never members.
func (p JoinPolicy) Normal() (JoinPolicy, error) {
	var n JoinPolicy
	for _, r := range p.Devices {
		if r.Type == DeviceGateway {
			return n, Errorf(CodeBadRequest, "A gateway never joins a group, so joinPolicy can't name that type. Leave it out.")
		}
		if !slices.Contains(n.Devices, r) {
			n.Devices = append(n.Devices, r)
		}
	}
	for _, id := range p.Services {
		if !slices.Contains(n.Services, id) {
			n.Services = append(n.Services, id)
		}
	}
	return n, nil
}
