package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	stdsync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// desk is where a reporter reports to: the scripted service over real HTTP, and time that passes when nobody is busy.
type desk struct {
	*testing.T

	service *scripted.Service
	poller  *sync.Poller

	mu    stdsync.Mutex
	posts []time.Time
	lose  int              // so many answers get lost on their way
	fault http.HandlerFunc // answers in place of the service
}

const deskToken = "the-token"

type deskCredential struct{ next http.RoundTripper }

func (c deskCredential) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+deskToken)
	return c.next.RoundTrip(r)
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.posts = append(d.posts, time.Now())
	fault, lost := d.fault, d.fault == nil && d.lose > 0
	if lost {
		d.lose--
	}
	d.mu.Unlock()
	assert.LessOrEqual(d, r.ContentLength, int64(16<<10), "the service takes no larger body")
	switch {
	case fault != nil:
		fault(w, r)
	case lost:
		d.service.Handler().ServeHTTP(discard{http.Header{}}, r)
		panic(http.ErrAbortHandler) // the connection ends without an answer
	default:
		d.service.Handler().ServeHTTP(w, r)
	}
}

// discard takes an answer that nobody gets.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func (d *desk) set(lose int, fault http.HandlerFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lose, d.fault, d.posts = lose, fault, nil
}

func (d *desk) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.posts)
}

// report starts an agent's reporter; stop ends it.
func (d *desk) report() (r *reporter, stop func()) {
	r = newReporter(d.poller.ReportConsents, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(d.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	return r, func() {
		cancel()
		<-done
	}
}

// knows is what the service was told in all: the last word on each.
func (d *desk) knows() (senders map[string]api.ReportedSender, consents map[consent.Key]api.ReportedConsentState) {
	senders, consents = map[string]api.ReportedSender{}, map[consent.Key]api.ReportedConsentState{}
	last := int32(0)
	for _, r := range d.service.Reports() {
		assert.Greater(d, r.Sequence, last)
		last = r.Sequence
		if r.Senders != nil {
			assert.LessOrEqual(d, len(*r.Senders), 25)
			for _, s := range *r.Senders {
				senders[string(s.RegistrationID)] = s
			}
		}
		if r.Consents != nil {
			assert.LessOrEqual(d, len(*r.Consents), 50)
			for _, c := range *r.Consents {
				consents[key(string(c.Sender), string(c.RegistrationID))] = c.State
			}
		}
	}
	return senders, consents
}

// agree checks that the service knows how things are.
func (d *desk) agree(r *reporter) {
	d.Helper()
	senders, consents := d.knows()
	want := map[consent.Key]api.ReportedConsentState{}
	for k, s := range r.consents {
		want[k] = api.ReportedConsentState(s.state)
	}
	assert.Equal(d, want, consents)
	for id, s := range r.senders {
		told, ok := senders[id]
		assert.True(d, ok && equal(told, s), "sender %s", id)
	}
}

func key(source, destination string) consent.Key {
	return consent.Key{Sender: consent.Sender{Group: "g", Source: source}, Destination: destination}
}

func desked(t *testing.T, test func(d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &desk{T: t, service: scripted.New(api.GroupInformation{}, deskToken)}
		pipe := scripted.NewPipe()
		server := &http.Server{Handler: d}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(pipe)
		}()
		transport, err := sync.NewTransport("")
		require.NoError(t, err)
		transport.DialContext = pipe.Dial
		d.poller, err = sync.New(sync.Config{
			Server: "http://groupcast.example", Gateway: models.Gateway{ID: 812345678901234567}, Transport: transport,
			Authorized: deskCredential{transport}, Log: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		test(d)
		transport.CloseIdleConnections()
		_ = server.Close()
		<-served
	})
}

// standings are so many senders and consents.
func standings(senders, consents int, state models.ConsentState) (map[string]api.ReportedSender, map[consent.Key]standing) {
	ports, all := map[string]api.ReportedSender{}, map[consent.Key]standing{}
	for i := range senders {
		id := fmt.Sprintf("r_%026d", i)
		ports[id] = api.ReportedSender{
			RegistrationID: models.RegistrationID(id), Port: int32(40000 + i),
			MappedIPv4: nullable.NewNullableWithValue(netip.MustParseAddr("171.230.136.162")), MappedPort: nullable.NewNullableWithValue(int32(50000 + i)),
			IPv6: nullable.NewNullableWithValue(netip.MustParseAddr("2600:1111:2222:3333:4444:5555:6666:7777")), PortIPv6: nullable.NewNullableWithValue(int32(40000 + i)),
		}
	}
	for i := range consents {
		s := standing{state: state}
		if state == models.ConsentLive {
			s.lease.At = netip.AddrPortFrom(netip.MustParseAddr("2600:1111:2222:3333:4444:5555:6666:8888"), uint16(10000+i))
		}
		all[key(fmt.Sprintf("r_%026d", i%max(senders, 1)), fmt.Sprintf("r_%026d", 1000+i))] = s
	}
	return ports, all
}

func TestConsentReportsOfManyGoOutInParts(t *testing.T) {
	desked(t, func(d *desk) {
		d.service.SetSequence(41)
		r, stop := d.report()
		defer stop()
		r.is(standings(60, 130, models.ConsentLive))
		time.Sleep(10 * time.Second)
		d.agree(r)
		assert.Equal(t, 1+3, d.asked(), "one asks for the number; then as few as hold 60 and 130")
		assert.EqualValues(t, 42, d.service.Reports()[0].Sequence)

		d.set(0, nil)
		r.is(standings(60, 130, models.ConsentLive))
		time.Sleep(time.Hour)
		assert.Zero(t, d.asked(), "nothing is told twice")
	})
}

func TestConsentReportsWhoseAnswersGetLost(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		defer stop()
		r.is(standings(1, 3, models.ConsentPending))
		time.Sleep(5 * time.Second)
		d.agree(r)
		for lost := 1; lost <= 4; lost++ {
			state := []models.ConsentState{models.ConsentLive, models.ConsentLost}[lost%2]
			d.set(lost, nil)
			r.is(standings(1, 3, state))
			time.Sleep(time.Minute)
			d.agree(r)
			// It was taken at once: then the same number is refused until an answer comes, and what stands is said once more.
			assert.Equal(t, lost+2, d.asked())
		}
	})
}

