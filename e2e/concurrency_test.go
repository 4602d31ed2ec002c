package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// clients are load enough: the tests with them run beside no others.
const clients = 64

// at once runs one function per client, all released together.
func atOnce(n int, do func(i int)) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	ready.Add(n)
	done.Add(n)
	for i := range n {
		go func() {
			defer done.Done()
			ready.Done()
			<-start
			do(i)
		}()
	}
	ready.Wait()
	close(start)
	done.Wait()
}

// step is one answered change of a group: the number of destinations before and after.
type step struct{ before, after int }

// replay orders the steps into one history that starts at the given state, or fails. Joins and leaves that ran at once have no
// order we could know; but if every answer was right, some order explains all of them: an Eulerian trail over the states.
func replay(t *testing.T, start int, steps []step) (end int) {
	t.Helper()
	next := map[int][]int{}
	for _, s := range steps {
		next[s.before] = append(next[s.before], s.after)
	}
	var trail []int
	stack := []int{start}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		if out := next[at]; len(out) > 0 {
			next[at] = out[1:]
			stack = append(stack, out[0])
			continue
		}
		trail = append(trail, at)
		stack = stack[:len(stack)-1]
	}
	// Hierholzer's trail comes out backwards; it is whole only if each pair of neighbours is one of the steps.
	require.Len(t, trail, len(steps)+1, "no order of the joins and leaves explains the answers %v", steps)
	left := map[step]int{}
	for _, s := range steps {
		left[s]++
	}
	for i := len(trail) - 1; i > 0; i-- {
		s := step{trail[i], trail[i-1]}
		left[s]--
		require.GreaterOrEqual(t, left[s], 0, "no order of the joins and leaves explains the answers %v", steps)
	}
	return trail[0]
}

func TestReplayRefusesWrongAnswers(t *testing.T) {
	assert.Equal(t, 1, replay(t, 0, []step{{0, 1}, {1, 2}, {2, 1}}))
	for name, wrong := range map[string][]step{
		"two joins that did not see each other": {{0, 1}, {0, 1}},
		"a join counted twice":                  {{0, 1}, {2, 3}},
		"a leave that was not counted":          {{0, 1}, {1, 2}, {2, 1}, {2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			inner := &testing.T{}
			done := make(chan struct{})
			go func() { // FailNow ends the goroutine it is called on
				defer close(done)
				replay(inner, 0, wrong) //nolint:testifylint // the test waits for this goroutine
			}()
			<-done
			assert.True(t, inner.Failed())
		})
	}
}

// TestStateIsExactWith64ClientsAtOnce joins, then joins and leaves at once, and proves that the answers fit one history.
func TestStateIsExactWith64ClientsAtOnce(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		e := newExample(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--quota-destinations", "0"}})
		e.declare(t)
		e.postCamera(t)

		join := func(i int) (string, step) {
			a := e.post(t, e.uploadToken, fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"instance":"w%d",
				"publicIPv4":"96.114.14.%d","groupName":"groupcast1","groupIP":%q}`, uploadAccountID, i, i+1, groupIP))
			return a.RegistrationID, step{a.State - 1, a.State}
		}
		var mu sync.Mutex
		registrations := make([]string, clients)
		var steps []step
		atOnce(clients, func(i int) {
			id, s := join(i)
			mu.Lock()
			defer mu.Unlock()
			registrations[i], steps = id, append(steps, s)
		})
		require.Equal(t, clients, replay(t, 0, steps))

		steps = nil
		atOnce(2*clients, func(i int) {
			var s step
			if i < clients {
				after := e.leave(t, e.uploadToken, registrations[i])
				s = step{after + 1, after}
			} else {
				_, s = join(i)
			}
			mu.Lock()
			defer mu.Unlock()
			steps = append(steps, s)
		})
		assert.Equal(t, clients, replay(t, clients, steps))
		assert.Len(t, e.information(t)["groupcast1 172.168.0.233 from 172.168.0.5"], clients)
	})
}

// TestAddressesAreExactWith64ClientsAtOnce lets 64 cameras ask for a new group each, of a range of 22 addresses.
func TestAddressesAreExactWith64ClientsAtOnce(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		e := newExample(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--quota-groups", "0"}})
		e.declare(t)
		const poolSize = 22 // .233 to .254
		off := false
		type camera struct {
			id    models.ID
			token string
		}
		cameras := make([]camera, clients)
		for i := range cameras {
			id := e.Device(t, e.premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: fmt.Sprint("camera ", i), Pop: &off})
			cameras[i] = camera{id, e.DeviceToken(t, id)}
		}
		var mu sync.Mutex
		owner := map[string]int{}
		exhausted := 0
		atOnce(clients, func(i int) {
			status, body := e.Post(t, "/v1/registrations", cameras[i].token, fmt.Sprintf(`{"type":"Device","id":"%s",
				"destination":false,"privateIPv4":"172.168.0.%d","groupName":"group%d"}`, cameras[i].id, i+10, i))
			var answer struct {
				GroupIP  string `json:"groupIP"`
				State    int    `json:"state"`
				Type     string `json:"type"`
				PoolSize int    `json:"poolSize"`
			}
			mu.Lock()
			defer mu.Unlock()
			if !assert.NoError(t, json.Unmarshal([]byte(body), &answer), body) {
				return
			}
			if status == http.StatusOK {
				assert.NotContains(t, owner, answer.GroupIP, "one group IP for two groups")
				owner[answer.GroupIP] = i
				return
			}
			exhausted++
			assert.Equal(t, http.StatusConflict, status, body)
			assert.Equal(t, "/problems/pool-exhausted", answer.Type)
			assert.Equal(t, poolSize, answer.PoolSize)
		})
		assert.Len(t, owner, poolSize)
		assert.Equal(t, clients-poolSize, exhausted)
	})
}
