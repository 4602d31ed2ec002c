// Package parking keeps connections on which a client waits for an answer, without what net/http spends on each: its buffers, the
// request, and the goroutines with the stacks that their work once needed (docs/adr/0036).
//
// It knows nothing of what is waited for. It notices a client that leaves, writes the answer, and gives the connection back to the
// server for the next request.
package parking

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Lot holds the parked connections of one server. It is safe for concurrent use.
type Lot struct {
	watcher *watcher
	resumed chan net.Conn
	closed  chan struct{}
	close   sync.Once

	mu     sync.Mutex
	parked int
	addr   net.Addr
	idle   chan struct{} // closed when closing and nothing is parked
}

// New makes a lot. The server has to serve its listener as well, and the lot has to be closed.
func New(addr net.Addr) (*Lot, error) {
	w, err := newWatcher()
	if err != nil {
		return nil, err
	}
	return &Lot{watcher: w, resumed: make(chan net.Conn), closed: make(chan struct{}), addr: addr, idle: make(chan struct{})}, nil
}

// Conn is one parked connection. It belongs to its owner alone until Answer or Close.
type Conn struct {
	lot  *Lot
	conn net.Conn
	tcp  *net.TCPConn
	id   uint64
	keep bool
}

// Park takes a connection away from net/http. gone is called, at most once and before Answer or Close return, when the client leaves; it
// must not block. It gives nil, and nothing has happened, if the request's connection can't be taken: HTTP/2 and HTTP/1.0 are not
// parked, nor is a request with a body.
func (l *Lot) Park(w http.ResponseWriter, r *http.Request, gone func()) *Conn {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.ContentLength != 0 || !l.enter() {
		return nil
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		l.leave()
		return nil
	}
	// What a client sends before it has its answer is lost with the buffer, so it has to send that again, elsewhere.
	c := &Conn{lot: l, conn: conn, keep: !r.Close && empty(buffered)}
	if c.tcp = tcpOf(conn); c.tcp != nil {
		c.id = l.watcher.watch(c.tcp, gone)
	}
	return c
}

func empty(b *bufio.ReadWriter) bool { return b.Reader.Buffered() == 0 }

// tcpOf finds the connection that the system knows; nil if there is none.
func tcpOf(c net.Conn) *net.TCPConn {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	switch t := c.(type) {
	case *net.TCPConn:
		return t
	case interface{ TCP() *net.TCPConn }:
		return t.TCP()
	}
	return nil
}

// Keeps tells whether the connection is good for a further request.
func (c *Conn) Keeps() bool { return c.keep && !c.lot.closing() }

// Answer writes an answer within a time, and gives the connection back to the server if keep; else it is closed. pause, if it isn't nil, is
// called before the connection goes back.
func (c *Conn) Answer(answer []byte, within time.Duration, keep bool, pause func()) error {
	defer c.lot.leave()
	c.lot.watcher.forget(c.tcp, c.id)
	_ = c.conn.SetWriteDeadline(time.Now().Add(within)) // the writing tells if the connection is gone
	if _, err := c.conn.Write(answer); err != nil || !keep || c.lot.closing() {
		return errors.Join(err, c.conn.Close())
	}
	_ = c.conn.SetDeadline(time.Time{})
	if pause != nil {
		pause()
	}
	select {
	case c.lot.resumed <- c.conn:
		return nil
	case <-c.lot.closed:
		return c.conn.Close()
	}
}

// Close ends the connection without an answer.
func (c *Conn) Close() error {
	defer c.lot.leave()
	c.lot.watcher.forget(c.tcp, c.id)
	return c.conn.Close()
}

func (l *Lot) closing() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// enter counts one more, unless the lot is closed.
func (l *Lot) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing() {
		return false
	}
	l.parked++
	return true
}

func (l *Lot) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked--
	if l.parked == 0 && l.closing() {
		close(l.idle)
	}
}

// Close takes no further connections and waits until those that are parked were answered; done ends the waiting. It doesn't answer
// them: their owners do. A lot that is nil is closed.
func (l *Lot) Close(done <-chan struct{}) {
	if l == nil {
		return
	}
	l.close.Do(func() {
		l.mu.Lock()
		close(l.closed)
		if l.parked == 0 {
			close(l.idle)
		}
		l.mu.Unlock()
	})
	select {
	case <-l.idle:
	case <-done:
	}
	l.watcher.close()
}

// Listener gives the server the connections that were answered. Closing it leaves the lot as it is.
func (l *Lot) Listener() net.Listener { return &listener{lot: l, ended: make(chan struct{})} }

type listener struct {
	lot   *Lot
	ended chan struct{}
	once  sync.Once
}

// Accept waits for a connection that was answered.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.lot.resumed:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

// Addr is that of the server.
func (l *listener) Addr() net.Addr { return l.lot.addr }
