package rtp_test

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/rtp"
)

// datagram is RTP with payload type 33, written by hand after RFC 3550 §5.1.
func datagram(ssrc uint32, sequence uint16) []byte {
	d := []byte{0x80, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'x'}
	binary.BigEndian.PutUint16(d[2:], sequence)
	binary.BigEndian.PutUint32(d[8:], ssrc)
	return d
}

func TestReception(t *testing.T) {
	tests := []struct {
		name      string
		sequences []uint16
		extended  []uint64
		want      rtp.Report
	}{
		{"in order", []uint16{5, 6, 7}, []uint64{65541, 65542, 65543}, rtp.Report{Received: 3}},
		{"over the wrap", []uint16{65534, 65535, 0, 1}, []uint64{131070, 131071, 131072, 131073}, rtp.Report{Received: 4}},
		{"late over the wrap", []uint16{65535, 1, 0}, []uint64{131071, 131073, 131072}, rtp.Report{Received: 3, Late: 1}},
		{"the first came late", []uint16{0, 65535, 1}, []uint64{65536, 65535, 65537}, rtp.Report{Received: 3, Late: 1}},
		{"lost", []uint16{10, 11, 15}, []uint64{65546, 65547, 65551}, rtp.Report{Received: 3, Lost: 3}},
		{"lost over the wrap", []uint16{65535, 3}, []uint64{131071, 131075}, rtp.Report{Received: 2, Lost: 3}},
		{"twice", []uint16{10, 11, 11, 10, 12}, []uint64{65546, 65547, 65547, 65546, 65548}, rtp.Report{Received: 3, Duplicates: 2}},
		{"one twice does not hide one lost", []uint16{10, 11, 11, 13}, []uint64{65546, 65547, 65547, 65549}, rtp.Report{Received: 3, Lost: 1, Duplicates: 1}},
		{"a long gap", []uint16{0, 30000}, []uint64{65536, 95536}, rtp.Report{Received: 2, Lost: 29999}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r rtp.Reception
			for i, sequence := range tt.sequences {
				extended, ok := r.Note(datagram(7, sequence))
				require.True(t, ok)
				assert.Equal(t, tt.extended[i], extended)
			}
			tt.want.SSRC = 7
			assert.Equal(t, []rtp.Report{tt.want}, r.Reports())
		})
	}
}

// Several streams at once over the wrap, whose datagrams come late, twice and not at all: what is reported is what was done to them.
func TestReceptionOfWhatANetworkDoes(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		var r rtp.Reception
		type arrival struct {
			ssrc     uint32
			sequence uint16
			at       float64
		}
		var arrivals []arrival
		want := map[uint32]*rtp.Report{}
		for ssrc := range uint32(1 + draw.IntN(4)) {
			report := &rtp.Report{SSRC: ssrc}
			want[ssrc] = report
			first, n := uint16(60_000+draw.IntN(6_000)), 2_000+draw.IntN(10_000)
			for i := range n {
				ends := i == 0 || i == n-1 // what is lost before the first and after the last nobody knows of
				if !ends && draw.IntN(50) == 0 {
					report.Lost++
					continue
				}
				report.Received++
				one := arrival{ssrc, first + uint16(i), float64(i)}
				if !ends && draw.IntN(20) == 0 {
					one.at += draw.Float64() * 100
				}
				arrivals = append(arrivals, one)
				if !ends && draw.IntN(50) == 0 {
					report.Duplicates++
					one.at += draw.Float64() * 100
					arrivals = append(arrivals, one)
				}
			}
		}
		slices.SortStableFunc(arrivals, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
		highest, came := map[uint32]int16{}, map[[2]uint32]bool{}
		for _, a := range arrivals {
			_, ok := r.Note(datagram(a.ssrc, a.sequence))
			require.True(t, ok)
			// Late by the order of arrival: behind one that is further on. All numbers of a stream lie within half the range.
			key, place := [2]uint32{a.ssrc, uint32(a.sequence)}, int16(a.sequence+10_000)
			if before, seen := highest[a.ssrc]; !came[key] && seen && place < before {
				want[a.ssrc].Late++
			}
			highest[a.ssrc], came[key] = max(highest[a.ssrc], place), true
		}
		var all []rtp.Report
		for _, ssrc := range slices.Sorted(maps.Keys(want)) {
			all = append(all, *want[ssrc])
		}
		require.Equal(t, all, r.Reports(), "round %d", round)
	}
}

func TestReceptionManyWraps(t *testing.T) {
	var r rtp.Reception
	for i := range uint64(300_000) {
		extended, ok := r.Note(datagram(7, uint16(i+60_000)))
		require.True(t, ok)
		require.Equal(t, 65_536+60_000+i, extended)
	}
	assert.Equal(t, []rtp.Report{{SSRC: 7, Received: 300_000}}, r.Reports())
}

func TestReceptionOfTwoStreams(t *testing.T) {
	var r rtp.Reception
	for _, d := range [][]byte{datagram(9, 1), datagram(7, 40_000), datagram(9, 2), datagram(7, 40_002)} {
		_, ok := r.Note(d)
		require.True(t, ok)
	}
	assert.Equal(t, []rtp.Report{{SSRC: 7, Received: 2, Lost: 1}, {SSRC: 9, Received: 2}}, r.Reports())
}

func TestReceptionLeavesOutWhatIsNotRTP(t *testing.T) {
	senderReport := datagram(7, 1)
	senderReport[1] = 200
	version1 := datagram(7, 1)
	version1[0] = 0x40
	truncatedExtension := datagram(7, 1)
	truncatedExtension[0] = 0x90
	truncatedCSRC := datagram(7, 1)
	truncatedCSRC[0] = 0x8f
	for name, d := range map[string][]byte{
		"empty": {}, "short": datagram(7, 1)[:11], "RTCP": senderReport, "version 1": version1,
		"truncated extension": truncatedExtension, "truncated CSRC list": truncatedCSRC,
	} {
		var r rtp.Reception
		_, ok := r.Note(d)
		assert.False(t, ok, name)
		assert.Empty(t, r.Reports(), name)
	}
}

// Whoever sends random datagrams can't make it grow.
func TestReceptionIsBounded(t *testing.T) {
	var r rtp.Reception
	for ssrc := range uint32(1000) {
		r.Note(datagram(ssrc, 1))
	}
	assert.Len(t, r.Reports(), 64)
}
