package scripted

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
)

// Fault answers a call instead of the service; false leaves it to the service.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// Service holds one gateway's group information and answers polls about it as SPEC §6 says.
type Service struct {
	ginserver.StrictServerInterface // what a gateway doesn't call panics

	mu           sync.Mutex
	info         api.GroupInformation
	changed      chan struct{} // closed when info or fault changes
	fault        Fault
	faults       int // how many began
	token        string
	polls        []Poll
	declarations []api.GatewayDeclaration
	sequence     int32
	stun         *string
	reports      []api.ConsentReport
}

// Poll is one request for group information as it arrived.
type Poll struct {
	At     time.Time
	Cursor string // without quotes; "" if none was sent
	Wait   time.Duration
}

// New makes a service that has the given group information and accepts the given token.
func New(info api.GroupInformation, token string) *Service {
	return &Service{info: info, token: token, changed: make(chan struct{})}
}

// Handler is the HTTP side of the service.
func (s *Service) Handler() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.ContextWithFallback = true // a poll ends with its caller
	ginserver.RegisterHandlers(engine, ginserver.NewStrictHandler(s, nil))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		fault, token := s.fault, s.token
		s.mu.Unlock()
		switch {
		case fault != nil && fault(w, r):
		case r.Header.Get("Authorization") != "Bearer "+token:
			Problem(w, http.StatusUnauthorized, "unauthenticated", "The token is not valid.")
		default:
			engine.ServeHTTP(w, r)
		}
	})
}

// Problem writes a problem document.
func Problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"/problems/%s","title":%q,"status":%d,"detail":%q}`, code, code, status, detail)
}

// Set changes the group information and answers who waits for that.
func (s *Service) Set(info api.GroupInformation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = info
	s.wake()
}

// SetFault makes calls fail from now on, those that wait included; nil ends it.
func (s *Service) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
	if f != nil {
		s.faults++
	}
	s.wake()
}

// SetToken makes this the only token that is accepted.
func (s *Service) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

func (s *Service) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Polls gives every request for group information so far.
func (s *Service) Polls() []Poll {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.polls)
}

// Cursors gives the cursors of Polls.
func (s *Service) Cursors() []string {
	var out []string
	for _, p := range s.Polls() {
		out = append(out, p.Cursor)
	}
	return out
}

// Declarations gives every declaration so far.
func (s *Service) Declarations() []api.GatewayDeclaration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.declarations)
}

// DeclareGateway accepts every declaration.
func (s *Service) DeclareGateway(_ context.Context, r ginserver.DeclareGatewayRequestObject) (ginserver.DeclareGatewayResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.declarations = append(s.declarations, *r.Body)
	return ginserver.DeclareGateway200JSONResponse{
		GatewayID: r.GatewayID, PremisesID: "p_01j9zq3v6t7n8m2k4h5g6f7d8s", LanPrefix: r.Body.LanPrefix,
		GatewayIPv4: r.Body.GatewayIPv4, UplinkIPv4: r.Body.UplinkIPv4, GroupRange: *r.Body.GroupRange, Revision: s.info.Revision,
		BehindNAT: r.Body.BehindNAT, Stun: s.stun,
	}, nil
}

// GetGateway gives what was declared last.
func (s *Service) GetGateway(_ context.Context, r ginserver.GetGatewayRequestObject) (ginserver.GetGatewayResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.declarations) == 0 {
		return undeclared{}, nil
	}
	d := s.declarations[len(s.declarations)-1]
	return ginserver.GetGateway200JSONResponse{
		GatewayID: r.GatewayID, PremisesID: "p_01j9zq3v6t7n8m2k4h5g6f7d8s", LanPrefix: d.LanPrefix,
		GatewayIPv4: d.GatewayIPv4, UplinkIPv4: d.UplinkIPv4, GroupRange: *d.GroupRange, Revision: s.info.Revision,
		BehindNAT: d.BehindNAT, Stun: s.stun,
	}, nil
}

// ReportConsents takes every report whose turn it is.
func (s *Service) ReportConsents(_ context.Context, r ginserver.ReportConsentsRequestObject) (ginserver.ReportConsentsResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	applied := r.Body.Sequence > s.sequence
	if applied {
		s.sequence = r.Body.Sequence
		s.reports = append(s.reports, *r.Body)
	}
	return ginserver.ReportConsents200JSONResponse{Applied: applied, Sequence: s.sequence, Unknown: []models.RegistrationID{}}, nil
}

// SetSTUN says where a STUN port is, from the next declaration on.
func (s *Service) SetSTUN(at string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stun = &at
}

// SetSequence is as if another agent had reported so often.
func (s *Service) SetSequence(n int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sequence = n
}

// Reports gives every report that was taken.
func (s *Service) Reports() []api.ConsentReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

type undeclared struct{}

func (undeclared) VisitGetGatewayResponse(w http.ResponseWriter) error {
	Problem(w, http.StatusNotFound, "not-found", "This gateway has not declared its LAN yet. PUT its declaration first.")
	return nil
}

// GetGroupInformation answers at once if the cursor isn't the current one, else on the next change or at the time-out.
func (s *Service) GetGroupInformation(ctx context.Context, r ginserver.GetGroupInformationRequestObject) (ginserver.GetGroupInformationResponseObject, error) {
	p := Poll{At: time.Now()}
	if r.Params.IfNoneMatch != nil {
		p.Cursor = strings.Trim(*r.Params.IfNoneMatch, `"`)
	}
	if r.Params.Wait != nil {
		p.Wait = time.Duration(*r.Params.Wait) * time.Second
	}
	s.mu.Lock()
	s.polls = append(s.polls, p)
	faults := s.faults
	s.mu.Unlock()

	timeout := time.NewTimer(p.Wait)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		info, changed, began := s.info, s.changed, s.faults > faults
		s.mu.Unlock()
		etag := fmt.Sprintf("%q", info.Epoch+"."+info.Revision)
		if began {
			return nil, errors.New("a fault began while the poll waited")
		}
		if etag != fmt.Sprintf("%q", p.Cursor) {
			answer := ginserver.GetGroupInformation200JSONResponse{Body: info}
			answer.Headers.ETag = etag
			answer.Headers.GroupcastResync = resync(p.Cursor, info)
			return answer, nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			answer := ginserver.GetGroupInformation304Response{}
			answer.Headers.ETag = etag
			return answer, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// resync says why an answer doesn't follow what was asked about; nil if it does.
func resync(cursor string, info api.GroupInformation) *string {
	epoch, revision, ok := strings.Cut(cursor, ".")
	asked, _ := strconv.ParseInt(revision, 10, 64)
	is, _ := strconv.ParseInt(info.Revision, 10, 64)
	why := "unknown-epoch"
	switch {
	case !ok || epoch == info.Epoch && asked <= is:
		return nil
	case epoch == info.Epoch:
		why = "ahead"
	}
	return &why
}

// Pipe is a listener whose connections never leave the process, so that a test in a synctest bubble can speak real HTTP.
type Pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewPipe makes a listener.
func NewPipe() *Pipe { return &Pipe{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Dial connects to the listener, whatever the address.
func (p *Pipe) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p *Pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *Pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr implements net.Listener.
func (p *Pipe) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
