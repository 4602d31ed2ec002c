package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/agent"
)

var soakSteps = flag.Int("soak.steps", 20, "how many members come, go, move, fall silent and speak again in a soak of the programs, for each backend")

// Where the programs of a randomised run and a soak show what they hold.
const (
	serverMetrics = "127.0.0.1:9090"
	agentMetrics  = "127.0.0.1:9091"
)

// soakLongSteps is how many it takes until memory tells something: in a short soak the collector hasn't seen a tenth yet.
const soakLongSteps = 1000

// spare is what may be more at the end than after a tenth: connections that wait to be used again come and go with what is asked at the same time, and take
// goroutines; connections to the database are files, of which there are so many at most; and an agent that was told that nothing changed has a file for that.
// The service's garbage may take as much as its ballast (docs/adr/0055), in kB.
var spare = map[string]map[string]int{
	"groupcastd":    {"goroutines": 8, "connections": 8, "descriptors": 8, "memory": 128 << 10},
	"gateway-agent": {"goroutines": 8, "connections": 8, "files": 1},
}

// soaked is what a program holds.
type soaked struct {
	memory int // resident, in kB, the least of a few looks
	alive  int // of it what the collector found alive the last time, in kB
	things map[string]int
}

// groupcastd and an agent do all that they do for a home, while members who have to consent come, go, move, fall silent and speak again, and the camera comes
// and goes; every packet on the uplink is judged as in a randomised run. At the end both hold what they held after a tenth.
func TestSoakOfThePrograms(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	for _, backend := range []string{"socket", "ebpf"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel() // it mostly waits
			r := newRandomised(t, backend, 1)
			r.asking()
			var cameras sync.WaitGroup
			stop := make(chan struct{})
			cameras.Go(func() { r.stream()(stop) })
			defer cameras.Wait()
			defer close(stop)
			r.cameraComesAgain() // what is opened once is open now
			var before map[string]soaked
			began := time.Now()
			for step := 1; step <= *soakSteps && !r.broken(); step++ {
				r.soak()
				if step%max(*soakSteps/20, 8) == 0 {
					r.cameraComesAgain()
				}
				if step == max(*soakSteps/10, 1) {
					before = r.holds(nil)
				}
				if *soakSteps >= soakLongSteps && step%(*soakSteps/10) == 0 {
					netlab.Progress("%s: %d steps, %v, %s", t.Name(), step, r.look(), time.Since(began).Round(time.Second))
				}
			}
			after := r.holds(before)
			for _, program := range slices.Sorted(maps.Keys(after)) {
				r.compare(program, before[program], after[program])
			}
			r.check()
		})
	}
}

// soak does one thing to a member.
func (r *randomised) soak() {
	r.t.Helper()
	m := r.members[r.random.IntN(len(r.members))]
	switch n := r.random.IntN(10); {
	case m.registration == "":
		r.comes(m)
	case m.program != nil && m.program.silent.Load():
		r.speaks(m)
	case n < 2 && m.program != nil:
		m.program.fallsSilent()
	case n < 4 && m.program != nil:
		r.movesPort(m)
	case n < 6:
		r.moves(m)
	default:
		r.goes(m, func() {})
	}
}

// cameraComesAgain ends the group with all its members, and begins it anew.
func (r *randomised) cameraComesAgain() {
	r.t.Helper()
	r.note("the camera comes again")
	_ = r.leave(r.t, r.cameraToken, r.camera)
	r.awaitStatus("the group is gone", func(s agent.Status) bool { return len(s.Groups) == 0 && s.KeptCursor == s.Cursor })
	for _, m := range r.members {
		if m.registration == "" {
			continue
		}
		r.watch.leaves(m.membership)
		m.registration = ""
		if m.program != nil {
			m.program.close()
			m.program = nil
		}
	}
	r.camera = r.postCamera(r.t)
	r.everybody()
}

// everybody has all members there and getting copies.
func (r *randomised) everybody() {
	r.t.Helper()
	for _, m := range r.members {
		if m.registration == "" {
			r.comes(m)
		}
		if m.program != nil && m.program.silent.Load() {
			r.speaks(m)
		}
	}
}

