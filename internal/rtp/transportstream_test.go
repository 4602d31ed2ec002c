package rtp_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/rtp"
)

func packets(n int) []byte {
	b := make([]byte, n*rtp.PacketSize)
	for i := range b {
		b[i] = byte(i)
		if i%rtp.PacketSize == 0 {
			b[i] = 0x47
		}
	}
	return b
}

func TestTransportStream(t *testing.T) {
	content := packets(7)
	header := datagram(7, 1)[:12]
	withCSRC := append([]byte{0x81}, append(append([]byte{}, header[1:]...), 1, 2, 3, 4)...)
	withExtension := append([]byte{0x90}, append(append([]byte{}, header[1:]...), 0xab, 0xcd, 0, 1, 9, 9, 9, 9)...)
	withPadding := append([]byte{0xa0}, header[1:]...)
	otherType := append([]byte{0x80, 96}, header[2:]...)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		name     string
		datagram []byte
		want     []byte
	}{
		{"in RTP", join(header, content), content},
		{"after a CSRC list", join(withCSRC, content), content},
		{"after an extension", join(withExtension, content), content},
		{"before padding", join(withPadding, content, []byte{0, 0, 3}), content},
		{"bare", content, content},
		{"one packet", join(header, content[:188]), content[:188]},
		{"half a packet too much", join(header, content, content[:94]), nil},
		{"no payload", header, nil},
		{"another payload type", join(otherType, content), nil},
		{"no sync byte", join(header, make([]byte, 188)), nil},
		{"padding longer than all", join(withPadding, content, []byte{255}), nil},
		{"empty", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.Equal(t, tt.want, rtp.TransportStream(tt.datagram)) })
	}
}

func TestPackerIsReadBack(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	packer := rtp.NewPacker(began)
	var reception rtp.Reception
	var first uint32
	for i := range 3 {
		d, err := packer.Pack(packets(7), began.Add(time.Duration(i)*time.Second))
		require.NoError(t, err)
		assert.Len(t, d, 12+1316)
		assert.Equal(t, packets(7), rtp.TransportStream(d))
		_, ok := reception.Note(d)
		assert.True(t, ok)
		if stamp := binary.BigEndian.Uint32(d[4:]); i == 0 {
			first = stamp
		} else {
			assert.Equal(t, uint32(i)*90_000, stamp-first)
		}
	}
	require.Len(t, reception.Reports(), 1)
	assert.Equal(t, uint64(3), reception.Reports()[0].Received)
	assert.Zero(t, reception.Reports()[0].Lost)
}

// withClock makes a packet with a program clock reference (ISO/IEC 13818-1 §2.4.3.5), in units of 1/27,000,000 s.
func withClock(pid uint16, reference uint64) []byte {
	p := packets(1)
	binary.BigEndian.PutUint16(p[1:], pid)
	p[3], p[4], p[5] = 0x30, 7, 0x10
	base, extension := reference/300, reference%300
	binary.BigEndian.PutUint32(p[6:], uint32(base>>1))
	p[10] = byte(base<<7) | 0x7e | byte(extension>>8)
	p[11] = byte(extension)
	return p
}

func TestClock(t *testing.T) {
	const tick = 27_000 // a millisecond
	const wrap = (1 << 33) * 300
	without := packets(1)
	without[3] = 0x10
	tests := []struct {
		name   string
		stream [][]byte
		want   []time.Duration // -1: not known yet
	}{
		{"by the references", [][]byte{without, withClock(256, 5*tick), without, withClock(256, 45*tick)}, []time.Duration{-1, 0, 0, 40 * time.Millisecond}},
		{"only those of one program", [][]byte{withClock(256, 0), withClock(257, 500*tick), withClock(256, 20*tick)}, []time.Duration{0, 0, 20 * time.Millisecond}},
		{"over the wrap of the reference", [][]byte{withClock(256, wrap-10*tick), withClock(256, 30*tick)}, []time.Duration{0, 40 * time.Millisecond}},
		{"a cut forwards costs no time", [][]byte{withClock(256, 0), withClock(256, 20*tick), withClock(256, 9_000*tick), withClock(256, 9_020*tick)}, []time.Duration{0, 20 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond}},
		{"a cut backwards costs no time", [][]byte{withClock(256, 9_000*tick), withClock(256, 0), withClock(256, 20*tick)}, []time.Duration{0, 0, 20 * time.Millisecond}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var clock rtp.Clock
			for i, p := range tt.stream {
				due, ok := clock.Due(p)
				if tt.want[i] < 0 {
					assert.False(t, ok)
					continue
				}
				assert.True(t, ok)
				assert.Equal(t, tt.want[i], due, "packet %d", i)
			}
		})
	}
}
