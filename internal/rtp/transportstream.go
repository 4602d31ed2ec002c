package rtp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pion/rtp"
)

const (
	// PacketSize is the length of a transport stream packet (ISO/IEC 13818-1).
	PacketSize = 188
	// DatagramPackets is how many of them go into one datagram: with all headers it stays below 1,500 bytes.
	DatagramPackets = 7

	syncByte        = 0x47
	payloadTypeMP2T = 33     // RFC 3551
	clockRate       = 90_000 // per second
)

// TransportStream gives the MPEG transport stream packets in a datagram, which carries them in RTP or bare. It gives nil if
// there are none. The bytes are the datagram's own.
func TransportStream(datagram []byte) []byte {
	if IsTransportStream(datagram) {
		return datagram
	}
	var packet rtp.Packet
	if header, ok := parse(datagram); !ok || header.PayloadType != payloadTypeMP2T || packet.Unmarshal(datagram) != nil {
		return nil
	}
	if !IsTransportStream(packet.Payload) {
		return nil
	}
	return packet.Payload
}

// IsTransportStream tells whether b is made of whole transport stream packets.
func IsTransportStream(b []byte) bool {
	if len(b) == 0 || len(b)%PacketSize != 0 {
		return false
	}
	for at := 0; at < len(b); at += PacketSize {
		if b[at] != syncByte {
			return false
		}
	}
	return true
}

// Packer puts transport stream packets into RTP.
type Packer struct {
	ssrc     uint32
	sequence uint16
	offset   uint32 // of the timestamps
	started  time.Time
}

// NewPacker draws SSRC, first sequence number and first timestamp at random, as RFC 3550 §5.1 wants.
func NewPacker(now time.Time) *Packer {
	return &Packer{ssrc: rand.Uint32(), sequence: uint16(rand.Uint32()), offset: rand.Uint32(), started: now}
}

// Pack gives the datagram that carries the packets, stamped with the time at which they leave.
func (p *Packer) Pack(packets []byte, now time.Time) ([]byte, error) {
	elapsed := uint64(now.Sub(p.started).Microseconds()) * clockRate / 1_000_000
	packet := rtp.Packet{
		Header: rtp.Header{
			Version: 2, PayloadType: payloadTypeMP2T, SequenceNumber: p.sequence, SSRC: p.ssrc,
			Timestamp: p.offset + uint32(elapsed),
		},
		Payload: packets,
	}
	p.sequence++
	datagram, err := packet.Marshal()
	if err != nil {
		return nil, fmt.Errorf("put transport stream packets into RTP: %w", err)
	}
	return datagram, nil
}

// clockReference gives the program clock reference of one transport stream packet in units of 1/27,000,000 s, and the PID it
// belongs to (ISO/IEC 13818-1 §2.4.3.4).
func clockReference(packet []byte) (pid uint16, reference uint64, ok bool) {
	const adaptationOnly, flagReference, shortest = 0x20, 0x10, 7
	if packet[3]&adaptationOnly == 0 || packet[4] < shortest || packet[5]&flagReference == 0 {
		return 0, 0, false
	}
	base := uint64(binary.BigEndian.Uint32(packet[6:]))<<1 | uint64(packet[10]>>7)
	extension := uint64(packet[10]&1)<<8 | uint64(packet[11])
	return binary.BigEndian.Uint16(packet[1:]) & 0x1fff, base*300 + extension, true
}

// Clock tells when the packets of a transport stream are due, by the clock references of the first program that has some.
type Clock struct {
	pid     uint16
	running bool
	last    uint64
	elapsed time.Duration
}

// maxStep is the longest time between two clock references; the standard allows 100 ms. What is longer, or goes back, is a
// cut in the material, not a pause.
const maxStep = time.Second

// Due takes the next packets and gives how long after the first clock reference they are to be sent. It is false as long as
// there was no reference.
func (c *Clock) Due(packets []byte) (time.Duration, bool) {
	for at := 0; at+PacketSize <= len(packets); at += PacketSize {
		pid, reference, ok := clockReference(packets[at:])
		if !ok || c.running && pid != c.pid {
			continue
		}
		if c.running {
			const wrap = (1 << 33) * 300
			step := time.Duration((reference+wrap-c.last)%wrap) * 1000 / 27
			if step <= maxStep {
				c.elapsed += step
			}
		}
		c.pid, c.last, c.running = pid, reference, true
	}
	return c.elapsed, c.running
}
