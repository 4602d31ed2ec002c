package eventstreams

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventhub"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// CheckEvery is how often it is asked whether those who listen still may: whose token has expired, who was removed or logged out.
	CheckEvery = 2 * time.Second
	// MaxPerCaller is how many streams one device or user may have at once.
	MaxPerCaller = 8
	// MaxPerService is how many streams one service may have at once.
	MaxPerService = 64
	// batch bounds the events that a stream holds at once.
	batch = 100
	// emptyWake is the wait after a hint that led to nothing.
	emptyWake = 20 * time.Millisecond
	// retryAfter is what a caller is told to wait, in seconds, who has too many streams.
	retryAfter = 30
)

// Options say what a service is made of.
type Options struct {
	Store  *store.Store
	Groups *groups.Service
	Hub    *eventhub.Hub
	Tail   *Tail
	// SessionLives tells whether a user's session has not ended, without using it.
	SessionLives func(ctx context.Context, hash []byte) (bool, error)
	// CursorKey is for AES, and the same on all replicas.
	CursorKey []byte
	// Now is the clock that tokens end by.
	Now func() time.Time
	// MaxStreams is how many there may be at once in this process.
	MaxStreams int
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

// Service is all streams of one process. It is safe for concurrent use.
type Service struct {
	o       Options
	cursors cursors
	open    prometheus.Gauge

	mu       sync.Mutex
	streams  map[*Stream]struct{}
	callers  map[string]int
	draining bool
	empty    chan struct{} // closed when draining and there is no stream any more
}

// New makes the service. Run has to run for as long as it is used.
func New(o Options) (*Service, error) {
	c, err := newCursors(o.CursorKey)
	if err != nil {
		return nil, fmt.Errorf("the key of the event cursors: %w", err)
	}
	s := &Service{
		o: o, cursors: c, streams: map[*Stream]struct{}{}, callers: map[string]int{}, empty: make(chan struct{}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_event_streams", Help: "Streams of events that are open in this process."}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(s.open)
	}
	return s, nil
}

// Caller is who wants to listen, with the times of its token; both are zero for a session.
type Caller struct {
	models.Principal
	IssuedAt, ExpiresAt time.Time
}

// key is who a caller is for counting, and whose cursors are its own.
func (c Caller) key() string {
	switch c.Kind {
	case models.KindService:
		return "service " + string(c.Service.ID)
	case models.KindUser:
		return "user " + c.UserID
	default:
		return "device " + c.Device.ID.String()
	}
}

// holder is whose row says since when the caller's tokens count.
func (c Caller) holder() string {
	switch c.Kind {
	case models.KindService:
		return string(c.Service.ID)
	case models.KindUser:
		return c.UserID
	default:
		return c.Device.ID.String()
	}
}

// Why a stream ended.
const (
	TokenExpired = "token-expired"
	Revoked      = "revoked"
	Left         = "left"
	GroupEnded   = "group-ended"
	Unlinked     = "unlinked"
	Stopping     = "stopping"
	Unavailable  = "unavailable" // it couldn't begin
)

// EndedError says that a stream gives nothing any more.
type EndedError struct{ Reason, Detail string }

func (e *EndedError) Error() string { return e.Detail }

var details = map[string]string{
	TokenExpired: "The access token has expired. Get a new one and listen again from the last id.",
	Revoked:      "The caller was removed, logged out, or had its tokens withdrawn. Log in or enrol again.",
	Left:         "The device is no member of the group any more. Register again to hear of it.",
	GroupEnded:   "The group has ended.",
	Unlinked:     "The account has ended the link with this service.",
	Stopping:     "This replica is stopping. Connect again after the time that it says, from the last id.",
}

func ended(reason string) *EndedError { return &EndedError{reason, details[reason]} }

// Open begins a stream: of one group, or of all that the caller may hear if group is empty. cursor is the place to go on from; without one, or with
// one that is not usable any more, the stream begins with how everything is now. Close it.
func (s *Service) Open(ctx context.Context, c Caller, group models.GroupID, cursor *string) (_ *Stream, err error) {
	switch c.Kind {
	case models.KindDevice, models.KindService, models.KindUser:
	default:
		return nil, models.Errorf(models.CodeForbidden, "A %s hears no events. Use the token of a device, a user or a service.", c.Kind)
	}
	st := &Stream{s: s, by: c, who: hearer(c.Principal), group: group, over: make(chan struct{})}
	if err := s.add(st); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			st.Close()
		}
	}()
	if st.epoch, err = s.o.Store.Epoch(ctx); err != nil {
		return nil, err
	}
	if group != "" {
		return st, st.beginGroup(ctx, cursor)
	}
	return st, st.beginMixed(ctx, cursor)
}

