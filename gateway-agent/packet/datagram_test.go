package packet_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// resum makes the header checksum right again after a test damaged the header.
func resum(b []byte) []byte {
	header := min(int(b[0]&15)*4, len(b))
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:header]))
	return b
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(b []byte) []byte
		want   error
	}{
		"nothing":                     {func([]byte) []byte { return nil }, packet.ErrMalformed},
		"19 bytes":                    {func(b []byte) []byte { return b[:19] }, packet.ErrMalformed},
		"IPv6":                        {func(b []byte) []byte { b[0] = 0x67; return resum(b) }, packet.ErrMalformed},
		"header of 16 bytes":          {func(b []byte) []byte { b[0] = 0x44; return resum(b) }, packet.ErrMalformed},
		"header beyond the packet":    {func(b []byte) []byte { return resum(b[:24]) }, packet.ErrMalformed},
		"total length beyond the end": {func(b []byte) []byte { b[3]++; return resum(b) }, packet.ErrMalformed},
		"total length in the header":  {func(b []byte) []byte { b[3] = 27; return resum(b) }, packet.ErrMalformed},
		"wrong checksum":              {func(b []byte) []byte { b[10] ^= 1; return b }, packet.ErrMalformed},
		"bad option":                  {func(b []byte) []byte { b[21] = 0; return resum(b) }, packet.ErrMalformed},
		"no room for UDP":             {func(b []byte) []byte { b[3] = 35; return resum(b) }, packet.ErrMalformed},
		"UDP length beyond the end":   {func(b []byte) []byte { b[33]++; return b }, packet.ErrMalformed},
		"UDP length below its header": {func(b []byte) []byte { b[33] = 7; return b }, packet.ErrMalformed},
		"fragment of 26 bytes":        {func(b []byte) []byte { b[6] = 0x20; return resum(b) }, packet.ErrMalformed},
		"fragment beyond 65535":       {func(b []byte) []byte { b[6], b[7] = 0x1f, 0xff; return resum(b) }, packet.ErrMalformed},
		"TCP":                         {func(b []byte) []byte { b[9] = 6; return resum(b) }, packet.ErrNotUDP},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := packet.Parse(test.damage(compose(fig7()))); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

func TestParseIgnoresWhatFollowsThePacket(t *testing.T) {
	b := compose(fig7())
	p, err := packet.Parse(append(b, "Ethernet padding"...))
	if err != nil || string(p.Payload()) != string(fig7().payload) {
		t.Errorf("payload %q, %v", p.Payload(), err)
	}
}

func TestParseFragments(t *testing.T) {
	w := fig7()
	w.fragment = 0x2000
	w.payload = make([]byte, 24)
	first, err := packet.Parse(compose(w))
	if err != nil || first.Source.Port() != 40000 || first.StreamID != camera || len(first.Payload()) != 24 {
		t.Errorf("first fragment: %+v, %v", first.Datagram, err)
	}
	w.fragment = 4
	later, err := packet.Parse(composeIP(w, []byte("the rest")))
	if err != nil || later.Source.Port() != 0 || later.Destination.Port() != 0 || later.StreamID != camera ||
		string(later.Payload()) != "the rest" {
		t.Errorf("later fragment: %+v, %v", later.Datagram, err)
	}
}
