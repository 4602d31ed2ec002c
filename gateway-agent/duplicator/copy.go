package duplicator

import (
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// headers is what a copy over IPv4 has beside its payload, in bytes.
const headers = 28

// segmentPause is how long an outlet sends datagrams one by one after the kernel could not segment them: the way to a destination may change.
const segmentPause = time.Minute

// copy sends one copy of each datagram of the flight to each destination of the group. Every destination has a socket of its own and no
// send waits, so one that is slow or dead costs the others nothing.
func (l *listener) copy(v packet.Verdict, camera packet.Datagram, f *flight, now time.Time) {
	s := l.streamOf(v, camera)
	if s == nil {
		l.counters.streams.Add(uint64(f.datagrams))
		return
	}
	s.used = now
	perByte := PerByte(l.owner.config.DestinationRate)
	together := f.together[:0]
	for _, o := range s.outlets {
		if !o.destination.Serves(v.Source, now) {
			o.counters.stale.Add(uint64(f.datagrams))
			continue
		}
		n := f.within(&o.counters.pace, now, perByte)
		o.counters.overRate.Add(uint64(f.datagrams - n))
		if n == 0 || !o.prepare(s, camera, n, now) {
			continue
		}
		if f.ring == nil || f.datagrams > 1 || len(s.outlets) < worthRing {
			o.send(f, n, now, nil)
			continue
		}
		if together = append(together, o); len(together) == cap(together) {
			f.sendTogether(together, now)
			together = together[:0]
		}
	}
	if len(together) > 0 {
		f.sendTogether(together, now)
	}
}

// worthRing is the number of destinations from which on a datagram alone is sent to all of them by one system call: for two it takes as long as two calls.
const worthRing = 3

// sendTogether sends a datagram alone to each of some destinations that are prepared.
func (f *flight) sendTogether(outlets []*outlet, now time.Time) {
	for i, result := range f.ring.send(outlets, &f.buffers[0]) {
		switch o := outlets[i]; {
		case result >= 0:
			o.countSent(1, uint32(result))
		case result == notTried, result == -int32(unix.EINTR):
			o.send(f, 1, now, nil)
		default:
			o.send(f, 1, now, unix.Errno(-result))
		}
	}
	clear(outlets) // whose destination left shouldn't stay in memory
}

// prepare tells whether copies of n datagrams can be sent to one destination, or counts why they can't.
func (o *outlet) prepare(s *stream, camera packet.Datagram, n int, now time.Time) bool {
	if !o.ready(s, camera, now) {
		o.counters.noSocket.Add(uint64(n))
		return false
	}
	if err := o.setHops(camera.TTL - 1); err != nil {
		o.count(err, n)
		return false
	}
	return true
}

// send sends copies of the first n datagrams to one destination that is prepared, or counts why it could not. It never queues: what there is no room for is
// dropped. An answer is what the kernel has said already to a first try.
func (o *outlet) send(f *flight, n int, now time.Time, answer error) {
	if o.segmentable < math.MaxInt && now.After(o.segmentAgain) && o.segments {
		o.segmentable = math.MaxInt
	}
	for i := 0; i < n; {
		messages := f.from(i, o.segmentable)
		if n < f.datagrams {
			messages = f.singles[i:n]
		}
		sent, err := o.put(messages, answer)
		answer = nil
		for j := range messages[:sent] {
			i += messages[j].parts()
		}
		if err == nil {
			continue
		}
		failed := messages[sent].parts()
		switch {
		case failed > 1 && (errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL)):
			o.segmentable, o.segmentAgain = 0, now.Add(segmentPause)
			if errors.Is(err, unix.EMSGSIZE) {
				o.segmentable = f.size(f.runOf[i]) - 1
			}
		case isFull(err), isUnreachable(err):
			o.count(err, n-i) // so soon it would be the same for the others
			return
		default:
			o.count(err, failed)
			i += failed
		}
	}
}

// put sends messages until one can't be sent, and gives how many were sent and why the next one was not. The kernel may have answered to a first try already.
func (o *outlet) put(messages []message, answered error) (sent int, err error) {
	var answer error
	for sent < len(messages) {
		n, err := 0, answered
		if answered = nil; err == nil {
			n, err = sendMessages(o.fd, messages[sent:])
		}
		if err != nil {
			if answer == nil && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EMSGSIZE)) {
				// Perhaps the network's answer to an earlier copy; then this one has not been sent yet.
				answer = err
				continue
			}
			if answer != nil && !errors.Is(err, answer) {
				o.count(answer, 1)
			}
			return sent, err
		}
		if answer != nil {
			o.count(answer, 1)
			answer = nil
		}
		for i := range messages[sent : sent+n] {
			o.countSent(messages[sent+i].parts(), messages[sent+i].length)
		}
		sent += n
	}
	return sent, nil
}

// setHops sets the TTL of IPv4 copies and the hop limit of IPv6 copies. With each copy it would cost the kernel a new search for the route.
func (o *outlet) setHops(ttl uint8) error {
	if o.ttl == ttl {
		return nil
	}
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if o.destination.Addr.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(o.fd, level, option, int(ttl)); err != nil {
		return err
	}
	o.ttl = ttl
	return nil
}

func isFull(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) }

func isUnreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENETDOWN)
}

func (o *outlet) countSent(datagrams int, bytes uint32) {
	o.counters.packets.Add(uint64(datagrams))
	o.counters.bytes.Add(uint64(bytes))
}

func (o *outlet) count(err error, datagrams int) { o.counters.count(err, uint64(datagrams)) }

func (c *destinationCounters) count(err error, n uint64) {
	switch {
	case isFull(err):
		c.full.Add(n)
	case isUnreachable(err):
		c.unreachable.Add(n)
	case errors.Is(err, unix.ECONNREFUSED):
		c.refused.Add(n)
	case errors.Is(err, unix.EMSGSIZE):
		c.tooBig.Add(n)
	default:
		c.failure.Add(n)
	}
}
