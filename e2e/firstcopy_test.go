package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkFirstCopyFigures prints the figures of docs/benchmarks.md about the way from a registration to the first copy.
func BenchmarkFirstCopyFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("set BENCH_FIGURES=1, as make bench-events does")
	}
	firstCopy(b, 5, 60, true)
}

// TestFirstCopyFiguresRun shows that the measurement runs, on very little.
func TestFirstCopyFiguresRun(t *testing.T) {
	t.Parallel()
	firstCopy(t, 1, 5, false)
}

// exemptAddr is where the service of a home may receive unasked, if the test says so.
const exemptAddr = "127.0.1.2"

// firstCopy measures from the sending of a new destination's registration until the first copy arrives there, whether it has to consent first or is exempt, in
// turn: the real service and agent, and a camera that sends a datagram every 2 ms, which is part of the figure.
func firstCopy(t testing.TB, rounds, each int, judge bool) {
	h := newHome(t)
	h.Exempt(t, "svc-upload", exemptAddr)
	warm := h.listen(t, "127.0.1.1")
	untilSenders(t, func() registered { return h.register(t, warm) })
	ways := []struct {
		name, addr string
		want       time.Duration
	}{{"first_copy", "127.0.1.1", 200 * time.Millisecond}, {"first_copy_exempt", exemptAddr, 100 * time.Millisecond}}
	middle, last := make([][]time.Duration, len(ways)), make([][]time.Duration, len(ways))
	for range rounds {
		all := make([][]time.Duration, len(ways))
		for range each {
			for i, way := range ways {
				all[i] = append(all[i], h.firstCopy(t, way.addr))
				time.Sleep(120 * time.Millisecond) // changes are told at most every 50 ms; each of these stands alone
			}
		}
		for i := range ways {
			slices.Sort(all[i])
			middle[i], last[i] = append(middle[i], all[i][len(all[i])/2]), append(last[i], all[i][(len(all[i])*99-1)/100])
		}
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for i, way := range ways {
		slices.Sort(middle[i])
		slices.Sort(last[i])
		value, verdict := last[i][len(last[i])/2], "ok"
		if value > way.want {
			verdict = "short"
		}
		if !judge {
			verdict = "unjudged"
		}
		fmt.Printf("beside %s_p50 %.2f ms\nfigure %s_p99 %.3f ms want <= %g %s\n", way.name, ms(middle[i][len(middle[i])/2]), way.name, ms(value), ms(way.want), verdict)
	}
}

// firstCopy registers a receiver at the address, and gives how long it takes until it has its first copy. Then it leaves.
func (h *home) firstCopy(t testing.TB, address string) time.Duration {
	t.Helper()
	conn := h.listen(t, address)
	began := time.Now()
	a := h.register(t, conn)
	if address == exemptAddr {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		_, err := conn.Read(make([]byte, 2048))
		require.NoError(t, err, "no copy arrived")
	} else {
		c := consents(t, conn, a)
		c.next(t)
		defer c.stop()
	}
	took := time.Since(began)
	status, body := h.Send(t, http.MethodDelete, "/v1/registrations/"+a.RegistrationID, "Bearer "+h.uploadToken, "")
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, conn.Close())
	return took
}
