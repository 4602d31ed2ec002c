package mqtt

import (
	"bufio"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	// readAhead is enough to read most packets at once, in bytes: there is one such buffer for each connection.
	readAhead = 32
	// maxClientID is the longest client id, in bytes.
	maxClientID = 256
	// maxSubscriptions is how many topics one connection may subscribe to.
	maxSubscriptions = 64
	// refusedTopic is SUBACK's code for one (§3.9.3).
	refusedTopic = 0x80
)

// session is one connection. One goroutine reads; a second one is there only while there is something to deliver.
type session struct {
	edge   *Edge
	conn   net.Conn
	in     *bufio.Reader
	key    sessionKey
	client Client
	idle   time.Duration // without a packet for so long it ends; 0: it doesn't

	writing sync.Mutex

	mu         sync.Mutex
	subs       []*subscription
	delivering bool
	why        Reason // it ended
}

// subscription is a topic that a session hears. It is the only slot for what is to be told: a newer state takes the place of one that waits.
type subscription struct {
	session *session
	feed    *feed
	topic   string
	qos     byte
	id      uint16 // of its messages, of which at most one is not acknowledged

	// Guarded by the session's lock.
	live     bool      // SUBACK was sent
	dirty    bool      // there may be something newer than place
	inFlight time.Time // when the message was sent that is not acknowledged; zero if there is none

	// Of the goroutine that delivers.
	place int64 // what was told last
	told  bool  // something was
}

// validText tells whether a text may stand in a packet (§1.5.3).
func validText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// run reads what the client sends until the connection ends.
func (s *session) run() {
	s.end(s.read())
	s.mu.Lock()
	why := s.why
	s.mu.Unlock()
	// Whoever drains closes the connection and ends what is being read and written for it.
	if (why == Gone || why == Slow || why == Unavailable) && s.edge.isDraining() {
		why = Draining
	}
	// Before it counts as gone, so that whoever waits for that finds it counted.
	s.edge.metrics.connections.Dec()
	s.edge.metrics.ended.WithLabelValues(string(why)).Inc()
	s.edge.remove(s)
	s.edge.leave(s.conn)
}

func (s *session) read() Reason {
	for {
		if s.idle > 0 {
			_ = s.conn.SetReadDeadline(time.Now().Add(s.idle))
		}
		p, err := readPacket(s.in, maxPacket)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return Silent
		case errors.Is(err, errType):
			return NotAllowed
		case errors.Is(err, errMalformed), errors.Is(err, errTooLong), errors.Is(err, errVersion):
			return Malformed
		case err != nil:
			return Gone
		}
		if why := s.obey(p); why != "" {
			return why
		}
	}
}

// obey does what a packet asks for. It tells why the connection has to end, if it has.
func (s *session) obey(p packets.ControlPacket) Reason {
	ok := true
	switch p := p.(type) {
	case *packets.PingreqPacket:
		ok = s.write(encode(packets.NewControlPacket(packets.Pingresp)))
	case *packets.PubackPacket:
		s.acknowledged(p.MessageID)
	case *packets.SubscribePacket:
		// Reading the database grows a stack, and this one stays.
		why := make(chan Reason)
		go func() { why <- s.subscribe(p) }()
		return <-why
	case *packets.UnsubscribePacket:
		if p.MessageID == 0 || len(p.Topics) == 0 {
			return Malformed
		}
		for _, topic := range p.Topics {
			s.drop(func(sub *subscription) bool { return sub.topic == topic })
		}
		answer := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
		answer.MessageID = p.MessageID
		ok = s.write(encode(answer))
	case *packets.DisconnectPacket:
		return Gone
	default: // a second CONNECT
		return Malformed
	}
	if !ok {
		return Slow
	}
	return ""
}

// subscribe answers a SUBSCRIBE, and then tells what there is.
func (s *session) subscribe(p *packets.SubscribePacket) Reason {
	if p.MessageID == 0 || len(p.Topics) == 0 {
		return Malformed
	}
	answer := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	answer.MessageID = p.MessageID
	var fresh []*subscription
	for i, topic := range p.Topics {
		if p.Qoss[i] > 2 || !validText(topic) || topic == "" {
			return Malformed
		}
		if !s.edge.o.AllowDevice(s.client.Device) {
			return RateLimited
		}
		sub, err := s.admit(topic, min(p.Qoss[i], 1))
		if err != nil {
			return Unavailable
		}
		if sub == nil {
			s.edge.metrics.refused.WithLabelValues(string(Topic)).Inc()
			answer.ReturnCodes = append(answer.ReturnCodes, refusedTopic)
			continue
		}
		answer.ReturnCodes = append(answer.ReturnCodes, sub.qos)
		fresh = append(fresh, sub)
	}
	if !s.write(encode(answer)) {
		return Slow
	}
	s.mu.Lock()
	for _, sub := range fresh {
		sub.live = true
	}
	s.mu.Unlock()
	for _, sub := range fresh {
		s.mark(sub)
	}
	return ""
}

