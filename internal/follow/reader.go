package follow

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
	"strings"
	"time"
)

// maxMessage bounds one line of a stream: a resync of a hundred groups with all their members.
const maxMessage = 16 << 20

// message is one of a stream; one without an event only moved the place.
type message struct {
	event string
	data  []byte
}

// reader reads Server-Sent Events (WHATWG HTML §9.2.6). The service's lines end with a line feed.
type reader struct {
	lines *bufio.Scanner
	last  string
	retry time.Duration
}

func newReader(r io.Reader) *reader {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxMessage)
	return &reader{lines: lines}
}

// next gives the next message. What the end of the stream cut off is none.
func (r *reader) next() (m message, err error) {
	id := r.last
	for r.lines.Scan() {
		line := r.lines.Text()
		if line == "" {
			r.last = id
			return m, nil
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			m.event = value
		case "data":
			if m.data != nil {
				m.data = append(m.data, '\n')
			}
			m.data = append(m.data, bytes.Clone([]byte(value))...)
		case "id":
			id = value
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				r.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	if err := r.lines.Err(); err != nil {
		return message{}, err
	}
	return message{}, io.ErrUnexpectedEOF
}