func TestConsentReportsOfAnotherAgentWereTaken(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		defer stop()
		r.is(standings(1, 1, models.ConsentPending))
		time.Sleep(5 * time.Second)
		d.service.SetSequence(1000)
		d.set(0, nil)
		r.is(standings(1, 1, models.ConsentLive))
		time.Sleep(5 * time.Second)
		d.agree(r)
		assert.Equal(t, 2, d.asked(), "not applied; then with the next number")
		reports := d.service.Reports()
		assert.EqualValues(t, 1001, reports[len(reports)-1].Sequence)
	})
}

func TestConsentReportsWhileTheServerIsAway(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		defer stop()
		r.is(standings(2, 10, models.ConsentPending))
		time.Sleep(5 * time.Second)
		before := len(d.service.Reports())
		d.set(0, func(w http.ResponseWriter, _ *http.Request) {
			scripted.Problem(w, http.StatusServiceUnavailable, "unavailable", "The database is away.")
		})
		for i := range 60 {
			r.is(standings(2, 10, []models.ConsentState{models.ConsentLive, models.ConsentLost}[i%2]))
			time.Sleep(time.Minute)
		}
		assert.InDelta(t, 3600/30, d.asked(), 40, "every half minute or so")
		d.set(0, nil)
		time.Sleep(time.Minute)
		d.agree(r)
		assert.Len(t, d.service.Reports(), before+1, "only how things are at last")
	})
}

func TestConsentReportsWaitAsLongAsTheServerAsks(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		defer stop()
		limited := func(seconds string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", seconds)
				scripted.Problem(w, http.StatusTooManyRequests, "rate-limited", "Slower.")
			}
		}
		d.set(0, limited("120"))
		r.is(standings(1, 1, models.ConsentPending))
		time.Sleep(119 * time.Second)
		assert.Equal(t, 1, d.asked())
		d.set(0, limited("999999999"))
		time.Sleep(10 * time.Second)
		assert.Equal(t, 1, d.asked())
		d.set(0, nil)
		time.Sleep(6 * time.Minute)
		d.agree(r)
	})
}

// What a former life said stands until it is said anew, so all of it is.
func TestConsentReportsOfAnAgentThatStartsAgain(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		r.is(standings(2, 20, models.ConsentLive))
		time.Sleep(5 * time.Second)
		stop()
		told := len(d.service.Reports())

		r, stop = d.report()
		defer stop()
		r.is(standings(2, 20, models.ConsentPending))
		time.Sleep(5 * time.Second)
		d.agree(r)
		assert.Len(t, d.service.Reports(), told+1, "at once, with the next number")

		// So it is after the server's database was restored.
		d.service.SetSequence(1)
		r.forget()
		r.is(standings(2, 20, models.ConsentPending))
		time.Sleep(5 * time.Second)
		all := d.service.Reports()
		last := all[len(all)-1]
		assert.EqualValues(t, 2, last.Sequence)
		assert.Len(t, *last.Consents, 20)
		assert.Len(t, *last.Senders, 2)
	})
}

// What changes while a report is on its way is told after it.
func TestConsentReportsThatAreOutOfDateWhenTheyArrive(t *testing.T) {
	desked(t, func(d *desk) {
		r, stop := d.report()
		defer stop()
		r.is(standings(1, 2, models.ConsentPending))
		time.Sleep(5 * time.Second)
		d.set(0, func(w http.ResponseWriter, q *http.Request) {
			time.Sleep(3 * time.Second)
			d.service.Handler().ServeHTTP(w, q)
		})
		r.is(standings(1, 2, models.ConsentLive))
		time.Sleep(time.Second)
		r.is(standings(1, 2, models.ConsentLost))
		time.Sleep(20 * time.Second)
		d.agree(r)

		// Somebody who left is of no interest any more, and told anew if he comes back.
		d.set(0, nil)
		ports, all := standings(1, 2, models.ConsentLost)
		gone := maps.Clone(all)
		delete(gone, key("r_00000000000000000000000000", "r_00000000000000000000001000"))
		r.is(ports, gone)
		time.Sleep(5 * time.Second)
		assert.Zero(t, d.asked())
		r.is(ports, all)
		time.Sleep(5 * time.Second)
		assert.Equal(t, 1, d.asked())
	})
}
