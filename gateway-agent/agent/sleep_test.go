package agent

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// A host that sleeps for an hour wakes up with a monotonic clock that knows nothing of it.
func TestAHostThatSleptForTooLongFailsClosed(t *testing.T) {
	gateway := models.Gateway{
		ID: 1, LANPrefix: netip.MustParsePrefix("127.32.0.0/24"), LANAddr: netip.MustParseAddr("127.32.0.1"), Uplink: netip.MustParseAddr("127.0.0.1"),
		Range: models.AddrRange{First: netip.MustParseAddr("127.32.0.230"), Last: netip.MustParseAddr("127.32.0.254")},
	}
	log := slog.New(slog.DiscardHandler)
	store, err := state.Open(t.TempDir(), gateway.ID)
	require.NoError(t, err)
	defer store.Close()
	db, err := table.Open()
	require.NoError(t, err)
	copier, err := duplicator.OpenSocket(duplicator.Config{GroupRange: gateway.Range, Uplink: gateway.Uplink, AllowLoopback: true, Log: log})
	require.NoError(t, err)
	defer copier.Close()
	guard, err := lan.Open("lo", gateway.Range)
	require.NoError(t, err)
	defer guard.Close()
	asking := newConsents(config.Config{Gateway: gateway}, store.Path(portsFile), log)
	defer asking.ports.Close()
	up := time.Hour
	f := &forwarder{
		log: log, server: "https://groupcast.example", store: store, db: db, place: &home{duplicator: copier, guard: guard, way: &forwarding{}},
		consents: asking, uptime: func() time.Duration { return up },
	}
	raw := json.RawMessage(`{"gatewayId":"1","epoch":"e","revision":"1","maxStaleSeconds":900,"groups":[]}`)
	info, err := sync.Decode(raw, gateway)
	require.NoError(t, err)
	require.NoError(t, f.take(sync.Answer{Information: info}))
	require.Equal(t, sync.Held{Cursor: "e.1", MaxStale: 15 * time.Minute}, f.acknowledged())

	up += 14 * time.Minute
	f.look()
	assert.True(t, f.view.Load().forwarding)
	up += time.Minute
	f.look()
	assert.False(t, f.view.Load().forwarding)
	assert.Nil(t, f.view.Load().tables)

	// Nothing has changed while it slept: then what it has is right again.
	require.NoError(t, f.take(sync.Answer{}))
	assert.True(t, f.view.Load().forwarding)
	assert.Equal(t, "e.1", f.view.Load().tables[0].Version)
}
