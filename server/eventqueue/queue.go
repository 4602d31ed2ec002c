// Package eventqueue is the queue that events go to: NATS JetStream, as a server within this process, or as a cluster of the operator's
// (SPEC §7). It owns the connection, the one stream, what a message looks like in it, and the accounts of NATS in which services read it.
//
// It knows nothing of the database and decides nothing about order: that is server/eventrelay. Nor does it know tokens: who may log in to
// read is decided by server/queueaccess.
package eventqueue

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/models"
)

const (
	// StreamName is the stream that holds all events.
	StreamName = "GROUPCAST"
	// Retention is how long an event stays in the stream.
	Retention = 24 * time.Hour
	// AckTimeout is how long an acknowledgement may take. A message whose acknowledgement got lost is sent again.
	AckTimeout = 5 * time.Second
	// MaxTogether is how many messages go in one batch at most: half of what a server takes that wasn't told otherwise.
	MaxTogether = 500

	// maxMemory is what the server within this process may take for streams in memory, of which there are none.
	maxMemory    = 64 << 20
	startTimeout = 20 * time.Second
	requests     = 5 * time.Second
)

// Options say which queue to use.
type Options struct {
	// DataDir is where the queue within this process keeps its files, in a directory of its own.
	DataDir string
	// URL names a cluster instead, by one or more servers, separated by commas.
	URL string
	// Credentials is a file with the JWT and seed for the cluster; CA one with the certificates that sign its own; Cert and Key ours. Empty is
	// none.
	Credentials, CA, Cert, Key string
	// Replicas is how many servers of the cluster keep each event.
	Replicas int
	// MaxBytes bounds the stream; at most that much of the disk is used. Beyond it nothing is taken any more, and nothing is dropped.
	MaxBytes int64
	// Keys let services read: groupcastd logs in with them, and answers for whoever else does. Nil: it logs in with Credentials, and nobody reads.
	Keys *Keys
	// Listen is where services reach the queue within this process, as ADDRESS:PORT; empty is nowhere. TLS is for it; nil is plain.
	Listen string
	TLS    *tls.Config
	// Back, if not nil, is called when the connection is there again after it was away; it must not block.
	Back func()
	Log  *slog.Logger
}

// Queue is a connection to the queue, and the queue itself if it is within this process.
type Queue struct {
	opts   Options
	server *server.Server // nil if it is a cluster
	lock   *os.File       // must stay referenced: a file that the garbage collector closes is a lock that is gone
	conn   *nats.Conn
	js     jetstream.JetStream

	system   *nats.Conn // sees all connections and ends them; nil if services don't read
	mu       sync.Mutex
	accounts map[models.ServiceID]bool // those that are there, within this process
	old      atomic.Bool               // it takes no batches
}

// Open opens the queue. A cluster that is away is no error: it is tried again for as long as it takes.
func Open(o Options) (_ *Queue, err error) {
	q := &Queue{opts: o, accounts: map[models.ServiceID]bool{}}
	defer func() {
		if err != nil {
			q.Close()
		}
	}()
	if o.URL == "" {
		if err := q.embed(); err != nil {
			return nil, err
		}
	}
	if q.conn, err = q.connect(false); err != nil {
		return nil, err
	}
	if q.Readable() {
		if q.system, err = q.connect(true); err != nil {
			return nil, err
		}
	}
	if q.js, err = jetstream.New(q.conn, jetstream.WithPublishAsyncTimeout(AckTimeout), jetstream.WithDefaultTimeout(requests)); err != nil {
		return nil, fmt.Errorf("open the event queue: %w", err)
	}
	return q, nil
}

// embed starts the server within this process.
func (q *Queue) embed() error {
	dir := filepath.Join(q.opts.DataDir, "events")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data-dir: create %s: %w", dir, err)
	}
	if err := q.takeLock(dir); err != nil {
		return err
	}
	o := &server.Options{}
	if q.opts.Keys != nil {
		if err := o.ProcessConfigString(q.opts.Keys.Configuration(nil)); err != nil {
			return fmt.Errorf("prepare the accounts of the event queue: %w", err)
		}
	}
	o.ServerName, o.NoSigs, o.NoSystemAccount = "groupcastd", true, q.opts.Keys == nil
	o.JetStream, o.StoreDir, o.JetStreamMaxStore, o.JetStreamMaxMemory = true, dir, q.opts.MaxBytes, maxMemory
	// The database is told that an event is published; so it must be on the disk by then.
	o.SyncAlways = true
	// Without it the server takes 1000 consumers, and refuses more without a word to their owners.
	o.JetStreamLimits = server.JSLimitOpts{DefaultMaxConsumers: -1}
	if err := q.listen(o); err != nil {
		return err
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("data-dir: start the event queue in %s: %w", dir, err)
	}
	s.SetLoggerV2(natsLog{q.opts.Log}, false, false, false)
	q.server = s
	go s.Start()
	if !s.ReadyForConnections(startTimeout) || !s.JetStreamEnabled() {
		return fmt.Errorf("data-dir: the event queue in %s doesn't start; the lines before this one say why", dir)
	}
	if q.opts.Listen != "" && s.Addr() == nil {
		return fmt.Errorf("nats-listen: can't listen on %s; the lines before this one say why", q.opts.Listen)
	}
	return nil
}

