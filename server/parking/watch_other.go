//go:build !linux

package parking

import (
	"errors"
	"net"
)

// watcher needs epoll. Elsewhere, which is on developers' machines, connections stay with net/http.
type watcher struct{}

func newWatcher() (*watcher, error)                { return nil, errors.ErrUnsupported }
func (*watcher) watch(*net.TCPConn, func()) uint64 { return 0 }
func (*watcher) forget(*net.TCPConn, uint64)       {}
func (*watcher) close()                            {}
