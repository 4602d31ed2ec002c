package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/models"
)

const (
	snapshotFile  = "snapshot.json"
	confirmedFile = "confirmed.json"
	lockFile      = "lock"
	format        = 1
	// confirmEvery bounds how often a confirmation is written: it wears flash, and a few seconds don't matter.
	confirmEvery = 5 * time.Second
)

// Snapshot is the last group information and how old it is.
type Snapshot struct {
	Cursor string
	// Information is the document as Save got it.
	Information json.RawMessage
	// Age is how long ago the server last stood by it. It is at least the true age unless the host was off in between and its
	// clock was set back; a clock that shows an earlier time than the file makes it Unknown.
	Age time.Duration
}

// Unknown is the age of a snapshot whose time makes no sense.
const Unknown = time.Duration(1<<63 - 1)

// ErrNone is returned by Load if nothing was kept.
var ErrNone = errors.New("no group information is kept here")

// Store is the directory of one running agent.
type Store struct {
	dir     string
	gateway models.ID
	lock    *os.File
	clock   clock

	mu        sync.Mutex
	saved     string // cursor in snapshotFile
	confirmed moment // newest one known
	written   moment // newest one on disk
}

// document is snapshotFile.
type document struct {
	Format    int             `json:"format"`
	GatewayID models.ID       `json:"gatewayId"`
	Server    string          `json:"server"`
	Cursor    string          `json:"cursor"`
	Confirmed moment          `json:"confirmed"`
	SHA256    string          `json:"sha256"` // of information: a flipped bit could be an address
	Content   json.RawMessage `json:"information"`
}

// confirmation is confirmedFile.
type confirmation struct {
	Cursor    string `json:"cursor"`
	Confirmed moment `json:"confirmed"`
}

// Open takes the directory, which it makes if there is none. It fails if another agent runs there.
func Open(dir string, gateway models.ID) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state-dir: %w: give a directory that the agent can write", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("state-dir: everybody can write to %s, and so decide who gets copies: give a directory of the agent's own", dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w: give a directory that the agent can write", err)
	}
	// The kernel lets go of the lock when the process ends, however it ends.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state-dir: lock %s: %w", lock.Name(), err)
		}
		pid, _ := os.ReadFile(lock.Name())
		return nil, fmt.Errorf("state-dir: another gateway-agent (process %s) runs in %s: stop it, or give this one a directory of its own",
			strings.TrimSpace(string(pid)), dir)
	}
	if err := errors.Join(lock.Truncate(0), write(lock, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	return &Store{dir: dir, gateway: gateway, lock: lock, clock: systemClock()}, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// Close writes the last confirmation and leaves the directory to others.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.writeConfirmed(), s.lock.Close())
}

// Path is where a further file of this agent belongs.
func (s *Store) Path(name string) string { return filepath.Join(s.dir, name) }

// Load reads what the last agent kept. Anything that is not exactly what an agent for this gateway and server wrote is an error, as
// is nothing at all (ErrNone).
func (s *Store) Load(server string) (Snapshot, error) {
	b, err := os.ReadFile(s.Path(snapshotFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, ErrNone
	}
	if err != nil {
		return Snapshot{}, err
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return Snapshot{}, fmt.Errorf("%s is damaged: it is not JSON", s.Path(snapshotFile))
	}
	switch {
	case d.Format != format:
		return Snapshot{}, fmt.Errorf("%s has format %d, this agent writes %d", s.Path(snapshotFile), d.Format, format)
	case d.GatewayID != s.gateway:
		return Snapshot{}, fmt.Errorf("%s belongs to gateway %s, this is %s", s.Path(snapshotFile), d.GatewayID, s.gateway)
	case d.Server != server:
		return Snapshot{}, fmt.Errorf("%s comes from another server than the one configured", s.Path(snapshotFile))
	case d.SHA256 != digest(d.Content):
		return Snapshot{}, fmt.Errorf("%s is damaged: its content doesn't match its checksum", s.Path(snapshotFile))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved, s.confirmed, s.written = d.Cursor, d.Confirmed, d.Confirmed
	// A confirmation that is missing or damaged only makes the snapshot older.
	var c confirmation
	if b, err := os.ReadFile(s.Path(confirmedFile)); err == nil && json.Unmarshal(b, &c) == nil && c.Cursor == d.Cursor {
		s.confirmed, s.written = c.Confirmed, c.Confirmed
	}
	return Snapshot{Cursor: d.Cursor, Information: d.Content, Age: s.clock.since(s.confirmed)}, nil
}

// Save keeps the group information of which the server says now that it holds: when Save returns, whoever starts after this process was killed finds
// it. What was kept before is gone, also if Save fails: an older one could bring back destinations that left.
func (s *Store) Save(server, cursor string, information json.RawMessage) error {
	var compact bytes.Buffer // what the encoder will write, which the checksum is of
	if err := json.Compact(&compact, information); err != nil {
		return fmt.Errorf("keep the group information: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.now()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // or it would change the content
	err := encoder.Encode(document{format, s.gateway, server, cursor, now, digest(compact.Bytes()), compact.Bytes()})
	if err != nil {
		return fmt.Errorf("keep the group information: %w", err)
	}
	if err := replace(s.Path(snapshotFile), b.Bytes()); err != nil {
		return fmt.Errorf("keep the group information: %w: make room in state-dir", errors.Join(err, s.forget()))
	}
	s.saved, s.confirmed, s.written = cursor, now, now
	return nil
}

func (s *Store) forget() error {
	s.saved = ""
	if err := os.Remove(s.Path(snapshotFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Flush waits for the disk: when it returns, what Save kept survives a power cut too. After one in between, the older group information may be there,
// or a damaged file that Load refuses.
func (s *Store) Flush() error {
	for _, path := range []string{s.Path(snapshotFile), s.dir} { // the content, then its name
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("keep the group information: %w", err)
		}
	}
	return nil
}

// Confirm notes that the server stands by the snapshot with this cursor. It writes at most every few seconds, and doesn't wait for
// the disk: a power cut may make the snapshot seem older than it is, which is the safe side.
func (s *Store) Confirm(cursor string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cursor != s.saved {
		return nil // what was not kept can't be confirmed
	}
	s.confirmed = s.clock.now()
	if s.clock.since(s.written) < confirmEvery {
		return nil
	}
	return s.writeConfirmed()
}

func (s *Store) writeConfirmed() error {
	if s.confirmed == s.written {
		return nil
	}
	b, err := json.Marshal(confirmation{s.saved, s.confirmed})
	if err == nil {
		err = replace(s.Path(confirmedFile), b)
	}
	if err != nil {
		return fmt.Errorf("note that the server was heard from: %w", err)
	}
	s.written = s.confirmed
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// replace puts a file in the place of another, so that a reader finds the old content or the new one.
func replace(path string, content []byte) error {
	// One name is enough: the lock keeps others away, and what a crash leaves behind is written over.
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
