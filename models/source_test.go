package models_test

import (
	"net/netip"
	"testing"

	"github.com/groupcast/groupcast/models"
)

func TestSourcePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.7":         "198.51.100.0/24",
		"::ffff:198.51.100.7":  "198.51.100.0/24",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
		"127.0.0.1":            "127.0.0.0/24",
	} {
		if got := models.SourcePrefix(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if got := models.SourcePrefix(netip.Addr{}); got.IsValid() {
		t.Errorf("no address: %s", got)
	}
}
