package parking_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/server/parking"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lot is a server that parks every request for /wait, and says so.
type lot struct {
	*parking.Lot
	server *httptest.Server
	parked chan *parking.Conn // nil for one that could not be parked
	gone   chan struct{}
	served atomic.Int64 // requests, on whichever connection
}

func newLot(t *testing.T, secure bool) *lot {
	t.Helper()
	l := &lot{parked: make(chan *parking.Conn, 16), gone: make(chan struct{}, 16)}
	l.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.served.Add(1)
		if r.URL.Path == "/wait" {
			c := l.Park(w, r, func() { l.gone <- struct{}{} })
			l.parked <- c
			if c != nil {
				return
			}
		}
		fmt.Fprintf(w, "plain, TLS %t", r.TLS != nil)
	}))
	l.server.EnableHTTP2 = true
	var err error
	l.Lot, err = parking.New(l.server.Listener.Addr())
	require.NoError(t, err)
	if secure {
		l.server.StartTLS()
	} else {
		l.server.Start()
	}
	resumed := l.Listener()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.server.Config.Serve(resumed)
	}()
	t.Cleanup(func() {
		none := make(chan struct{})
		close(none)
		l.Close(none)
		_ = resumed.Close()
		<-ended
		l.server.Close()
	})
	return l
}

func (l *lot) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	var c net.Conn
	c, err := net.Dial("tcp", l.server.Listener.Addr().String())
	require.NoError(t, err)
	if l.server.TLS != nil {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	t.Cleanup(func() { _ = c.Close() })
	return c, bufio.NewReader(c)
}

const (
	wait   = "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
	plain  = "GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"
	answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
)

func body(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	a, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	require.NoError(t, err)
	return string(text)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
}

// One connection waits and is served in turns.
func TestAConnectionGoesOnAfterItsAnswer(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			l := newLot(t, secure)
			c, r := l.dial(t)
			for range 3 {
				send(t, c, wait)
				p := <-l.parked
				require.NotNil(t, p)
				require.True(t, p.Keeps())
				require.NoError(t, p.Answer([]byte(answer), time.Second, true, nil))
				assert.Equal(t, "ok", body(t, r))
				send(t, c, plain)
				assert.Equal(t, fmt.Sprintf("plain, TLS %t", secure), body(t, r))
			}
			assert.EqualValues(t, 6, l.served.Load())
			assert.Empty(t, l.gone)
		})
	}
}

func TestAnAnswerMayEndTheConnection(t *testing.T) {
	l := newLot(t, false)
	c, r := l.dial(t)
	send(t, c, wait)
	require.NoError(t, (<-l.parked).Answer([]byte(answer), time.Second, false, nil))
	assert.Equal(t, "ok", body(t, r))
	_, err := r.ReadByte()
	assert.ErrorIs(t, err, io.EOF)
}

// However a client leaves, it is noticed; what it only sends is not taken for that.
func TestAClientThatLeavesIsNoticed(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, c *net.TCPConn){
		"closed":    func(t *testing.T, c *net.TCPConn) { require.NoError(t, c.Close()) },
		"reset":     func(t *testing.T, c *net.TCPConn) { require.NoError(t, c.SetLinger(0)); require.NoError(t, c.Close()) },
		"half":      func(t *testing.T, c *net.TCPConn) { require.NoError(t, c.CloseWrite()) },
		"with data": func(t *testing.T, c *net.TCPConn) { send(t, c, plain); require.NoError(t, c.Close()) },
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %t", name, secure), func(t *testing.T) {
				l := newLot(t, secure)
				c, _ := l.dial(t)
				send(t, c, wait)
				p := <-l.parked
				tcp, ok := c.(*net.TCPConn)
				if s, is := c.(*tls.Conn); is {
					tcp, ok = s.NetConn().(*net.TCPConn)
				}
				require.True(t, ok)
				leave(t, tcp)
				select {
				case <-l.gone:
				case <-time.After(time.Minute):
					t.Fatal("nobody noticed")
				}
				_ = p.Close() // TLS can't say goodbye any more
			})
		}
	}
}

// What a client sends before it has its answer stays where it is, and is served afterwards.
func TestWhatComesEarlyIsServedLater(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) {
			l := newLot(t, secure)
			c, r := l.dial(t)
			send(t, c, wait)
			p := <-l.parked
			send(t, c, plain)
			time.Sleep(20 * time.Millisecond) // it arrives; where it doesn't, the test shows less but is right
			assert.Empty(t, l.gone)
			require.NoError(t, p.Answer([]byte(answer), time.Second, true, nil))
			assert.Equal(t, "ok", body(t, r))
			assert.Equal(t, fmt.Sprintf("plain, TLS %t", secure), body(t, r))
		})
	}
}

// What came together with the request is in a buffer of net/http, which is given up.
func TestWhatCameWithTheRequestEndsTheConnection(t *testing.T) {
	l := newLot(t, false)
	c, _ := l.dial(t)
	send(t, c, wait+plain)
	p := <-l.parked
	assert.False(t, p.Keeps())
	require.NoError(t, p.Close())
}

func TestWhatIsNotParked(t *testing.T) {
	for name, request := range map[string]string{
		"HTTP/1.0":    "GET /wait HTTP/1.0\r\n\r\n",
		"with a body": "GET /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
		"chunked":     "GET /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLot(t, false)
			c, r := l.dial(t)
			send(t, c, request)
			assert.Nil(t, <-l.parked)
			assert.Equal(t, "plain, TLS false", body(t, r))
		})
	}
	t.Run("HTTP/2", func(t *testing.T) {
		l := newLot(t, true)
		a, err := l.server.Client().Get(l.server.URL + "/wait")
		require.NoError(t, err)
		defer a.Body.Close()
		assert.Equal(t, 2, a.ProtoMajor)
		assert.Nil(t, <-l.parked)
		text, err := io.ReadAll(a.Body)
		require.NoError(t, err)
		assert.Equal(t, "plain, TLS true", string(text))
		l.server.Client().CloseIdleConnections()
	})
}

func TestCloseWaitsForTheAnswers(t *testing.T) {
	l := newLot(t, false)
	c, r := l.dial(t)
	send(t, c, wait)
	p := <-l.parked
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		l.Close(t.Context().Done())
	}()
	require.Eventually(t, func() bool { return !p.Keeps() }, time.Minute, time.Millisecond)
	select {
	case <-closed:
		t.Fatal("it didn't wait")
	default:
	}
	other, from := l.dial(t)
	send(t, other, wait)
	assert.Nil(t, <-l.parked, "a lot that closes takes nobody")
	assert.Equal(t, "plain, TLS false", body(t, from))
	require.NoError(t, p.Answer([]byte(answer), time.Second, true, nil))
	assert.Equal(t, "ok", body(t, r))
	<-closed
	_, err := r.ReadByte()
	assert.ErrorIs(t, err, io.EOF, "nobody would serve it any more")
}
