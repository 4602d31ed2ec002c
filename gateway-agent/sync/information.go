package sync

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// MaxStaleLimit is the longest time that a server may let a gateway go on without being heard from.
const MaxStaleLimit = 24 * time.Hour

// Information is one full snapshot of this gateway's group information that passed every check.
type Information struct {
	models.GroupInformation
	// MaxStale is how long it may be used after the server was last heard from; from 1 s to MaxStaleLimit.
	MaxStale time.Duration
	// Network says that a relay copies, or nobody; Relay is nil then if there is none. Only for a gateway.
	Network bool
	Relay   *api.GatewayRelay
	// Premises are those that a relay serves.
	Premises []models.RelayPremises
	// Raw is what the server sent, for keeping.
	Raw json.RawMessage
}

// Cursor names the snapshot; sending it acknowledges it.
func (i *Information) Cursor() string { return table.Version(i.Epoch, i.Revision) }

// Decode reads group information in the form of the contract and refuses it whole if anything in it can't be right. Members
// it doesn't know are ignored, as the contract asks of clients.
func Decode(raw []byte, gateway models.Gateway) (*Information, error) {
	var said api.GroupInformation
	if err := json.Unmarshal(raw, &said); err != nil {
		return nil, fmt.Errorf("it can't be read: %w", scrub(err))
	}
	info, err := parse(said, raw)
	if err != nil {
		return nil, err
	}
	if err := table.Check(info.GroupInformation, gateway); err != nil {
		return nil, err
	}
	info.Network = said.Fanout != nil && *said.Fanout != models.FanoutHome
	if info.Network {
		info.Relay = said.Relay
	}
	if r := info.Relay; r != nil && (!r.EndpointIPv4.Is4() || r.EndpointPort < 1 || r.EndpointPort > 65535 || !r.TunnelKey.Valid() ||
		!inTunnel(r.TunnelAddress) || !inTunnel(r.OwnTunnelAddress) || r.TunnelAddress == r.OwnTunnelAddress) {
		return nil, errors.New("its relay is not what the contract says")
	}
	return info, nil
}

// inTunnel tells whether it is an address within the tunnels (RFC 4193).
func inTunnel(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.IsPrivate() && a.Zone() == "" }

// scrub keeps values out of errors: json and netip quote what they can't read, and it may be a destination's address.
func scrub(err error) error {
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not JSON at byte %d", e.Offset)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is not what the contract says", e.Field)
	}
	return errors.New("a value is not what the contract says")
}

func parse(said api.GroupInformation, raw []byte) (*Information, error) {
	revision, err := strconv.ParseInt(said.Revision, 10, 64)
	if err != nil || strconv.FormatInt(revision, 10) != said.Revision {
		return nil, fmt.Errorf("its revision %.32q is not a number", said.Revision)
	}
	info := &Information{
		GroupInformation: models.GroupInformation{GatewayID: said.GatewayID, Epoch: said.Epoch, Revision: revision},
		MaxStale:         time.Duration(said.MaxStaleSeconds) * time.Second,
		Raw:              raw,
	}
	if info.MaxStale < time.Second || info.MaxStale > MaxStaleLimit {
		return nil, fmt.Errorf("its maxStaleSeconds %d is not from 1 to %d", said.MaxStaleSeconds, int(MaxStaleLimit.Seconds()))
	}
	if said.Groups == nil {
		// An empty list says that there are no groups; none at all says that something went wrong.
		return nil, errors.New("it has no list of groups")
	}
	for i, g := range said.Groups {
		group, err := parseGroup(g, i)
		if err != nil {
			return nil, err
		}
		info.Groups = append(info.Groups, group)
	}
	return info, nil
}

func parseGroup(said api.GatewayGroup, i int) (models.GatewayGroup, error) {
	if said.GroupSources == nil || said.GroupDestinations == nil {
		return models.GatewayGroup{}, fmt.Errorf("groups[%d] has no list of sources or destinations", i)
	}
	g, err := convert(said)
	if err != nil {
		return models.GatewayGroup{}, fmt.Errorf("groups[%d]: %w", i, err)
	}
	return g, nil
}

