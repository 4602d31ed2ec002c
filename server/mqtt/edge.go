// Package mqtt tells cameras and phones over MQTT 3.1.1 what happens in their groups and in their account (SPEC §7). It is no broker: a device
// may subscribe to two kinds of topics and publish nothing, no session outlives its connection, and what other servers call a retained message
// is read from the database when somebody subscribes.
//
// The database is the truth. A wake-up is a hint to read it, and whoever was not woken is found by a look every two seconds, which also ends
// the connections of those whose token ended. At each delivery the reading says whether the listener may hear it. Only the newest state
// of a group is kept for anybody, so one that doesn't read costs the same as one that does, and delays nobody.
package mqtt

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// lookEvery is how often the database is asked about all connections at once.
	lookEvery = 2 * time.Second
	// readTimeout bounds a reading that listeners share.
	readTimeout = 10 * time.Second
	// What Options.WriteTimeout and AckTimeout are without a value.
	writeTimeout = 10 * time.Second
	ackTimeout   = 20 * time.Second
	// connectTimeout is how long a client has for TLS and CONNECT.
	connectTimeout = 10 * time.Second
	// batch is how many rows a look asks for at once.
	batch = 500
	// loads is how many readings go on at once.
	loads = 8
)

// Client is who connected: a device, by its access token.
type Client struct {
	Device   models.ID
	Account  models.AccountID
	Premises models.PremisesID
	// Bound tells that the token is bound to a key.
	Bound               bool
	IssuedAt, ExpiresAt time.Time
}

// holds tells whether what the client was taken for still is so, by the device's row.
func (c *Client) holds(d models.Device) bool {
	return d.AccountID == c.Account && d.PremisesID == c.Premises && d.Type != models.DeviceGateway &&
		!c.IssuedAt.Before(d.NotBefore) && (c.Bound || !d.PoP)
}

// Options say where the edge reads, and what it takes.
type Options struct {
	// Authenticate tells who presents a token under a user name, which may be a proof of possession.
	Authenticate func(ctx context.Context, token, user string) (Client, error)
	// Devices reads those of the devices that exist.
	Devices func(context.Context, []models.ID) ([]models.Device, error)
	// State reads a group, and After a part of a stream.
	State func(context.Context, models.EventStream) (events.State, bool, error)
	After func(context.Context, models.EventStream, int64) (events.Batch, error)
	// Revs and News read how far groups and accounts are.
	Revs func(context.Context, []models.GroupID) (map[models.GroupID]int64, error)
	News func(context.Context, []models.AccountID) (map[models.AccountID]store.AccountNews, error)
	// AllowSource and AllowDevice count what costs something: a CONNECT, a topic that is subscribed to.
	AllowSource func(netip.Addr) bool
	AllowDevice func(models.ID) bool
	// Trusted are proxies: connections that come from them are not limited by their address.
	Trusted []netip.Prefix
	// The most connections of the process, of an account, and from one network (/24, or /64 for IPv6).
	MaxConnections, MaxPerAccount, MaxPerSource int
	// WriteTimeout is how long a packet may take to get into the network. Zero is 10 s.
	WriteTimeout time.Duration
	// AckTimeout is how long a client has to acknowledge a message (QoS 1); the next look after that ends its connection. Zero is 20 s.
	AckTimeout time.Duration
	// Now is the clock that tokens end by.
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Edge is the connections of one process. It is safe for concurrent use.
type Edge struct {
	o       Options
	metrics metrics
	life    context.Context //nolint:containedctx // ends the readings that no request waits for
	stop    context.CancelFunc
	loads   chan struct{}
	work    sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]netip.Prefix // all, also those that didn't say CONNECT yet
	sources  map[netip.Prefix]int
	sessions map[sessionKey]*session
	accounts map[models.AccountID]int
	feeds    map[models.EventStream]*feed
	serial   uint64
	draining bool
	empty    chan struct{} // closed when draining and nobody is connected any more
	listener net.Listener
}

// sessionKey names a connection. A client id means something within its device only, so no tenant can take another's place.
type sessionKey struct {
	device models.ID
	client string
	serial uint64 // of a client that has no id
}

