package sync_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	stdsync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var gateway = models.Gateway{
	ID:        812345678901234567,
	LANPrefix: netip.MustParsePrefix("172.168.0.0/24"),
	LANAddr:   netip.MustParseAddr("172.168.0.1"),
	Uplink:    netip.MustParseAddr("203.0.113.1"),
	Range:     models.AddrRange{First: netip.MustParseAddr("172.168.0.233"), Last: netip.MustParseAddr("172.168.0.254")},
}

const (
	token       = "the-token"
	destination = "96.114.14.140"
)

// information is a snapshot with one group of one source and one destination.
func information(epoch string, revision int) api.GroupInformation {
	return api.GroupInformation{
		GatewayID: gateway.ID, Epoch: epoch, Revision: fmt.Sprint(revision), MaxStaleSeconds: 900,
		Groups: []api.GatewayGroup{{
			GroupID: "g_1", PremisesID: "p_1", GroupName: "groupcast1", GroupIP: netip.MustParseAddr("172.168.0.233"), Generation: 1, State: 1,
			GroupSources: []api.GroupSource{{
				RegistrationID: "r_1", SourceName: "camera1", SourceIPv4: netip.MustParseAddr("172.168.0.5"),
				SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerOption,
			}},
			GroupDestinations: []api.GroupDestination{{
				RegistrationID: "r_2", DestinationID: "1", DestinationName: "upload service",
				DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(destination)),
				DestinationIPv6: nullable.NewNullNullable[netip.Addr](), DestinationPort: nullable.NewNullNullable[int32](),
				Consent: &api.GatewayConsent{Policy: models.PolicyExempt},
			}},
		}},
	}
}

// conversation is a poller and a scripted service in one synctest bubble: real HTTP, and time that passes when nobody is busy.
type conversation struct {
	service *scripted.Service
	poller  *sync.Poller
	file    string
	cut     func(bool) // cuts the way to the server, or mends it
	stop    func()

	mu        stdsync.Mutex
	delivered []delivery
	dials     int
	failures  int // how often deliver shall still fail
	log       logtest.Log
}

type delivery struct {
	at      time.Time
	version string // "" for: nothing changed
}

// start lets a poller begin with the cursor, at a service that was prepared.
func start(t *testing.T, cursor string, prepare ...func(*scripted.Service)) *conversation {
	t.Helper()
	return startFor(t, gateway, cursor, prepare...)
}

func startFor(t *testing.T, gateway models.Gateway, cursor string, prepare ...func(*scripted.Service)) *conversation {
	t.Helper()
	held := sync.Held{Cursor: cursor, MaxStale: 15 * time.Minute}
	c := &conversation{service: scripted.New(information("e1", 7), token)}
	for _, p := range prepare {
		p(c.service)
	}
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte(token), 0o600))
	c.file = path

	pipe := scripted.NewPipe()
	server := &http.Server{Handler: c.service.Handler()}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(pipe) }()

	transport, err := sync.NewTransport("")
	require.NoError(t, err)
	isCut := false
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dials++
		if isCut {
			return nil, errors.New("connection refused")
		}
		return pipe.Dial(ctx, network, address)
	}
	c.cut = func(cut bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		isCut = cut
		if cut {
			transport.CloseIdleConnections()
		}
	}
	credential, err := clientauth.Open(path, "http://groupcast.example/base", clientauth.Options{Base: transport, AllowPlainHTTP: true})
	require.NoError(t, err)
	c.poller, err = sync.New(sync.Config{
		Server: "http://groupcast.example/base", Gateway: gateway, Transport: transport, Authorized: credential.Transport(),
		Log: slog.New(slog.NewTextHandler(&c.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	// The service is at the root; a base path in the URL has to be kept.
	handler := server.Handler
	server.Handler = http.StripPrefix("/base", handler)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.poller.Run(ctx, held, func(_ context.Context, a sync.Answer) (sync.Held, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			d := delivery{at: time.Now()}
			if a.Information != nil {
				d.version = a.Information.Cursor()
			}
			c.delivered = append(c.delivered, d)
			if c.failures > 0 {
				c.failures--
				return held, errors.New("the disk is full")
			}
			if d.version != "" {
				held = sync.Held{Cursor: d.version, MaxStale: a.Information.MaxStale}
			}
			return held, nil
		})
	}()
	c.stop = func() {
		cancel()
		<-done
		_ = server.Close()
		<-served
	}
	return c
}

func (c *conversation) deliveries() []delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]delivery(nil), c.delivered...)
}

