package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

const (
	// startTimeout is far above what a start takes (half a second), for a box that is busy with other things.
	startTimeout = time.Minute
	// stopTimeout is when an orderly stop gives way to a kill.
	stopTimeout = time.Minute

	superuser = "postgres"
	// appUser owns the tests' databases and is no superuser, as in production.
	appUser = "groupcast"
)

// Options say how a cluster differs from one made for quick tests.
type Options struct {
	// Fsync makes commits durable, keeps the files on disk, and leaves Postgres' own defaults for write-ahead log,
	// vacuum and memory: for benchmarks.
	Fsync bool
	// Settings are further settings of postgresql.conf, such as "max_connections": "10" or
	// "log_statement": "all". They win over everything else.
	Settings map[string]string
}

// settings are what Postgres is started with, as name=value.
func (o Options) settings(socketDir string) []string {
	s := map[string]string{
		"listen_addresses":           "",
		"unix_socket_directories":    socketDir,
		"port":                       "5432",
		"max_connections":            "300",
		"jit":                        "off",
		"timezone":                   "UTC",
		"log_timezone":               "UTC",
		"dynamic_shared_memory_type": "mmap", // in the data folder: a kill leaves nothing in /dev/shm
		"max_wal_senders":            "0",
		"wal_level":                  "minimal",
		"log_checkpoints":            "off",
	}
	if !o.Fsync {
		// Commits still wait until the kernel has the log (synchronous_commit stays on), so Kill loses none.
		s["fsync"] = "off"
		s["full_page_writes"] = "off"
		s["shared_buffers"] = "16MB"
		s["wal_buffers"] = "256kB"
		s["max_wal_size"] = "64MB"
		s["autovacuum"] = "off"
		s["max_parallel_workers_per_gather"] = "0"
		s["bgwriter_delay"] = "10s"
	}
	maps.Copy(s, o.Settings)
	list := make([]string, 0, len(s))
	for name, value := range s {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// Cluster is one running Postgres with its files. Its methods may be used by several goroutines.
type Cluster struct {
	bin  string
	home string // holds data/, socket/, log and lock
	cred *syscall.Credential
	opts Options
	lock *os.File
	dog  *watchdog
	pool *databases

	mu      sync.Mutex
	process *exec.Cmd // nil while stopped
}

// Start makes a cluster and waits until it answers. The caller ends it with [Cluster.Close]; it also ends with the
// process. The error is [ErrMissing] where Postgres is not installed.
func Start(opts Options) (*Cluster, error) {
	bin, err := binDir()
	if err != nil {
		return nil, err
	}
	cred, err := serverUser()
	if err != nil {
		return nil, err
	}
	removeAbandoned()
	home, lock, err := newHome(opts.Fsync)
	if err != nil {
		return nil, err
	}
	dog, err := startWatchdog(home)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(home))
	}
	c := &Cluster{bin: bin, home: home, cred: cred, opts: opts, lock: lock, dog: dog}
	if err := c.create(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) data() string    { return filepath.Join(c.home, "data") }
func (c *Cluster) socket() string  { return filepath.Join(c.home, "socket") }
func (c *Cluster) logPath() string { return filepath.Join(c.home, "log") }

// url names a database of this cluster. The port is spelled out because pgx otherwise takes it from PGPORT.
func (c *Cluster) url(user, database string) string {
	q := url.Values{"host": {c.socket()}, "port": {"5432"}, "user": {user}}
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: q.Encode()}).String()
}

// AdminURL is the superuser's connection to the database "postgres", for tests that change settings or end other
// people's sessions.
func (c *Cluster) AdminURL() string { return c.url(superuser, "postgres") }

func (c *Cluster) create() error {
	for _, dir := range []string{c.data(), c.socket()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("folder for Postgres: %w", err)
		}
		if c.cred != nil {
			if err := os.Chown(dir, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
				return fmt.Errorf("folder for Postgres: %w", err)
			}
		}
	}
	initdb := c.command("initdb", "--pgdata="+c.data(), "--username="+superuser, "--auth=trust", "--encoding=UTF8",
		"--no-locale", "--no-sync", "--no-instructions", "--wal-segsize=4")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := c.Start(); err != nil {
		return err
	}
	if err := execute(c.AdminURL(), "CREATE ROLE "+appUser+" LOGIN"); err != nil {
		return err
	}
	c.pool = &databases{
		admin: c.AdminURL(),
		owner: appUser,
		url:   func(database string) string { return c.url(appUser, database) },
	}
	return nil
}

// Tool is the path of a program of the installed Postgres, such as pg_dump.
func Tool(name string) (string, error) {
	bin, err := binDir()
	return filepath.Join(bin, name), err
}

