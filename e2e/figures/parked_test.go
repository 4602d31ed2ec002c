package figures

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// parkedScale is how many gateways wait, and how often what is measured.
type parkedScale struct {
	gateways int
	changes  int // one at a time
	rounds   int // of all at once
	judge    bool
}

// BenchmarkParkedFigures prints the figures of docs/benchmarks.md that are about waiting gateways.
func BenchmarkParkedFigures(b *testing.B) {
	if os.Getenv("BENCH_FIGURES") == "" {
		b.Skip("set BENCH_FIGURES=1, as make bench-registrations does")
	}
	waiting(b, parkedScale{gateways: 10_000, changes: 300, rounds: 5, judge: true})
}

// TestParkedFiguresRun shows that the measurements run, on very little.
func TestParkedFiguresRun(t *testing.T) {
	waiting(t, parkedScale{gateways: 40, changes: 5, rounds: 1})
}

func waiting(t testing.TB, s parkedScale) {
	c := cluster(t)
	world := newWorldOf(t, c, s.gateways, 1, 1)
	s2 := scale{judge: s.judge}
	certificate, key := certificateFiles(t)
	kek := filepath.Join(t.TempDir(), "kek")

	information := "" // the statement that reads it
	measure := func(secure bool) (size float64, one, posted, all []time.Duration) {
		args := []string{"--key-encryption-key-file", kek}
		if secure {
			args = append(args, "--tls-cert", certificate, "--tls-key", key)
		}
		service := parkingService(t, world, args...)
		defer service.end()
		var gateways, phones []int64
		for k := 1; k <= s.gateways; k++ {
			gateways = append(gateways, gatewayID(k))
		}
		changed := min(s.gateways, 100)
		for k := 1; k <= changed; k++ {
			phones = append(phones, phoneID(k, 1))
		}
		tokens, phoneTokens := service.tokens(t, gateways), service.tokens(t, phones)
		before := service.resident(t)
		park := parkAll(t, service, secure, s.gateways, func(k int, etag string) string {
			request := fmt.Sprintf("GET /v1/gateways/%d/groups?wait=50 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n", gatewayID(k), tokens[k-1])
			if etag != "" {
				request += "If-None-Match: " + etag + "\r\n"
			}
			return request + "\r\n"
		})
		defer park.end()
		size = (service.resident(t) - before) / float64(s.gateways)
		if secure {
			return size, nil, nil, nil
		}
		logStatements(t, c, "all")
		for _, u := range logged(t, c, func() {
			park.change(t, 1, func() time.Time { return service.changed(t, "/change?k="+strconv.FormatInt(gatewayID(1), 10)) })
		}) {
			for _, statement := range u.Statements {
				if strings.Contains(statement.Text, "max_stale_seconds") && len(statement.Parameters) == 1 {
					information = statement.Text
				}
			}
		}
		logStatements(t, c, "none")
		require.NotEmpty(t, information)
		time.Sleep(pace)
		poster, err := net.Dial("tcp", service.addr)
		require.NoError(t, err)
		defer poster.Close()
		reader := bufio.NewReader(poster)
		for i := range s.changes {
			k := 1 + i%changed
			one = append(one, park.change(t, k, func() time.Time { return service.changed(t, "/change?k="+strconv.FormatInt(gatewayID(k), 10)) }))
			time.Sleep(pace)
			posted = append(posted, park.change(t, k, func() time.Time {
				began := time.Now()
				_, err := io.WriteString(poster, post(phoneTokens[k-1], registration(k, 1, 1, fmt.Sprint("c", i))))
				require.NoError(t, err)
				a, err := readAnswer(reader)
				require.NoError(t, err)
				require.Equal(t, 200, a.status, "%s", a.body)
				return began
			}))
			time.Sleep(pace)
		}
		for range s.rounds {
			all = append(all, park.changeAll(t, func() time.Time { return service.changed(t, "/all") }))
		}
		return size, one, posted, all
	}
	measureBare := func() (size float64, one, all []time.Duration) {
		bare := bareServer(t, "polls", pollSettings{world, information})
		defer bare.end()
		before := bare.resident(t)
		park := parkAll(t, bare, false, s.gateways, func(k int, _ string) string {
			return fmt.Sprintf("GET /poll?k=%d HTTP/1.1\r\nHost: localhost\r\n\r\n", k)
		})
		defer park.end()
		size = (bare.resident(t) - before) / float64(s.gateways)
		for i := range s.changes {
			k := 1 + i%s.gateways
			one = append(one, park.change(t, k, func() time.Time { return bare.changed(t, "/change?k="+strconv.Itoa(k)) }))
		}
		for range s.rounds {
			all = append(all, park.changeAll(t, func() time.Time { return bare.changed(t, "/all") }))
		}
		return size, one, all
	}
	size, one, posted, all := measure(false)
	bareSize, bareOne, bareAll := measureBare()
	secureSize, _, _, _ := measure(true)
	fmt.Printf("bare: a parked poll takes %.1f kB\n", bareSize)
	figure(s2, "parked_plain", size, "kB", "<=", 35)
	figure(s2, "parked_tls", secureSize, "kB", "<=", 48)
	absolute(s2, "one_change_p99", percentile(one), percentile(bareOne), 5)
	fmt.Printf("beside one_change_p99, the median: %.2f ms, bare %.2f ms\n", milliseconds(middle(one)), milliseconds(middle(bareOne)))
	fmt.Printf("beside one_change_p99, from the sending of the registration that is the change, its commit on the disk included: %.2f ms, median %.2f ms\n",
		milliseconds(percentile(posted)), milliseconds(middle(posted)))
	absolute(s2, "all_changes_p99", middle(all), middle(bareAll), 250)
}

