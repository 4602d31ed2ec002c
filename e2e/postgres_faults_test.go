package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/openapi/api"
)

// TestPostgresFailsUnderLoad restarts and kills Postgres, and leaves it without a connection for the service, while 16 clients register: each is
// told 503 and when to come back, the service recovers by itself, and whatever was answered with 200 is there afterwards.
func TestPostgresFailsUnderLoad(t *testing.T) {
	t.Parallel()
	// The tests' clusters acknowledge before they write, for speed; a kill would then lose what this test looks for.
	cluster := pgtest.New(t, pgtest.Options{Settings: map[string]string{"synchronous_commit": "on"}})
	// As many as there are, which is none: 53300, as when others have them all.
	connections := func(limit int) error {
		operator, err := pgx.Connect(t.Context(), cluster.AdminURL())
		if err != nil {
			return err
		}
		defer func() { _ = operator.Close(t.Context()) }()
		_, err = operator.Exec(t.Context(), fmt.Sprintf(`ALTER ROLE groupcast CONNECTION LIMIT %d;
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'groupcast'`, limit))
		return err
	}
	for name, fault := range map[string]struct{ begin, end func() error }{
		"restarted":          {cluster.Stop, cluster.Start},
		"killed":             {cluster.Kill, cluster.Start},
		"out of connections": {func() error { return connections(0) }, func() error { return connections(-1) }},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExample(t, harness.Options{DatabaseURL: cluster.URL(t), Args: []string{"--quota-destinations", "0"}})
			e.declare(t)
			e.postCamera(t)
			var mu sync.Mutex
			accepted, refused, recovered := map[string]bool{}, 0, 0
			back, done := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			for worker := range 16 {
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-done:
							return
						default:
						}
						instance := fmt.Sprintf("w%d-%d", worker, i)
						req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, e.URL+"/v1/registrations", newBody(
							`{"type":"Service","id":"%s","destination":true,"instance":%q,"publicIPv4":"96.114.14.140","groupName":"groupcast1","groupIP":%q}`,
							uploadAccountID, instance, groupIP))
						req.Header.Set("Content-Type", "application/json")
						req.Header.Set("Authorization", e.uploadToken)
						r, err := e.HTTP.Do(req)
						if !assert.NoError(t, err) {
							return
						}
						r.Body.Close()
						mu.Lock()
						switch r.StatusCode {
						case http.StatusOK:
							accepted[instance] = true
							select {
							case <-back:
								recovered++
							default:
							}
						default:
							assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
							assert.NotEmpty(t, r.Header.Get("Retry-After"))
							refused++
						}
						mu.Unlock()
						if r.StatusCode != http.StatusOK {
							time.Sleep(20 * time.Millisecond)
						}
					}
				})
			}
			count := func(n *int, least int) func() bool {
				return func() bool { mu.Lock(); defer mu.Unlock(); return *n >= least }
			}
			require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(accepted) > 50 }, time.Minute, 10*time.Millisecond)
			require.NoError(t, fault.begin())
			assert.Eventually(t, count(&refused, 16), time.Minute, 10*time.Millisecond, "nobody was refused while there was no database")
			require.NoError(t, fault.end())
			close(back)
			assert.Eventually(t, count(&recovered, 50), time.Minute, 10*time.Millisecond, "the service doesn't recover")
			close(done)
			wg.Wait()

			present := map[string]bool{}
			size := int32(500)
			for token := (*string)(nil); ; {
				page, err := e.Client(t, e.uploadToken).ListRegistrationsWithResponse(t.Context(), &api.ListRegistrationsParams{PageSize: &size, PageToken: token})
				require.NoError(t, err)
				require.NotNil(t, page.JSON200, "%s", page.Body)
				for _, r := range page.JSON200.Registrations {
					present[r.Instance] = true
				}
				if token = page.JSON200.NextPageToken; token == nil {
					break
				}
			}
			for instance := range accepted {
				assert.True(t, present[instance], "registration %s was answered with 200 and is gone", instance)
			}
			t.Logf("%d accepted, %d refused", len(accepted), refused)
		})
	}
}
