package parking

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher notices clients that leave, with one epoll instance of its own: reading from each connection would take a goroutine each. It
// asks for nothing but the end, so what a client sends meanwhile wakes nobody and stays where it is.
type watcher struct {
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	last uint64
	gone map[uint64]func()
}

func newWatcher() (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), gone: map[uint64]func(){}}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch the epoll instance: %w", err)
	}
	go func() {
		defer close(w.done)
		_ = raw.Read(w.look) // until the file is closed
	}()
	return w, nil
}

// look tells those who have left, and goes on waiting.
func (w *watcher) look(fd uintptr) (done bool) {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(int(fd), events[:], 0)
		if n <= 0 && err != unix.EINTR {
			return false
		}
		for _, e := range events[:max(n, 0)] {
			w.tell(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32)
		}
	}
}

func (w *watcher) tell(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if gone := w.gone[id]; gone != nil {
		delete(w.gone, id)
		gone()
	}
}

// watch begins to watch a connection; its id is 0 if it can't be watched.
func (w *watcher) watch(c *net.TCPConn, gone func()) (id uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	w.mu.Lock()
	w.last++
	id = w.last
	w.gone[id] = gone
	w.mu.Unlock()
	failed := error(nil)
	err = raw.Control(func(fd uintptr) {
		failed = w.control(unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
			Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32)), //nolint:gosec // the halves of the id
		})
	})
	if err != nil || failed != nil {
		w.forget(nil, id)
		return 0
	}
	return id
}

// forget ends it: afterwards nobody is told.
func (w *watcher) forget(c *net.TCPConn, id uint64) {
	if id == 0 {
		return
	}
	if c != nil {
		if raw, err := c.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = w.control(unix.EPOLL_CTL_DEL, fd, nil) }) // that of a closed one is gone anyway
		}
	}
	w.mu.Lock()
	delete(w.gone, id)
	w.mu.Unlock()
}

func (w *watcher) control(op int, fd uintptr, e *unix.EpollEvent) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	failed := error(nil)
	err = raw.Control(func(epoll uintptr) { failed = unix.EpollCtl(int(epoll), op, int(fd), e) })
	if err != nil {
		return err
	}
	return failed
}

func (w *watcher) close() {
	_ = w.file.Close() // closing it twice is allowed
	<-w.done
}
