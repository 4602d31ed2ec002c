package follow_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/follow"
	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

// script answers each connection with the next text, and then cuts it off.
func script(t *testing.T, texts ...string) (*client.ClientWithResponses, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var ids []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		assert.Equal(t, "text/event-stream", r.Header.Get("Accept"))
		n := len(ids)
		ids = append(ids, r.Header.Get("Last-Event-ID"))
		if texts[n] == "" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"type":"/problems/forbidden","title":"Forbidden","status":403,"detail":"Register first."}`)
			return
		}
		fmt.Fprint(w, texts[n])
	}))
	t.Cleanup(server.Close)
	c, err := client.NewClientWithResponses(server.URL)
	require.NoError(t, err)
	return c, func() []string { mu.Lock(); defer mu.Unlock(); return ids }
}

func event(name, id, kind string) string {
	return fmt.Sprintf("event: %s\nid: %s\ndata: {\"type\":%q,\"data\":{\"groupId\":\"g_1\",\"rev\":1}}\n\n", name, id, kind)
}

// What was cut off in the middle is not taken, a place without an event is, and the next connection goes on from there; a refusal for good is the end.
func TestGoesOnWhereItWas(t *testing.T) {
	c, ids := script(t,
		"retry: 10\n\n"+event("group", "7", "a")+": nothing\nid: 9\n\n"+"event: group\nid: 10\ndata: {\"type\"",
		"retry: 10\n\n"+event("future", "11", "x")+"event: resync\nid: 12\ndata: {\"reason\":\"too-old\",\"more\":false,\"events\":[{\"type\":\"b\",\"data\":{\"groupId\":\"g_2\"}}]}\n\n",
		event("account", "13", "c")+"event: end\ndata: {\"reason\":\"token-expired\",\"detail\":\"Get a new one.\"}\n\n",
		"")
	var heard []string
	err := follow.Events(t.Context(), c, "", slog.New(slog.DiscardHandler), func(h follow.Heard) error {
		for _, e := range h.Events {
			heard = append(heard, fmt.Sprint(e.Type, h.Resync, e.Group != nil))
		}
		return nil
	})
	require.ErrorContains(t, err, "Register first.")
	require.Equal(t, []string{"afalse true", "btrue true", "cfalse true"}, heard)
	require.Equal(t, []string{"", "9", "12", "13"}, ids())
}

func TestWhoHearsMayEndIt(t *testing.T) {
	c, ids := script(t, event("group", "7", "a")+event("group", "8", "b"))
	enough, n := errors.New("enough"), 0
	err := follow.Events(t.Context(), c, "g_1", slog.New(slog.DiscardHandler), func(follow.Heard) error { n++; return enough })
	require.ErrorIs(t, err, enough)
	require.Equal(t, 1, n)
	require.Len(t, ids(), 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, follow.Events(ctx, c, "", slog.New(slog.DiscardHandler), nil))
}

// Where something on the way holds streams back, what happens is heard by long poll, and nothing twice.
func TestAsksByLongPollWhereStreamsAreHeldBack(t *testing.T) {
	defer follow.SetBeginning(50 * time.Millisecond)()
	service, c := scripted.Start(t)
	service.KeepStreamsSilent()
	service.Tell(models.EventGroupState, api.GroupEventData{GroupID: "g_1", Rev: 1})
	enough := errors.New("enough")
	var revs []int32
	err := follow.Events(t.Context(), c, "g_1", slog.New(slog.DiscardHandler), func(h follow.Heard) error {
		for _, e := range h.Events {
			revs = append(revs, e.Group.Rev)
			service.Tell(models.EventMemberJoined, api.GroupEventData{GroupID: "g_1", Rev: e.Group.Rev + 1})
		}
		if len(revs) >= 3 {
			return enough
		}
		return nil
	})
	require.ErrorIs(t, err, enough)
	require.Equal(t, []int32{1, 2, 3}, revs)
	require.Equal(t, []string{"stream", "poll ", "poll 1", "poll 2"}, service.Asked())
}