// New makes an edge. Run has to run for as long as it is used.
func New(o Options) *Edge {
	o.WriteTimeout, o.AckTimeout = cmp.Or(o.WriteTimeout, writeTimeout), cmp.Or(o.AckTimeout, ackTimeout)
	e := &Edge{
		o: o, metrics: newMetrics(o.Metrics), loads: make(chan struct{}, loads), conns: map[net.Conn]netip.Prefix{}, sources: map[netip.Prefix]int{},
		sessions: map[sessionKey]*session{}, accounts: map[models.AccountID]int{}, feeds: map[models.EventStream]*feed{}, empty: make(chan struct{}),
	}
	e.life, e.stop = context.WithCancel(context.Background())
	return e
}

// Serve takes connections until the listener is closed, which is no error while draining.
func (e *Edge) Serve(l net.Listener) error {
	e.mu.Lock()
	e.listener = l
	draining := e.draining
	e.mu.Unlock()
	if draining {
		return l.Close()
	}
	for pause := time.Duration(0); ; {
		conn, err := l.Accept()
		if err != nil {
			e.mu.Lock()
			draining := e.draining
			e.mu.Unlock()
			if draining {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Such as too many open files: it passes.
			e.o.Log.Warn("an MQTT connection could not be taken; it is tried again", "error", err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
			continue
		}
		pause = 0
		if why := e.enter(conn); why != "" {
			e.metrics.refused.WithLabelValues(string(why)).Inc()
			_ = conn.Close()
			continue
		}
		go e.connect(conn)
	}
}

// enter counts a connection, or tells why there may not be one more.
func (e *Edge) enter(conn net.Conn) Reason {
	from := e.source(conn)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.draining:
		return Draining
	case len(e.conns) >= e.o.MaxConnections:
		return TooMany
	case from.IsValid() && e.sources[from] >= e.o.MaxPerSource:
		return TooManyOfSource
	}
	e.conns[conn] = from
	e.sources[from]++
	e.work.Add(1)
	return ""
}

// source is the network that a connection counts for; none for a trusted proxy.
func (e *Edge) source(conn net.Conn) netip.Prefix {
	addr := remote(conn)
	if slices.ContainsFunc(e.o.Trusted, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return netip.Prefix{}
	}
	return models.SourcePrefix(addr)
}

func remote(conn net.Conn) netip.Addr {
	at, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return at.Addr().Unmap()
}

// leave forgets a connection.
func (e *Edge) leave(conn net.Conn) {
	_ = conn.Close()
	e.mu.Lock()
	from := e.conns[conn]
	delete(e.conns, conn)
	if e.sources[from]--; e.sources[from] == 0 {
		delete(e.sources, from)
	}
	if e.draining && len(e.conns) == 0 {
		close(e.empty)
	}
	e.mu.Unlock()
	e.work.Done()
}

// connect takes a client's CONNECT. What it takes to check a token grows a stack, so the connection goes on with a new one.
func (e *Edge) connect(conn net.Conn) {
	s, why := e.handshake(conn)
	if why != "" {
		e.metrics.refused.WithLabelValues(string(why)).Inc()
		e.leave(conn)
		return
	}
	e.metrics.connections.Inc()
	go s.run()
}

func (e *Edge) handshake(conn net.Conn) (*session, Reason) {
	_ = conn.SetDeadline(time.Now().Add(connectTimeout))
	refuse := func(code byte, why Reason) (*session, Reason) {
		_, _ = conn.Write(connack(code)) // it is closed anyway
		return nil, why
	}
	p, err := readPacket(conn, maxConnect)
	if errors.Is(err, errVersion) {
		return refuse(packets.ErrRefusedBadProtocolVersion, WrongVersion)
	}
	c, ok := p.(*packets.ConnectPacket)
	if err != nil || !ok || !validText(c.ClientIdentifier) || !validText(c.Username) || !c.WillFlag && (c.WillQos != 0 || c.WillRetain) {
		return nil, Malformed
	}
	switch {
	case c.PasswordFlag && !c.UsernameFlag:
		return nil, Malformed // §3.1.2.9
	case c.WillFlag:
		return refuse(packets.ErrRefusedNotAuthorised, NotAllowed)
	case len(c.ClientIdentifier) > maxClientID, c.ClientIdentifier == "" && !c.CleanSession:
		return refuse(packets.ErrRefusedIDRejected, WrongClientID)
	case !e.o.AllowSource(remote(conn)):
		return refuse(packets.ErrRefusedServerUnavailable, RateLimited)
	}
	ctx, cancel := context.WithTimeout(e.life, readTimeout)
	defer cancel()
	client, err := e.o.Authenticate(ctx, string(c.Password), c.Username)
	if err != nil {
		known, isKnown := errors.AsType[*models.Error](err)
		if isKnown && (known.Code == models.CodeUnauthenticated || known.Code == models.CodeForbidden) {
			return refuse(packets.ErrRefusedNotAuthorised, NotAuthenticated)
		}
		e.o.Log.WarnContext(ctx, "an MQTT client could not be authenticated", "error", err)
		return refuse(packets.ErrRefusedServerUnavailable, Unavailable)
	}
	s := &session{edge: e, conn: conn, in: bufio.NewReaderSize(conn, readAhead), client: client, idle: time.Duration(c.Keepalive) * 1500 * time.Millisecond}
	if why := e.add(s, c.ClientIdentifier); why != "" {
		return refuse(packets.ErrRefusedServerUnavailable, why)
	}
	_ = conn.SetDeadline(time.Time{})
	if !s.write(connack(packets.Accepted)) {
		e.remove(s)
		return nil, Gone
	}
	return s, ""
}

// add makes a connection known. Another one of the same device with the same client id ends.
func (e *Edge) add(s *session, clientID string) Reason {
	e.mu.Lock()
	s.key = sessionKey{device: s.client.Device, client: clientID}
	if clientID == "" {
		e.serial++
		s.key.serial = e.serial
	}
	old := e.sessions[s.key]
	switch {
	case e.draining:
		e.mu.Unlock()
		return Draining
	case old == nil && e.accounts[s.client.Account] >= e.o.MaxPerAccount:
		e.mu.Unlock()
		return TooManyOfAccount
	}
	e.sessions[s.key] = s
	e.accounts[s.client.Account]++
	e.mu.Unlock()
	if old != nil {
		old.end(TakenOver)
	}
	return ""
}

// remove forgets a session with its subscriptions.
func (e *Edge) remove(s *session) {
	for _, sub := range s.take() {
		e.detach(sub)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sessions[s.key] == s {
		delete(e.sessions, s.key)
	}
	if e.accounts[s.client.Account]--; e.accounts[s.client.Account] == 0 {
		delete(e.accounts, s.client.Account)
	}
}

// attach lets a subscription be woken for a stream.
func (e *Edge) attach(of models.EventStream, sub *subscription) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.feeds[of]
	if f == nil {
		f = newFeed(e, of)
		e.feeds[of] = f
	}
	f.subs[sub] = struct{}{}
	sub.feed = f
	e.metrics.subscriptions.Inc()
}

// detach ends that. Ending it twice is allowed.
func (e *Edge) detach(sub *subscription) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := sub.feed
	if _, ok := f.subs[sub]; !ok {
		return
	}
	e.metrics.subscriptions.Dec()
	if delete(f.subs, sub); len(f.subs) == 0 {
		delete(e.feeds, f.of)
	}
}

