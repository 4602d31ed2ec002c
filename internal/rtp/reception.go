package rtp

import (
	"cmp"
	"slices"

	"github.com/pion/rtp"
)

const (
	// firstCycle leaves room below the first number for a datagram that was sent before it and comes after it.
	firstCycle = 1 << 16
	// window is how many numbers behind the newest a second copy is still recognised.
	window = 4096
	// maxStreams bounds the memory that a sender of random datagrams can take.
	maxStreams = 64
)

// Reception follows the RTP streams that arrive at, or leave, one socket. It is for one goroutine. The zero value is ready.
type Reception struct {
	streams map[uint32]*stream
}

// Report is what was seen of one stream.
type Report struct {
	SSRC uint32 `json:"ssrc"`
	// Received counts each sequence number once.
	Received uint64 `json:"received"`
	// Lost counts the numbers between the lowest and the highest that never came.
	Lost uint64 `json:"lost"`
	// Duplicates counts datagrams whose number had come already.
	Duplicates uint64 `json:"duplicates"`
	// Late counts datagrams that came after one with a higher number.
	Late uint64 `json:"late"`
}

type stream struct {
	lowest, highest            uint64
	seen                       [window]uint64 // the extended number that each slot holds
	received, duplicates, late uint64
}

// Note takes a datagram's sequence number, extended to 64 bits over the wraps of its stream: the first one of a stream stays
// as it is plus 65536. It is false for what isn't RTP.
func (r *Reception) Note(datagram []byte) (sequence uint64, ok bool) {
	header, ok := parse(datagram)
	if !ok {
		return 0, false
	}
	s := r.streams[header.SSRC]
	if s == nil {
		if len(r.streams) == maxStreams {
			return 0, false
		}
		if r.streams == nil {
			r.streams = map[uint32]*stream{}
		}
		first := firstCycle + uint64(header.SequenceNumber)
		s = &stream{lowest: first, highest: first}
		r.streams[header.SSRC] = s
	}
	return s.note(header.SequenceNumber), true
}

// note assumes that a number is never more than half the range away from the highest (RFC 3550 appendix A.1).
func (s *stream) note(sequence uint16) uint64 {
	extended := s.highest + uint64(int64(int16(sequence-uint16(s.highest))))
	if slot := &s.seen[extended%window]; *slot == extended {
		s.duplicates++
		return extended
	} else if *slot < extended {
		*slot = extended
	}
	s.received++
	if extended < s.highest {
		s.late++
	}
	s.lowest, s.highest = min(s.lowest, extended), max(s.highest, extended)
	return extended
}

// Reports gives one report per stream, sorted by SSRC.
func (r *Reception) Reports() []Report {
	reports := make([]Report, 0, len(r.streams))
	for ssrc, s := range r.streams {
		report := Report{SSRC: ssrc, Received: s.received, Duplicates: s.duplicates, Late: s.late}
		if span := s.highest - s.lowest + 1; span > s.received {
			report.Lost = span - s.received
		}
		reports = append(reports, report)
	}
	slices.SortFunc(reports, func(a, b Report) int { return cmp.Compare(a.SSRC, b.SSRC) })
	return reports
}

// parse refuses RTCP, whose packet types 192 to 223 look like payload types 64 to 95 (RFC 5761 §4).
func parse(datagram []byte) (rtp.Header, bool) {
	var header rtp.Header
	if len(datagram) < 12 || datagram[0]>>6 != 2 {
		return header, false
	}
	if _, err := header.Unmarshal(datagram); err != nil {
		return header, false
	}
	return header, header.PayloadType < 64 || header.PayloadType > 95
}