// takeLock keeps a second process off the files: two on one directory lose each other's events without noticing.
func (q *Queue) takeLock(dir string) error {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("data-dir: open %s: %w", name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("data-dir: the event queue in %s is in use by another groupcastd. Stop the other one, use another data-dir, "+
				"or let replicas share a NATS cluster with nats-url", dir)
		}
		return fmt.Errorf("data-dir: lock %s: %w", name, err)
	}
	q.lock = f
	return nil
}

// connect connects as who publishes, or as who sees all connections.
func (q *Queue) connect(system bool) (*nats.Conn, error) {
	o := []nats.Option{
		nats.Name("groupcastd"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(500*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), // what can't be sent now fails now; the database remembers it
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil && !system {
				q.opts.Log.Warn("the event queue is away; events wait in the database", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			if system {
				return
			}
			q.opts.Log.Info("the event queue is back")
			if q.opts.Back != nil {
				q.opts.Back()
			}
		}),
	}
	if q.opts.Keys != nil {
		o = append(o, q.opts.Keys.Login(system))
	}
	if q.server != nil {
		o = append(o, nats.InProcessServer(q.server))
	}
	for _, f := range []struct {
		name   string
		option func() nats.Option
	}{
		{q.opts.Credentials, func() nats.Option { return nats.UserCredentials(q.opts.Credentials) }},
		{q.opts.CA, func() nats.Option { return nats.RootCAs(q.opts.CA) }},
		{q.opts.Cert, func() nats.Option { return nats.ClientCert(q.opts.Cert, q.opts.Key) }},
	} {
		if f.name != "" {
			o = append(o, f.option())
		}
	}
	conn, err := nats.Connect(q.opts.URL, o...)
	if err != nil {
		return nil, fmt.Errorf("nats-url: connect to the event queue: %w", err)
	}
	return conn, nil
}

// Prepare sees to it that the stream is there as it has to be, and names this stream: one that was lost and made anew has another name.
func (q *Queue) Prepare(ctx context.Context) (identity string, err error) {
	if err := q.revive(); err != nil {
		return "", err
	}
	want := jetstream.StreamConfig{
		Name: StreamName, Subjects: []string{"gc.a.>", "gc.s.>"}, Storage: jetstream.FileStorage,
		// What doesn't fit is refused and waits in the database; nothing is dropped to make room.
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxAge: Retention, MaxBytes: q.opts.MaxBytes,
		Replicas: max(q.opts.Replicas, 1), MaxConsumers: -1, AllowDirect: true, AllowAtomicPublish: true,
	}
	s, err := q.js.Stream(ctx, StreamName)
	if err == nil {
		have := s.CachedInfo().Config
		if have.MaxBytes != want.MaxBytes || have.Replicas != want.Replicas || !have.AllowAtomicPublish && !q.old.Load() {
			s, err = q.js.UpdateStream(ctx, want)
		}
	} else if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = q.js.CreateStream(ctx, want)
	}
	if err != nil {
		return "", fmt.Errorf("prepare the stream %s: %w", StreamName, err)
	}
	q.old.Store(!s.CachedInfo().Config.AllowAtomicPublish) // a server before 2.12 leaves out what it doesn't know
	if q.server != nil {
		// A write that failed once makes the server refuse all to come, and acknowledges none, until its storage begins anew. A purge of nothing
		// is how one learns of it.
		if err := s.Purge(ctx, jetstream.WithPurgeSubject("gc.a.nobody.nothing")); err != nil {
			return "", errors.Join(fmt.Errorf("data-dir: the event queue couldn't write its files; is the disk full?: %w", err), q.server.ShutdownJetStream())
		}
	}
	return s.CachedInfo().Created.UTC().Format(time.RFC3339Nano), nil
}

// revive starts the storage of the server within this process again: a disk that was full or couldn't be written has ended it, and it wouldn't
// begin again by itself.
func (q *Queue) revive() error {
	if q.server == nil || q.server.JetStreamEnabled() {
		return nil
	}
	dir := filepath.Join(q.opts.DataDir, "events")
	if err := q.server.EnableJetStream(&server.JetStreamConfig{
		StoreDir: dir, MaxMemory: maxMemory, MaxStore: q.opts.MaxBytes, SyncAlways: true, Strict: true,
	}); err != nil {
		return fmt.Errorf("data-dir: the event queue in %s can't write its files; is the disk full?: %w", dir, err)
	}
	q.opts.Log.Info("the event queue can write its files again", "dir", dir)
	return nil
}

// AccountSubject is where an account's events of a stream are.
func AccountSubject(of models.EventStream) string {
	if of.GroupID == "" {
		return "gc.a." + string(of.AccountID) + ".account"
	}
	return "gc.a." + string(of.AccountID) + "." + string(of.GroupID)
}