// subscribers are those of a feed now.
func (e *Edge) subscribers(f *feed) []*subscription {
	e.mu.Lock()
	defer e.mu.Unlock()
	subs := make([]*subscription, 0, len(f.subs))
	for sub := range f.subs {
		subs = append(subs, sub)
	}
	return subs
}

// Wake says that an event was recorded. It never blocks.
func (e *Edge) Wake(p models.EventPlace) {
	e.mu.Lock()
	f := e.feeds[p.EventStream]
	var account *feed
	if p.GroupID != "" {
		account = e.feeds[models.EventStream{AccountID: p.AccountID}]
	}
	e.mu.Unlock()
	if f != nil {
		f.wake()
	}
	if account != nil && account.isNews(p.GroupID) {
		account.wake()
	}
}

// Run looks at the database every two seconds on behalf of all who are connected, until the context is done.
func (e *Edge) Run(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := e.Look(ctx)
		if ctx.Err() == nil && (err != nil) != failing {
			if failing = err != nil; failing {
				e.o.Log.WarnContext(ctx, "The database could not be asked about MQTT connections; until it can, they hear nothing.", "error", err)
			} else {
				e.o.Log.InfoContext(ctx, "MQTT connections hear again what happens")
			}
		}
	}
}

// Look ends the connections of those whose token ended or whose device was removed, and wakes who missed a hint.
func (e *Edge) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	e.mu.Lock()
	sessions := make([]*session, 0, len(e.sessions))
	for _, s := range e.sessions {
		sessions = append(sessions, s)
	}
	feeds := make([]*feed, 0, len(e.feeds))
	for _, f := range e.feeds {
		feeds = append(feeds, f)
	}
	e.mu.Unlock()

	now := e.o.Now()
	sessions = slices.DeleteFunc(sessions, func(s *session) bool {
		why := s.overdue(now)
		if why != "" {
			s.end(why)
		}
		return why != ""
	})
	var faults []error
	for part := range slices.Chunk(sessions, batch) {
		faults = append(faults, e.lookAtSessions(ctx, part))
	}
	return errors.Join(append(faults, e.lookAtFeeds(ctx, feeds))...)
}

