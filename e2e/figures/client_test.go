package figures

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// answer is what a client keeps of an HTTP answer.
type answer struct {
	status int
	etag   string
	body   []byte
}

// readAnswer reads an HTTP/1.1 answer with a Content-Length; the clients share two cores with what they measure, so they do no more.
func readAnswer(r *bufio.Reader) (a answer, err error) {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return a, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if first {
			if len(line) < 12 {
				return a, fmt.Errorf("no answer of HTTP: %q", line)
			}
			a.status, err = strconv.Atoi(string(line[9:12]))
			if err != nil {
				return a, err
			}
			continue
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return a, err
			}
		case bytes.EqualFold(name, []byte("Etag")):
			a.etag = string(value)
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			return a, errors.New("the answer has no Content-Length")
		}
	}
	a.body = make([]byte, length)
	_, err = io.ReadFull(r, a.body)
	return a, err
}

// load sends n requests over as many connections as there are clients, each client's one after the other, and tells how long all took.
// next makes a client's next request.
func load(addr string, clients, n int, next func(client, i int) string) (time.Duration, error) {
	type client struct {
		net.Conn
		*bufio.Reader
	}
	all := make([]client, clients)
	for i := range all {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		all[i] = client{c, bufio.NewReader(c)}
	}
	var group errgroup.Group
	began := time.Now()
	for i, c := range all {
		group.Go(func() error {
			for j := range n / clients {
				if _, err := io.WriteString(c.Conn, next(i, j)); err != nil {
					return err
				}
				a, err := readAnswer(c.Reader)
				if err != nil {
					return err
				}
				if a.status != 200 {
					return fmt.Errorf("%d: %s", a.status, a.body)
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return time.Since(began), err
}

// post is the text of a POST to /v1/registrations.
func post(token, body string) string {
	var b strings.Builder
	b.Grow(len(token) + len(body) + 160)
	b.WriteString("POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer ")
	b.WriteString(token)
	b.WriteString("\r\nContent-Length: ")
	b.WriteString(strconv.Itoa(len(body)))
	b.WriteString("\r\n\r\n")
	b.WriteString(body)
	return b.String()
}

// registration is what a phone posts to join a group, or with an instance that is there already to renew.
func registration(k, j, g int, instance string) string {
	return fmt.Sprintf(`{"type":"Device","id":"%d","destination":true,"instance":%q,"privateIPv4":null,"publicIPv4":%q,"IPv6":null,"groupName":%q,"groupIP":%q,"TTLs":86400}`,
		phoneID(k, j), instance, phoneAddr(j), groupName(g), groupIP(g))
}
