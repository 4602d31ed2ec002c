package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/groupcast/groupcast/server/parking"
	"github.com/groupcast/groupcast/server/stunport"
)

// SocketName is the operator's socket in the data directory.
const SocketName = "admin.sock"

// maxHeader is the largest request header that is read, in bytes. net/http adds 4 KiB by itself.
const maxHeader = 16<<10 - 4<<10

// maxSocketPath is what fits into sockaddr_un on Linux.
const maxSocketPath = 107

// listening is a listener with the server that serves it.
type listening struct {
	net.Listener
	tls    *tls.Config
	server *http.Server
	// parking has the connections of polls that wait; nil where nobody does.
	parking *parking.Lot
}

// readCertificate reads the certificate that all listeners show.
func (d *Daemon) readCertificate() (err error) {
	if d.cfg.TLSCert != "" {
		d.public.tls, err = newCertificate(d.cfg.TLSCert, d.cfg.TLSKey, d.log)
	}
	return err
}

// listen opens all listeners before anything is served, so that a start either has them all or fails.
func (d *Daemon) listen(ctx context.Context) (err error) {
	var lc net.ListenConfig
	if d.public.Listener, err = lc.Listen(ctx, "tcp", d.cfg.Listen); err != nil {
		return unusable("listen", err)
	}
	if d.public.parking, err = parking.New(d.public.Addr()); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("prepare for waiting polls: %w", err)
	}
	if d.cfg.MQTTListen != "" {
		if d.mqttListener, err = lc.Listen(ctx, "tcp", d.cfg.MQTTListen); err != nil {
			return unusable("mqtt-listen", err)
		}
	}
	if d.cfg.STUNListen != "" {
		if d.stun, err = stunport.Listen(ctx, d.cfg.STUNListen); err != nil {
			return unusable("stun-listen", err)
		}
	}
	if d.cfg.MetricsListen != "" {
		if d.metrics.Listener, err = lc.Listen(ctx, "tcp", d.cfg.MetricsListen); err != nil {
			return unusable("metrics-listen", err)
		}
	}
	if d.admin.Listener, err = listenAdmin(ctx, filepath.Join(d.cfg.DataDir, SocketName)); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	return nil
}

// unusable says what to do about the address of a key at which nobody can listen.
func unusable(key string, err error) error {
	todo := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		todo = ": another program listens there; stop it, or give another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		todo = ": this host doesn't have the address; give one that it has"
	case errors.Is(err, syscall.EACCES):
		todo = ": a port below 1024 takes the capability CAP_NET_BIND_SERVICE; grant it, or give a higher port"
	}
	return fmt.Errorf("%s: %w%s", key, err, todo)
}

// listenAdmin opens the operator's socket for its owner only. One that a killed process left behind is replaced; one that somebody
// answers on is not.
func listenAdmin(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path of the socket %s is longer than %d bytes: use a directory with a shorter path", path, maxSocketPath)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return nil, fmt.Errorf("another groupcastd answers on %s: stop it, or use another data-dir", path)
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, syscall.ECONNREFUSED) && isSocket(path):
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket that a former process left: %w", err)
		}
	default:
		return nil, fmt.Errorf("%s is in the way: %w", path, err)
	}
	// The mode has to be right from the first moment. Nothing else creates files while a service starts.
	before := syscall.Umask(0o177)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// isSocket tells whether a path is a socket itself: connecting to a plain file is refused just like to a dead socket.
func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

// httpServer has no WriteTimeout, which would end long polls: the edge sets a deadline for each answer.
func (d *Daemon) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		// What clients do wrong below HTTP is nothing an operator has to act on.
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
}

// serve answers until shutdown; failed is told if it ends before.
func (l *listening) serve(s *http.Server, failed chan<- error) {
	l.server = s
	if l.tls != nil {
		s.TLSConfig = l.tls
	}
	if l.parking != nil {
		// They come with their TLS done.
		go func() { _ = s.Serve(l.parking.Listener()) }() // it ends with the server only
	}
	go func() {
		var err error
		if l.tls != nil {
			err = s.ServeTLS(l.Listener, "", "")
		} else {
			err = s.Serve(plainListener{l.Listener})
		}
		if !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("the listener on %s failed: %w", l.Addr(), err)
		}
	}()
}

// shutdown finishes the requests that are being answered.
func (l *listening) shutdown(ctx context.Context) error {
	if l.server == nil {
		return nil
	}
	if err := l.server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("finish the requests on %s: %w", l.Addr(), err), l.server.Close())
	}
	return nil
}
