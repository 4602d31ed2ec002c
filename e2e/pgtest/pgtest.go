package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// URL returns the URL of a fresh, empty database for one test, and drops it when the test is over. All tests of the
// process share one cluster, with fsync off: about half a second for the first call, some 30 ms for the others.
func URL(t testing.TB) string {
	t.Helper()
	return shared(t).forTest(t, "")
}

// New starts a cluster for one test alone, which may stop, kill and start it. It is removed when the test is over.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c, err := Start(opts)
	if err != nil {
		unavailable(t, err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing Postgres: %v", err)
		}
	})
	return c
}

// URL is like the function [URL], in this cluster. The database goes with the cluster.
func (c *Cluster) URL(t testing.TB) string {
	t.Helper()
	u, err := c.CreateDatabase()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Template is a database that is prepared once per test process, by migrations for example, and copied for each test.
// It goes with the cluster; on a server named by TEST_DATABASE_URL it stays behind.
type Template struct {
	prepare func(ctx context.Context, url string) error
	once    sync.Once
	name    string
	err     error
}

// NewTemplate is meant for a package variable: prepare runs when the first test asks for a copy.
func NewTemplate(prepare func(ctx context.Context, url string) error) *Template {
	return &Template{prepare: prepare}
}

// URL returns the URL of a copy of the template for one test, and drops it when the test is over.
func (p *Template) URL(t testing.TB) string {
	t.Helper()
	pool := shared(t)
	p.once.Do(func() {
		if p.name, p.err = pool.create(""); p.err == nil {
			p.err = p.prepare(context.Background(), pool.url(p.name))
		}
	})
	if p.err != nil {
		t.Fatalf("preparing the template database: %v", p.err)
	}
	return pool.forTest(t, p.name)
}

// shared is the cluster of this test process, or the server that TEST_DATABASE_URL names.
func shared(t testing.TB) *databases {
	t.Helper()
	pool, err := sharedOnce()
	if err != nil {
		unavailable(t, err)
	}
	return pool
}

var sharedOnce = sync.OnceValues(func() (*databases, error) {
	if given := os.Getenv("TEST_DATABASE_URL"); given != "" {
		return external(given)
	}
	c, err := Start(Options{})
	if err != nil {
		return nil, err
	}
	// Nobody closes it: it ends with the process.
	return c.pool, nil
})

// unavailable skips the test where Postgres is not installed, and fails it where it must be there or is broken.
func unavailable(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	t.Fatal(err)
}

// databases makes and drops databases of one server.
type databases struct {
	admin string // URL of a session that may do so
	owner string // of the new databases; "" is the session's own user
	url   func(database string) string

	version atomic.Int64 // server_version_num, 0 until asked
}

// external uses a server that is already there. Its user needs CREATEDB.
func external(given string) (*databases, error) {
	base, err := url.Parse(given)
	if err != nil || (base.Scheme != "postgres" && base.Scheme != "postgresql") {
		return nil, errors.New("TEST_DATABASE_URL must be a URL like postgres://user@host/postgres")
	}
	return &databases{admin: given, url: func(database string) string {
		u := *base
		u.Path, u.RawPath = "/"+database, ""
		return u.String()
	}}, nil
}

// create makes a database, empty or as a copy, and returns its name.
func (d *databases) create(template string) (string, error) {
	if template == "" {
		template = "template0"
	}
	version, err := d.serverVersion()
	if err != nil {
		return "", err
	}
	name := "t_" + strings.ToLower(rand.Text()[:12])
	query := "CREATE DATABASE " + name + " TEMPLATE " + template
	if version >= 150000 {
		query += " STRATEGY FILE_COPY" // copying files beats writing each page to the log
	}
	if d.owner != "" {
		query += " OWNER " + d.owner
	}
	return name, execute(d.admin, query)
}

// forTest creates a database for one test.
func (d *databases) forTest(t testing.TB, template string) string {
	t.Helper()
	name, err := d.create(template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := execute(d.admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return d.url(name)
}

func (d *databases) serverVersion() (int64, error) {
	if v := d.version.Load(); v != 0 {
		return v, nil
	}
	var v int64
	err := session(d.admin, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::bigint").Scan(&v)
	})
	if err != nil {
		return 0, err
	}
	d.version.Store(v)
	return v, nil
}

func execute(url, query string) error {
	return session(url, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, query); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
		return nil
	})
}

// session opens a connection for one piece of administration. None is kept, so that a restart of the server and a
// leak detector see nothing of it.
func session(url string, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	err = do(ctx, conn)
	return errors.Join(err, conn.Close(ctx))
}
