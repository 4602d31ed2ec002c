package consents_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// each runs a test on both databases, in a home with a camera in group g.
func each(t *testing.T, test func(t *testing.T, h *servertest.Home, camera models.Principal, source registrations.Answer)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		test(t, h, camera, h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")))
	})
}

func report(t *testing.T, h *servertest.Home, r consents.Report) consents.Answer {
	t.Helper()
	r.NodeID = h.Gateway.Device.ID
	a, err := h.Consents.Report(ctx, h.Gateway, r)
	require.NoError(t, err)
	return a
}

// consentOf is the consent of the only destination, as its group shows it, and the number of the group's newest event.
func consentOf(t *testing.T, h *servertest.Home, viewer models.Principal) (models.ConsentState, int64) {
	t.Helper()
	all, _, err := h.Groups.List(ctx, viewer, groups.Filter{}, models.Page{})
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, 1, all[0].State, "consent never changes the state")
	require.Empty(t, all[0].Members[0].Consent, "a source has none")
	return all[0].Members[1].Consent, all[0].Rev
}

// TestCredentialOfTheRegistration: 128 bits that live as long as the registration, for it and its gateway, and nowhere at rest.
func TestCredentialOfTheRegistration(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home, _ models.Principal, source registrations.Answer) {
		require.Equal(t, registrations.Consent{}, source.Consent, "a source consents to nothing")
		phone := h.Device(t, models.DevicePhone, "phone")
		ask := servertest.Destination(phone, "96.114.14.7", "g")
		a := h.Join(t, phone, ask)
		credential := a.Consent.Credential
		key, err := base64.RawStdEncoding.DecodeString(credential.Password)
		require.NoError(t, err)
		require.Len(t, key, 16)
		require.Regexp(t, `^[A-Za-z0-9+/]{12}$`, credential.Ufrag)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", servertest.Credentials, servertest.Credentials, servertest.Credentials), "key of tests")

		require.Equal(t, credential, h.Join(t, phone, ask).Consent.Credential, "renewed")
		ask.PublicIPv4 = servertest.Addr("96.114.14.8")
		require.Equal(t, credential, h.Join(t, phone, ask).Consent.Credential, "moved")
		held, err := h.Registrations.Get(ctx, phone, a.RegistrationID)
		require.NoError(t, err)
		require.Zero(t, held.Consent.Credential, "who reads it has it already")
		require.Equal(t, models.PolicyLearned, held.Consent.Policy)

		told := h.Information(t).Groups[0].Destinations
		require.Len(t, told, 1)
		require.Equal(t, credential, told[0].Credential)
		require.Equal(t, models.PolicyLearned, told[0].Policy)
		require.Zero(t, told[0].Probes)

		tablet := h.Device(t, models.DeviceTablet, "tablet")
		require.NotEqual(t, credential, h.Join(t, tablet, servertest.Destination(tablet, "96.114.14.9", "g")).Consent.Credential)
		h.Leave(t, phone, a.RegistrationID)
		require.NotEqual(t, credential, h.Join(t, phone, ask).Consent.Credential, "another registration")
	})
}