func (e *Edge) lookAtSessions(ctx context.Context, part []*session) error {
	ids := make([]models.ID, len(part))
	for i, s := range part {
		ids[i] = s.client.Device
	}
	rows, err := e.devices(ctx, ids)
	if err != nil {
		return err
	}
	for _, s := range part {
		if !s.client.holds(rows[s.client.Device]) {
			s.end(Revoked)
		}
	}
	return nil
}

// devices reads those of some devices that exist; one that doesn't is the zero value.
func (e *Edge) devices(ctx context.Context, ids []models.ID) (map[models.ID]models.Device, error) {
	rows := make(map[models.ID]models.Device, len(ids))
	for part := range slices.Chunk(ids, batch) {
		all, err := e.o.Devices(ctx, part)
		if err != nil {
			return nil, err
		}
		for _, d := range all {
			rows[d.ID] = d
		}
	}
	return rows, nil
}

func (e *Edge) lookAtFeeds(ctx context.Context, feeds []*feed) error {
	var groups, accounts []*feed
	for _, f := range feeds {
		if f.of.GroupID != "" {
			groups = append(groups, f)
		} else {
			accounts = append(accounts, f)
		}
	}
	for part := range slices.Chunk(groups, batch) {
		ids := make([]models.GroupID, len(part))
		for i, f := range part {
			ids[i] = f.of.GroupID
		}
		revs, err := e.o.Revs(ctx, ids)
		if err != nil {
			return err
		}
		for _, f := range part {
			if f.missed(revs[f.of.GroupID], nil) {
				f.wake() //nolint:contextcheck // the reading may outlive the look
			}
		}
	}
	for part := range slices.Chunk(accounts, batch) {
		ids := make([]models.AccountID, len(part))
		for i, f := range part {
			ids[i] = f.of.AccountID
		}
		news, err := e.o.News(ctx, ids)
		if err != nil {
			return err
		}
		for _, f := range part {
			n := news[f.of.AccountID]
			if f.missed(n.Rev, n.Groups) {
				f.wake() //nolint:contextcheck // the same
			}
		}
	}
	return nil
}

// Drain takes no more connections and ends those that there are, spread over the given time so that the devices don't come back all at
// once. It returns when nobody is connected any more; when the context is done before, it ends the rest at once.
func (e *Edge) Drain(ctx context.Context, spread time.Duration) {
	e.mu.Lock()
	if e.draining {
		e.mu.Unlock()
		return
	}
	e.draining = true
	if len(e.conns) == 0 {
		close(e.empty)
	}
	if e.listener != nil {
		_ = e.listener.Close() // Serve ends by it
	}
	var timers []*time.Timer
	for conn := range e.conns {
		timers = append(timers, time.AfterFunc(upTo(spread), func() { _ = conn.Close() }))
	}
	e.mu.Unlock()
	select {
	case <-e.empty:
	case <-ctx.Done():
		for _, t := range timers {
			t.Reset(0)
		}
	}
	e.stop()
	e.work.Wait()
}

// upTo draws a time from 0 to d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