// servicePrefix begins all that a service may read.
func servicePrefix(service models.ServiceID) string { return "gc.s." + string(service) + "." }

// LinkSubject is below what a service reads about one account: group is empty for the events of the link itself.
func LinkSubject(service models.ServiceID, serviceAccountID models.ID, group models.GroupID) string {
	subject := servicePrefix(service) + serviceAccountID.String() + "."
	if group == "" {
		return subject + "link"
	}
	return subject + string(group)
}

// Message is what an event is for one of those whom it concerns. The id lets the queue drop what it has already.
type Message struct {
	Subject, ID string
	Body        []byte
}

func (m Message) nats() *nats.Msg {
	n := nats.NewMsg(m.Subject)
	n.Header.Set("content-type", "application/cloudevents+json")
	n.Header.Set(jetstream.MsgIDHeader, m.ID)
	n.Header.Set(jetstream.ExpectedStreamHeader, StreamName)
	n.Data = m.Body
	return n
}

// Publish sends a message; whether the queue has it, the future tells.
func (q *Queue) Publish(m Message) (jetstream.PubAckFuture, error) {
	// The client's own retries would let a later message overtake this one.
	return q.js.PublishMsgAsync(m.nats(), jetstream.WithRetryAttempts(0))
}

// ErrOneByOne says that the queue has none of some messages, and takes them only one by one: one of them is there already, or doesn't fit, or the
// server is older than batches.
var ErrOneByOne = errors.New("the queue doesn't take these messages as one batch")

// PublishTogether sends at most MaxTogether messages of which the queue takes all, in this order and one after the other, or none (NATS ADR-50). The
// server within this process writes them to the disk together, so it costs about as much as a few messages do.
func (q *Queue) PublishTogether(ctx context.Context, all []Message) error {
	if q.old.Load() || len(all) > MaxTogether {
		return ErrOneByOne
	}
	id := nuid.Next()
	for i, m := range all {
		n := m.nats()
		n.Header.Set("Nats-Batch-Id", id)
		n.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(all)-1 { // what becomes of it, the answer to the last one tells
			if err := q.conn.PublishMsg(n); err != nil {
				return err
			}
			continue
		}
		n.Header.Set("Nats-Batch-Commit", "1")
		answer, err := q.conn.RequestMsgWithContext(ctx, n)
		if err != nil {
			return err
		}
		var ack struct {
			Error *jetstream.APIError `json:"error"`
			Batch string              `json:"batch"`
			Count int                 `json:"count"`
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil {
			return fmt.Errorf("read the answer to a batch: %w", err)
		}
		if ack.Error != nil {
			return fmt.Errorf("%w: %w", ErrOneByOne, ack.Error)
		}
		if ack.Batch != id || ack.Count != len(all) {
			return fmt.Errorf("the answer to a batch of %d is about %d of another", len(all), ack.Count)
		}
	}
	return nil
}

// Forget removes all that a service could read about an account by a link that ended.
func (q *Queue) Forget(ctx context.Context, service models.ServiceID, serviceAccountID models.ID) error {
	return q.purge(ctx, servicePrefix(service)+serviceAccountID.String()+".>")
}

func (q *Queue) purge(ctx context.Context, subject string) error {
	s, err := q.js.Stream(ctx, StreamName)
	if err != nil {
		return fmt.Errorf("look up the stream %s: %w", StreamName, err)
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject(subject))
}

// Kept names the groups of which the queue still has messages for a service about an account.
func (q *Queue) Kept(ctx context.Context, service models.ServiceID, serviceAccountID models.ID) (groups []models.GroupID, err error) {
	s, err := q.js.Stream(ctx, StreamName)
	if err != nil {
		return nil, fmt.Errorf("look up the stream %s: %w", StreamName, err)
	}
	prefix := LinkSubject(service, serviceAccountID, "*")
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(prefix))
	if err != nil {
		return nil, fmt.Errorf("list the subjects of the stream %s: %w", StreamName, err)
	}
	link := LinkSubject(service, serviceAccountID, "")
	for subject := range info.State.Subjects {
		if subject != link {
			groups = append(groups, models.GroupID(strings.TrimPrefix(subject, strings.TrimSuffix(prefix, "*"))))
		}
	}
	return groups, nil
}

// ForgetGroup removes what a service could read about one group.
func (q *Queue) ForgetGroup(ctx context.Context, service models.ServiceID, serviceAccountID models.ID, group models.GroupID) error {
	return q.purge(ctx, LinkSubject(service, serviceAccountID, group))
}

// Conn is the connection, for hints between replicas and for consumers in this process.
func (q *Queue) Conn() *nats.Conn { return q.conn }

// Close ends the connection and the queue within this process.
func (q *Queue) Close() {
	for _, c := range []*nats.Conn{q.conn, q.system} {
		if c != nil {
			c.Close()
		}
	}
	if q.server != nil {
		q.server.Shutdown()
		q.server.WaitForShutdown()
	}
	if q.lock != nil {
		_ = q.lock.Close()
	}
}
