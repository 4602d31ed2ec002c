package sync_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

func TestDecode(t *testing.T) {
	raw, err := json.Marshal(information("5f2c9a71d0b34e68", 7))
	require.NoError(t, err)
	// A newer server may say more.
	raw = []byte(strings.Replace(string(raw), `"groupName"`, `"fanout":"home","groupName"`, 1))
	info, err := sync.Decode(raw, gateway)
	require.NoError(t, err)
	assert.Equal(t, "5f2c9a71d0b34e68.7", info.Cursor())
	assert.Equal(t, 15*time.Minute, info.MaxStale)
	assert.Equal(t, string(raw), string(info.Raw))
	require.Len(t, info.Groups, 1)
	g := info.Groups[0]
	assert.Equal(t, "groupcast1", g.Name)
	assert.Equal(t, []models.GatewaySource{
		{RegistrationID: "r_1", Name: "camera1", IPv4: netip.MustParseAddr("172.168.0.5"), Trigger: models.TriggerOption},
	}, g.Sources)
	assert.Equal(t, []models.GatewayDestination{
		{RegistrationID: "r_2", Number: 1, Name: "upload service", IPv4: netip.MustParseAddr(destination), Policy: models.PolicyExempt},
	}, g.Destinations)
}

func TestDecodeRefusesWholeWhatCannotBeRight(t *testing.T) {
	raw, err := json.Marshal(information("e1", 7))
	require.NoError(t, err)
	good := string(raw)
	for name, test := range map[string]struct{ old, new, want string }{
		"revision a number":       {`"revision":"7"`, `"revision":7`, "revision"},
		"revision with zero":      {`"revision":"7"`, `"revision":"07"`, "revision"},
		"revision negative":       {`"revision":"7"`, `"revision":"-7"`, "revision"},
		"revision missing":        {`"revision":"7"`, `"x":""`, "revision"},
		"epoch missing":           {`"epoch":"e1",`, ``, "epoch"},
		"another gateway":         {`"812345678901234567"`, `"812345678901234568"`, "is for gateway"},
		"gateway id a number":     {`"812345678901234567"`, `812345678901234567`, "not what the contract says"},
		"maxStale 0":              {`"maxStaleSeconds":900`, `"maxStaleSeconds":0`, "maxStaleSeconds"},
		"maxStale missing":        {`"maxStaleSeconds":900`, `"x":0`, "maxStaleSeconds"},
		"maxStale too long":       {`"maxStaleSeconds":900`, `"maxStaleSeconds":86401`, "maxStaleSeconds"},
		"no groups":               {`"groups":`, `"x":`, "no list of groups"},
		"no destinations":         {`"groupDestinations":`, `"x":`, "no list of sources or destinations"},
		"bad address":             {destination, "96.114.14.999", "not what the contract says"},
		"empty address":           {destination, "", "no address"},
		"multicast":               {destination, "239.1.1.1", "destinationIPv4"},
		"port":                    {`"destinationPort":null`, `"destinationPort":65536`, "destinationPort"},
		"port 0":                  {`"destinationPort":null`, `"destinationPort":0`, "destinationPort"},
		"destination id":          {`"destinationId":"1"`, `"destinationId":"one"`, "destinationId"},
		"group outside the range": {"172.168.0.233", "172.168.0.100", "outside the declared range"},
		"trigger":                 {`"trigger":"option"`, `"trigger":""`, "trigger"},
		"trailing data":           {`"7"}`, `"7"}{}`, "not JSON"},
		"not JSON":                {`{`, ``, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			spoilt := strings.Replace(good, test.old, test.new, 1)
			require.NotEqual(t, good, spoilt)
			_, err := sync.Decode([]byte(spoilt), gateway)
			require.ErrorContains(t, err, test.want)
			assert.NotContains(t, err.Error(), "96.114.14")
		})
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := json.Marshal(information("e1", 7))
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"groups":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		info, err := sync.Decode(raw, gateway)
		if err != nil {
			return
		}
		// What is accepted can be derived from, and every destination in the result was said.
		require.NoError(t, table.Check(info.GroupInformation, gateway))
		db, err := table.Open()
		require.NoError(t, err)
		require.NoError(t, db.Replace(info.GroupInformation))
		s, err := table.Derive(db.Read(), table.Inputs{})
		require.NoError(t, err)
		require.Len(t, s.Groups, len(info.Groups))
	})
}