// TestConsentReports: a report is applied once and in order, shows in the group and its events, and raises no revision.
func TestConsentReports(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home, camera models.Principal, source registrations.Answer) {
		phone := h.Device(t, models.DevicePhone, "phone")
		ask := servertest.Destination(phone, "96.114.14.7", "g")
		a := h.Join(t, phone, ask)
		require.Empty(t, a.Consent.Senders, "nothing is reserved yet")
		state, rev := consentOf(t, h, phone)
		require.Equal(t, models.ConsentPending, state)
		before := h.Information(t)
		h.Woken.Take()

		of := func(state models.ConsentState, learned string) []models.SenderConsent {
			c := models.SenderConsent{RegistrationID: a.RegistrationID, SenderID: source.RegistrationID, State: state}
			if learned != "" {
				c.Learned = netip.MustParseAddrPort(learned)
			}
			return []models.SenderConsent{c}
		}
		require.Equal(t, consents.Answer{Unknown: []models.RegistrationID{}}, report(t, h, consents.Report{Sequence: 0}), "who forgot asks with 0")
		live := consents.Report{
			Sequence: 5, Consents: of(models.ConsentLive, "96.114.14.7:61022"),
			Senders: []models.SenderPorts{{RegistrationID: source.RegistrationID, Port: 40512}},
		}
		require.Equal(t, consents.Answer{Applied: true, Sequence: 5, Unknown: []models.RegistrationID{}}, report(t, h, live))
		state, now := consentOf(t, h, phone)
		require.Equal(t, models.ConsentLive, state)
		require.Equal(t, rev+1, now, "one event, however much changed")
		sender := models.Sender{
			SourceID: camera.Device.ID, At: netip.MustParseAddrPort("203.0.113.1:40512"), Consent: models.ConsentLive,
			Learned: netip.MustParseAddrPort("96.114.14.7:61022"),
		}
		require.Equal(t, []models.Sender{sender}, h.Join(t, phone, ask).Consent.Senders)

		require.Equal(t, consents.Answer{Sequence: 5, Unknown: []models.RegistrationID{}}, report(t, h, consents.Report{Sequence: 5, Consents: of(models.ConsentLost, "")}))
		require.False(t, report(t, h, consents.Report{Sequence: 4, Consents: of(models.ConsentLost, "")}).Applied)
		live.Sequence = 6
		require.True(t, report(t, h, live).Applied)
		state, same := consentOf(t, h, phone)
		require.Equal(t, models.ConsentLive, state, "an older report changes nothing")
		require.Equal(t, now, same, "what changes nothing isn't told")
		for i, s := range []models.ConsentState{models.ConsentLost, models.ConsentPending, models.ConsentUnreachable, models.ConsentLive} {
			report(t, h, consents.Report{Sequence: int64(7 + i), Consents: of(s, "")})
			state, same = consentOf(t, h, phone)
			require.Equal(t, s, state)
			require.Equal(t, now+int64(i)+1, same)
		}
		told := h.Information(t)
		told.Groups[0].Rev = before.Groups[0].Rev // which gateways aren't told
		require.Equal(t, before, told, "the gateway knows")
		require.Empty(t, h.Woken.Take())

		// The worst sender counts; at another address nothing is consented; a source that leaves takes what concerns it along.
		second := h.Device(t, models.DeviceCamera, "second")
		other := h.Join(t, second, servertest.Source(second, "172.168.0.6", "g"))
		report(t, h, consents.Report{Sequence: 20, Consents: []models.SenderConsent{
			{RegistrationID: a.RegistrationID, SenderID: other.RegistrationID, State: models.ConsentLive},
			{RegistrationID: a.RegistrationID, SenderID: other.RegistrationID, State: models.ConsentUnreachable}, // the last word
		}})
		require.Equal(t, models.ConsentUnreachable, h.Join(t, phone, ask).Consent.State)
		h.Leave(t, second, other.RegistrationID)
		state, _ = consentOf(t, h, phone)
		require.Equal(t, models.ConsentLive, state)
		ask.Name = "hers"
		require.Equal(t, models.ConsentLive, h.Join(t, phone, ask).Consent.State)
		ask.Port = 5004
		require.Equal(t, models.ConsentPending, h.Join(t, phone, ask).Consent.State)
	})
}

