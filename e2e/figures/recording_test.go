package figures

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
)

// unit is what Postgres ran for a request in one go: a transaction, or a statement that is one by itself.
type unit struct {
	Transaction bool
	Statements  []recorded
}

// recorded is one statement with its parameters, in which the names that a request decides are marks such as <phone>.
type recorded struct {
	Text       string
	Parameters []string
}

// variables are the names that stand in a request of a phone, or follow from it.
func variables(k, j, g int, instance, registrationID string) []string {
	return []string{
		"<account>", accountName(k), "<premises>", premisesName(k), "<group>", groupID(k, g), "<name>", groupName(g), "<ip>", groupIP(g),
		"<gateway>", strconv.FormatInt(gatewayID(k), 10), "<phone>", strconv.FormatInt(phoneID(k, j), 10), "<phone name>", phoneName(k, j),
		"<address>", phoneAddr(j), "<instance>", instance, "<registration>", registrationID,
		"<request>", strings.ToLower(rand.Text()), "<audit 1>", string(models.NewAuditID()), "<audit 2>", string(models.NewAuditID()),
	}
}

// record learns from Postgres' own log which statements one request leads to, so that the bare server always sends what the service
// sends now. It does so twice with different names: whatever differs has to be known by name.
func record(t testing.TB, c *pgtest.Cluster, databaseURL string, service *program, token func(k int) string, renew bool) []unit {
	t.Helper()
	one := func(k, g int, instance string) []unit {
		id := ""
		send := func() {
			_, err := load(service.addr, 1, 1, func(int, int) string { return post(token(k), registration(k, 1, g, instance)) })
			require.NoError(t, err)
		}
		if renew {
			send()
		}
		units := logged(t, c, send)
		if err := queryRow(databaseURL, "SELECT id FROM registrations WHERE instance = '"+instance+"'", &id); err != nil {
			require.NoError(t, err)
		}
		var marks []string
		for i, v := range variables(k, 1, g, instance, id) {
			if i%2 == 0 {
				marks = append(marks, "", v)
			} else {
				marks[len(marks)-2] = v
			}
		}
		mark := strings.NewReplacer(marks...)
		rows := 0
		for _, u := range units {
			for _, s := range u.Statements {
				for i, p := range s.Parameters {
					switch p = mark.Replace(p); {
					case auditID.MatchString(p):
						rows++
						p = fmt.Sprintf("<audit %d>", rows)
					case requestID.MatchString(p):
						p = "<request>"
					}
					s.Parameters[i] = p
				}
			}
		}
		// What names nothing of the request runs beside it, for all.
		return slices.DeleteFunc(units, func(u unit) bool {
			return !slices.ContainsFunc(u.Statements, func(s recorded) bool {
				return slices.ContainsFunc(s.Parameters, func(p string) bool { return strings.Contains(p, "<") })
			})
		})
	}
	kind := "first"
	if renew {
		kind = "again"
	}
	first, second := one(1, 2, "recorded-"+kind), one(2, 5, "registered-"+kind)
	require.Equal(t, first, second, "a parameter follows from the request in a way that the recording doesn't know")
	require.NotEmpty(t, first)
	return first
}

// marked fills in the names of a request.
func (r recorded) marked(names *strings.Replacer) []any {
	all := make([]any, len(r.Parameters))
	for i, p := range r.Parameters {
		switch {
		case p == "NULL":
			all[i] = nil
		case strings.Contains(p, "<"):
			all[i] = names.Replace(p)
		default:
			all[i] = p
		}
	}
	return all
}

// What the service draws for each request, and for each row of the audit log.
var (
	auditID   = regexp.MustCompile(`^e_[0-9a-z]{26}$`)
	requestID = regexp.MustCompile(`^[a-z2-7]{26}$`)
)

var (
	statementLine = regexp.MustCompile(`(?s)^(\d+)\|LOG:  (?:execute [^:]*|statement): (.*)$`)
	detailLine    = regexp.MustCompile(`(?s)^(\d+)\|DETAIL:  [pP]arameters: (.*)$`)
	parameter     = regexp.MustCompile(`(?s)\$\d+ = (NULL|'(?:[^']|'')*')`)
)

