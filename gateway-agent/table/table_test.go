package table_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

var gateway = models.Gateway{
	ID:        812345678901234567,
	LANPrefix: netip.MustParsePrefix("172.168.0.0/24"),
	LANAddr:   netip.MustParseAddr("172.168.0.1"),
	Uplink:    netip.MustParseAddr("203.0.113.1"),
	Range:     models.AddrRange{First: netip.MustParseAddr("172.168.0.233"), Last: netip.MustParseAddr("172.168.0.254")},
}

// worked is the group information of the worked example (SPEC §3).
func worked() models.GroupInformation {
	destination := func(id, ipv4 string) models.GatewayDestination {
		return models.GatewayDestination{RegistrationID: models.RegistrationID(id), IPv4: netip.MustParseAddr(ipv4), Policy: models.PolicyExempt}
	}
	return models.GroupInformation{GatewayID: gateway.ID, Epoch: "5f2c9a71d0b34e68", Revision: 7, Groups: []models.GatewayGroup{
		{
			Group: models.Group{ID: "g_1", Name: "groupcast1", IP: netip.MustParseAddr("172.168.0.233"), Generation: 1, State: 3},
			Sources: []models.GatewaySource{
				{RegistrationID: "r_1", Name: "camera1", IPv4: netip.MustParseAddr("172.168.0.5"), Trigger: models.TriggerOption},
			},
			Destinations: []models.GatewayDestination{
				destination("r_4", "71.230.36.162"), destination("r_2", "96.114.14.140"), destination("r_3", "69.252.80.75"),
			},
		},
		{
			Group:        models.Group{ID: "g_2", Name: "groupcast2", IP: netip.MustParseAddr("172.168.0.235"), Generation: 1, State: 1},
			Destinations: []models.GatewayDestination{destination("r_5", "68.87.41.40")},
		},
	}}
}

func derive(t interface {
	require.TestingT
	Helper()
}, info models.GroupInformation, in table.Inputs,
) *table.Snapshot {
	t.Helper()
	require.NoError(t, table.Check(info, gateway))
	db, err := table.Open()
	require.NoError(t, err)
	require.NoError(t, db.Replace(info))
	s, err := table.Derive(db.Read(), in)
	require.NoError(t, err)
	return s
}

func TestDeriveOfTheWorkedExample(t *testing.T) {
	until := time.Unix(1700000000, 0)
	s := derive(t, worked(), table.Inputs{ValidUntil: until})
	assert.Equal(t, "5f2c9a71d0b34e68.7", s.Version)
	assert.Equal(t, until, s.ValidUntil)
	require.Len(t, s.Groups, 2)
	g, ok := s.Group(netip.MustParseAddr("172.168.0.233"))
	require.True(t, ok)
	assert.Equal(t, &table.Group{
		ID: "g_1", Name: "groupcast1", IP: netip.MustParseAddr("172.168.0.233"), Generation: 1,
		Sources: []table.Source{{ID: "r_1", Name: "camera1", Addr: netip.MustParseAddr("172.168.0.5"), Trigger: table.TriggerOption}},
		Destinations: []table.Destination{
			{ID: "r_2", Addr: netip.MustParseAddr("96.114.14.140")},
			{ID: "r_3", Addr: netip.MustParseAddr("69.252.80.75")},
			{ID: "r_4", Addr: netip.MustParseAddr("71.230.36.162")},
		},
	}, g)
	other, ok := s.Group(netip.MustParseAddr("172.168.0.235"))
	require.True(t, ok)
	assert.Equal(t, []table.Destination{{ID: "r_5", Addr: netip.MustParseAddr("68.87.41.40")}}, other.Destinations)
	assert.Empty(t, other.Sources)
}

func TestAnEmptyTableHasNoGroupsAndNoVersion(t *testing.T) {
	db, err := table.Open()
	require.NoError(t, err)
	s, err := table.Derive(db.Read(), table.Inputs{})
	require.NoError(t, err)
	assert.Empty(t, s.Groups)
	assert.Empty(t, s.Version)
}

func TestAReaderKeepsItsViewWhileTheTableIsReplaced(t *testing.T) {
	db, err := table.Open()
	require.NoError(t, err)
	require.NoError(t, db.Replace(worked()))
	before := db.Read()
	newer := worked()
	newer.Revision, newer.Groups = 8, newer.Groups[1:]
	require.NoError(t, db.Replace(newer))

	s, err := table.Derive(before, table.Inputs{})
	require.NoError(t, err)
	assert.Equal(t, "5f2c9a71d0b34e68.7", s.Version)
	assert.Len(t, s.Groups, 2)
	s, err = table.Derive(db.Read(), table.Inputs{})
	require.NoError(t, err)
	assert.Equal(t, "5f2c9a71d0b34e68.8", s.Version)
	assert.Len(t, s.Groups, 1, "what the server no longer says is gone")
}

