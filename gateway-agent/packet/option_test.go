package packet_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

func TestStreamID(t *testing.T) {
	for name, test := range map[string]struct {
		options   string
		want      string // "" is absent
		malformed bool
	}{
		"no options":                       {"", "", false},
		"the option":                       {"88 06 ac a8 00 05", "172.168.0.5", false},
		"padded with end of options":       {"88 06 ac a8 00 05 00 00", "172.168.0.5", false},
		"padded with no-operations":        {"88 06 ac a8 00 05 01 01", "172.168.0.5", false},
		"after no-operations":              {"01 01 88 06 ac a8 00 05", "172.168.0.5", false},
		"after another option":             {"94 04 00 00 88 06 ac a8 00 05 00 00", "172.168.0.5", false},
		"before another option":            {"88 06 ac a8 00 05 94 04 00 00 01 00", "172.168.0.5", false},
		"what a copy carries":              {"01 00 00 00", "", false},
		"after the end of options":         {"00 00 88 06 ac a8 00 05", "", false},
		"malformed after the end":          {"00 88 ff 00", "", false},
		"copied bit 0":                     {"08 06 ac a8 00 05 00 00", "", false},
		"copied bit 0, then 1":             {"08 06 01 02 03 04 88 06 ac a8 00 05", "172.168.0.5", false},
		"class 2, number 8":                {"c8 06 ac a8 00 05 00 00", "", false},
		"inside another option's data":     {"9e 08 88 06 ac a8 00 05", "", false},
		"stream id of RFC 791":             {"88 04 12 34", "", true},
		"one byte too long":                {"88 07 ac a8 00 05 00 00", "", true},
		"length 0":                         {"88 00 ac a8 00 05 00 00", "", true},
		"length 1":                         {"88 01 ac a8 00 05 00 00", "", true},
		"length beyond the options":        {"01 01 01 88 06 ac a8 00", "", true},
		"no length":                        {"01 01 01 88", "", true},
		"twice":                            {"88 06 ac a8 00 05 88 06 ac a8 00 05", "", true},
		"twice and not the same":           {"88 06 ac a8 00 05 88 06 ac a8 00 06", "", true},
		"another option's length is wrong": {"88 06 ac a8 00 05 94 00", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := packet.StreamID(unhex(test.options))
			if errors.Is(err, packet.ErrMalformed) != test.malformed {
				t.Fatalf("error %v", err)
			}
			var want netip.Addr
			if test.want != "" {
				want = netip.MustParseAddr(test.want)
			}
			if got != want {
				t.Errorf("StreamID = %s, want %s", got, want)
			}
		})
	}
}
