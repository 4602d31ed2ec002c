package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// homePrefix begins the name of every cluster's folder. It is in one of two places whatever TMPDIR says, because the
// path of a Unix socket holds 107 bytes.
const (
	homePrefix = "gcpg-"
	diskPlace  = "/tmp"
	// memoryPlace is where a cluster without fsync lives if it can: initdb makes a thousand small files, which
	// takes up to three times as long on a disk.
	memoryPlace = "/dev/shm"
	// memoryNeeded is what must be free in memoryPlace, in bytes; a cluster takes some 30 MB and each database 8.
	memoryNeeded = 1 << 30
)

// staleAfter is how old a folder must be before another process may take it for abandoned. Its owner locks it in
// the first milliseconds.
const staleAfter = time.Minute

// watchdogScript waits for the end of its standard input, which is a pipe that only the owner writes to: the end
// comes when the owner closes it or is gone. The postmaster's working folder is its data folder, which proves that
// the number in postmaster.pid is still that postmaster and no newer process.
const watchdogScript = `
trap '' HUP INT QUIT TERM
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) &&
	[ "$(readlink "/proc/$pid/cwd")" = "$1/data" ] && kill -QUIT "$pid" &&
	n=0 && while [ -e "/proc/$pid/cwd" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
rm -rf -- "$1"
`

// watchdog is the child that clears up after a process that could not.
type watchdog struct {
	cmd  *exec.Cmd
	pipe *os.File
}

func startWatchdog(home string) (*watchdog, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "pgtest-watchdog", home)
	cmd.Dir = "/"
	cmd.Stdin = r
	// A session of its own: Ctrl-C reaches the test, not the watchdog. Output to nowhere: `go test` waits for
	// whoever still holds the test's output.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, pipe: w}, nil
}

// release ends the watchdog, which stops what still runs and removes the folder.
func (w *watchdog) release() error {
	return errors.Join(w.pipe.Close(), w.cmd.Wait())
}

// place is the folder for a cluster's folder.
func place(durable bool) string {
	var fs unix.Statfs_t
	if durable || unix.Statfs(memoryPlace, &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		return diskPlace
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < memoryNeeded || unix.Access(memoryPlace, unix.W_OK) != nil {
		return diskPlace
	}
	return memoryPlace
}

// newHome makes a cluster's folder. The lock on it lasts as long as this process.
func newHome(durable bool) (home string, lock *os.File, err error) {
	home, err = os.MkdirTemp(place(durable), homePrefix)
	if err != nil {
		return "", nil, fmt.Errorf("folder for Postgres: %w", err)
	}
	lock, err = os.OpenFile(filepath.Join(home, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Chmod(home, 0o711) // Postgres' own user passes through
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("folder for Postgres: %w", err), os.RemoveAll(home))
	}
	return home, lock, nil
}

// removeAbandoned clears away clusters of this user whose owner is gone without leaving a watchdog behind. What
// cannot be removed now is tried again next time.
func removeAbandoned() {
	onDisk, _ := filepath.Glob(filepath.Join(diskPlace, homePrefix+"*"))
	inMemory, _ := filepath.Glob(filepath.Join(memoryPlace, homePrefix+"*"))
	for _, home := range append(onDisk, inMemory...) {
		info, err := os.Lstat(home)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < staleAfter {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(home, "lock"), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(home) // its owner died before the first milliseconds were over
			continue
		}
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			data := filepath.Join(home, "data")
			if pid, ok := postmasterOf(data); ok {
				_ = syscall.Kill(pid, syscall.SIGQUIT)
			}
			removeSharedMemory(data)
			_ = os.RemoveAll(home)
		}
		lock.Close()
	}
}

// postmasterOf is the process that serves a data folder, if it runs.
func postmasterOf(data string) (pid int, ok bool) {
	lines := pidFile(data)
	if len(lines) == 0 {
		return 0, false
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil || pid <= 1 {
		return 0, false
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return pid, err == nil && cwd == data
}

// removeSharedMemory frees the few bytes of System V shared memory that a killed postmaster leaves behind. The
// kernel frees them only when the last process has detached.
func removeSharedMemory(data string) {
	const shmemLine = 6 // "key id", after pid, data folder, start time, port, socket folder, address
	lines := pidFile(data)
	if len(lines) <= shmemLine {
		return
	}
	if fields := strings.Fields(lines[shmemLine]); len(fields) == 2 {
		if id, err := strconv.Atoi(fields[1]); err == nil {
			_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
	}
}

func pidFile(data string) []string {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) []int {
	var children []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		child, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if _, parent := processState(child); parent == strconv.Itoa(pid) {
			children = append(children, child)
		}
	}
	return children
}

// running says whether a process is there and no zombie.
func running(pid int) bool {
	state, _ := processState(pid)
	return state != "" && state != "Z" && state != "X"
}

// processState reads the state letter and the parent of a process, both empty if there is none.
func processState(pid int) (state, parent string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	// "pid (name) state parent …", and the name may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return "", ""
	}
	return fields[0], fields[1]
}
