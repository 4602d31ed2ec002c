package eventqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/groupcast/groupcast/models"
)

// Services read the queue in accounts of NATS of their own, each named like its service: what a service publishes, or names as the subject of
// an answer, stays in there. NATS doesn't hold the subject of an answer against anybody's rights, so in the account of the stream a service
// could have events "answered" to whomever it likes. From its account only three requests lead out, by imports: about its own consumer, for
// its next messages, and to acknowledge them.
const (
	// accountName is the account of the stream, and systemName that of NATS itself. No service has a name in capitals.
	accountName = "GROUPCAST"
	systemName  = "GROUPCAST-SYSTEM"

	// What one service may have on its way: acknowledgements that are awaited, requests that wait, messages of one request.
	maxAckPending, maxWaiting, maxBatch = 1000, 128, 1000
	// maxRequest is how long one may wait. NATS forgets where an answer goes after two minutes.
	maxRequest = time.Minute
	// ackWait is after which time a message comes again that wasn't acknowledged. A cluster may still have sent some to a reader that was just gone.
	ackWait = 10 * time.Second
	// forgetAfter is when the place of a service that doesn't read is forgotten. All that it hasn't read has left the stream before.
	forgetAfter = 2 * Retention

	// Bounds of a line that a client sends, which holds a token, and of what is kept for one that doesn't take it, in bytes.
	maxLine, maxPending = 16 << 10, 4 << 20
	maxSubscriptions    = 100
	maxConnections      = 4096
	writeDeadline       = 10 * time.Second
	// authTimeout is how long a login may take, in seconds; it asks the database.
	authTimeout = 5
	// gather is how long the servers of a cluster have to tell who is connected.
	gather = time.Second
)

// Keys are what groupcastd and the servers of the queue know each other by. All replicas have the same.
type Keys struct {
	user, system nkeys.KeyPair // groupcastd logs in with them
	issuer       nkeys.KeyPair // signs what it says about who logs in
	box          nkeys.KeyPair // opens what it is asked, which holds tokens
	public       struct{ user, system, issuer, box string }
}

// NewKeys makes them of secrets of 32 bytes, one for each purpose.
func NewKeys(derive func(purpose string) ([]byte, error)) (*Keys, error) {
	k := &Keys{}
	for _, each := range []struct {
		purpose string
		prefix  nkeys.PrefixByte
		pair    *nkeys.KeyPair
		public  *string
	}{
		{"nats user", nkeys.PrefixByteUser, &k.user, &k.public.user},
		{"nats system user", nkeys.PrefixByteUser, &k.system, &k.public.system},
		{"nats issuer", nkeys.PrefixByteAccount, &k.issuer, &k.public.issuer},
		{"nats box", nkeys.PrefixByteCurve, &k.box, &k.public.box},
	} {
		raw, err := derive(each.purpose)
		if err != nil {
			return nil, err
		}
		seed, err := nkeys.EncodeSeed(each.prefix, raw)
		if err == nil && each.prefix == nkeys.PrefixByteCurve {
			*each.pair, err = nkeys.FromCurveSeed(seed)
		} else if err == nil {
			*each.pair, err = nkeys.FromSeed(seed)
		}
		if err == nil {
			*each.public, err = (*each.pair).PublicKey()
		}
		if err != nil {
			return nil, fmt.Errorf("make the key for %s: %w", each.purpose, err)
		}
	}
	return k, nil
}

// Login shows a server that we are groupcastd: who publishes, or who sees all connections and ends them.
func (k *Keys) Login(system bool) nats.Option {
	pair, public := k.user, k.public.user
	if system {
		pair, public = k.system, k.public.system
	}
	return nats.Nkey(public, pair.Sign)
}

// way is a subject that leads out of a service's account.
type way struct {
	// from is the subject there, and to the one in the account of the stream. It has the service's name as its token number at, from 1 on.
	from, to string
	at       int
	stream   bool // it has as many answers as were asked for
	closed   bool // no reader may use it
}

func ways(service string) []way {
	const of = StreamName + "."
	open := func(subject string, at int, stream bool) way { return way{subject, subject, at, stream, false} }
	return []way{
		open("$JS.API.CONSUMER.INFO."+of+service, 6, false),
		open("$JS.API.CONSUMER.MSG.NEXT."+of+service, 7, true),
		open("$JS.ACK."+of+service+".>", 4, false),
		open("$JS.ACK.*.*."+of+service+".>", 6, false), // of clusters with a domain
		// An account that imports this gets no way of its own to all of JetStream, which would answer as well, with errors.
		{"$JS.API.INFO", "gc.nothing." + service, 3, false, true},
	}
}

