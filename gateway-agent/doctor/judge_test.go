package doctor

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAReceiveBufferSmallerThanWanted(t *testing.T) {
	var e examination
	e.judgeReceiveBuffer(212992, 4<<20, nil)
	require.Len(t, e.findings, 1)
	assert.Equal(t, Warn, e.findings[0].Level)
	assert.Contains(t, e.findings[0].Do, "net.core.rmem_max=4194304")
}

func TestAHostWithoutARing(t *testing.T) {
	var e examination
	e.judgeSocket(nil, errors.New("io_uring: operation not permitted"))
	e.judgeSocket(nil, nil)
	require.Len(t, e.findings, 2)
	assert.Equal(t, OK, e.findings[0].Level, "copies are the same")
	assert.Contains(t, e.findings[0].What, "each destination (io_uring: operation not permitted)")
	assert.NotContains(t, e.findings[1].What, "each destination")
}

func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.6.0": {6, 6}, "5.15.0-91-generic": {5, 15}, "6.18-rc1": {6, 18}, "strange": {0, 0}} {
		major, minor := version(release)
		assert.Equal(t, want, [2]int{major, minor}, release)
	}
}

// What "nft -j list ruleset" prints for these rules.
func TestRulesThatDropMedia(t *testing.T) {
	const head = `{"nftables":[{"metainfo":{"version":"1.0.9","json_schema_version":1}},{"table":{"family":"inet","name":"fw4","handle":1}},`
	input := func(policy string) string {
		return `{"chain":{"family":"inet","table":"fw4","name":"input","handle":1,"type":"filter","hook":"input","prio":0,"policy":"` + policy + `"}}`
	}
	rule := func(right, verdict string) string {
		return `,{"rule":{"family":"inet","table":"fw4","chain":"input","handle":5,"expr":[` +
			`{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":` + right + `}},{"counter":{"packets":0,"bytes":0}},{"` + verdict + `":null}]}}`
	}
	for name, test := range map[string]struct {
		ruleset string
		want    string
	}{
		"accepts by default":       {head + input("accept") + `]}`, ""},
		"drops by default":         {head + input("drop") + `]}`, "chain inet fw4 input drops whatever no rule accepts"},
		"but accepts the port":     {head + input("drop") + rule("5004", "accept") + `]}`, ""},
		"but accepts another port": {head + input("drop") + rule("53", "accept") + `]}`, "chain inet fw4 input"},
		"but accepts a range":      {head + input("drop") + rule(`{"range":[5000,5100]}`, "accept") + `]}`, ""},
		"drops the port":           {head + input("accept") + rule("5004", "drop") + `]}`, "a rule in inet fw4 input drops a media port"},
		"rejects a set":            {head + input("accept") + rule(`{"set":[53,{"range":[5004,5005]}]}`, "reject") + `]}`, "a rule in inet fw4 input drops"},
		"drops another port":       {head + input("accept") + rule("5003", "drop") + `]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := drops([]byte(test.ruleset), []uint16{5004})
			require.NoError(t, err)
			if test.want == "" {
				assert.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			assert.Contains(t, found[0], test.want)
		})
	}
	_, err := drops([]byte("no JSON"), nil)
	assert.Error(t, err)
}
