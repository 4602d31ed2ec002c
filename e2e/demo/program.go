package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// grace is how long a program may take to end in good order. It is asked again in between: ffmpeg and a receiver that
	// lingers take the second time for an order.
	grace      = 6 * time.Second
	againAfter = 2 * time.Second
	// askTimeout is for a program that ends by itself; decoding a recording takes the longest.
	askTimeout = time.Minute

	tailLines = 15
	tailBytes = 8 << 10
)

// programs are the children of the demo. One that ends although nobody asked it to ends the demo.
type programs struct {
	dir string // of the logs
	// fail ends the demo, with the reason.
	fail func(error)

	onThread chan func()
	mu       sync.Mutex
	running  []*program
}

func newPrograms(dir string, fail func(error)) *programs {
	p := &programs{dir: dir, fail: fail, onThread: make(chan func())}
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so this one has to stay.
		runtime.LockOSThread()
		for call := range p.onThread {
			call()
		}
	}()
	return p
}

// program is one child in a process group of its own, so that Ctrl-C reaches only the demo.
type program struct {
	name     string
	cmd      *exec.Cmd
	log      string
	stopping atomic.Bool
	done     chan struct{}
	err      error // after done
}

// start runs a program until it is stopped. What it prints goes into a log.
func (p *programs) start(name, path string, args ...string) (*program, error) {
	log, err := os.Create(filepath.Join(p.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	p.onThread <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	child := &program{name: name, cmd: cmd, log: log.Name(), done: make(chan struct{})}
	p.mu.Lock()
	p.running = append(p.running, child)
	p.mu.Unlock()
	go func() {
		child.err = cmd.Wait()
		unasked := !child.stopping.Load()
		close(child.done)
		if unasked {
			p.fail(fmt.Errorf("%s ended although it should go on (%s)%s", name, cmd.ProcessState, child.tail()))
		}
	}()
	return child, nil
}

// ask runs a program that ends by itself and gives what it wrote to standard output.
func ask(ctx context.Context, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

// environment keeps settings for a real service away from the demo.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "GROUPCAST") || strings.HasPrefix(entry, "GATEWAY_AGENT_")
	})
}

// signal asks the program to do what it does at SIGTERM. From now on it may end.
func (c *program) signal() {
	c.stopping.Store(true)
	select {
	case <-c.done:
		return // its id may be somebody else's by now
	default:
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM)
}

// stop ends the program and gives its error. A program that doesn't obey within the grace is killed, which is an error.
func (c *program) stop() error {
	c.signal()
	again, late := time.After(againAfter), time.After(grace)
	for {
		select {
		case <-c.done:
			if c.err != nil {
				return fmt.Errorf("%s did not end in good order: %w%s", c.name, c.err, c.tail())
			}
			return nil
		case <-again:
			c.signal()
		case <-late:
			_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
			<-c.done
			return fmt.Errorf("%s did not end within %v and was killed%s", c.name, grace, c.tail())
		}
	}
}

// stopAll ends whatever still runs.
func (p *programs) stopAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var wait sync.WaitGroup
	for _, c := range p.running {
		wait.Go(func() { _ = c.stop() })
	}
	wait.Wait()
	p.running = nil
}

// tail gives the end of the program's log, as an addition to an error: further lines beneath the sentence.
func (c *program) tail() string {
	file, err := os.Open(c.log)
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil {
		_, _ = file.Seek(max(0, info.Size()-tailBytes), io.SeekStart)
	}
	b, err := io.ReadAll(file)
	text := strings.TrimSpace(string(b))
	if err != nil || text == "" {
		return "; it printed nothing"
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return fmt.Sprintf("\nThe last lines of %s:\n    %s", filepath.Base(c.log), strings.Join(lines, "\n    "))
}

// account splits an error into its sentence and the end of a log beneath it, if there is one.
func account(err error) (sentence, log string) {
	sentence, log, _ = strings.Cut(err.Error(), "\n")
	return sentence, log
}
