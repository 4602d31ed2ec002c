package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/longpoll"
)

// pollWriteTimeout bounds the writing of an answer after a wait.
const pollWriteTimeout = 15 * time.Second

// GetGroupInformation answers a gateway's poll (SPEC §6).
func (h handlers) GetGroupInformation(ctx context.Context, r ginserver.GetGroupInformationRequestObject) (ginserver.GetGroupInformationResponseObject, error) {
	_, p := caller(ctx)
	if p.Device.ID != r.GatewayID {
		return nil, models.NotFound() // somebody else's gateway looks like none
	}
	a, err := h.poll(ctx, longpoll.Request{Gateway: r.GatewayID}, r.Params, longpoll.MaxWait)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// GetRelayInformation answers a relay's poll, as a gateway's is.
func (h handlers) GetRelayInformation(ctx context.Context, r ginserver.GetRelayInformationRequestObject) (ginserver.GetRelayInformationResponseObject, error) {
	_, p := caller(ctx)
	if p.Relay.ID != r.RelayID {
		return nil, models.NotFound()
	}
	a, err := h.poll(ctx, longpoll.Request{Gateway: r.RelayID, Relay: true}, api.GetGroupInformationParams(r.Params), models.RelayMaxWait)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// GetTunnelInformation answers the poll of a camera that ends its tunnel itself.
func (h handlers) GetTunnelInformation(ctx context.Context, r ginserver.GetTunnelInformationRequestObject) (ginserver.GetTunnelInformationResponseObject, error) {
	of, p := caller(ctx)
	if err := h.Gateways.HasTunnel(of, p, r.DeviceID); err != nil {
		return nil, err
	}
	a, err := h.poll(ctx, longpoll.Request{Gateway: r.DeviceID}, api.GetGroupInformationParams(r.Params), longpoll.MaxWait)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// polled is an answer to a poll of any of them.
type polled interface {
	ginserver.GetTunnelInformationResponseObject
	ginserver.GetGroupInformationResponseObject
	ginserver.GetRelayInformationResponseObject
}

// poll answers, or lets the caller wait up to maxWait.
func (h handlers) poll(ctx context.Context, req longpoll.Request, params api.GetGroupInformationParams, maxWait time.Duration) (polled, error) {
	g := ctx
	ctx, p := caller(ctx)
	req.IssuedAt, req.ExpiresAt = p.IssuedAt, p.ExpiresAt
	switch {
	case params.IfNoneMatch != nil:
		tag := entityTag(*params.IfNoneMatch)
		req.Cursor = &tag
	case params.Index != nil:
		req.Cursor, req.Full = params.Index, true
	}
	applied := ""
	switch {
	case params.Wait != nil:
		req.Wait = time.Duration(*params.Wait) * time.Second
	case params.Prefer != nil:
		if wait, ok := preferredWait(*params.Prefer); ok {
			req.Wait = min(wait, maxWait)
			applied = "wait=" + strconv.Itoa(int(req.Wait/time.Second))
		}
	}
	answer, wait, err := h.Polls.Begin(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case wait == nil:
		return pollAnswer{answer, applied}, nil
	}
	waiting := &waitingPoll{wait, applied}
	if h.edge.park(g, h.Parking, waiting) {
		return leftAlone{}, nil
	}
	return waiting.answer(ctx)
}

// waitingPoll is a poll that waits; its answer is given by the handler or, if the connection could be parked, long after that.
type waitingPoll struct {
	*longpoll.Wait
	applied string
}

func (w *waitingPoll) answer(ctx context.Context) (polled, error) {
	a, err := w.End(ctx)
	if err != nil {
		return nil, err
	}
	return pollAnswer{a, w.applied}, nil
}

// Answer is what a parked connection is answered with.
func (w *waitingPoll) Answer(ctx context.Context, to http.ResponseWriter) error {
	a, err := w.End(ctx)
	if err != nil {
		return err
	}
	return pollAnswer{a, w.applied}.VisitGetGroupInformationResponse(to)
}

// Pause lets those who were woken too have their answers, at most for maxPause, before the next poll of this one costs as much as they do.
func (w *waitingPoll) Pause() {
	calm := w.Calm()
	select {
	case <-calm:
		return
	default:
	}
	timer := time.NewTimer(maxPause)
	defer timer.Stop()
	select {
	case <-calm:
		time.Sleep(rand.N(pollPause)) // their next polls needn't come all at once
	case <-timer.C:
	}
}

const (
	// maxPause is less than what a lost hint costs: a gateway that changes again meanwhile hears of it only with its next poll.
	maxPause = 1500 * time.Millisecond
	// pollPause is over how long the next polls are spread.
	pollPause = 200 * time.Millisecond
)

// leftAlone answers nothing: somebody else will.
type leftAlone struct{}

// VisitGetGroupInformationResponse writes nothing.
func (leftAlone) VisitGetGroupInformationResponse(http.ResponseWriter) error { return nil }

// VisitGetTunnelInformationResponse writes nothing.
func (leftAlone) VisitGetTunnelInformationResponse(http.ResponseWriter) error { return nil }

// VisitGetRelayInformationResponse writes nothing.
func (leftAlone) VisitGetRelayInformationResponse(http.ResponseWriter) error { return nil }

// entityTag takes the quotes off an entity tag (RFC 9110 §8.8.3). Weak comparison is right here, so a W/ that a proxy added
// doesn't matter. What isn't one tag isn't a cursor either; the hub says so.
func entityTag(s string) string {
	s = strings.TrimPrefix(strings.TrimSpace(s), "W/")
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return ""
}

// preferredWait reads wait=N out of Prefer (RFC 7240). A preference is never an error: what can't be understood is ignored, what is
// too long is cut.
func preferredWait(prefer string) (time.Duration, bool) {
	for preference := range strings.SplitSeq(prefer, ",") {
		preference, _, _ = strings.Cut(preference, ";")
		name, value, _ := strings.Cut(preference, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
		if err != nil {
			return 0, false
		}
		return min(time.Duration(n)*time.Second, longpoll.MaxWait), true
	}
	return 0, false
}

// pollAnswer writes the bytes that the hub keeps, so that the same state is always the same bytes.
type pollAnswer struct {
	longpoll.Answer
	applied string
}

// VisitGetTunnelInformationResponse writes the same for a camera.
func (a pollAnswer) VisitGetTunnelInformationResponse(w http.ResponseWriter) error {
	return a.VisitGetGroupInformationResponse(w)
}

// VisitGetRelayInformationResponse writes the same for a relay.
func (a pollAnswer) VisitGetRelayInformationResponse(w http.ResponseWriter) error {
	return a.VisitGetGroupInformationResponse(w)
}

// VisitGetGroupInformationResponse writes 200 with the snapshot, or 304.
func (a pollAnswer) VisitGetGroupInformationResponse(w http.ResponseWriter) error {
	// The wait is over; from here on only the network may take time. A test's recorder has no deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pollWriteTimeout))
	h := w.Header()
	h.Set("ETag", a.Cursor.ETag())
	h.Set("Cache-Control", "private, no-cache")
	h.Set("Vary", "Authorization")
	if a.Resync != "" {
		h.Set("Groupcast-Resync", a.Resync)
	}
	if a.applied != "" {
		h.Set("Preference-Applied", a.applied)
	}
	if a.Close {
		h.Set("Connection", "close")
	}
	if a.Body == nil {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(a.Body) // a client that is gone can't be told
	return nil
}

// RenderInformation gives the body of group information: deterministic, so that the same revision has the same bytes.
func RenderInformation(i models.GroupInformation) ([]byte, error) {
	revision, maxStale := strconv.FormatInt(i.Revision, 10), int32(i.MaxStale/time.Second)
	if i.RelayID != 0 {
		return renderRelay(i, api.RelayInformation{
			RelayID: i.RelayID, Epoch: i.Epoch, Revision: revision, MaxStaleSeconds: maxStale, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{},
		})
	}
	if i.Camera {
		return json.Marshal(api.TunnelInformation{
			DeviceID: i.GatewayID, Epoch: i.Epoch, Revision: revision, MaxStaleSeconds: maxStale, Fanout: i.Fanout, Needed: i.Needed, Relay: gatewayRelay(i),
		})
	}
	info := api.GroupInformation{
		GatewayID: i.GatewayID, Epoch: i.Epoch, Revision: revision, MaxStaleSeconds: maxStale, Groups: convert(i.Groups, gatewayGroup),
	}
	if i.Fanout != models.FanoutHome { // which is what absence means
		info.Fanout = &i.Fanout
	}
	info.Relay = gatewayRelay(i)
	return json.Marshal(info)
}

// renderRelay gives the body of a relay's, of which the homes that didn't change are written already: frame is all but the homes.
func renderRelay(i models.GroupInformation, frame api.RelayInformation) ([]byte, error) {
	written := make([]models.WrittenHome, len(i.Homes))
	size := 0
	for n, h := range i.Homes {
		w, err := h.Written(writeHome)
		if err != nil {
			return nil, err
		}
		written[n] = w
		size += len(w.Gateways) + len(w.Groups) + len(",,")
	}
	around, err := json.Marshal(frame)
	if err != nil {
		return nil, err
	}
	body := make([]byte, 0, size+len(around))
	for _, list := range []struct {
		empty string // how the member is in the frame, which has no other such text
		of    func(models.WrittenHome) []byte
	}{
		{`"groups":[]`, func(w models.WrittenHome) []byte { return w.Groups }},
		{`"premises":[]`, func(w models.WrittenHome) []byte { return w.Gateways }},
	} {
		before, after, found := bytes.Cut(around, []byte(list.empty))
		if !found {
			return nil, fmt.Errorf("the frame of a relay's group information has no %s", list.empty)
		}
		body = append(append(body, before...), list.empty[:len(list.empty)-1]...)
		first := true
		for _, w := range written {
			if text := list.of(w); len(text) > 0 {
				if !first {
					body = append(body, ',')
				}
				body, first = append(body, text...), false
			}
		}
		body, around = append(body, ']'), after
	}
	return append(body, around...), nil
}

// writeHome writes the elements of the two lists that a home has.
func writeHome(h *models.RelayHome) (w models.WrittenHome, err error) {
	if w.Gateways, err = elements(convert(h.Gateways, relayPremises)); err == nil {
		w.Groups, err = elements(convert(h.Groups, relayGroup))
	}
	return w, err
}

// elements writes a list without its brackets.
func elements[T any](all []T) ([]byte, error) {
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(bytes.TrimPrefix(text, []byte("[")), []byte("]")), nil
}

// gatewayRelay is nil if there is none.
func gatewayRelay(i models.GroupInformation) *api.GatewayRelay {
	r := i.Relay
	if r == nil {
		return nil
	}
	return &api.GatewayRelay{
		RelayID: r.Relay.ID, TunnelKey: r.Relay.TunnelKey, EndpointIPv4: r.Relay.Endpoint.Addr(), EndpointPort: int32(r.Relay.Endpoint.Port()),
		TunnelAddress: r.Relay.TunnelAddress, OwnTunnelAddress: i.TunnelAddress, Forwarding: r.Forwarding,
	}
}

// relayGroup tells whose tunnel a group's datagrams come through, too.
func relayGroup(g models.GatewayGroup) api.GatewayGroup {
	to := gatewayGroup(g)
	to.GatewayID = &g.GatewayID
	return to
}

func relayPremises(p models.RelayPremises) api.RelayPremises {
	return api.RelayPremises{PremisesID: p.PremisesID, GatewayID: p.GatewayID, TunnelKey: p.TunnelKey, TunnelAddress: p.TunnelAddress}
}

func gatewayGroup(g models.GatewayGroup) api.GatewayGroup {
	return api.GatewayGroup{
		GroupID:    g.ID,
		PremisesID: g.PremisesID,
		GroupName:  g.Name,
		GroupIP:    g.IP,
		Generation: int32(g.Generation),
		State:      int32(g.State),
		GroupSources: convert(g.Sources, func(s models.GatewaySource) api.GroupSource {
			return api.GroupSource{
				RegistrationID: s.RegistrationID, SourceName: s.Name, SourceIPv4: s.IPv4, SourceIPv6: orNull(s.IPv6), Trigger: s.Trigger,
			}
		}),
		GroupDestinations: convert(g.Destinations, func(d models.GatewayDestination) api.GroupDestination {
			return api.GroupDestination{
				RegistrationID:  d.RegistrationID,
				DestinationID:   strconv.FormatInt(d.Number, 10),
				DestinationName: d.Name,
				DestinationIPv4: orNull(d.IPv4),
				DestinationIPv6: orNull(d.IPv6),
				DestinationPort: orNull(int32(d.Port)),
				Consent:         gatewayConsent(d),
			}
		}),
	}
}
