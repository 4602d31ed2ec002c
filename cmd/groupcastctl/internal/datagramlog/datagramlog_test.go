package datagramlog_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
)

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := datagramlog.Create(path)
	require.NoError(t, err)
	at := time.Unix(1_700_000_000, 123)
	log.Event(at, "joined", "groupIP", "127.1.2.230", "state", 1)
	log.Datagram(at.Add(time.Second), []byte("abc"), 131071, true)
	log.Datagram(at.Add(2*time.Second), nil, 0, false)
	require.NoError(t, log.Close())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	// The hashes are those of FIPS 180-4's examples, "abc" and nothing.
	assert.Equal(t, `# 1700000000000000123 joined groupIP=127.1.2.230 state=1
1700000001000000123 131071 3 ba7816bf8f01cfea
1700000002000000123 - 0 e3b0c44298fc1c14
`, string(got))
}

// Who follows the file sees a datagram soon, and never half a line of another.
func TestLogCanBeFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := datagramlog.Create(path)
	require.NoError(t, err)
	log.Datagram(time.Now(), []byte("abc"), 1, true)
	assert.Eventually(t, func() bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.HasSuffix(string(b), " 1 3 ba7816bf8f01cfea\n")
	}, time.Minute, 10*time.Millisecond)
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 500 {
				log.Datagram(time.Now(), []byte("abc"), 1, true)
				log.Event(time.Now(), "moved", "state", 1)
			}
		})
	}
	writers.Wait()
	require.NoError(t, log.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	assert.Len(t, lines, 1+4*500*2)
	for _, line := range lines {
		assert.Regexp(t, `^(\d+ 1 3 ba7816bf8f01cfea|# \d+ moved state=1)$`, line)
	}
}

func TestNoLog(t *testing.T) {
	log, err := datagramlog.Create("")
	require.NoError(t, err)
	log.Datagram(time.Now(), []byte("abc"), 1, true)
	log.Event(time.Now(), "left")
	assert.NoError(t, log.Close())
}

func TestFullDiskIsTold(t *testing.T) {
	log, err := datagramlog.Create("/dev/full")
	require.NoError(t, err)
	log.Datagram(time.Now(), []byte("abc"), 1, true)
	assert.ErrorContains(t, log.Close(), "not complete")
}
