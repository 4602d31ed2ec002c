package eventqueue_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventqueue"
)

// patience bounds what a test waits for; nothing is measured by it.
const patience = time.Minute

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) (authority, string) {
	t.Helper()
	a := authority{}
	cert, key := a.sign(t, "authority")
	pair, err := tls.LoadX509KeyPair(cert, key)
	require.NoError(t, err)
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a, cert
}

// sign writes a certificate and its key to files; an authority that isn't one yet signs its own.
func (a authority) sign(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA: a.cert == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	require.NoError(t, err)
	secret, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key
}

// operator is who gives users their credentials, as with the nsc tool.
type operator struct {
	key     nkeys.KeyPair
	account nkeys.KeyPair
	options server.Options
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{}
	var err error
	o.key, err = nkeys.CreateOperator()
	require.NoError(t, err)
	public, err := o.key.PublicKey()
	require.NoError(t, err)
	resolver := &server.MemAccResolver{}
	account := func(jetStream bool) (nkeys.KeyPair, string) {
		pair, err := nkeys.CreateAccount()
		require.NoError(t, err)
		id, err := pair.PublicKey()
		require.NoError(t, err)
		claims := jwt.NewAccountClaims(id)
		if jetStream {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
		}
		text, err := claims.Encode(o.key)
		require.NoError(t, err)
		require.NoError(t, resolver.Store(id, text))
		return pair, id
	}
	var system string
	o.account, _ = account(true)
	_, system = account(false)
	claims := jwt.NewOperatorClaims(public)
	claims.SystemAccount = system
	o.options = server.Options{TrustedOperators: []*jwt.OperatorClaims{claims}, AccountResolver: resolver, SystemAccount: system}
	return o
}

// credentials writes those of a new user of the account that signs.
func (o *operator) credentials(t *testing.T, signer nkeys.KeyPair) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	id, err := user.PublicKey()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	text, err := jwt.NewUserClaims(id).Encode(signer)
	require.NoError(t, err)
	file, err := jwt.FormatUserConfig(text, seed)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "groupcast.creds")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	return path
}

// TestAClusterThatAsksWhoCalls: it wants a user's credentials and our certificate, and shows one of its own. Each is needed, and with all of
// them events go there.
func TestAClusterThatAsksWhoCalls(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	authority, ca := newAuthority(t)
	_, otherCA := newAuthority(t)
	serverCert, serverKey := authority.sign(t, "nats")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(authority.cert)
	o := newOperator(t)
	so := o.options
	so.Host, so.Port, so.JetStream, so.StoreDir, so.NoSigs, so.NoLog = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true, true
	so.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	so.TLS = true
	s, err := server.NewServer(&so)
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(patience))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })

	cert, key := authority.sign(t, "groupcastd")
	log := &logtest.Log{}
	all := eventqueue.Options{
		URL: fmt.Sprint("tls://", s.Addr()), Credentials: o.credentials(t, o.account), CA: ca, Cert: cert, Key: key, MaxBytes: 1 << 20,
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}
	q, err := eventqueue.Open(all)
	require.NoError(t, err)
	defer q.Close()
	_, err = q.Prepare(ctx)
	require.NoError(t, err)
	future, err := q.Publish(eventqueue.Message{Subject: eventqueue.AccountSubject(models.EventStream{AccountID: "a_1"}), ID: "1", Body: []byte("{}")})
	require.NoError(t, err)
	select {
	case <-future.Ok():
	case err := <-future.Err():
		t.Fatal(err)
	case <-ctx.Done():
		t.Fatal("no acknowledgement")
	}
	js, err := jetstream.New(q.Conn())
	require.NoError(t, err)
	stream, err := js.Stream(ctx, eventqueue.StreamName)
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)

	stranger, err := nkeys.CreateAccount()
	require.NoError(t, err)
	for name, without := range map[string]func(*eventqueue.Options){
		"no credentials":                func(o *eventqueue.Options) { o.Credentials = "" },
		"a stranger's credentials":      func(o *eventqueue.Options) { o.Credentials = newOperator(t).credentials(t, stranger) },
		"no certificate of ours":        func(o *eventqueue.Options) { o.Cert, o.Key = "", "" },
		"another authority of theirs":   func(o *eventqueue.Options) { o.CA = otherCA },
		"no authority but the system's": func(o *eventqueue.Options) { o.CA = "" },
	} {
		t.Run(name, func(t *testing.T) {
			refused := all
			without(&refused)
			q, err := eventqueue.Open(refused)
			if err != nil {
				return
			}
			defer q.Close()
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err = q.Prepare(short)
			require.Error(t, err)
			require.False(t, q.Conn().IsConnected())
		})
	}
	require.NotContains(t, log.String(), "SEED")
}