// logged gives the units that Postgres ran while f did, without those that it runs also when nobody asks for anything.
func logged(t testing.TB, c *pgtest.Cluster, f func()) []unit {
	t.Helper()
	begin, err := c.Log()
	require.NoError(t, err)
	time.Sleep(4 * time.Second) // what runs by itself does so at least every three seconds
	idle, err := c.Log()
	require.NoError(t, err)
	f()
	time.Sleep(100 * time.Millisecond) // the log may be written after the answer
	end, err := c.Log()
	require.NoError(t, err)

	background := map[string]bool{}
	for _, u := range units(string(idle[len(begin):])) {
		for _, s := range u.Statements {
			background[s.Text] = true
		}
	}
	// What publishes events and what seals the audit log works after the request, for many at a time.
	relays := func(u unit, s recorded) bool {
		return strings.Contains(s.Text, "published_at") || strings.Contains(s.Text, "audit_head") || strings.Contains(s.Text, "seq IS NULL") || strings.Contains(s.Text, "pg_notify") ||
			!u.Transaction && (strings.Contains(s.Text, "service_links") || strings.Contains(s.Text, "FROM events"))
	}
	return slices.DeleteFunc(units(string(end[len(idle):])), func(u unit) bool {
		return !slices.ContainsFunc(u.Statements, func(s recorded) bool { return !background[s.Text] && !relays(u, s) })
	})
}

// units reads a log with the prefix "%p|" and sorts its statements by session and transaction.
func units(log string) (all []unit) {
	open := map[string]*unit{}
	var last *recorded
	take := func(session string, s recorded) {
		last = nil
		switch verb := strings.ToLower(strings.Fields(s.Text + " ;")[0]); {
		case verb == "begin":
			open[session] = &unit{Transaction: true}
		case verb == "commit" || verb == "rollback":
			if u := open[session]; u != nil && len(u.Statements) > 0 {
				all = append(all, *u)
			}
			delete(open, session)
		case s.Text == "-- ping" || s.Text == ";":
		case open[session] != nil:
			u := open[session]
			u.Statements = append(u.Statements, s)
			last = &u.Statements[len(u.Statements)-1]
		default:
			all = append(all, unit{Statements: []recorded{s}})
			last = &all[len(all)-1].Statements[0]
		}
	}
	var entry string
	flush := func() {
		if m := statementLine.FindStringSubmatch(entry); m != nil {
			take(m[1], recorded{Text: m[2]})
		} else if m := detailLine.FindStringSubmatch(entry); m != nil && last != nil {
			for _, p := range parameter.FindAllStringSubmatch(m[2], -1) {
				value := p[1]
				if value != "NULL" {
					value = strings.ReplaceAll(value[1:len(value)-1], "''", "'")
				}
				last.Parameters = append(last.Parameters, value)
			}
		}
		entry = ""
	}
	for line := range strings.Lines(log) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "\t"); ok {
			entry += "\n" + rest
			continue
		}
		flush()
		entry = line
	}
	flush()
	return all
}

// recordingSettings make Postgres log what recordings are made of.
var recordingSettings = map[string]string{"log_line_prefix": "%p|"}

// logStatements sets what Postgres logs, for the sessions that are open too.
func logStatements(t testing.TB, c *pgtest.Cluster, which string) {
	t.Helper()
	execute(t, c.AdminURL(), "ALTER SYSTEM SET log_statement = '"+which+"'")
	execute(t, c.AdminURL(), "SELECT pg_reload_conf()")
	time.Sleep(200 * time.Millisecond) // sessions hear of it when they are next asked something
}

// show prints a recording for whoever asks what the bare server sends.
func show(name string, units []unit) {
	for _, u := range units {
		for _, s := range u.Statements {
			how := "alone"
			if u.Transaction {
				how = "in a transaction"
			}
			fmt.Printf("%s sends %s: %s\n", name, how, strings.Join(strings.Fields(s.Text), " "))
		}
	}
}