// Configuration is what the servers of the queue have to know, as a file for nats-server: the accounts, our public keys, and that we are asked
// about everybody who logs in. There is no secret in it. Only services that it names have an account.
func (k *Keys) Configuration(services []models.ServiceID) string {
	var b strings.Builder
	line := func(format string, v ...any) { fmt.Fprintf(&b, format+"\n", v...) }
	line("accounts {")
	line("  %s {", accountName)
	line("    jetstream: enabled")
	line("    users: [{nkey: %s}]", k.public.user)
	line("    exports: [")
	for _, w := range ways("*") {
		response := ""
		if w.stream {
			response = ", response: stream"
		}
		// An account gets nothing but what has its own name there.
		line("      {service: %q%s, account_token_position: %d}", w.to, response, w.at)
	}
	line("    ]")
	line("  }")
	line("  %s {users: [{nkey: %s}]}", systemName, k.public.system)
	for _, s := range services {
		line("  %s {", s)
		line("    imports: [")
		for _, w := range ways(string(s)) {
			line("      {service: {account: %s, subject: %q}, to: %q}", accountName, w.to, w.from)
		}
		line("    ]")
		line("  }")
	}
	line("}")
	line("system_account: %s", systemName)
	line("authorization {")
	line("  timeout: %d", authTimeout)
	line("  auth_callout {issuer: %s, account: %s, xkey: %s, auth_users: [%s, %s]}", k.public.issuer, accountName, k.public.box, k.public.user, k.public.system)
	line("}")
	line("max_control_line: %d", maxLine)
	return b.String()
}

// listen says where the server within this process takes connections, and how much of its memory they get.
func (q *Queue) listen(o *server.Options) error {
	if o.DontListen = q.opts.Listen == ""; o.DontListen {
		return nil
	}
	host, port, err := net.SplitHostPort(q.opts.Listen)
	if err != nil {
		return fmt.Errorf("nats-listen: %w", err)
	}
	o.Host = host
	if o.Port, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("nats-listen: %w", err)
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if q.opts.TLS != nil {
		o.TLS, o.TLSConfig = true, q.opts.TLS.Clone()
		o.TLSConfig.NextProtos = nil // HTTP's
	}
	o.MaxPending, o.MaxSubs, o.MaxConn, o.WriteDeadline = maxPending, maxSubscriptions, maxConnections, writeDeadline
	return nil
}

// Readable tells whether services can read the queue.
func (q *Queue) Readable() bool {
	return q.opts.Keys != nil && (q.opts.URL != "" || q.opts.Listen != "")
}

// Addr is where services reach the queue within this process; nil if they don't.
func (q *Queue) Addr() net.Addr {
	if q.server == nil || q.opts.Listen == "" {
		return nil
	}
	return q.server.Addr()
}

// Admit sees to it that a service finds what is published for it: its consumer, and within this process its account. It may be called at any
// time and changes nothing that is right.
func (q *Queue) Admit(ctx context.Context, service models.ServiceID) error {
	if service == accountName || service == systemName {
		return fmt.Errorf("a service can't be named %s", service)
	}
	if q.server != nil {
		if err := q.account(service); err != nil {
			return fmt.Errorf("make the account of %s in the event queue: %w", service, err)
		}
	}
	_, err := q.js.CreateOrUpdateConsumer(ctx, StreamName, jetstream.ConsumerConfig{
		Durable: string(service), FilterSubject: servicePrefix(service) + ">", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		MaxAckPending: maxAckPending, MaxWaiting: maxWaiting, MaxRequestBatch: maxBatch, MaxRequestExpires: maxRequest, InactiveThreshold: forgetAfter,
	})
	if err != nil {
		return fmt.Errorf("make the consumer of %s: %w", service, err)
	}
	return nil
}

func (q *Queue) account(service models.ServiceID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.accounts[service] {
		return nil
	}
	stream, err := q.server.LookupAccount(accountName)
	if err != nil {
		return err
	}
	own, _ := q.server.LookupOrRegisterAccount(string(service))
	for _, w := range ways(string(service)) {
		if err := own.AddServiceImport(stream, w.from, w.to); err != nil {
			return err
		}
	}
	q.accounts[service] = true
	return nil
}

// Admitted names the services that have a consumer, whether they are connected or not. What the operator made is not among them.
func (q *Queue) Admitted(ctx context.Context) (services []models.ServiceID, err error) {
	s, err := q.js.Stream(ctx, StreamName)
	if err != nil {
		return nil, fmt.Errorf("look up the stream %s: %w", StreamName, err)
	}
	all := s.ListConsumers(ctx)
	for c := range all.Info() {
		if id := models.ServiceID(c.Name); c.Config.Durable != "" && c.Config.FilterSubject == servicePrefix(id)+">" {
			services = append(services, id)
		}
	}
	return services, all.Err()
}

// Login is somebody who logs in to read.
type Login struct {
	// Source is the address that it comes from.
	Source string
	// User, Password and Token are what it shows.
	User, Password, Token string
}

// Reader is a service that may read, until a time, by a token of another.
type Reader struct {
	Service             models.ServiceID
	IssuedAt, ExpiresAt time.Time
}

// name is the reader's in the list of connections.
func (r Reader) name() string {
	return fmt.Sprintf("%s %d %d", r.Service, r.IssuedAt.Unix(), r.ExpiresAt.Unix())
}

