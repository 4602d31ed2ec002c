package figures

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// processorTime is what a process has used so far, with its children that have ended, and who its parent is. A process that is gone has used nothing.
func processorTime(pid string) (used time.Duration, parent string) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, ""
	}
	// The name, which may hold anything, ends with the last parenthesis; what follows is counted from the third field (proc(5)).
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	for _, n := range f[11:15] { // utime, stime, cutime, cstime
		ticks, _ := strconv.ParseInt(n, 10, 64)
		used += time.Duration(ticks) * tick
	}
	return used, f[1]
}

// used is the processor time of a program so far.
func (p *program) used() time.Duration {
	own, _ := processorTime(strconv.Itoa(p.cmd.Process.Pid))
	return own
}

// postgres knows the processes of a cluster.
type postgres struct{ postmaster string }

func postgresOf(t testing.TB, databaseURL string) postgres {
	t.Helper()
	var dir string
	require.NoError(t, queryRow(databaseURL, "SELECT setting FROM pg_settings WHERE name = 'data_directory'", &dir))
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	require.NoError(t, err)
	postmaster, _, _ := strings.Cut(string(text), "\n")
	return postgres{postmaster}
}

// used is the processor time of all processes of the cluster so far.
func (p postgres) used() time.Duration {
	sum, _ := processorTime(p.postmaster)
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		if own, parent := processorTime(filepath.Base(dir)); parent == p.postmaster {
			sum += own
		}
	}
	return sum
}

// cost is the processor time of requests.
type cost struct{ server, database []float64 } // in microseconds for each request

// measured notes what f, which makes n requests, costs the server and its database.
func (c *cost) measured(p *program, db postgres, n int, f func()) {
	server, database := p.used(), db.used()
	f()
	c.server = append(c.server, float64((p.used()-server).Microseconds())/float64(n))
	c.database = append(c.database, float64((db.used()-database).Microseconds())/float64(n))
}

func (c *cost) String() string {
	return fmt.Sprintf("server %.0f µs, Postgres %.0f µs", median(c.server), median(c.database))
}