func (c *conversation) versions() []string {
	var out []string
	for _, d := range c.deliveries() {
		out = append(out, d.version)
	}
	return out
}

func bubble(t *testing.T, cursor string, test func(*testing.T, *conversation), prepare ...func(*scripted.Service)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := start(t, cursor, prepare...)
		defer func() {
			c.stop()
			for _, secret := range []string{token, destination} {
				assert.NotContains(t, c.log.String(), secret)
			}
		}()
		test(t, c)
	})
}

func TestLongPoll(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		began := time.Now()
		synctest.Wait()
		assert.Equal(t, []string{"e1.7"}, c.versions(), "the first answer comes at once")
		assert.Equal(t, began, c.deliveries()[0].at)
		d := c.service.Declarations()
		require.Len(t, d, 1, "the gateway declares itself before it polls")
		assert.Equal(t, "172.168.0.0/24", d[0].LanPrefix)
		assert.Equal(t, "172.168.0.233-172.168.0.254", *d[0].GroupRange)
		assert.Equal(t, gateway.LANAddr, d[0].GatewayIPv4)
		assert.Equal(t, gateway.Uplink, d[0].UplinkIPv4)

		time.Sleep(10 * time.Second)
		changed := time.Now()
		c.service.Set(information("e1", 8))
		synctest.Wait()
		assert.Equal(t, delivery{changed, "e1.8"}, c.deliveries()[1], "a change is heard at once")

		time.Sleep(65 * time.Second)
		synctest.Wait()
		assert.Equal(t, []string{"e1.7", "e1.8", "", ""}, c.versions())
		polls := c.service.Polls()
		assert.Equal(t, []string{"", "e1.7", "e1.8", "e1.8", "e1.8"}, c.service.Cursors())
		assert.Zero(t, polls[0].Wait)
		assert.Equal(t, 30*time.Second, polls[1].Wait)
		assert.Equal(t, polls[2].At.Add(30*time.Second), polls[3].At, "after a time-out it asks again at once")
		assert.Equal(t, sync.Counts{Changed: 2, Unchanged: 2}, c.poller.Counts())
		assert.Len(t, c.service.Declarations(), 1)
	})
}

func TestARestartAsksWithTheCursorItHas(t *testing.T) {
	bubble(t, "e1.7", func(t *testing.T, c *conversation) {
		synctest.Wait()
		assert.Equal(t, []string{""}, c.versions(), "what is held is confirmed at once, and not sent again")
		assert.Equal(t, []string{"e1.7", "e1.7"}, c.service.Cursors())
		polls := c.service.Polls()
		assert.Zero(t, polls[0].Wait)
		assert.Equal(t, 30*time.Second, polls[1].Wait)
	})
}

func TestAShortMaxStaleMakesShortPolls(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		info := information("e1", 7)
		info.MaxStaleSeconds = 20
		c.service.Set(info)
		time.Sleep(time.Minute)
		polls := c.service.Polls()
		require.Greater(t, len(polls), 8)
		assert.Equal(t, 6*time.Second, polls[len(polls)-1].Wait, "three chances before it is stale")
	})
}

func TestOnlyWhatIsAppliedAndKeptIsAcknowledged(t *testing.T) {
	bubble(t, "e1.7", func(t *testing.T, c *conversation) {
		synctest.Wait() // it is confirmed, and the next poll waits
		c.mu.Lock()
		c.failures = 3
		c.mu.Unlock()
		c.service.Set(information("e1", 8))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		assert.Equal(t, []string{"e1.7", "e1.7", "e1.7", "e1.7", "e1.7", "e1.8"}, c.service.Cursors()[:6])
		assert.Equal(t, []string{"", "e1.8", "e1.8", "e1.8", "e1.8", ""}, c.versions()[:6])
	})
}

func TestAnotherEpochDeclaresAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		time.Sleep(time.Second)
		c.service.Set(information("e2", 3))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		assert.Equal(t, []string{"e1.7", "e2.3"}, c.versions())
		assert.Len(t, c.service.Declarations(), 2)
	})
}