// TestMessagesThatGoTogether: all of them are there, one after the other, or none is.
func TestMessagesThatGoTogether(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	q, err := eventqueue.Open(eventqueue.Options{DataDir: t.TempDir(), MaxBytes: 256 << 10, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer q.Close()
	js, err := jetstream.New(q.Conn())
	require.NoError(t, err)
	// A stream of a service that made none of batches yet.
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: eventqueue.StreamName, Subjects: []string{"gc.a.>", "gc.s.>"}, Discard: jetstream.DiscardNew, MaxBytes: 256 << 10, MaxConsumers: -1,
	})
	require.NoError(t, err)
	_, err = q.Prepare(ctx)
	require.NoError(t, err)
	some := func(group string, n, size int) (all []eventqueue.Message) {
		for i := range n {
			all = append(all, eventqueue.Message{
				Subject: eventqueue.AccountSubject(models.EventStream{AccountID: "a_1", GroupID: models.GroupID(group)}),
				ID:      fmt.Sprint(group, "/", i), Body: bytes.Repeat([]byte{'x'}, size),
			})
		}
		return all
	}
	kept := func() (ids []string) {
		s, err := js.Stream(ctx, eventqueue.StreamName)
		require.NoError(t, err)
		for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
			m, err := s.GetMsg(ctx, seq)
			require.NoError(t, err)
			ids = append(ids, m.Header.Get(jetstream.MsgIDHeader))
		}
		return ids
	}
	require.NoError(t, q.PublishTogether(ctx, some("g_1", 3, 10)))
	require.NoError(t, q.PublishTogether(ctx, some("g_2", 2, 10)))
	there := []string{"g_1/0", "g_1/1", "g_1/2", "g_2/0", "g_2/1"}
	require.Equal(t, there, kept())
	require.ErrorIs(t, q.PublishTogether(ctx, append(some("g_3", 2, 10), some("g_1", 1, 10)...)), eventqueue.ErrOneByOne, "one is there already")
	require.ErrorIs(t, q.PublishTogether(ctx, some("g_4", 10, 64<<10)), eventqueue.ErrOneByOne, "they don't fit")
	require.ErrorIs(t, q.PublishTogether(ctx, some("g_5", eventqueue.MaxTogether+1, 1)), eventqueue.ErrOneByOne, "too many")
	require.Equal(t, there, kept())
}

// TestBackAfterAnInterruption: whoever wants to know is told when the connection is there again, since hints were lost meanwhile; and not before.
func TestBackAfterAnInterruption(t *testing.T) {
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	run := func() *server.Server {
		t.Helper()
		s, err := server.NewServer(o)
		require.NoError(t, err)
		go s.Start()
		require.True(t, s.ReadyForConnections(patience))
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		return s
	}
	s := run()
	addr, ok := s.Addr().(*net.TCPAddr)
	require.True(t, ok)
	o.Port = addr.Port
	back := make(chan struct{}, 10)
	q, err := eventqueue.Open(eventqueue.Options{
		URL: fmt.Sprint("nats://", addr), MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler), Back: func() { back <- struct{}{} },
	})
	require.NoError(t, err)
	defer q.Close()
	require.Eventually(t, q.Conn().IsConnected, patience, 10*time.Millisecond)
	require.Empty(t, back)
	s.Shutdown()
	s.WaitForShutdown()
	require.Eventually(t, func() bool { return !q.Conn().IsConnected() }, patience, 10*time.Millisecond)
	require.Empty(t, back)
	run()
	select {
	case <-back:
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
}