func readerOf(name string) (r Reader, ok bool) {
	var issued, expires int64
	if n, err := fmt.Sscanf(name, "%s %d %d", &r.Service, &issued, &expires); err != nil || n != 3 {
		return Reader{}, false
	}
	r.IssuedAt, r.ExpiresAt = time.Unix(issued, 0), time.Unix(expires, 0)
	return r, true
}

// Logins has decide asked about whoever logs in, until the context is done; with several replicas one of them each time. A nil reader is refused.
// decide is called by as many goroutines at once as there are logins.
func (q *Queue) Logins(ctx context.Context, decide func(context.Context, Login) *Reader) error {
	sub, err := q.conn.QueueSubscribe(server.AuthCalloutSubject, "groupcast", func(m *nats.Msg) {
		go func() {
			answer, err := q.answer(ctx, m, decide)
			if err == nil {
				err = m.Respond(answer)
			}
			if err != nil {
				q.opts.Log.WarnContext(ctx, "a login to the event queue could not be answered", "error", err)
			}
		}()
	})
	if err != nil {
		return fmt.Errorf("ask to be asked about logins: %w", err)
	}
	<-ctx.Done()
	if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return err
	}
	return nil
}

func (q *Queue) answer(ctx context.Context, m *nats.Msg, decide func(context.Context, Login) *Reader) ([]byte, error) {
	k := q.opts.Keys
	asks := m.Header.Get(server.AuthRequestXKeyHeader)
	open, err := k.box.Open(m.Data, asks)
	if err != nil {
		return nil, fmt.Errorf("what is asked isn't sealed for us; is xkey in the configuration of the NATS servers?: %w", err)
	}
	claims, err := jwt.DecodeAuthorizationRequestClaims(string(open))
	if err != nil {
		return nil, fmt.Errorf("read who logs in: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, authTimeout*time.Second)
	defer cancel()
	answer := jwt.NewAuthorizationResponseClaims(claims.UserNkey)
	answer.Audience = claims.Server.ID
	shown := claims.ConnectOptions
	if r := decide(ctx, Login{
		Source: claims.ClientInformation.Host, User: shown.Username, Password: shown.Password, Token: shown.Token,
	}); r == nil {
		answer.Error = "refused"
	} else if answer.Jwt, err = k.admit(claims.UserNkey, *r); err != nil {
		return nil, err
	}
	text, err := answer.Encode(k.issuer)
	if err != nil {
		return nil, fmt.Errorf("sign who logs in: %w", err)
	}
	return k.box.Seal([]byte(text), asks)
}

// admit says what a reader may do.
func (k *Keys) admit(user string, r Reader) (string, error) {
	c := jwt.NewUserClaims(user)
	c.Name, c.Audience, c.Expires = r.name(), string(r.Service), r.ExpiresAt.Unix()
	for _, w := range ways(string(r.Service)) {
		if !w.closed {
			c.Permissions.Pub.Allow.Add(w.from)
		}
	}
	c.Permissions.Sub.Allow.Add("_INBOX.>") // its account's own
	c.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket)
	text, err := c.Encode(k.issuer)
	if err != nil {
		return "", fmt.Errorf("sign what %s may do: %w", r.Service, err)
	}
	return text, nil
}

// Connection is one of a reader.
type Connection struct {
	Reader
	server string
	id     uint64
}

// Connections lists those of services, on all servers that answer within a second.
func (q *Queue) Connections(ctx context.Context, services []models.ServiceID) (all []Connection, err error) {
	if len(services) == 0 {
		return nil, nil
	}
	inbox := q.system.NewInbox()
	answers, err := q.system.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("ask who reads the event queue: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }()
	for _, s := range services {
		ask, err := json.Marshal(server.ConnzOptions{Username: true, Account: string(s), Limit: maxConnections})
		if err == nil {
			err = q.system.PublishRequest("$SYS.REQ.SERVER.PING.CONNZ", inbox, ask)
		}
		if err != nil {
			return nil, fmt.Errorf("ask who reads the event queue: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, gather)
	defer cancel()
	for n := 0; q.server == nil || n < len(services); n++ { // within this process there is one server
		m, err := answers.NextMsgWithContext(ctx)
		if errors.Is(err, context.DeadlineExceeded) && n > 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("ask who reads the event queue: %w", err)
		}
		var answer struct {
			Server struct{ ID string }
			Data   struct{ Connections []server.ConnInfo }
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return nil, fmt.Errorf("read who reads the event queue: %w", err)
		}
		for _, c := range answer.Data.Connections {
			if r, ok := readerOf(c.AuthorizedUser); ok && string(r.Service) == c.Account {
				all = append(all, Connection{r, answer.Server.ID, c.Cid})
			}
		}
	}
	return all, nil
}

// Disconnect ends a connection. One that is gone is no error.
func (q *Queue) Disconnect(ctx context.Context, c Connection) error {
	ask, err := json.Marshal(server.KickClientReq{CID: c.id})
	if err == nil {
		_, err = q.system.RequestWithContext(ctx, "$SYS.REQ.SERVER."+c.server+".KICK", ask)
	}
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("end a connection of %s to the event queue: %w", c.Service, err)
	}
	return nil
}
