package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	senderA = netip.MustParseAddr("fd00::a")
	senderB = netip.MustParseAddr("fd00::b")
)

// inPieces is a valid UDP datagram cut into fragments at the given offsets of the IPv4 payload.
func inPieces(t *testing.T, id uint16, payload []byte, cuts ...int) []Packet {
	t.Helper()
	body := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(body, 4000)
	binary.BigEndian.PutUint16(body[2:], 5004)
	binary.BigEndian.PutUint16(body[4:], uint16(8+len(payload)))
	body = append(body, payload...)
	d := Datagram{Source: netip.MustParseAddrPort("10.0.0.5:4000"), Destination: netip.MustParseAddrPort("10.0.0.233:5004")}
	binary.BigEndian.PutUint16(body[6:], ^udpSum(d, body))
	var all []Packet
	cuts = append(append([]int{0}, cuts...), len(body))
	for i, from := range cuts[:len(cuts)-1] {
		part := body[from:cuts[i+1]]
		b := make([]byte, 20, 20+len(part))
		b[0], b[8], b[9] = 0x45, 64, protoUDP
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(part)))
		binary.BigEndian.PutUint16(b[4:], id)
		field := uint16(from / 8)
		if cuts[i+1] < len(body) {
			field |= moreBit
		}
		binary.BigEndian.PutUint16(b[6:], field)
		copy(b[12:], d.Source.Addr().AsSlice())
		copy(b[16:], d.Destination.Addr().AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^onesSum(b))
		p, err := Parse(append(b, part...))
		require.NoError(t, err)
		all = append(all, p)
	}
	return all
}

func TestFragmentsInAnyOrderMakeTheDatagram(t *testing.T) {
	payload := make([]byte, 4001)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	for range 200 {
		r := NewReassembler()
		pieces := inPieces(t, 9, payload, 1480, 2960)
		rand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		for i, p := range append(pieces[:1:1], pieces...) { // the first one twice
			w, done, err := r.Add(time.Now(), senderA, p)
			require.NoError(t, err)
			require.Equal(t, i == 3, done)
			if done {
				require.Equal(t, payload, w.Payload)
				require.EqualValues(t, 4000, w.Source.Port())
			}
		}
		assert.Zero(t, r.bytes)
		assert.Empty(t, r.unfinished)
		assert.Empty(t, r.of)
	}
}

func TestFragmentsOfTwoSendersNeverMix(t *testing.T) {
	r := NewReassembler()
	a, b := inPieces(t, 9, make([]byte, 2000), 1480), inPieces(t, 9, append(make([]byte, 1999), 1), 1480)
	for _, step := range []struct {
		sender netip.Addr
		p      Packet
		done   bool
	}{{senderA, a[0], false}, {senderB, b[1], false}, {senderA, a[1], true}, {senderB, b[0], true}} {
		_, done, err := r.Add(time.Now(), step.sender, step.p)
		require.NoError(t, err)
		require.Equal(t, step.done, done)
	}
}

func TestWhatFragmentsMayNotDo(t *testing.T) {
	now := time.Now()
	t.Run("overlap", func(t *testing.T) {
		r := NewReassembler()
		_, _, err := r.Add(now, senderA, inPieces(t, 9, make([]byte, 3000), 1480)[0])
		require.NoError(t, err)
		_, _, err = r.Add(now, senderA, inPieces(t, 9, make([]byte, 3000), 1472, 2000)[1])
		require.ErrorIs(t, err, ErrMalformed)
		assert.Zero(t, r.bytes)
	})
	t.Run("a wrong checksum", func(t *testing.T) {
		r := NewReassembler()
		p := inPieces(t, 9, []byte("payload"))[0]
		p.bytes[len(p.bytes)-1] ^= 1
		_, done, err := r.Add(now, senderA, p)
		require.ErrorIs(t, err, ErrMalformed)
		assert.False(t, done)
		binary.BigEndian.PutUint16(p.bytes[26:], 0) // none
		_, done, err = r.Add(now, senderA, p)
		require.NoError(t, err)
		assert.True(t, done)
	})
	t.Run("take all room", func(t *testing.T) {
		r := NewReassembler()
		for id := range 1000 {
			_, _, err := r.Add(now, senderA, inPieces(t, uint16(id), make([]byte, 3000), 1480)[0])
			require.Equal(t, id < maxUnfinished, err == nil)
		}
		for i, p := range inPieces(t, 9, make([]byte, 3000), 1480) {
			_, done, err := r.Add(now, senderB, p)
			require.NoError(t, err)
			require.Equal(t, i == 1, done, "another sender is as free as ever")
		}
		_, _, err := r.Add(now.Add(reassemblyTime), senderA, inPieces(t, 2000, make([]byte, 3000), 1480)[0])
		require.NoError(t, err, "what waited too long is forgotten")
		assert.Len(t, r.unfinished, 1)
	})
}