func TestAServerThatKnowsNoDeclarationGetsItAgain(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusConflict} {
		bubble(t, "", func(t *testing.T, c *conversation) {
			time.Sleep(5 * time.Second)
			once := true
			c.service.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !once || r.Method != http.MethodGet {
					return false
				}
				once = false
				scripted.Problem(w, status, "not-found", "There is no such object.")
				return true
			})
			c.service.Set(information("e1", 8))
			time.Sleep(time.Minute)
			synctest.Wait()
			assert.Len(t, c.service.Declarations(), 2)
		})
	}
}

func TestAServerThatIsAwayIsAskedMoreAndMoreSeldom(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		time.Sleep(5 * time.Second)
		c.cut(true)
		c.service.SetFault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
		c.mu.Lock()
		before := c.dials
		c.mu.Unlock()
		time.Sleep(time.Hour)
		c.mu.Lock()
		attempts := c.dials - before
		c.mu.Unlock()
		// Half of 30 s on average, and never more than 30 s.
		assert.Greater(t, attempts, 3600/30)
		assert.Less(t, attempts, 3600/30*4)

		c.cut(false)
		c.service.SetFault(nil)
		c.service.Set(information("e1", 9))
		time.Sleep(31 * time.Second)
		synctest.Wait()
		assert.Contains(t, c.versions(), "e1.9")
		assert.Less(t, strings.Count(c.log.String(), "level=WARN"), 20, "an hour of the same fault doesn't fill the log")
		assert.Contains(t, c.log.String(), "is renewed again")
	})
}

func TestAgentsThatStartTogetherWithoutServerSpread(t *testing.T) {
	var gaps []time.Duration
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c := start(t, "", func(s *scripted.Service) {
				s.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
					scripted.Problem(w, http.StatusServiceUnavailable, "unavailable", "The database can't be reached.")
					return true
				})
			})
			defer c.stop()
			synctest.Wait()
			c.service.SetFault(nil)
			for len(c.deliveries()) == 0 {
				time.Sleep(50 * time.Millisecond)
				synctest.Wait()
			}
			gaps = append(gaps, time.Since(began))
		})
	}
	var late int
	for _, gap := range gaps {
		assert.LessOrEqual(t, gap, 6*time.Second)
		if gap > 1500*time.Millisecond {
			late++
		}
	}
	assert.Positive(t, late, "%v", gaps)
}

func TestRetryAfterIsHonoured(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		time.Sleep(5 * time.Second)
		var mu stdsync.Mutex
		var at []time.Time
		c.service.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
			if len(at) > 1 {
				return false
			}
			w.Header().Set("Retry-After", "120")
			scripted.Problem(w, http.StatusServiceUnavailable, "overloaded", "Too many callers wait.")
			return true
		})
		time.Sleep(3 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		require.GreaterOrEqual(t, len(at), 2)
		// The waiting poll ended with a 500 first; then came the 503.
		assert.GreaterOrEqual(t, at[1].Sub(at[0]), 2*time.Minute)
		assert.Contains(t, c.log.String(), "Too many callers wait.")
	})
}

func TestACallHasADeadline(t *testing.T) {
	for name, hang := range map[string]func(w http.ResponseWriter, r *http.Request){
		"no answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drip": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(time.Second):
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "e1.7", func(t *testing.T, c *conversation) {
				var mu stdsync.Mutex
				var waiting, next []time.Time
				c.service.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
					mu.Lock()
					waits := r.URL.Query().Get("wait") == "30"
					if waits {
						waiting = append(waiting, time.Now())
					} else if len(waiting) > len(next) {
						next = append(next, time.Now())
					}
					mu.Unlock()
					if waits {
						hang(w, r)
					}
					return waits
				})
				time.Sleep(3 * time.Minute)
				mu.Lock()
				defer mu.Unlock()
				require.GreaterOrEqual(t, len(next), 2)
				for i := range next {
					assert.GreaterOrEqual(t, next[i].Sub(waiting[i]), 41*time.Second)
					assert.LessOrEqual(t, next[i].Sub(waiting[i]), 45*time.Second)
				}
			})
		})
	}
}