func convert(g api.GatewayGroup) (models.GatewayGroup, error) {
	var gateway models.ID // 0 in a gateway's own information
	if g.GatewayID != nil {
		gateway = *g.GatewayID
	}
	out := models.GatewayGroup{Group: models.Group{
		ID: g.GroupID, GatewayID: gateway, PremisesID: g.PremisesID, Name: g.GroupName, IP: g.GroupIP, Generation: int64(g.Generation), State: int(g.State),
	}}
	for _, s := range g.GroupSources {
		source := models.GatewaySource{RegistrationID: s.RegistrationID, Name: s.SourceName, IPv4: s.SourceIPv4, Trigger: s.Trigger}
		source.IPv6, _ = s.SourceIPv6.Get() // the zero Addr if there is none
		out.Sources = append(out.Sources, source)
	}
	for i, d := range g.GroupDestinations {
		number, err := strconv.ParseInt(d.DestinationID, 10, 64)
		if err != nil {
			return out, fmt.Errorf("groupDestinations[%d]: destinationId %.32q is not a number", i, d.DestinationID)
		}
		destination := models.GatewayDestination{RegistrationID: d.RegistrationID, Number: number, Name: d.DestinationName}
		destination.IPv4, _ = d.DestinationIPv4.Get()
		destination.IPv6, _ = d.DestinationIPv6.Get()
		if port, err := d.DestinationPort.Get(); err == nil {
			if port < 1 || port > 65535 {
				return out, fmt.Errorf("groupDestinations[%d]: destinationPort %d is not a port", i, port)
			}
			destination.Port = uint16(port)
		}
		if err := readConsent(d.Consent, &destination); err != nil {
			return out, fmt.Errorf("groupDestinations[%d]: %w", i, err)
		}
		out.Destinations = append(out.Destinations, destination)
	}
	return out, nil
}

// readConsent reads how a destination is asked for its consent. A policy that this agent doesn't know is none: it gets nothing.
func readConsent(said *api.GatewayConsent, d *models.GatewayDestination) error {
	if said == nil {
		return nil
	}
	switch said.Policy {
	case models.PolicyExempt:
		d.Policy = said.Policy
		return nil
	case models.PolicyLearned, models.PolicyStrict:
	default:
		return nil
	}
	if said.Ufrag == nil || said.Pwd == nil || !fragment(*said.Ufrag, 4) || !fragment(*said.Pwd, 16) {
		return errors.New("consent has no ufrag and pwd of the contract")
	}
	d.Policy, d.Credential = said.Policy, models.ConsentCredential{Ufrag: *said.Ufrag, Password: *said.Pwd}
	if said.Probes != nil {
		d.Probes = int(max(*said.Probes, 0))
	}
	return readTimes(said, d)
}

// readTimes reads how often consent is asked for and how long it lasts. Nobody is given longer than SPEC §10 does; what would end a consent before it can be
// renewed no healthy server says.
func readTimes(said *api.GatewayConsent, d *models.GatewayDestination) error {
	seconds := func(said *int32, usual time.Duration) time.Duration {
		if said == nil {
			return usual
		}
		return time.Duration(*said) * time.Second
	}
	d.Every, d.Expires = seconds(said.Every, models.ConsentEvery), min(seconds(said.Expires, models.ConsentExpires), models.ConsentExpires)
	if d.Every < time.Second || d.Expires < 2*d.Every {
		return errors.New("consent has to be asked for every second at the most, and to last at least twice as long as that")
	}
	return nil
}

// fragment tells whether a text is made of the characters of ICE (RFC 8445 §5.3), which need no escaping anywhere.
func fragment(s string, least int) bool {
	return len(s) >= least && len(s) <= 256 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '+' && c != '/'
	})
}