func TestTwoMembersWithOneAddressNeedTheOption(t *testing.T) {
	info := worked()
	info.Groups[0].Sources = append(info.Groups[0].Sources, models.GatewaySource{
		RegistrationID: "r_0", IPv4: netip.MustParseAddr("172.168.0.5"), Trigger: models.TriggerSource,
	})
	s := derive(t, info, table.Inputs{})
	g, _ := s.Group(netip.MustParseAddr("172.168.0.233"))
	require.Len(t, g.Sources, 1)
	assert.Equal(t, table.TriggerOption, g.Sources[0].Trigger)
}

func TestIPv6IsUsedIfThereIsNoIPv4(t *testing.T) {
	info := worked()
	six := netip.MustParseAddr("2001:db8::5")
	info.Groups[1].Destinations[0].IPv6 = six
	s := derive(t, info, table.Inputs{})
	g, _ := s.Group(netip.MustParseAddr("172.168.0.235"))
	assert.Equal(t, netip.MustParseAddr("68.87.41.40"), g.Destinations[0].Addr)

	info.Groups[1].Destinations[0].IPv4 = netip.Addr{}
	info.Groups[1].Destinations[0].Port = 5006
	s = derive(t, info, table.Inputs{})
	g, _ = s.Group(netip.MustParseAddr("172.168.0.235"))
	assert.Equal(t, table.Destination{ID: "r_5", Addr: six, Port: 5006}, g.Destinations[0])
}

// information draws what a server may say about up to 22 groups.
func information(t *rapid.T) models.GroupInformation {
	octet := rapid.ByteRange(1, 223)
	addr := func(label string) netip.Addr {
		return netip.AddrFrom4([4]byte{octet.Draw(t, label), octet.Draw(t, label), octet.Draw(t, label), octet.Draw(t, label)})
	}
	next := 0
	id := func() models.RegistrationID {
		next++
		return models.RegistrationID(fmt.Sprintf("r_%d", next*7919%1000))
	}
	info := models.GroupInformation{GatewayID: gateway.ID, Epoch: "e", Revision: rapid.Int64Range(1, 1<<62).Draw(t, "revision")}
	ips := rapid.SliceOfNDistinct(rapid.ByteRange(233, 254), 0, 22, rapid.ID).Draw(t, "ips")
	for _, ip := range ips {
		g := models.GatewayGroup{Group: models.Group{
			ID: models.GroupID(fmt.Sprintf("g_%d", ip)), Name: fmt.Sprintf("n%d", ip),
			IP: netip.AddrFrom4([4]byte{172, 168, 0, ip}), Generation: int64(ip),
		}}
		for range rapid.IntRange(0, 3).Draw(t, "sources") {
			g.Sources = append(g.Sources, models.GatewaySource{RegistrationID: id(), IPv4: addr("source"), Trigger: models.TriggerOption})
		}
		for range rapid.IntRange(0, 8).Draw(t, "destinations") {
			g.Destinations = append(g.Destinations, models.GatewayDestination{
				Policy:         models.PolicyExempt,
				RegistrationID: id(), IPv4: addr("destination"), Port: rapid.Uint16().Draw(t, "port"),
			})
		}
		info.Groups = append(info.Groups, g)
	}
	return info
}

// Nobody is in the table but who consented, there and until then and for that source, and whom the operator exempts, where he is registered.
func TestConsentOnlyGetsOneIntoTheTable(t *testing.T) {
	policies := rapid.SampledFrom([]models.ConsentPolicy{"", models.PolicyLearned, models.PolicyStrict, models.PolicyExempt, "what a later server says"})
	rapid.Check(t, func(t *rapid.T) {
		info := information(t)
		leases := map[consent.Key]consent.Lease{}
		type member struct {
			models.GatewayDestination
			group models.GroupID
		}
		members := map[string]member{}
		for i, g := range info.Groups {
			for k := range g.Destinations {
				d := &info.Groups[i].Destinations[k]
				d.Policy = policies.Draw(t, "policy")
				members[string(d.RegistrationID)] = member{*d, g.ID}
				for _, s := range g.Sources {
					if rapid.Bool().Draw(t, "consented") {
						at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, 9, byte(k)}), rapid.Uint16Min(1).Draw(t, "port"))
						key := consent.Key{Sender: consent.Sender{Group: string(g.ID), Source: string(s.RegistrationID)}, Destination: string(d.RegistrationID)}
						leases[key] = consent.Lease{At: at, Until: time.Unix(int64(k), 0)}
					}
				}
			}
		}
		for _, g := range derive(t, info, table.Inputs{Leases: leases}).Groups {
			for _, d := range g.Destinations {
				said := members[d.ID]
				if said.Policy == models.PolicyExempt {
					require.Equal(t, table.Destination{ID: d.ID, Name: said.Name, Addr: said.Addr(), Port: said.Port}, d)
					continue
				}
				require.Equal(t, g.ID, string(said.group))
				lease, ok := leases[consent.Key{Sender: consent.Sender{Group: g.ID, Source: d.Source}, Destination: d.ID}]
				require.True(t, ok, "%+v didn't consent", d)
				require.Equal(t, lease.At, netip.AddrPortFrom(d.Addr, d.Port))
				require.Equal(t, lease.Until, d.ValidUntil)
			}
		}
	})
}