// admit adds a subscription, in place of one to the same topic; nil if the client may not hear it, or has too many.
func (s *session) admit(topic string, qos byte) (*subscription, error) {
	of, ok := stream(topic, s.client.Account)
	if !ok {
		return nil, nil
	}
	sub := &subscription{session: s, topic: topic, qos: qos}
	// First attached and then read: no hint can fall in between.
	s.edge.attach(of, sub)
	may, place, err := sub.feed.admits(&s.client)
	if err != nil || !may {
		s.edge.detach(sub)
		return nil, err
	}
	sub.place = place
	s.drop(func(old *subscription) bool { return old.topic == topic })
	s.mu.Lock()
	sub.id = s.freeID()
	full := len(s.subs) >= maxSubscriptions || s.why != ""
	if !full {
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	if full {
		s.edge.detach(sub)
		return nil, nil
	}
	return sub, nil
}

// freeID is the lowest that no subscription has.
func (s *session) freeID() uint16 {
	for id := uint16(1); ; id++ {
		used := false
		for _, sub := range s.subs {
			used = used || sub.id == id
		}
		if !used {
			return id
		}
	}
}

// drop ends subscriptions.
func (s *session) drop(which func(*subscription) bool) {
	var dropped []*subscription
	s.mu.Lock()
	kept := s.subs[:0]
	for _, sub := range s.subs {
		if which(sub) {
			dropped = append(dropped, sub)
		} else {
			kept = append(kept, sub)
		}
	}
	clear(s.subs[len(kept):])
	s.subs = kept
	s.mu.Unlock()
	for _, sub := range dropped {
		s.edge.detach(sub)
	}
}

// take gives all subscriptions away: the session is over.
func (s *session) take() []*subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	subs := s.subs
	s.subs = nil
	return subs
}

// mark says that there may be something to deliver. It never blocks.
func (s *session) mark(sub *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub.dirty = true
	s.startDelivering(sub)
}

func (s *session) acknowledged(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subs {
		if sub.id == id && !sub.inFlight.IsZero() {
			sub.inFlight = time.Time{}
			s.startDelivering(sub)
		}
	}
}

// startDelivering starts the goroutine that delivers, if it isn't there and has something to do. The session's lock is held.
func (s *session) startDelivering(sub *subscription) {
	if sub.due() && !s.delivering && s.why == "" {
		s.delivering = true
		go s.deliver()
	}
}

func (sub *subscription) due() bool { return sub.live && sub.dirty && sub.inFlight.IsZero() }

// deliver tells what is due, until nothing is.
func (s *session) deliver() {
	for {
		s.mu.Lock()
		var sub *subscription
		for _, each := range s.subs {
			if each.due() {
				sub = each
				break
			}
		}
		if sub == nil || s.why != "" {
			s.delivering = false
			s.mu.Unlock()
			return
		}
		sub.dirty = false
		s.mu.Unlock()
		s.tell(sub)
	}
}

// tell delivers the next of one subscription, if the client may hear it.
func (s *session) tell(sub *subscription) {
	if !s.client.ExpiresAt.After(s.edge.o.Now()) {
		s.end(Expired)
		return
	}
	n, err := sub.feed.next(&s.client, sub.place)
	if err != nil {
		return // the look that finds the feed stale marks it again
	}
	switch n.verdict {
	case nothing:
	case silence:
		s.drop(func(each *subscription) bool { return each == sub })
	case revoked:
		s.end(Revoked)
	case behind:
		s.end(Slow)
	case tell, tellLast:
		s.publish(sub, n)
	}
}

func (s *session) publish(sub *subscription, n next) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos = sub.topic, n.body, sub.qos
	state, label := sub.feed.of.GroupID != "", eventsLabel
	if state {
		// What a broker would have retained is what was so before somebody subscribed.
		label, p.Retain = stateLabel, !sub.told
		if sub.told && n.place > sub.place+1 {
			s.edge.metrics.conflated.Inc()
		}
	}
	s.mu.Lock()
	if sub.qos > 0 {
		p.MessageID, sub.inFlight = sub.id, time.Now()
	}
	sub.dirty = sub.dirty || !state // there may be one more
	s.mu.Unlock()
	sub.place, sub.told = n.place, true
	if !s.write(encode(p)) {
		s.end(Slow)
		return
	}
	s.edge.metrics.deliveries.WithLabelValues(label).Inc()
	if n.verdict == tellLast {
		s.drop(func(each *subscription) bool { return each == sub })
	}
}

// write sends bytes in bounded time, and tells whether that worked.
func (s *session) write(b []byte) bool {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.edge.o.WriteTimeout))
	_, err := s.conn.Write(b)
	return err == nil
}

// overdue tells why a session has to end by now, if it has.
func (s *session) overdue(now time.Time) Reason {
	if !s.client.ExpiresAt.After(now) {
		return Expired
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subs {
		if !sub.inFlight.IsZero() && time.Since(sub.inFlight) > s.edge.o.AckTimeout {
			return Slow
		}
	}
	return ""
}

// end ends the connection. The first reason counts.
func (s *session) end(why Reason) {
	s.mu.Lock()
	first := s.why == ""
	if first {
		s.why = why
	}
	s.mu.Unlock()
	if first {
		_ = s.conn.Close()
	}
}

func (e *Edge) isDraining() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.draining
}