// TestReportsOfStrangers: a gateway reports about members of its own groups only, and what others have looks like nothing.
func TestReportsOfStrangers(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home, _ models.Principal, source registrations.Answer) {
		phone := h.Device(t, models.DevicePhone, "phone")
		a := h.Join(t, phone, servertest.Destination(phone, "96.114.14.7", "g"))
		other := h.Services.NewHome(t)
		theirs := consents.Report{
			NodeID: other.Gateway.Device.ID, Sequence: 1,
			Senders:  []models.SenderPorts{{RegistrationID: source.RegistrationID, Port: 40512}},
			Consents: []models.SenderConsent{{RegistrationID: a.RegistrationID, SenderID: source.RegistrationID, State: models.ConsentLive}},
		}
		answer, err := h.Consents.Report(ctx, other.Gateway, theirs)
		require.NoError(t, err)
		require.ElementsMatch(t, []models.RegistrationID{source.RegistrationID, a.RegistrationID}, answer.Unknown)
		state, rev := consentOf(t, h, phone)
		require.Equal(t, models.ConsentPending, state)
		require.EqualValues(t, 2, rev)

		theirs.NodeID = h.Gateway.Device.ID
		for _, p := range []models.Principal{other.Gateway, phone} {
			_, err = h.Consents.Report(ctx, p, theirs)
			servertest.Refused(t, models.CodeNotFound, err)
		}
		// Roles that are none: a destination sends nothing, and a source consents to nothing.
		answer = report(t, h, consents.Report{
			Sequence: 1, Senders: []models.SenderPorts{{RegistrationID: a.RegistrationID, Port: 40512}},
			Consents: []models.SenderConsent{{RegistrationID: source.RegistrationID, SenderID: a.RegistrationID, State: models.ConsentLive}},
		})
		require.Empty(t, answer.Unknown)
		_, now := consentOf(t, h, phone)
		require.Equal(t, rev, now)
	})
}

// TestSenders: a destination is told the place that its own copies come from.
func TestSenders(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home, _ models.Principal, source registrations.Answer) {
		report(t, h, consents.Report{Sequence: 1, Senders: []models.SenderPorts{{
			RegistrationID: source.RegistrationID, Port: 40512, Mapped: netip.MustParseAddrPort("96.114.14.1:1024"), IPv6: netip.MustParseAddrPort("[2600::1]:40513"),
		}}})
		phone := h.Device(t, models.DevicePhone, "phone")
		at := func(private, public, v6 string) string {
			r := servertest.Destination(phone, public, "g")
			r.PrivateIPv4, r.IPv6 = servertest.Addr(private), servertest.Addr(v6)
			if public == "" {
				r.RemoteAddr = servertest.Addr(v6)
			}
			senders := h.Join(t, phone, r).Consent.Senders
			require.Len(t, senders, 1)
			require.False(t, senders[0].Inside)
			return senders[0].At.String()
		}
		require.Equal(t, "96.114.14.1:1024", at("", "96.114.14.7", ""))
		require.Equal(t, "203.0.113.1:40512", at("172.168.0.20", "203.0.113.1", ""))
		require.Equal(t, "[2600::1]:40513", at("", "", "2600::7"))

		d := h.Declaration("172.168.0.233-172.168.0.254")
		d.UplinkIPv4 = servertest.Addr("203.0.113.2")
		_, _, err := h.Gateways.Declare(ctx, h.Gateway, d)
		require.NoError(t, err)
		require.Empty(t, h.Join(t, phone, servertest.Destination(phone, "96.114.14.7", "g")).Consent.Senders, "what was reserved elsewhere is no more")
	})
}

