package daemon_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// curl hears a stream as a foreign client; it writes what comes as it comes.
func (s *service) curl(t *testing.T, path string, args ...string) (next func() string, stop func() string) {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sS", "-k", "-N", s.base() + path}, args...)...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := make(chan string, 1000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	var all []string
	stop = func() string {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
		return strings.Join(all, "\n")
	}
	t.Cleanup(func() { stop() })
	return func() string { // one event, as "event id type"
		event, id, kind := "", "", ""
		for {
			select {
			case line := <-lines:
				all = append(all, line)
				field, value, _ := strings.Cut(line, ": ")
				switch field {
				case "event":
					event = value
				case "id":
					id = value
				case "data":
					var e struct{ Type, Reason string }
					require.NoError(t, json.Unmarshal([]byte(value), &e), "%s", line)
					kind = e.Type + e.Reason
				case "":
					if event != "" {
						return strings.TrimSpace(event + " " + id + " " + strings.TrimPrefix(kind, "groupcast."))
					}
				}
			case <-time.After(waitLong):
				t.Errorf("nothing came; before: %q", all)
				return ""
			}
		}
	}, stop
}

// TestCurlHears: a foreign client over HTTP hears a group, goes on where it was, by token and by a session's cookie; and a stop of the service tells
// it when to come back.
func TestCurlHears(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.house(t, "Shared")
		path, phone := "/v1/groups/"+h.group+"/events", []string{"-H", "Authorization: Bearer " + h.phoneToken}
		first, stop := s.curl(t, path, append(phone, "-i")...)
		assert.Equal(t, "group 3 group.state", first())
		two := s.join(t, h.home, "door", h.groupIP, "two")
		assert.Equal(t, "group 4 member.joined", first())
		text := stop()
		for _, header := range []string{"HTTP/1.1 200", "Content-Type: text/event-stream", "X-Accel-Buffering: no", "Cache-Control: no-store", "retry: "} {
			assert.Contains(t, text, header)
		}
		s.do(t, http.MethodDelete, "/v1/registrations/"+two, "", "Authorization", "Bearer "+h.uploadToken)
		again, _ := s.curl(t, path, append(phone, "-H", "Last-Event-ID: 3")...)
		assert.Equal(t, "group 4 member.joined", again())
		assert.Equal(t, "group 5 member.left", again())
		query, _ := s.curl(t, path+"?lastEventId=4", phone...)
		assert.Equal(t, "group 5 member.left", query())
		bare, _ := s.curl(t, path+"?lastEventId=4", "-H", "Authorization: "+h.phoneToken)
		assert.Equal(t, "group 5 member.left", bare())
		browser, _ := s.curl(t, path, "-H", "Cookie: "+h.cookie)
		assert.Equal(t, "group 5 group.state", browser())
		all, _ := s.curl(t, "/v1/events", "-H", "Cookie: "+h.cookie)
		assert.Contains(t, all(), "group.state")
		foreign := s.do(t, http.MethodGet, path, "", "Authorization", "Bearer "+h.gatewayToken)
		assert.Equal(t, http.StatusForbidden, foreign.StatusCode)

		s.do(t, http.MethodPost, "/v1/logout", "", "Cookie", h.cookie)
		assert.Equal(t, "end  revoked", browser())
		stopped := make(chan struct{})
		go func() { defer close(stopped); _ = s.Stop(t.Context()) }()
		assert.Equal(t, "end  stopping", again())
		<-stopped // the test's end stops it again
	})
}

// TestAListenerIsToldToComeBack: EventSource gives up for ever after any answer but a stream, so it gets one that ends; others get the error.
func TestAListenerIsToldToComeBack(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--long-poll-max-waiters", "1"))
	h := s.house(t, "Shared")
	phone := []string{"-H", "Authorization: Bearer " + h.phoneToken}
	first, _ := s.curl(t, "/v1/events", phone...)
	assert.Contains(t, first(), "group.state")
	browser, stop := s.curl(t, "/v1/events", append(phone, "-i", "-H", "Accept: text/event-stream")...)
	assert.Equal(t, "end  unavailable", browser())
	text := stop()
	assert.Contains(t, text, "HTTP/1.1 200")
	assert.Contains(t, text, "retry: ")
	for _, accept := range []string{"*/*", "application/json", "text/event-stream, application/json"} {
		r := s.do(t, http.MethodGet, "/v1/events", "", "Authorization", "Bearer "+h.phoneToken, "Accept", accept)
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode, accept)
		assert.NotEmpty(t, r.Header.Get("Retry-After"), accept)
	}
}

// TestEventsLongPoll: the same resource for those who can't read a stream.
func TestEventsLongPoll(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		h := s.house(t, "Shared")
		type answer struct {
			LastEventID, Resync string
			Events              []struct{ Type string }
		}
		poll := func(path string) (a answer) {
			r := s.do(t, http.MethodGet, path, "", "Authorization", "Bearer "+h.phoneToken, "Accept", "application/json")
			assert.Equal(t, http.StatusOK, r.StatusCode)
			assert.NoError(t, json.Unmarshal([]byte(text(t, r)), &a))
			return a
		}
		for _, path := range []string{"/v1/events", "/v1/groups/" + h.group + "/events"} {
			begin := poll(path)
			require.Len(t, begin.Events, 1)
			require.Equal(t, "groupcast.group.state", begin.Events[0].Type)
			require.Empty(t, poll(path+"?lastEventId="+begin.LastEventID).Events)
			require.Empty(t, poll(path+"?wait=1&lastEventId="+begin.LastEventID).Events)
			heard := make(chan answer, 1)
			go func() { heard <- poll(path + "?wait=50&lastEventId=" + begin.LastEventID) }()
			id := s.join(t, h.home, "door", h.groupIP, "more")
			next := <-heard
			require.NotEmpty(t, next.Events)
			require.Equal(t, "groupcast.member.joined", next.Events[0].Type)
			s.do(t, http.MethodDelete, "/v1/registrations/"+id, "", "Authorization", "Bearer "+h.uploadToken)
			require.Equal(t, "unknown-cursor", poll(path+"?lastEventId=nonsense").Resync)
		}
	})
}

// TestAttackStalledConsumer is row 17 over a socket: who doesn't read is cut off and holds little; others hear everything meanwhile.
func TestAttackStalledConsumer(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t, dataDir(t), "--rate-limit-principal", "0", "--rate-limit-source", "0"))
	h := s.house(t, "Shared")
	path := "/v1/groups/" + h.group + "/events"
	conn := s.stalls(t)
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, h.phoneToken)
	require.NoError(t, err)
	listener, _ := s.curl(t, path, "-H", "Cookie: "+h.cookie)
	require.Equal(t, "group 3 group.state", listener())
	streams := func() string {
		r, err := http.Get("http://" + s.MetricsAddr().String() + "/metrics")
		require.NoError(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, "groupcast_event_streams "); ok {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	rev, long := 3, strings.Repeat("n", 60)
	deadline := time.Now().Add(2 * time.Minute)
	for n := 0; streams() != "1"; n++ { // until it was cut off
		require.True(t, time.Now().Before(deadline), "it is still there after %d events", n*50)
		for i := range 50 {
			status, body := s.post(t, h.phoneToken, `{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","port":%d,"name":%q,"groupName":"door"}`,
				h.home.phone, 5000+(n*50+i)%1000, long)
			require.Equal(t, http.StatusOK, status, "%v", body)
			rev++
			require.Equal(t, fmt.Sprintf("group %d member.moved", rev), listener())
		}
	}
}
