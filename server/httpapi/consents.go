package httpapi

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/registrations"
)

func (h handlers) ReportConsents(ctx context.Context, r ginserver.ReportConsentsRequestObject) (ginserver.ReportConsentsResponseObject, error) {
	ctx, p := caller(ctx)
	report, err := consentReport(r.GatewayID, *r.Body)
	if err != nil {
		return nil, err
	}
	a, err := h.Consents.Report(ctx, p, report)
	if err != nil {
		return nil, err
	}
	return ginserver.ReportConsents200JSONResponse(reportAnswer(a)), nil
}

// consentReport is what a gateway or a relay tells.
func consentReport(node models.ID, body api.ConsentReport) (report consents.Report, err error) {
	report = consents.Report{NodeID: node, Sequence: int64(body.Sequence)}
	for _, v := range value(body.Senders) {
		s := models.SenderPorts{RegistrationID: v.RegistrationID, Port: uint16(v.Port)}
		if s.Mapped, err = place("mappedIPv4 and mappedPort", given(v.MappedIPv4), given(v.MappedPort)); err != nil {
			return report, err
		}
		if s.IPv6, err = place("IPv6 and portIPv6", given(v.IPv6), given(v.PortIPv6)); err != nil {
			return report, err
		}
		report.Senders = append(report.Senders, s)
	}
	for _, v := range value(body.Consents) {
		c := models.SenderConsent{RegistrationID: v.RegistrationID, SenderID: v.Sender, State: models.ConsentState(v.State)}
		at := given(v.IPv4)
		switch {
		case !at.IsValid():
			at = given(v.IPv6)
		case given(v.IPv6).IsValid():
			return report, models.Errorf(models.CodeBadAddress, "The copies for a destination go to one address. Send IPv4 or IPv6.")
		}
		if c.Learned, err = place("an address and port", at, given(v.Port)); err != nil {
			return report, err
		}
		if c.State != models.ConsentLive {
			c.Learned = netip.AddrPort{}
		}
		report.Consents = append(report.Consents, c)
	}
	return report, nil
}

func reportAnswer(a consents.Answer) api.ConsentReportAnswer {
	return api.ConsentReportAnswer{Applied: a.Applied, Sequence: int32(a.Sequence), Unknown: a.Unknown}
}

// place makes one value of two that go together.
func place(what string, a netip.Addr, port int32) (netip.AddrPort, error) {
	switch {
	case !a.IsValid() && port == 0:
		return netip.AddrPort{}, nil
	case !a.IsValid() || port == 0:
		return netip.AddrPort{}, models.Errorf(models.CodeBadAddress, "In a report, %s go together. Send both or neither.", what)
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}

// How often consent is asked for and how long it lasts, as the contract says it.
var (
	consentEvery   = int32(models.ConsentEvery / time.Second)
	consentExpires = int32(models.ConsentExpires / time.Second)
)

// registrationConsent is nil for a source.
func registrationConsent(c registrations.Consent) *api.RegistrationConsent {
	if c.Policy == "" {
		return nil
	}
	v := &api.RegistrationConsent{State: c.State, Policy: c.Policy, Ufrag: orNil(c.Credential.Ufrag), Pwd: orNil(c.Credential.Password)}
	if v.Ufrag != nil {
		v.Every, v.Expires = &consentEvery, &consentExpires
	}
	return v
}

// senders is nil for a source.
func senders(c registrations.Consent) *[]api.Sender {
	if c.Policy == "" {
		return nil
	}
	all := convert(c.Senders, func(s models.Sender) api.Sender {
		v := api.Sender{SourceID: s.SourceID, RelayID: orNil(s.RelayID), Address: s.At.Addr().String(), Port: int32(s.At.Port()), Consent: orNil(s.Consent)}
		if s.Learned.IsValid() {
			v.LearnedAddress, v.LearnedPort = orNil(s.Learned.Addr().String()), orNil(int32(s.Learned.Port()))
		}
		return v
	})
	return &all
}

func gatewayConsent(d models.GatewayDestination) *api.GatewayConsent {
	v := &api.GatewayConsent{Policy: d.Policy, Ufrag: orNil(d.Credential.Ufrag), Pwd: orNil(d.Credential.Password), Probes: orNil(int32(d.Probes))}
	if v.Ufrag != nil {
		v.Every, v.Expires = &consentEvery, &consentExpires
	}
	return v
}
