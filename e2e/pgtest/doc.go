// Package pgtest gives tests and benchmarks a Postgres of their own, started from the binaries that are
// installed. It needs no container, no password, no TCP port and no network.
//
// A test that only needs a database asks for [URL], or for [Template.URL] when many tests of the package want the
// same schema: all of them share one cluster per test process. A test that stops, kills or tunes Postgres asks for
// a cluster of its own with [New]. A program that is no test uses [Start].
//
// Where Postgres comes from, first match: TEST_DATABASE_URL (a running server, used by [URL] and [Template.URL]
// only), PG_BIN (a folder), initdb in PATH, the newest /usr/lib/postgresql/*/bin. If there is none the test is
// skipped and says what to install; under CI (environment variable CI set) it fails.
//
// Postgres refuses to run as root, so root runs it as the user postgres, else nobody. It listens on a Unix socket
// only. A cluster ends with the process that started it, however that process ends: a watchdog child reads a pipe
// from it, stops Postgres at end of file and removes the files. What even the watchdog could not remove is removed
// by the next start. No goroutine stays behind, so a leak detector has nothing to ignore.
//
// The package knows nothing of groupcast: schemas and migrations are the caller's business.
package pgtest