// command is a program of Postgres, run as Postgres' user.
func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.socket()
	cmd.Env = []string{"PATH=" + c.bin + ":/usr/bin:/bin", "LC_ALL=C", "HOME=" + c.socket()}
	// A session of its own, so that Ctrl-C ends the test first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred, Setsid: true}
	return cmd
}

// Start starts a cluster that was stopped or killed, and waits until it answers. A running one is left alone.
func (c *Cluster) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		return nil
	}
	log, err := os.OpenFile(c.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("Postgres' log: %w", err)
	}
	defer log.Close()
	args := []string{"-D", c.data()}
	for _, setting := range c.opts.settings(c.socket()) {
		args = append(args, "-c", setting)
	}
	cmd := c.command("postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}
	c.process = cmd
	deadline := time.Now().Add(startTimeout)
	for {
		answer := ping(c.AdminURL())
		if answer == nil {
			return nil
		}
		if exited(cmd.Process.Pid) {
			err := cmd.Wait()
			c.process = nil
			return fmt.Errorf("Postgres ended while starting (%w):\n%s", err, c.logTail())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("Postgres does not answer after %v: %w\n%s", startTimeout, answer, c.logTail())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Stop ends every session and stops the cluster in good order ("fast" shutdown). Its data stays.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil
	}
	pid := c.process.Process.Pid
	if err := c.process.Process.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("stopping Postgres: %w", err)
	}
	deadline := time.Now().Add(stopTimeout)
	for !exited(pid) {
		if time.Now().After(deadline) {
			err := c.kill()
			return errors.Join(fmt.Errorf("Postgres did not stop within %v and was killed:\n%s", stopTimeout, c.logTail()), err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	err := c.process.Wait()
	c.process = nil
	if err != nil {
		return fmt.Errorf("Postgres stopped with an error: %w\n%s", err, c.logTail())
	}
	return nil
}

// Kill ends the postmaster and all its children with SIGKILL, as a crash of the whole server does. [Cluster.Start]
// recovers from the write-ahead log, with every commit that was answered: only a machine that dies would lose some of
// a cluster without [Options.Fsync].
func (c *Cluster) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil
	}
	return c.kill()
}

func (c *Cluster) kill() error {
	pid := c.process.Process.Pid
	// A stopped postmaster starts no more children and collects none, so the numbers below stay theirs.
	err := c.process.Process.Signal(syscall.SIGSTOP)
	children := childrenOf(pid)
	for _, child := range children {
		err = errors.Join(err, syscall.Kill(child, syscall.SIGKILL))
	}
	// A child that still holds the shared memory would make the next start fail.
	for deadline := time.Now().Add(stopTimeout); slices.ContainsFunc(children, running); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			err = errors.Join(err, fmt.Errorf("children of Postgres are still there %v after SIGKILL", stopTimeout))
			break
		}
	}
	err = errors.Join(err, c.process.Process.Kill())
	var killed *exec.ExitError
	if waitErr := c.process.Wait(); !errors.As(waitErr, &killed) {
		err = errors.Join(err, waitErr)
	}
	c.process = nil
	if err != nil {
		return fmt.Errorf("killing Postgres: %w", err)
	}
	return nil
}

// Restart is [Cluster.Stop] and [Cluster.Start].
func (c *Cluster) Restart() error {
	if err := c.Stop(); err != nil {
		return err
	}
	return c.Start()
}

// Log is everything that Postgres has logged so far.
func (c *Cluster) Log() ([]byte, error) {
	text, err := os.ReadFile(c.logPath())
	if err != nil {
		return nil, fmt.Errorf("Postgres' log: %w", err)
	}
	return text, nil
}

func (c *Cluster) logTail() []byte {
	text, err := c.Log()
	if err != nil {
		return []byte(err.Error())
	}
	const lines = 20
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

// Close stops the cluster and removes its files. Nothing of it can be used afterwards; a second Close does nothing.
func (c *Cluster) Close() error {
	err := c.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dog == nil {
		return err
	}
	removeSharedMemory(c.data()) // after a Kill without a Start
	err = errors.Join(err, c.dog.release(), c.lock.Close())
	c.dog = nil
	return err
}

// CreateDatabase makes an empty database and returns its URL. It lives as long as the cluster.
func (c *Cluster) CreateDatabase() (string, error) {
	name, err := c.pool.create("")
	if err != nil {
		return "", err
	}
	return c.url(appUser, name), nil
}

// exited says whether a child has ended, without taking its exit status from whoever waits for it.
func exited(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err != nil || info.Signo != 0
	}
}

// ping opens and closes one session.
func ping(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}