// absolute prints a figure in milliseconds beside that of the bare server. Where that alone takes over half of the target, the machine is
// what is measured, and twice the bare server's counts.
func absolute(s scale, name string, value, bare time.Duration, target float64) {
	ms := milliseconds
	fmt.Printf("bare: %s %.2f ms\n", name, ms(bare))
	if 2*ms(bare) > target {
		target = max(target, 2*ms(bare))
	}
	figure(s, name, ms(value), "ms", "<=", target)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// percentile is the 99th.
func percentile(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[(len(all)*99-1)/100]
}

func middle(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// park is many clients, each with a connection of its own on which it polls again and again.
type park struct {
	clients []*parkedClient
	left    sync.WaitGroup
	failed  atomic.Pointer[error]
}

type parkedClient struct {
	net.Conn
	changes chan time.Time // when a change was read
}

// parkAll lets so many clients wait; request makes the text of a poll.
func parkAll(t testing.TB, p *program, secure bool, n int, request func(k int, etag string) string) *park {
	t.Helper()
	all := &park{clients: make([]*parkedClient, n)}
	var group errgroup.Group
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error {
			var c net.Conn
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				return err
			}
			if secure {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // the certificate is the test's own
			}
			client := &parkedClient{c, make(chan time.Time, 4)}
			all.clients[i] = client
			r := bufio.NewReaderSize(c, 512)
			a := answer{}
			poll := func() error {
				if _, err := io.WriteString(c, request(i+1, a.etag)); err != nil {
					return err
				}
				next, err := readAnswer(r)
				if err == nil && next.status != 200 && next.status != 304 {
					err = fmt.Errorf("%d: %s", next.status, next.body)
				}
				a = next
				return err
			}
			if strings.Contains(request(1, ""), "/v1/") { // the first poll has no cursor, so it doesn't wait
				if err := poll(); err != nil {
					return err
				}
			}
			all.left.Go(func() {
				for {
					if err := poll(); err != nil {
						if _, closed := err.(*net.OpError); !closed { //nolint:errorlint // nobody wraps it
							all.failed.Store(&err)
						}
						return
					}
					if a.status == 200 {
						client.changes <- time.Now()
					}
				}
			})
			return nil
		})
	}
	require.NoError(t, group.Wait())
	require.Eventually(t, func() bool { return p.control(t, "/waiting") == strconv.Itoa(n) }, time.Minute, 20*time.Millisecond, "not all wait")
	return all
}

// pace is longer than the 50 ms that the service lets a gateway wait that was told a change just before.
const pace = 60 * time.Millisecond

// change tells how long it took until a client had read the change that f makes and tells the time of.
func (p *park) change(t testing.TB, k int, f func() time.Time) time.Duration {
	t.Helper()
	began := f()
	return p.read(t, k).Sub(began)
}

// changeAll is the same for a change of all; it gives the 99th percentile.
func (p *park) changeAll(t testing.TB, f func() time.Time) time.Duration {
	t.Helper()
	time.Sleep(time.Second) // all wait again, none of them in the 50 ms after an answer
	began := f()
	took := make([]time.Duration, len(p.clients))
	for i := range p.clients {
		took[i] = p.read(t, i+1).Sub(began)
	}
	return percentile(took)
}

func (p *park) read(t testing.TB, k int) time.Time {
	t.Helper()
	select {
	case at := <-p.clients[k-1].changes:
		return at
	case <-time.After(30 * time.Second):
		if err := p.failed.Load(); err != nil {
			t.Fatal(*err)
		}
		t.Fatalf("client %d was not woken", k)
		return time.Time{}
	}
}

func (p *park) end() {
	for _, c := range p.clients {
		_ = c.Close()
	}
	p.left.Wait()
}

// control asks a server that can be controlled, and gives what it says.
func (p *program) control(t testing.TB, path string) string {
	t.Helper()
	r, err := http.Get("http://" + p.controlled + path)
	require.NoError(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.Equal(t, 200, r.StatusCode, "%s", text)
	return string(text)
}

// changed makes a server change something, and tells when that was.
func (p *program) changed(t testing.TB, path string) time.Time {
	t.Helper()
	ns, err := strconv.ParseInt(p.control(t, path), 10, 64)
	require.NoError(t, err)
	return time.Unix(0, ns)
}

// resident is the server's resident memory, in kB (1000 bytes), after it gave back what it doesn't need.
func (p *program) resident(t testing.TB) float64 {
	t.Helper()
	bytes, err := strconv.ParseFloat(p.control(t, "/resident"), 64)
	require.NoError(t, err)
	return bytes / 1000
}

func certificateFiles(t testing.TB) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return certificate, key
}
