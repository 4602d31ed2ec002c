package ledger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Log is a datagram log of groupcastctl ("camera --log", "receive --log"), read independently of the code that writes it.
// Times are nanoseconds since 1970.
type Log struct {
	Datagrams []Datagram
	Events    []Event
}

// Datagram is one that was sent or that arrived.
type Datagram struct {
	At int64
	// Sequence is the RTP sequence number, extended to 64 bits from where its log began; IsRTP tells whether there is one.
	Sequence uint64
	IsRTP    bool
	Size     int
	Hash     uint64
}

// Event is something that happened to the member.
type Event struct {
	At   int64
	Name string
	// Rest is what else the line says.
	Rest string
}

// When gives the time of the first event of that name.
func (l Log) When(event string) (int64, bool) {
	for _, e := range l.Events {
		if e.Name == event {
			return e.At, true
		}
	}
	return 0, false
}

// Read reads a whole log. A last line that was not finished doesn't count.
func Read(r io.Reader) (Log, error) {
	var log Log
	in := bufio.NewReaderSize(r, 1<<16)
	for number := 1; ; number++ {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return log, nil
		}
		if err != nil {
			return log, fmt.Errorf("read a datagram log: %w", err)
		}
		if err := log.add(strings.TrimSuffix(line, "\n")); err != nil {
			return log, fmt.Errorf("line %d of a datagram log: %w", number, err)
		}
	}
}

func (l *Log) add(line string) error {
	if text, ok := strings.CutPrefix(line, "# "); ok {
		e, err := ParseEvent(text)
		l.Events = append(l.Events, e)
		return err
	}
	d, err := ParseDatagram(line)
	l.Datagrams = append(l.Datagrams, d)
	return err
}

// ParseEvent reads the line of an event without its "# ".
func ParseEvent(text string) (Event, error) {
	at, rest, _ := strings.Cut(text, " ")
	name, rest, _ := strings.Cut(rest, " ")
	time, err := strconv.ParseInt(at, 10, 64)
	if err != nil || name == "" {
		return Event{}, fmt.Errorf("%q is not an event", text)
	}
	return Event{At: time, Name: name, Rest: rest}, nil
}

// ParseDatagram reads the line of a datagram.
func ParseDatagram(line string) (Datagram, error) {
	fields := strings.Split(line, " ")
	if len(fields) != 4 {
		return Datagram{}, fmt.Errorf("%q is not a datagram", line)
	}
	var d Datagram
	var errs [4]error
	d.At, errs[0] = strconv.ParseInt(fields[0], 10, 64)
	if fields[1] != "-" {
		d.IsRTP = true
		d.Sequence, errs[1] = strconv.ParseUint(fields[1], 10, 64)
	}
	d.Size, errs[2] = strconv.Atoi(fields[2])
	d.Hash, errs[3] = strconv.ParseUint(fields[3], 16, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return Datagram{}, fmt.Errorf("%q is not a datagram: %w", line, err)
	}
	return d, nil
}