// TestAllowedCIDRs: an operator's prefixes limit where a service registers, let gateways ask first, and exempt; a change counts at once.
func TestAllowedCIDRs(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home, _ models.Principal, source registrations.Answer) {
		upload := h.Service(t, "svc-upload", 0)
		allow := func(all ...models.AllowedCIDR) error {
			return h.Accounts.ChangeService(ctx, models.Service{ID: "svc-upload", Name: "upload"}, all)
		}
		join := func(public string, port uint16) (registrations.Answer, error) {
			r := servertest.ServiceDestination(upload, public, "g", source.GroupIP)
			r.Port = port
			return h.Registrations.Join(ctx, upload.Principal, r)
		}
		told := func() models.GatewayDestination {
			all := h.Information(t).Groups[0].Destinations
			require.Len(t, all, 1)
			return all[0]
		}
		_, err := join("96.114.14.140", 0)
		require.NoError(t, err)
		require.Equal(t, models.PolicyStrict, told().Policy, "anywhere, with consent")

		require.NoError(t, allow(
			models.AllowedCIDR{Prefix: netip.MustParsePrefix("96.114.0.0/16"), Probe: true}, models.AllowedCIDR{Prefix: netip.MustParsePrefix("96.114.14.140/32"), Exempt: true}))
		require.Equal(t, models.PolicyExempt, told().Policy, "what is registered already, too")
		require.Zero(t, told().Credential)
		a, err := join("96.114.14.140", 0)
		require.NoError(t, err)
		require.Equal(t, registrations.Consent{Policy: models.PolicyExempt, State: models.ConsentExempt, Senders: []models.Sender{}}, a.Consent)

		_, err = join("69.252.80.75", 0)
		servertest.Refused(t, models.CodeBadAddress, err)
		_, err = join("96.114.15.1", 0)
		require.NoError(t, err)
		require.Zero(t, told().Probes, "an unasked check needs a port")
		_, err = join("96.114.15.1", 5004)
		require.NoError(t, err)
		require.Equal(t, models.PolicyStrict, told().Policy)
		require.Equal(t, models.MaxProbes, told().Probes)

		require.NoError(t, allow(models.AllowedCIDR{Prefix: netip.MustParsePrefix("96.114.0.0/16")}))
		require.Zero(t, told().Probes)
		require.NoError(t, allow(models.AllowedCIDR{Prefix: netip.MustParsePrefix("69.252.80.0/24")}))
		require.Empty(t, h.Information(t).Groups[0].Destinations, "where it may not be it isn't")

		for _, bad := range []models.AllowedCIDR{{}, {Prefix: netip.MustParsePrefix("96.114.14.140/24")}} {
			servertest.Refused(t, models.CodeBadRequest, allow(bad))
		}
		servertest.Refused(t, models.CodeBadRequest, allow(
			models.AllowedCIDR{Prefix: netip.MustParsePrefix("69.252.80.0/24")}, models.AllowedCIDR{Prefix: netip.MustParsePrefix("69.252.80.0/24"), Exempt: true}))
		servertest.Refused(t, models.CodeNotFound, h.Accounts.ChangeService(ctx, models.Service{ID: "svc-none", Name: "none"}, nil))
	})
}

// TestConsentGateOfTheServer is the server's part of row 23: how many unasked checks an address can be made to receive is bounded over all accounts that
// name it, and nothing that a registrant says makes its gateway send media unasked.
func TestConsentGateOfTheServer(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		const victim = "96.114.14.66"
		probes := func() (n int) {
			for range 3 { // attackers, each with a NAT of its own and three destinations at the victim's address
				h := s.NewAccount(t, true)
				d := h.Declaration("172.168.0.233-172.168.0.254")
				d.BehindNAT = true
				_, _, err := h.Gateways.Declare(ctx, h.Gateway, d)
				require.NoError(t, err)
				camera := h.Device(t, models.DeviceCamera, "camera")
				h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
				for i := range 3 {
					phone := h.Device(t, models.DevicePhone, "phone")
					r := servertest.Destination(phone, victim, "g")
					r.Port = uint16(5000 + i)
					require.Equal(t, models.ConsentPending, h.Join(t, phone, r).Consent.State)
					r.Port = 0
					r.Instance = "without a port"
					h.Join(t, phone, r)
				}
				for _, to := range h.Information(t).Groups[0].Destinations {
					require.Equal(t, models.PolicyLearned, to.Policy)
					require.NotEmpty(t, to.Credential.Password)
					require.LessOrEqual(t, to.Probes, models.MaxProbes)
					n += to.Probes
				}
			}
			return n
		}
		require.Equal(t, 4*models.MaxProbes, probes(), "four slots over all accounts")
		require.Zero(t, probes(), "all taken")
		db.Advance(t, time.Minute+time.Millisecond)
		require.Equal(t, 4*models.MaxProbes, probes(), "a minute later")
	})
}
