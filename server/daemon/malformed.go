package daemon

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/problem"
)

// plainListener makes problem documents of what net/http answers by itself, in plain text, to requests that are not even HTTP: no
// handler ever sees those. Over TLS they keep net/http's text, because it has to know the TLS connection itself.
type plainListener struct{ net.Listener }

// Accept wraps the connection.
func (l plainListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		return plainConn{tcp}, nil
	}
	return conn, err
}

type plainConn struct{ *net.TCPConn }

// TCP is the connection itself, for whoever watches it.
func (c plainConn) TCP() *net.TCPConn { return c.TCPConn }

// ownAnswer is how net/http begins such an answer, in one write. Those of handlers have a Date, and come in another order.
var ownAnswer = regexp.MustCompile(`^HTTP/1\.1 ([45][0-9][0-9]) [^\r\n]*\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n`)

// Write writes the bytes, or the problem document in their place.
func (c plainConn) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 ")) {
		return c.TCPConn.Write(b)
	}
	found := ownAnswer.FindSubmatch(b)
	if found == nil {
		return c.TCPConn.Write(b)
	}
	if _, err := c.TCPConn.Write(malformed(string(found[1]))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func malformed(status string) []byte {
	refusal := models.Errorf(models.CodeBadRequest, "This is no HTTP request that the service understands: check its first line, the Host, and that names, values and "+
		"the path hold only what HTTP allows there.")
	if status == fmt.Sprint(http.StatusRequestHeaderFieldsTooLarge) {
		refusal = models.Errorf(models.CodeTooLarge, "The header of the request is larger than %d bytes. Send only the fields that the contract describes.", maxHeader+4<<10)
	}
	instance := strings.ToLower(rand.Text())
	code, body := problem.Encode(refusal, instance)
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n%s",
		code, http.StatusText(code), problem.MediaType, len(body), instance, body)
}