func TestADeclarationThatIsRefusedDoesNotEndWhatIsCopied(t *testing.T) {
	bubble(t, "e1.7", func(t *testing.T, c *conversation) {
		c.service.Set(information("e1", 8))
		time.Sleep(10 * time.Minute)
		assert.Contains(t, c.versions(), "e1.8")
		assert.Greater(t, len(c.deliveries()), 20, "it is heard from all the time")
		assert.Contains(t, c.log.String(), "Groups live outside of the range.")
		assert.Empty(t, c.service.Declarations())
		c.service.SetFault(nil)
		time.Sleep(time.Minute)
		assert.Len(t, c.service.Declarations(), 1)
	}, func(s *scripted.Service) {
		s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				scripted.Problem(w, http.StatusConflict, "range-conflict", "Groups live outside of the range.")
			}
			return r.Method == http.MethodPut
		})
	})
}

func TestEachOfManyChangesIsHeardAtOnce(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		for revision := range 600 {
			c.service.Set(information("e1", 8+revision))
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, c.deliveries(), 600)
		// Faster than the server itself would let it go, changes are heard together.
		before := len(c.service.Polls())
		for revision := range 6000 {
			c.service.Set(information("e1", 1000+revision))
			time.Sleep(10 * time.Millisecond)
		}
		assert.InDelta(t, 1200, len(c.service.Polls())-before, 20)
	})
}

func TestAServerThatAnswersWithoutWaitingIsNotFlooded(t *testing.T) {
	valid, err := json.Marshal(information("e1", 7))
	require.NoError(t, err)
	for name, status := range map[string]int{"200": http.StatusOK, "304": http.StatusNotModified} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "e1.7", func(t *testing.T, c *conversation) {
				var mu stdsync.Mutex
				polls := 0
				c.service.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method != http.MethodGet {
						return false
					}
					mu.Lock()
					defer mu.Unlock()
					polls++
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("ETag", `"e1.7"`)
					w.WriteHeader(status)
					if status == http.StatusOK {
						_, _ = w.Write(valid)
					}
					return true
				})
				time.Sleep(time.Minute)
				mu.Lock()
				defer mu.Unlock()
				assert.InDelta(t, 60, polls, 3)
			})
		})
	}
}

func TestANewTokenIsUsedWithoutRestart(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		time.Sleep(5 * time.Second)
		c.service.SetToken("the-next-token")
		time.Sleep(2 * time.Minute)
		assert.Contains(t, c.log.String(), "put a new one there")
		n := len(c.deliveries())
		require.NoError(t, os.WriteFile(c.file, []byte("the-next-token"), 0o600))
		c.service.Set(information("e1", 8))
		time.Sleep(31 * time.Second)
		synctest.Wait()
		assert.Greater(t, len(c.deliveries()), n)
		assert.Contains(t, c.versions(), "e1.8")
	})
}

func TestTheConnectionIsRecycled(t *testing.T) {
	bubble(t, "", func(t *testing.T, c *conversation) {
		time.Sleep(58 * time.Minute)
		c.mu.Lock()
		defer c.mu.Unlock()
		assert.GreaterOrEqual(t, c.dials, 5)
		assert.LessOrEqual(t, c.dials, 6)
	})
}

func TestWhatIsNotAnAnswerToTheQuestionIsRefused(t *testing.T) {
	valid, err := json.Marshal(information("e1", 8))
	require.NoError(t, err)
	answer := func(status int, etag, body string) scripted.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("ETag", etag)
			w.WriteHeader(status)
			if status != http.StatusNotModified {
				_, _ = w.Write([]byte(body))
			}
			return true
		}
	}
	for name, test := range map[string]struct {
		fault scripted.Fault
		want  string
	}{
		"304 of something else": {answer(304, `"e1.6"`, ""), "not asked about"},
		"empty 200":             {answer(200, `"e1.8"`, ""), "refused"},
		"HTML":                  {answer(200, `"e1.8"`, "<html>"), "refused"},
		"half":                  {answer(200, `"e1.8"`, string(valid[:200])), "refused"},
		"another ETag":          {answer(200, `"e1.9"`, string(valid)), "ETag"},
		"weak ETag":             {answer(200, `W/"e1.8"`, string(valid)), "ETag"},
		"too large":             {answer(200, `"e1.8"`, strings.Repeat(" ", 3<<20)), "larger than"},
		"204":                   {answer(204, "", ""), "without a problem document"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && !strings.Contains(r.URL.Path, "elsewhere") {
				http.Redirect(w, r, "/base/elsewhere", http.StatusTemporaryRedirect)
				return true
			}
			return false
		}, "answers 307"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "e1.7", func(t *testing.T, c *conversation) {
				synctest.Wait()
				before := len(c.deliveries())
				c.service.SetFault(test.fault)
				time.Sleep(2 * time.Minute)
				assert.Len(t, c.deliveries(), before)
				assert.Contains(t, c.log.String(), test.want)
				for _, cursor := range c.service.Cursors() {
					assert.Equal(t, "e1.7", cursor)
				}

				c.service.SetFault(nil)
				c.service.Set(information("e1", 9))
				time.Sleep(31 * time.Second)
				synctest.Wait()
				assert.Contains(t, c.versions(), "e1.9", "a good answer is taken again")
			})
		})
	}
}