func (s *Service) add(st *Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, limit := st.by.key(), MaxPerCaller
	if st.by.Kind == models.KindService {
		limit = MaxPerService
	}
	switch {
	case s.draining:
		return models.Errorf(models.CodeUnavailable, "This replica is stopping. Ask again; another one will answer.").With(problem.RetryAfter, 1)
	case s.callers[key] >= limit:
		return models.Errorf(models.CodeRateLimited, "There are %d streams of this %s already. End one of them first.", limit, st.by.Kind).
			With(problem.RetryAfter, retryAfter)
	case len(s.streams) >= s.o.MaxStreams:
		return models.Errorf(models.CodeOverloaded, "This replica already has as many listeners as it takes. Wait as long as Retry-After says and try again.")
	}
	s.streams[st] = struct{}{}
	s.callers[key]++
	s.open.Inc()
	return nil
}

func (s *Service) remove(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.streams[st]; !ok {
		return
	}
	delete(s.streams, st)
	s.open.Dec()
	if s.callers[st.by.key()]--; s.callers[st.by.key()] == 0 {
		delete(s.callers, st.by.key())
	}
	if s.draining && len(s.streams) == 0 {
		close(s.empty)
	}
}

func (s *Service) all() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Stream, 0, len(s.streams))
	for st := range s.streams {
		all = append(all, st)
	}
	return all
}

// Run asks again and again who still may listen, until the context is done.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(CheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.Check(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.WarnContext(ctx, "It could not be asked who still may listen; it is tried again.", "error", err)
		}
	}
}

// Check ends the streams of those who may not listen any more. It asks for all at once.
func (s *Service) Check(ctx context.Context) error {
	var held store.HeldBy
	sessions := map[string]bool{}
	streams := slices.DeleteFunc(s.all(), func(st *Stream) bool { return st.expired() })
	for _, st := range streams {
		switch {
		case st.by.Session != nil:
			sessions[string(st.by.Session)] = false
		case st.by.Kind == models.KindService:
			held.Services = append(held.Services, st.by.Service.ID)
		case st.by.Kind == models.KindUser:
			held.Users = append(held.Users, st.by.UserID)
		default:
			held.Devices = append(held.Devices, st.by.Device.ID)
		}
	}
	notBefore, err := s.o.Store.NotBefore(ctx, held)
	if err != nil {
		return err
	}
	for hash := range sessions {
		if sessions[hash], err = s.o.SessionLives(ctx, []byte(hash)); err != nil {
			return err
		}
	}
	for _, st := range streams {
		since, there := notBefore[st.by.holder()]
		switch {
		case st.by.Session != nil && !sessions[string(st.by.Session)],
			st.by.Session == nil && (!there || st.by.IssuedAt.Before(since)):
			st.end(ended(Revoked))
		case st.group != "" && st.by.Kind == models.KindService: // nothing of the group tells it that its link ended
			if err := st.checkLink(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Drain ends all streams, spread over the given time so that they don't come back at once, and refuses new ones. It returns when all are
// closed, or the context is done.
func (s *Service) Drain(ctx context.Context, spread time.Duration) {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		if len(s.streams) == 0 {
			close(s.empty)
		}
	}
	s.mu.Unlock()
	for _, st := range s.all() {
		after := time.Duration(0)
		if spread > 0 {
			after = rand.N(spread)
		}
		time.AfterFunc(after, func() { st.end(ended(Stopping)) })
	}
	select {
	case <-s.empty:
	case <-ctx.Done():
	}
}

// Streams counts those that are open.
func (s *Service) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

func (s *Service) cursor(st *Stream, at int64) string {
	if st.group != "" {
		return strconv.FormatInt(at, 10)
	}
	return s.cursors.seal(st.epoch, st.by.key(), at)
}