// holds gives what both programs hold with all members there, as soon as that is no more than before, or after a while.
func (r *randomised) holds(before map[string]soaked) map[string]soaked {
	r.t.Helper()
	r.everybody()
	var now map[string]soaked
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		now = r.look()
		more := false
		for program, b := range before {
			more = more || len(now[program].beyond(b, spare[program])) > 0
		}
		if !more || time.Now().After(end) {
			break
		}
	}
	for range 20 { // the collector's garbage comes and goes
		time.Sleep(50 * time.Millisecond)
		for program, again := range r.look() {
			least := now[program]
			least.memory = min(least.memory, again.memory)
			now[program] = least
		}
	}
	return now
}

// beyond names what it holds more of than before.
func (s soaked) beyond(before soaked, spare map[string]int) (more []string) {
	for thing, n := range s.things {
		if n > before.things[thing]+spare[thing] {
			more = append(more, fmt.Sprintf("%s: %d, before %d", thing, n, before.things[thing]))
		}
	}
	return more
}

func (r *randomised) compare(program string, before, after soaked) {
	r.t.Helper()
	for _, more := range after.beyond(before, spare[program]) {
		r.t.Errorf("%s holds more than after a tenth: %s", program, more)
	}
	ballast := spare[program]["memory"] // with it, only what is alive shows what grows
	grew := after.memory > before.memory+before.memory/20+ballast || ballast > 0 && after.alive > before.alive+before.alive/20
	if grew && *soakSteps >= soakLongSteps {
		r.t.Errorf("%s: %d kB at the end, of which %d are alive; %d and %d after a tenth", program, after.memory, after.alive, before.memory, before.alive)
	}
	r.t.Logf("%s: %d kB after a tenth (%d alive), %d kB at the end (%d alive), %v, then %v", program, before.memory, before.alive, after.memory, after.alive, before.things,
		after.things)
}

func (r *randomised) look() map[string]soaked {
	r.t.Helper()
	return map[string]soaked{
		"groupcastd":    r.lookAt(r.Server.PID(), serverMetrics, ""),
		"gateway-agent": r.lookAt(r.agent.PID(), agentMetrics, r.agent.StateDir()),
	}
}

func (r *randomised) lookAt(pid int, metrics, stateDir string) soaked {
	r.t.Helper()
	s := soaked{things: map[string]int{}}
	proc := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(proc + "status")
	require.NoError(r.t, err)
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			s.memory, _ = strconv.Atoi(strings.Fields(text)[0])
		}
	}
	connections := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		for _, fields := range table(r.t, proc+"net/"+file) {
			connections["socket:["+fields[9]+"]"] = true
		}
	}
	fds, err := os.ReadDir(proc + "fd")
	require.NoError(r.t, err)
	for _, fd := range fds {
		kind := "descriptors"
		if to, err := os.Readlink(proc + "fd/" + fd.Name()); err != nil {
			continue // closed since
		} else if connections[to] {
			kind = "connections"
		}
		s.things[kind]++
	}
	answer, err := r.HTTP.Get("http://" + metrics + "/metrics")
	require.NoError(r.t, err)
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.ParseFloat(text, 64)
		switch name {
		case "go_goroutines":
			s.things["goroutines"] = int(n)
		case "go_memstats_next_gc_bytes": // with GOGC=100
			s.alive = int(n) / 2 >> 10
		}
	}
	require.NotZero(r.t, s.alive)
	require.NotZero(r.t, s.things["goroutines"])
	if stateDir == "" {
		return s
	}
	for _, file := range []string{"udp", "udp6"} {
		s.things["ports"] += len(table(r.t, proc+"net/"+file))
	}
	files, err := filepath.Glob(filepath.Join(stateDir, "*"))
	require.NoError(r.t, err)
	s.things["files"] = len(files)
	ports, err := os.ReadFile(filepath.Join(stateDir, "ports.json"))
	require.NoError(r.t, err)
	s.things["kept ports"] = strings.Count(string(ports), ":")
	return s
}

// table gives the fields of a table of the kernel, without its heading.
func table(t *testing.T, file string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		rows = append(rows, strings.Fields(line))
	}
	return rows[1:]
}
