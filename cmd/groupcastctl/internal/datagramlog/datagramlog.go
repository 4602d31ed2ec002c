// Package datagramlog writes down every datagram that a camera sent or a receiver got, so that the two can be compared. It
// writes text, one line each, and never an address:
//
//	TIME SEQUENCE SIZE HASH       a datagram
//	# TIME EVENT key=value …      something that happened to the member, for example "joined" or "left"
//
// TIME is the system's clock in nanoseconds since 1970. SEQUENCE is the RTP sequence number extended to 64 bits, or "-". SIZE
// is the length of the UDP payload in bytes and HASH the first eight bytes of its SHA-256 in hexadecimal.
package datagramlog

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// flushInterval is how late a line may come into the file, for those who read it while it grows.
const flushInterval = 100 * time.Millisecond

// Log is open for writing. It is safe for concurrent use. A nil Log takes everything and keeps nothing.
type Log struct {
	mu     sync.Mutex
	file   *os.File
	buffer *bufio.Writer
	line   []byte
	err    error

	closing chan struct{}
	flushed chan struct{}
}

// Create opens the file, anew if it exists, or gives a nil Log if there is no path.
func Create(path string) (*Log, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // a nil Log is one that keeps nothing
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("open the datagram log: %w", err)
	}
	l := &Log{file: file, buffer: bufio.NewWriterSize(file, 1<<16), closing: make(chan struct{}), flushed: make(chan struct{})}
	go l.flush()
	return l, nil
}

// Datagram writes down a datagram. Its sequence number is that of rtp.Reception.
func (l *Log) Datagram(at time.Time, datagram []byte, sequence uint64, isRTP bool) {
	if l == nil {
		return
	}
	sum := sha256.Sum256(datagram)
	l.mu.Lock()
	defer l.mu.Unlock()
	b := strconv.AppendInt(l.line[:0], at.UnixNano(), 10)
	b = append(b, ' ')
	if isRTP {
		b = strconv.AppendUint(b, sequence, 10)
	} else {
		b = append(b, '-')
	}
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(datagram)), 10)
	b = append(b, ' ')
	b = hex.AppendEncode(b, sum[:8])
	l.write(append(b, '\n'))
}

// Event writes down what happened, with keys and their values in turn.
func (l *Log) Event(at time.Time, event string, keysAndValues ...any) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := fmt.Appendf(l.line[:0], "# %d %s", at.UnixNano(), event)
	for i := 0; i+1 < len(keysAndValues); i += 2 {
		b = fmt.Appendf(b, " %v=%v", keysAndValues[i], keysAndValues[i+1])
	}
	l.write(append(b, '\n'))
}

// Note writes down what happens now.
func (l *Log) Note(event string, keysAndValues ...any) { l.Event(time.Now(), event, keysAndValues...) }

func (l *Log) write(line []byte) {
	l.line = line
	if _, err := l.buffer.Write(line); err != nil && l.err == nil {
		l.err = err
	}
}

func (l *Log) flush() {
	defer close(l.flushed)
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.closing:
			return
		case <-tick.C:
			l.mu.Lock()
			if err := l.buffer.Flush(); err != nil && l.err == nil {
				l.err = err
			}
			l.mu.Unlock()
		}
	}
}

// Close writes what is left. It tells the first error of any write.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	close(l.closing)
	<-l.flushed
	err := errors.Join(l.err, l.buffer.Flush(), l.file.Close())
	if err != nil {
		return fmt.Errorf("the datagram log is not complete: %w", err)
	}
	return nil
}
