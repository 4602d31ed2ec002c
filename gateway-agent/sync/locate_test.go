package sync_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/sync"
)

// bearer is a credential.
type bearer struct{ next http.RoundTripper }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return b.next.RoundTrip(r)
}

// A gateway says that it is behind a NAT, and learns where the service and its STUN port are.
func TestTheServiceIsLocated(t *testing.T) {
	service := scripted.New(information("e1", 7), token)
	service.SetSTUN("localhost:3478")
	server := httptest.NewServer(service.Handler())
	defer server.Close()
	transport, err := sync.NewTransport("")
	require.NoError(t, err)
	g := gateway
	g.BehindNAT = true
	found := make(chan sync.Service, 10)
	poller, err := sync.New(sync.Config{
		Server: server.URL, Gateway: g, Transport: transport, Authorized: bearer{transport}, Located: func(s sync.Service) { found <- s }, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		poller.Run(ctx, sync.Held{MaxStale: time.Minute}, func(context.Context, sync.Answer) (sync.Held, error) {
			return sync.Held{Cursor: "e1.7", MaxStale: time.Minute}, nil
		})
	}()
	s := <-found
	stop()
	<-done
	assert.Equal(t, netip.MustParseAddrPort("127.0.0.1:3478"), s.STUN)
	assert.Contains(t, s.Endpoints, netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://")))
	assert.Contains(t, s.Endpoints, s.STUN)
	assert.Empty(t, found, "once")
	d := service.Declarations()
	require.Len(t, d, 1)
	require.NotNil(t, d[0].BehindNAT)
	assert.True(t, *d[0].BehindNAT)
}

// The STUN port may move: whoever needs it asks again.
func TestAGatewayBehindANATDeclaresAgain(t *testing.T) {
	for _, behind := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			g := gateway
			g.BehindNAT = behind
			c := startFor(t, g, "")
			time.Sleep(35 * time.Minute)
			synctest.Wait()
			n := len(c.service.Declarations())
			c.stop()
			if behind {
				assert.InDelta(t, 4, n, 1)
			} else {
				assert.Equal(t, 1, n)
				assert.Nil(t, c.service.Declarations()[0].BehindNAT, "older services don't know it")
			}
		})
	}
}

func TestDecodeTheTimesOfConsent(t *testing.T) {
	const exempt = `"consent":{"policy":"exempt"}`
	encoded, err := json.Marshal(information("e1", 7))
	require.NoError(t, err)
	raw := string(encoded)
	require.Contains(t, raw, exempt)
	for name, test := range map[string]struct {
		said           string
		every, expires time.Duration // 0: refused
	}{
		"nothing":                {``, 5 * time.Second, 30 * time.Second},
		"as usual":               {`,"every":5,"expires":30`, 5 * time.Second, 30 * time.Second},
		"shorter":                {`,"every":1,"expires":3`, time.Second, 3 * time.Second},
		"longer than there is":   {`,"every":5,"expires":3600`, 5 * time.Second, 30 * time.Second},
		"all the time":           {`,"every":0,"expires":30`, 0, 0},
		"backwards":              {`,"every":-5,"expires":30`, 0, 0},
		"never renewed in time":  {`,"every":20,"expires":30`, 0, 0},
		"rarer than the longest": {`,"every":60,"expires":600`, 0, 0},
		"over at once":           {`,"expires":0`, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			said := strings.Replace(raw, exempt, `"consent":{"policy":"learned","ufrag":"Yw5Fh2kPq0Za","pwd":"8mNbVcXzLkJhGfDsAqWeRt"`+test.said+`}`, 1)
			info, err := sync.Decode([]byte(said), gateway)
			if test.every == 0 {
				require.ErrorContains(t, err, "consent")
				return
			}
			require.NoError(t, err)
			d := info.Groups[0].Destinations[0]
			assert.Equal(t, [2]time.Duration{test.every, test.expires}, [2]time.Duration{d.Every, d.Expires})
		})
	}
}