// shuffle says the same in another order.
func shuffle(t *rapid.T, info models.GroupInformation) models.GroupInformation {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	swap := func(n int, s func(i, j int)) { r.Shuffle(n, s) }
	out := info
	out.Groups = slices.Clone(info.Groups)
	swap(len(out.Groups), func(i, j int) { out.Groups[i], out.Groups[j] = out.Groups[j], out.Groups[i] })
	for k := range out.Groups {
		s, d := slices.Clone(out.Groups[k].Sources), slices.Clone(out.Groups[k].Destinations)
		swap(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		swap(len(d), func(i, j int) { d[i], d[j] = d[j], d[i] })
		out.Groups[k].Sources, out.Groups[k].Destinations = s, d
	}
	return out
}

func TestDeriveProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		info := information(t)
		in := table.Inputs{ValidUntil: time.Unix(rapid.Int64Range(0, 1<<40).Draw(t, "until"), 0)}
		s := derive(t, info, in)

		require.Equal(t, s, derive(t, shuffle(t, info), in), "the order in which the server says it decides nothing")
		require.Equal(t, in.ValidUntil, s.ValidUntil)
		require.Len(t, s.Groups, len(info.Groups))
		for _, said := range info.Groups {
			g, ok := s.Group(said.IP)
			require.True(t, ok)
			require.Equal(t, said.IP, g.IP)
			require.Equal(t, string(said.ID), g.ID)

			// Exactly the group's own destinations with exactly their addresses.
			want := map[string]netip.AddrPort{}
			for _, d := range said.Destinations {
				want[string(d.RegistrationID)] = netip.AddrPortFrom(d.IPv4, d.Port)
			}
			got := map[string]netip.AddrPort{}
			for _, d := range g.Destinations {
				got[d.ID] = netip.AddrPortFrom(d.Addr, d.Port)
			}
			require.Equal(t, want, got)
			require.Len(t, g.Destinations, len(want))
			require.True(t, slices.IsSortedFunc(g.Destinations, func(a, b table.Destination) int { return strings.Compare(a.ID, b.ID) }))

			// Every address of a source, once.
			addrs := map[netip.Addr]bool{}
			for _, src := range said.Sources {
				addrs[src.IPv4] = true
			}
			require.Len(t, g.Sources, len(addrs))
			for _, src := range g.Sources {
				require.True(t, addrs[src.Addr])
			}
			require.True(t, slices.IsSortedFunc(g.Sources, func(a, b table.Source) int { return a.Addr.Compare(b.Addr) }))
		}
	})
}

