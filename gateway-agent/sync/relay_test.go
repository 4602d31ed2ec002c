package sync

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const relay = models.ID(731298765432109876)

// relayGroup is one with a source, and destinations with those names.
func relayGroup(n int, source string, destinations ...string) api.GatewayGroup {
	gateway := models.ID(n + 1)
	g := api.GatewayGroup{
		GroupID: models.GroupID(fmt.Sprintf("g_%d", n)), GatewayID: &gateway, PremisesID: models.PremisesID(fmt.Sprintf("p_%d", n)), GroupName: "groupcast1",
		GroupIP: netip.MustParseAddr("172.16.0.233"), Generation: 1, GroupDestinations: []api.GroupDestination{},
		GroupSources: []api.GroupSource{{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d", n)), SourceName: source, SourceIPv4: netip.MustParseAddr("172.16.0.5"),
			SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerOption,
		}},
	}
	for i, name := range destinations {
		g.GroupDestinations = append(g.GroupDestinations, api.GroupDestination{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d_%d", n, i)), DestinationID: "1", DestinationName: name,
			DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr("203.0.113.7")), DestinationIPv6: nullable.NewNullNullable[netip.Addr](),
			DestinationPort: nullable.NewNullNullable[int32](),
		})
	}
	return g
}

func relayPremises(n int) api.RelayPremises {
	return api.RelayPremises{
		PremisesID: models.PremisesID(fmt.Sprintf("p_%d", n)), GatewayID: models.ID(n + 1), TunnelKey: models.TunnelKey{byte(n + 1)},
		TunnelAddress: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a::%x", n+1)),
	}
}

// However it is written, and whatever was read before, a document is read as it stands there; but for groups without destinations. So is what is kept of it.
func TestADecoderOfManyDocumentsReadsEachAsItStandsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := newRelayDecoder(relay)
		// Among them what ends a string, a list or an object.
		name := rapid.StringOfN(rapid.RuneFrom([]rune(`ab"\],[}{:é `)), 0, 8, -1)
		for revision := range rapid.IntRange(1, 4).Draw(t, "documents") {
			said := api.RelayInformation{
				RelayID: relay, Epoch: "e", Revision: fmt.Sprint(revision + 1), MaxStaleSeconds: 900, Groups: []api.GatewayGroup{}, Premises: []api.RelayPremises{},
			}
			var want []models.GatewayGroup
			for n := range rapid.IntRange(0, 4).Draw(t, "homes") {
				g := relayGroup(n, name.Draw(t, "source"), rapid.SliceOfN(name, 0, 2).Draw(t, "destinations")...)
				said.Groups, said.Premises = append(said.Groups, g), append(said.Premises, relayPremises(n))
				if len(g.GroupDestinations) > 0 {
					one, err := convert(g)
					require.NoError(t, err)
					want = append(want, one)
				}
			}
			raw, err := json.Marshal(said)
			require.NoError(t, err)
			if rapid.Bool().Draw(t, "indented") {
				raw, err = json.MarshalIndent(said, " ", "\t")
				require.NoError(t, err)
			}
			info, err := d.decode(raw)
			require.NoError(t, err)
			assert.Equal(t, want, info.Groups)
			assert.Len(t, info.Premises, len(said.Premises))
			assert.Equal(t, fmt.Sprintf("e.%d", revision+1), info.Cursor())

			kept, err := DecodeRelay(info.Raw, relay)
			require.NoError(t, err)
			assert.Equal(t, want, kept.Groups)
			assert.Equal(t, info.Cursor(), kept.Cursor())
		}
	})
}

func TestARelayRefusesWhatItCantReadWhole(t *testing.T) {
	t.Parallel()
	good := api.RelayInformation{
		RelayID: relay, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{relayGroup(0, "camera", "phone"), relayGroup(1, "camera")},
		Premises: []api.RelayPremises{relayPremises(0), relayPremises(1)},
	}
	text := func(change func(*api.RelayInformation)) string {
		c := good
		c.Groups, c.Premises = append([]api.GatewayGroup{}, good.Groups...), append([]api.RelayPremises{}, good.Premises...)
		change(&c)
		b, err := json.Marshal(c)
		require.NoError(t, err)
		return string(b)
	}
	for name, test := range map[string]struct{ raw, says string }{
		"not JSON":           {text(func(*api.RelayInformation) {})[1:], "can't be read"},
		"cut":                {`{"relayId":"731298765432109876","groups":[`, "can't be read"},
		"nothing":            {``, "can't be read"},
		"null":               {`null`, "no list of premises"},
		"a list":             {`[]`, "can't be read"},
		"a text":             {`"x"`, "can't be read"},
		"an empty object":    {`{}`, "no list of premises"},
		"no groups":          {text(func(i *api.RelayInformation) { i.Groups = nil }), "no list of groups"},
		"no premises":        {text(func(i *api.RelayInformation) { i.Premises = nil }), "no list of premises"},
		"another relay":      {text(func(i *api.RelayInformation) { i.RelayID = 1 }), "this is 731298765432109876"},
		"no revision":        {text(func(i *api.RelayInformation) { i.Revision = "" }), "is not a number"},
		"no destinations":    {text(func(i *api.RelayInformation) { i.Groups[1].GroupDestinations = nil }), "groups[1] has no list"},
		"a key twice":        {text(func(i *api.RelayInformation) { i.Premises[1].TunnelKey = i.Premises[0].TunnelKey }), "stands twice"},
		"a group's id twice": {text(func(i *api.RelayInformation) { i.Groups = append(i.Groups, relayGroup(0, "camera", "tablet")) }), "stands twice"},
		"a wrong element":    {`{"relayId":"731298765432109876","epoch":"e","revision":"1","maxStaleSeconds":900,"groups":[7],"premises":[]}`, "groups[0] can't be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newRelayDecoder(relay)
			_, err := d.decode([]byte(text(func(*api.RelayInformation) {})))
			require.NoError(t, err)
			_, err = d.decode([]byte(test.raw))
			require.ErrorContains(t, err, test.says)
		})
	}
}
