// Package relaytest holds the stream of the queue against the database: what every drill of the events has to leave right.
package relaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// Received is what is in the stream, by subject.
func Received(t testing.TB, conn *nats.Conn) map[string][]api.GroupEvent {
	t.Helper()
	ctx := t.Context()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	s, err := js.Stream(ctx, eventqueue.StreamName)
	require.NoError(t, err)
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	require.NoError(t, err)
	info, err := s.Info(ctx)
	require.NoError(t, err)
	all := map[string][]api.GroupEvent{}
	for n, missed := uint64(0), 0; n < info.State.Msgs; {
		// One asks for no more than there is: a fetch that wants more waits for it.
		batch, err := c.Fetch(int(min(500, info.State.Msgs-n)), jetstream.FetchMaxWait(2*time.Second))
		require.NoError(t, err)
		for m := range batch.Messages() {
			var e api.GroupEvent
			require.NoError(t, json.Unmarshal(m.Data(), &e), "%s", m.Data())
			all[m.Subject()] = append(all[m.Subject()], e)
			n++
		}
		if err := batch.Error(); !errors.Is(err, nats.ErrNoResponders) || missed == 100 { // the cluster may be looking for a leader
			require.NoError(t, err)
			continue
		}
		missed++
		time.Sleep(100 * time.Millisecond)
	}
	return all
}

// Ledger holds the stream against the database: per stream the numbers 1 to n, each once, in order; the last is how the group is; services have
// just what is theirs.
func Ledger(t testing.TB, db *storetest.DB, conn *nats.Conn) {
	t.Helper()
	all := Received(t, conn)
	truth := db.Texts(t, "SELECT account_id || '.' || CASE group_id WHEN '' THEN 'account' ELSE group_id END || ' ' || max(rev) FROM events GROUP BY account_id, group_id")
	var subjects int
	for _, row := range truth {
		stream, newest, _ := strings.Cut(row, " ")
		got := all["gc.a."+stream]
		require.Equal(t, newest, fmt.Sprint(len(got)), stream)
		for i, e := range got {
			require.Equal(t, fmt.Sprintf("%010d", i+1), e.Sequence, "%s: each once, in order", stream)
		}
		subjects++
	}
	for _, row := range db.Texts(t, "SELECT g.account_id || '.' || g.id || ' ' || (SELECT count(*) FROM registrations r WHERE r.group_id = g.id AND r.role = 'destination') FROM groups g") {
		stream, state, _ := strings.Cut(row, " ")
		got := all["gc.a."+stream]
		require.Equal(t, state, fmt.Sprint(got[len(got)-1].Data.State), "the last that is heard is the truth")
	}
	for subject, got := range all {
		if strings.HasPrefix(subject, "gc.a.") {
			subjects--
			continue
		}
		part := strings.Split(subject, ".") // gc.s.SERVICE.SERVICEACCOUNTID.STREAM
		require.Len(t, part, 5)
		if part[4] == "link" {
			continue
		}
		linked := db.Texts(t, fmt.Sprintf("SELECT l.service_id FROM service_links l JOIN events e ON e.account_id = l.account_id AND e.group_id = '%s' AND e.rev = 1 "+
			"WHERE l.service_account_id = %s", part[4], part[3]))
		require.Equal(t, []string{part[2]}, linked, "no service has anything of an account that it is not linked with")
		for i, e := range got {
			require.Equal(t, part[3], e.Data.ServiceAccountID.String())
			if i > 0 {
				require.Equal(t, got[i-1].Data.Rev+1, e.Data.Rev)
			}
		}
	}
	require.Zero(t, subjects, "and nothing else is in the stream")
}