// Whoever plays an answer again that was once true, such as a cache in between, changes nothing: members that left since stay out.
func TestAttackAnOlderAnswerIsPlayedAgain(t *testing.T) {
	played := func(info api.GroupInformation, resync string) scripted.Fault {
		body, err := json.Marshal(info)
		require.NoError(t, err)
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("ETag", fmt.Sprintf(`"%s.%s"`, info.Epoch, info.Revision))
			if resync != "" {
				w.Header().Set("Groupcast-Resync", resync)
			}
			_, _ = w.Write(body)
			return true
		}
	}
	for name, c := range map[string]struct {
		info   api.GroupInformation
		resync string
		taken  bool
	}{
		"an older revision":              {information("e1", 5), "", false},
		"another life":                   {information("e0", 99), "", false},
		"a restore that the server says": {information("e0", 3), "unknown-epoch", true},
		"a cursor ahead, as it says":     {information("e1", 5), "ahead", true},
		"a newer one":                    {information("e1", 12), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "e1.7", func(t *testing.T, v *conversation) {
				synctest.Wait()
				v.service.SetFault(played(c.info, c.resync))
				time.Sleep(2 * time.Minute)
				cursor := c.info.Epoch + "." + c.info.Revision
				if c.taken {
					assert.Contains(t, v.versions(), cursor)
					return
				}
				assert.NotContains(t, v.versions(), cursor)
				assert.Contains(t, v.log.String(), "older than what is held")
				v.service.SetFault(nil)
				v.service.Set(information("e1", 9))
				time.Sleep(31 * time.Second)
				synctest.Wait()
				assert.Contains(t, v.versions(), "e1.9", "what is true is taken again")
			})
		})
	}
}

func TestTheServersCertificateIsChecked(t *testing.T) {
	service := scripted.New(information("e1", 7), token)
	server := httptest.NewTLSServer(service.Handler())
	defer server.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	tokenFile := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(tokenFile, []byte(token), 0o600))

	poll := func(ca string) (delivered bool, log string) {
		transport, err := sync.NewTransport(ca)
		require.NoError(t, err)
		var b logtest.Log
		credential, err := clientauth.Open(tokenFile, server.URL, clientauth.Options{Base: transport})
		require.NoError(t, err)
		poller, err := sync.New(sync.Config{
			Server: server.URL, Gateway: gateway, Transport: transport, Authorized: credential.Transport(),
			Log: slog.New(slog.NewTextHandler(&b, nil)),
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		failed := make(chan struct{})
		go func() {
			for poller.Counts().Failed == 0 && ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			cancel()
			close(failed)
		}()
		poller.Run(ctx, sync.Held{}, func(context.Context, sync.Answer) (sync.Held, error) {
			delivered = true
			cancel()
			return sync.Held{}, nil
		})
		<-failed
		return delivered, b.String()
	}
	delivered, log := poll(ca)
	assert.True(t, delivered, log)
	delivered, log = poll("")
	assert.False(t, delivered)
	assert.Contains(t, log, "certificate")
	assert.Len(t, service.Polls(), 1, "without trust nothing is sent")

	_, err := sync.NewTransport(filepath.Join(dir, "none.pem"))
	assert.ErrorContains(t, err, "ca: ")
	_, err = sync.NewTransport(tokenFile)
	assert.ErrorContains(t, err, "no certificate")
}
