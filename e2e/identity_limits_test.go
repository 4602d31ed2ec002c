package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
)

// TestAttackTwoHundredLoginsOverHTTP is row 11 of the threat model: 200 logins at once, each from another network so that no delay turns any away,
// stay below the bound of docs/benchmarks.md.
func TestAttackTwoHundredLoginsOverHTTP(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.Options{Args: []string{"--trusted-proxies", "127.0.0.1/32", "--rate-limit-source", "0"}})
	before := s.PeakMemory(t)
	// A hash takes 19 MiB, and two for each core are made at once. What the collector has not yet taken of those that ended comes on top, and on a
	// busy host that is many: so the bound is a quarter of what 200 hashes at once would take.
	bound := before + 200*19<<20/4
	var wg sync.WaitGroup
	statuses := make([]int, 200)
	for i := range statuses {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/login",
				strings.NewReader(fmt.Sprintf(`{"userName":"user%d","password":"not the right words"}`, i)))
			if !assert.NoError(t, err) {
				return
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Forwarded-For", fmt.Sprintf("198.18.%d.7", i))
			resp, err := s.HTTP.Do(r)
			if !assert.NoError(t, err) {
				return
			}
			_ = resp.Body.Close()
			statuses[i] = resp.StatusCode
		})
	}
	wg.Wait()
	for i, status := range statuses {
		require.Equal(t, http.StatusUnauthorized, status, "login %d was hashed and refused", i)
	}
	peak := s.PeakMemory(t)
	assert.Less(t, peak, bound)
	t.Logf("resident before %d MiB, at its highest %d MiB, bound %d MiB", before>>20, peak>>20, bound>>20)
}
