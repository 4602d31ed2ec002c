package figures

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/config"
	"github.com/groupcast/groupcast/server/daemon"
)

// parkingSettings is what the service is told that the clients wait at.
type parkingSettings struct {
	Args    []string
	Control string
	Metrics string
}

// parkingService is groupcastd in this program, so that it can be asked for its memory, and be told of changes that were made beside it.
func parkingService(t testing.TB, databaseURL string, args ...string) *program {
	t.Helper()
	dir := shortDir(t)
	metrics := harness.FreePort(t)
	p := bareServerIn(t, "service", dir, func(addr, control string) any {
		return parkingSettings{Control: control, Metrics: metrics, Args: append([]string{
			"--listen", addr, "--data-dir", dir, "--database-url", databaseURL, "--metrics-listen", metrics, "--drain-time", "1s",
			"--rate-limit-source", "0", "--rate-limit-principal", "0",
		}, args...)}
	})
	return p
}

// runService is that program.
func runService(text []byte) error {
	var s parkingSettings
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	flags := pflag.NewFlagSet("service", pflag.ContinueOnError)
	source := config.Flags(flags)
	if err := flags.Parse(s.Args); err != nil {
		return err
	}
	cfg, err := source.Load(nil)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ballast := daemon.Ballast() // as daemon.Run does
	defer runtime.KeepAlive(ballast)
	d, err := daemon.Start(ctx, cfg, "figures", slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, cfg.DatabaseURL)
	if err != nil {
		return err
	}
	control := http.NewServeMux()
	control.HandleFunc("/resident", resident)
	control.HandleFunc("/waiting", func(w http.ResponseWriter, _ *http.Request) {
		r, err := http.Get("http://" + s.Metrics + "/metrics")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer r.Body.Close()
		all, _ := io.ReadAll(r.Body)
		for line := range strings.Lines(string(all)) {
			if n, ok := strings.CutPrefix(line, "groupcast_longpoll_waiters "); ok {
				f, _ := strconv.ParseFloat(strings.TrimSpace(n), 64)
				fmt.Fprint(w, int(f))
			}
		}
	})
	// One gateway or all of them change in one statement; when that is committed they are woken as by so many changes.
	change := func(w http.ResponseWriter, r *http.Request) {
		rows, err := pool.Query(r.Context(), "UPDATE gateways SET revision = revision + 1 WHERE $1 IN ('', id::text) RETURNING id", r.URL.Query().Get("k"))
		var ids []models.ID
		for err == nil && rows.Next() {
			var id models.ID
			err = rows.Scan(&id)
			ids = append(ids, id)
		}
		if err == nil {
			err = rows.Err()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		committed(w)
		for _, id := range ids {
			d.Wake(id)
		}
	}
	control.HandleFunc("/all", change)
	control.HandleFunc("/change", change)
	go func() { _ = http.ListenAndServe(s.Control, control) }() //nolint:gosec // it serves this program only
	<-ctx.Done()
	return d.Stop(context.Background())
}

// committed tells the client when a change was made: all are on one machine.
func committed(w http.ResponseWriter) { fmt.Fprint(w, time.Now().UnixNano()) }

// resident answers what /proc says after everything that isn't needed went back to the system.
func resident(w http.ResponseWriter, _ *http.Request) {
	for range 3 { // stacks get smaller by half at a time
		runtime.GC()
	}
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	fmt.Fprint(w, pages*os.Getpagesize())
}

// pollSettings is what a bare server of polls is told: the statement by which the service reads group information, which takes gateways' ids.
type pollSettings struct{ DatabaseURL, Information string }

// readAtOnce is how many gateways the service reads in one statement, and readers how many of those are sent at once.
const (
	readAtOnce = 500
	readers    = 2
)

// barePolls is as little as can let clients wait: net/http and a channel for each. When all have changed it reads what of each has to be told, by the service's
// own statement. Its answers are of the size of the service's.
func barePolls(text []byte) (http.Handler, error) {
	var s pollSettings
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(context.Background(), s.DatabaseURL)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	waiting := map[string]chan struct{}{}
	body := strings.Repeat(".", 700)
	wake := func(k string) {
		if c := waiting[k]; c != nil {
			close(c)
			delete(waiting, k)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/poll", func(w http.ResponseWriter, r *http.Request) {
		c := make(chan struct{})
		k := r.URL.Query().Get("k")
		mu.Lock()
		waiting[k] = c
		mu.Unlock()
		select {
		case <-c:
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = io.WriteString(w, body)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/change", func(w http.ResponseWriter, r *http.Request) {
		committed(w)
		mu.Lock()
		defer mu.Unlock()
		wake(r.URL.Query().Get("k"))
	})
	mux.HandleFunc("/all", func(w http.ResponseWriter, r *http.Request) {
		committed(w)
		_ = http.NewResponseController(w).Flush()
		mu.Lock()
		all := slices.Collect(maps.Keys(waiting))
		mu.Unlock()
		var reading errgroup.Group
		reading.SetLimit(readers)
		for some := range slices.Chunk(all, readAtOnce) {
			reading.Go(func() error {
				ids := make([]string, len(some))
				for i, k := range some {
					n, err := strconv.Atoi(k)
					if err != nil {
						return err
					}
					ids[i] = strconv.FormatInt(gatewayID(n), 10)
				}
				rows, err := pool.Query(r.Context(), s.Information, "{"+strings.Join(ids, ",")+"}")
				if err != nil {
					return err
				}
				read := 0
				for rows.Next() {
					read++
				}
				if rows.Close(); rows.Err() != nil || read < len(some) {
					return fmt.Errorf("%d rows of %d gateways: %w", read, len(some), rows.Err())
				}
				mu.Lock()
				defer mu.Unlock()
				for _, k := range some {
					wake(k)
				}
				return nil
			})
		}
		if err := reading.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, err) // the clients wait in vain, which fails the run
		}
	})
	mux.HandleFunc("/waiting", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprint(w, len(waiting))
	})
	mux.HandleFunc("/resident", resident)
	return mux, nil
}
