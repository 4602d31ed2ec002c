package lease_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/lease"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

func source() api.RegistrationRequest {
	return api.RegistrationRequest{Type: models.MemberDevice, ID: 664123086043511412, GroupName: "groupcast1"}
}

func problem(code, title, detail string, status int32) api.Problem {
	return api.Problem{Type: "/problems/" + code, Title: title, Detail: &detail, Status: status}
}

// Renewals go on through an outage and a refusal; a move is told; after the leave nothing is posted any more.
func TestLease(t *testing.T) {
	service, c := scripted.Start(t)
	var steps []string
	note := func(step string, keysAndValues ...any) {
		steps = append(steps, fmt.Sprint(step, keysAndValues))
	}
	var errorLog strings.Builder
	service.Say(http.StatusOK, scripted.Answer("127.1.2.230", 1))
	service.Say(http.StatusServiceUnavailable, problem("unavailable", "Unavailable", "The database is away.", 503))
	service.Say(http.StatusOK, scripted.Answer("127.1.2.230", 1))
	service.Say(http.StatusUnauthorized, problem("unauthenticated", "No valid token", "Get a new one.", 401))
	service.Say(http.StatusOK, scripted.Answer("127.1.2.231", 4))

	l := lease.New(c, source(), note, slog.New(slog.NewTextHandler(&errorLog, nil)))
	answer, err := l.Join(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "127.1.2.230", answer.GroupIP.String())

	ctx, stop := context.WithCancel(t.Context())
	moves := make(chan api.RegistrationAnswer, 10)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		l.Keep(ctx, func(a api.RegistrationAnswer, moved bool) {
			if moved {
				moves <- a
			}
		})
	}()
	select {
	case moved := <-moves:
		assert.Equal(t, "127.1.2.231", moved.GroupIP.String())
	case <-time.After(time.Minute):
		t.Fatal("no move was told")
	}
	stop()
	<-kept
	assert.Empty(t, moves)
	_, err = l.Leave(t.Context())
	require.NoError(t, err)

	assert.Equal(t, 1, service.Leaves())
	assert.GreaterOrEqual(t, len(service.Posts()), 5)
	for _, post := range service.Posts() {
		assert.Equal(t, service.Posts()[0], post)
	}
	assert.Contains(t, errorLog.String(), "The database is away.")
	assert.Contains(t, errorLog.String(), "Get a new one.")
	assert.Equal(t, []string{
		"joining[]", "joined[groupIP 127.1.2.230 generation 1 state 0]", "moved[groupIP 127.1.2.231 generation 4 state 0]", "leaving[]", "left[state 0]",
	}, steps)
}

func TestJoinRefused(t *testing.T) {
	service, c := scripted.Start(t)
	service.Say(http.StatusConflict, problem("no-gateway", "No gateway", "Start the agent.", 409))
	l := lease.New(c, source(), nil, slog.New(slog.DiscardHandler))
	_, err := l.Join(t.Context())
	var refused *refusal.Error
	require.ErrorAs(t, err, &refused)
	assert.True(t, refused.Final())
	assert.Equal(t, "register: No gateway (409): Start the agent.\n  type: /problems/no-gateway", err.Error())
	_, err = l.Leave(t.Context())
	require.Error(t, err)
	assert.Zero(t, service.Leaves())
}

// A service has to name the group IP. It looks it up each time, since a group that ended and came back may have another.
func TestServiceLooksTheGroupIPUp(t *testing.T) {
	service, c := scripted.Start(t)
	service.Say(http.StatusOK, scripted.Answer("127.1.2.230", 1))
	request := source()
	request.Type, request.Destination = models.MemberService, true
	l := lease.New(c, request, nil, slog.New(slog.DiscardHandler))
	_, err := l.Join(t.Context())
	require.ErrorContains(t, err, "there is no group groupcast1")

	group := func(ip string) api.Group { return api.Group{GroupName: "groupcast1", GroupIP: netip.MustParseAddr(ip)} }
	service.Groups(group("127.1.2.230"), group("127.1.3.230"))
	_, err = l.Join(t.Context())
	require.ErrorContains(t, err, "choose one by groupIP")
	assert.Empty(t, service.Posts())

	service.Groups(group("127.1.2.231"))
	_, err = l.Join(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "127.1.2.231", service.Posts()[0].GroupIP.MustGet().String())

	request.GroupIP = nullable.NewNullableWithValue(netip.MustParseAddr("127.9.9.9"))
	_, err = lease.New(c, request, nil, slog.New(slog.DiscardHandler)).Join(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "127.9.9.9", service.Posts()[1].GroupIP.MustGet().String())
}
