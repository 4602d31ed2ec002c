package duplicator

import (
	"encoding/binary"
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// headers is what a copy over IPv4 has beside its payload, in bytes.
const headers = 28

// copy sends one copy of the payload to each destination of the group. Every destination has a socket of its own and no send waits,
// so one that is slow or dead costs the others nothing.
func (l *listener) copy(v packet.Verdict, camera packet.Datagram, payload []byte, now time.Time) {
	s := l.streamOf(v, camera)
	if s == nil {
		l.counters.streams.Add(1)
		return
	}
	s.used = now
	l.hops.set(camera.TTL - 1)
	for _, o := range s.outlets {
		if !o.counters.pace.take(now, len(payload)+headers, PerByte(l.owner.config.DestinationRate)) {
			o.counters.overRate.Add(1)
			continue
		}
		o.send(s, camera, payload, l.hops, now)
	}
}

// send sends one copy, or counts why it could not.
func (o *outlet) send(s *stream, camera packet.Datagram, payload []byte, h *hops, now time.Time) {
	if !o.ready(s, camera, now) {
		o.counters.noSocket.Add(1)
		return
	}
	hop := h.v4
	if o.destination.Addr.Is6() {
		hop = h.v6
	}
	err := sendNow(o.fd, payload, hop)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EMSGSIZE) {
		// Perhaps the network's answer to an earlier copy; then this one has not been sent yet.
		o.count(err)
		answer := err
		if err = sendNow(o.fd, payload, hop); errors.Is(err, answer) {
			return
		}
	}
	if err != nil {
		o.count(err)
		return
	}
	o.counters.packets.Add(1)
	o.counters.bytes.Add(uint64(len(payload)))
}

func sendNow(fd int, payload, control []byte) error {
	for {
		_, err := unix.SendmsgN(fd, payload, control, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (o *outlet) count(err error) {
	c := o.counters
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		c.full.Add(1)
	case errors.Is(err, unix.ECONNREFUSED):
		c.refused.Add(1)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ENETDOWN):
		c.unreachable.Add(1)
	case errors.Is(err, unix.EMSGSIZE):
		c.tooBig.Add(1)
	default:
		c.failure.Add(1)
	}
}

// hops holds the control messages that set the TTL of an IPv4 copy and the hop limit of an IPv6 copy.
type hops struct{ v4, v6 []byte }

func newHops() *hops {
	return &hops{v4: hopMessage(unix.IPPROTO_IP, unix.IP_TTL), v6: hopMessage(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT)}
}

func hopMessage(level, kind int32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(4))
	return b
}

func (h *hops) set(ttl uint8) {
	binary.NativeEndian.PutUint32(h.v4[unix.CmsgLen(0):], uint32(ttl))
	binary.NativeEndian.PutUint32(h.v6[unix.CmsgLen(0):], uint32(ttl))
}
