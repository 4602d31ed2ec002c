package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/groupcast/groupcast/e2e/demo/ledger"
)

// follower counts what a datagram log holds while it grows.
type follower struct {
	path string

	mu        sync.Mutex
	file      *os.File
	rest      []byte // of a line that isn't complete
	datagrams int
	bytes     int64
	events    []ledger.Event
	err       error
}

// counts is what a log holds.
type counts struct {
	datagrams int
	bytes     int64
	events    []ledger.Event
}

// happened tells whether the log has an event of that name.
func (c counts) happened(name string) bool {
	_, ok := ledger.Log{Events: c.events}.When(name)
	return ok
}

// read reads what is new and gives what the log holds. A log that doesn't exist yet is empty.
func (f *follower) read() (counts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = f.more()
	}
	return counts{f.datagrams, f.bytes, f.events}, f.err
}

func (f *follower) more() error {
	if f.file == nil {
		file, err := os.Open(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		f.file = file
	}
	added, err := io.ReadAll(f.file)
	if err != nil {
		return err
	}
	f.rest = append(f.rest, added...)
	for {
		line, rest, complete := bytes.Cut(f.rest, []byte("\n"))
		if !complete {
			return nil
		}
		f.rest = rest
		if err := f.line(line); err != nil {
			return err
		}
	}
}

func (f *follower) line(line []byte) error {
	if text, ok := bytes.CutPrefix(line, []byte("# ")); ok {
		e, err := ledger.ParseEvent(string(text))
		f.events = append(f.events, e)
		return err
	}
	d, err := ledger.ParseDatagram(string(line))
	f.datagrams++
	f.bytes += int64(d.Size)
	return err
}

// whole reads the log from its beginning, for the ledger.
func (f *follower) whole() (ledger.Log, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return ledger.Log{}, err
	}
	defer file.Close()
	return ledger.Read(file)
}