func TestCheckRefusesWhatNoHealthyServerSays(t *testing.T) {
	require.NoError(t, table.Check(worked(), gateway))
	for name, test := range map[string]struct {
		spoil func(*models.GroupInformation)
		want  string
	}{
		"another gateway":       {func(i *models.GroupInformation) { i.GatewayID++ }, "is for gateway"},
		"no epoch":              {func(i *models.GroupInformation) { i.Epoch = "" }, "epoch"},
		"epoch with a dot":      {func(i *models.GroupInformation) { i.Epoch = "a.1" }, "epoch"},
		"epoch with a quote":    {func(i *models.GroupInformation) { i.Epoch = `a"` }, "epoch"},
		"revision 0":            {func(i *models.GroupInformation) { i.Revision = 0 }, "revision"},
		"group id":              {func(i *models.GroupInformation) { i.Groups[0].ID = "g\n" }, "groupId"},
		"group name":            {func(i *models.GroupInformation) { i.Groups[0].Name = "" }, "groupName"},
		"group outside":         {func(i *models.GroupInformation) { i.Groups[0].IP = netip.MustParseAddr("172.168.0.232") }, "outside the declared range"},
		"group IP mapped":       {func(i *models.GroupInformation) { i.Groups[0].IP = netip.MustParseAddr("::ffff:172.168.0.233") }, "outside the declared range"},
		"no group IP":           {func(i *models.GroupInformation) { i.Groups[0].IP = netip.Addr{} }, "outside the declared range"},
		"generation":            {func(i *models.GroupInformation) { i.Groups[0].Generation = 0 }, "generation"},
		"group IP twice":        {func(i *models.GroupInformation) { i.Groups[1].IP = i.Groups[0].IP }, "twice"},
		"group id twice":        {func(i *models.GroupInformation) { i.Groups[1].ID = i.Groups[0].ID }, "twice"},
		"group name twice":      {func(i *models.GroupInformation) { i.Groups[1].Name = i.Groups[0].Name }, "twice"},
		"source without id":     {func(i *models.GroupInformation) { i.Groups[0].Sources[0].RegistrationID = "" }, "registrationId"},
		"source without IPv4":   {func(i *models.GroupInformation) { i.Groups[0].Sources[0].IPv4 = netip.Addr{} }, "sourceIPv4"},
		"source IPv6":           {func(i *models.GroupInformation) { i.Groups[0].Sources[0].IPv4 = netip.MustParseAddr("2001:db8::1") }, "sourceIPv4"},
		"trigger":               {func(i *models.GroupInformation) { i.Groups[0].Sources[0].Trigger = "always" }, "trigger"},
		"registration twice":    {func(i *models.GroupInformation) { i.Groups[1].Destinations[0].RegistrationID = "r_2" }, "twice"},
		"source as destination": {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].RegistrationID = "r_1" }, "twice"},
		"destination id":        {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].RegistrationID = `r"}` }, "registrationId"},
		"no address":            {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].IPv4 = netip.Addr{} }, "no address"},
		"0.0.0.0":               {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].IPv4 = netip.IPv4Unspecified() }, "destinationIPv4"},
		"multicast":             {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].IPv4 = netip.MustParseAddr("224.0.0.1") }, "destinationIPv4"},
		"broadcast": {func(i *models.GroupInformation) {
			i.Groups[0].Destinations[0].IPv4 = netip.MustParseAddr("255.255.255.255")
		}, "destinationIPv4"},
		"IPv6 with zone": {func(i *models.GroupInformation) {
			i.Groups[0].Destinations[0].IPv6 = netip.MustParseAddr("fe80::1%eth0")
		}, "destinationIPv6"},
		"IPv6 multicast": {func(i *models.GroupInformation) { i.Groups[0].Destinations[0].IPv6 = netip.MustParseAddr("ff02::1") }, "destinationIPv6"},
		"IPv4 as IPv6": {func(i *models.GroupInformation) {
			i.Groups[0].Destinations[0].IPv6 = netip.MustParseAddr("::ffff:1.2.3.4")
		}, "destinationIPv6"},
	} {
		t.Run(name, func(t *testing.T) {
			info := worked()
			test.spoil(&info)
			err := table.Check(info, gateway)
			require.ErrorContains(t, err, test.want)
			for _, g := range worked().Groups {
				for _, d := range g.Destinations {
					assert.NotContains(t, err.Error(), d.IPv4.String(), "a destination's address is in the error")
				}
			}
		})
	}
}

func TestOneMembersOddAddressDoesNotStopTheHome(t *testing.T) {
	info := worked()
	info.Groups[0].Destinations[0].IPv4 = gateway.Uplink                       // a phone at home that knows no private address
	info.Groups[0].Destinations[1].IPv4 = netip.MustParseAddr("172.168.0.240") // inside the group range
	info.Groups[0].Destinations[2].IPv4 = netip.MustParseAddr("127.0.0.1")     // the duplicator refuses these alone
	assert.NoError(t, table.Check(info, gateway))
}

func TestOneGroupIsDerivedAsAmongAll(t *testing.T) {
	info := worked()
	db, err := table.Open()
	require.NoError(t, err)
	require.NoError(t, db.Replace(info))
	in := table.Inputs{ValidUntil: time.Unix(1e9, 0), Unasked: true, Ports: map[string]uint16{}}
	for _, g := range info.Groups {
		for _, s := range g.Sources {
			in.Ports[string(s.RegistrationID)] = 40001
		}
	}
	all, err := table.Derive(db.Read(), in)
	require.NoError(t, err)
	require.NotEmpty(t, all.Groups)
	for _, want := range all.Groups {
		g, ok, err := table.DeriveGroup(db.Read(), in, want.ID)
		require.NoError(t, err)
		require.True(t, ok)
		assert.Equal(t, want, g)
	}
	_, ok, err := table.DeriveGroup(db.Read(), in, "g_none")
	require.NoError(t, err)
	assert.False(t, ok)
}
