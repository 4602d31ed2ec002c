package packet_test

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// The addresses of the source document.
var (
	camera    = netip.MustParseAddr("172.168.0.5")
	group1    = netip.MustParseAddr("172.168.0.233")
	group2    = netip.MustParseAddr("172.168.0.235")
	uplink    = netip.MustParseAddr("203.0.113.1")
	thumbnail = netip.MustParseAddr("69.252.80.75")
	upload    = netip.MustParseAddr("96.114.14.140")
	phone     = netip.MustParseAddr("71.230.36.162")
	live      = netip.MustParseAddr("68.87.41.40")

	now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

// groupTable is table 600 (FIG 6): groupcast1 has three destinations, groupcast2 one.
func groupTable() *table.Snapshot {
	source := []table.Source{{ID: "1", Name: "camera1", Addr: camera, Trigger: table.TriggerOption}}
	return &table.Snapshot{
		Version:    "1.1",
		ValidUntil: now.Add(time.Minute),
		Groups: map[netip.Addr]*table.Group{
			group1: {ID: "g1", Name: "groupcast1", IP: group1, Sources: source, Destinations: []table.Destination{
				{ID: "d1", Name: "thumbnail", Addr: thumbnail},
				{ID: "d2", Name: "upload", Addr: upload},
				{ID: "d3", Name: "phone", Addr: phone},
			}},
			group2: {ID: "g2", Name: "groupcast2", IP: group2, Sources: source, Destinations: []table.Destination{
				{ID: "d4", Name: "live", Addr: live},
			}},
		},
	}
}

// fig7 is the camera's datagram: FIG 7's header with FIG 5's option, padded to a whole word.
func fig7() wire {
	return wire{
		id: 0x1234, fragment: 0x4000, ttl: 64,
		source:      netip.AddrPortFrom(camera, 40000),
		destination: netip.AddrPortFrom(group1, 5004),
		options:     unhex("88 06 ac a8 00 05 00 00"),
		payload:     []byte("one frame of video"),
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// FIG 5: flag 1, class 00, number 01000, length 110, the camera's address.
func TestFIG5TheOption(t *testing.T) {
	option := []byte{0b1_00_01000, 0b110, 172, 168, 0, 5}
	id, err := packet.StreamID(option)
	if err != nil || id != camera {
		t.Errorf("StreamID = %s, %v", id, err)
	}
	for last := byte(2); last <= 229; last++ {
		option[5] = last
		if id, err := packet.StreamID(option); err != nil || id.As4()[3] != last {
			t.Errorf("172.168.0.%d: %s, %v", last, id, err)
		}
	}
}

// FIG 7: the datagram as the camera sends it, byte for byte.
func TestFIG7TheCamerasDatagram(t *testing.T) {
	b := compose(fig7())
	want := unhex("47 00 0036 1234 4000 40 11 9790 aca80005 aca800e9 8806aca80005 0000")
	if hex.EncodeToString(b[:28]) != hex.EncodeToString(want) {
		t.Fatalf("header\n %x, want\n %x", b[:28], want)
	}
	p, err := packet.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Source != fig7().source || p.Destination != fig7().destination || p.TTL != 64 || p.StreamID != camera ||
		string(p.Payload()) != "one frame of video" {
		t.Errorf("parsed %+v with payload %q", p.Datagram, p.Payload())
	}
	verdict := packet.Decide(groupTable(), now, p.Datagram)
	if verdict.Reason != packet.Copy || verdict.Group.Name != "groupcast1" || len(verdict.Group.Destinations) != 3 {
		t.Errorf("verdict %+v", verdict)
	}
}

// FIGs 9, 10 and 11: one copy each for thumbnail, upload and phone, with options 00000001 00000000, and none for groupcast2's
// destination. The headers differ from the document's in the source only, which the gateway translates.
func TestFIG9To11TheCopies(t *testing.T) {
	p, err := packet.Parse(compose(fig7()))
	if err != nil {
		t.Fatal(err)
	}
	verdict := packet.Decide(groupTable(), now, p.Datagram)
	for _, mode := range []struct {
		options packet.CopyOptions
		header  map[netip.Addr]string
	}{
		{packet.NOP, map[netip.Addr]string{
			thumbnail: "46 00 0032 1234 4000 3f 11 553e cb007101 45fc504b 01000000",
			upload:    "46 00 0032 1234 4000 3f 11 7c87 cb007101 60720e8c 01000000",
			phone:     "46 00 0032 1234 4000 3f 11 7efd cb007101 47e624a2 01000000",
		}},
		{packet.Strip, map[netip.Addr]string{
			thumbnail: "45 00 002e 1234 4000 3f 11 5742 cb007101 45fc504b",
			upload:    "45 00 002e 1234 4000 3f 11 7e8b cb007101 60720e8c",
			phone:     "45 00 002e 1234 4000 3f 11 8101 cb007101 47e624a2",
		}},
	} {
		for _, destination := range verdict.Group.Destinations {
			copied, err := p.AppendCopy(nil, packet.Rewrite{
				Source:      netip.AddrPortFrom(uplink, 50000),
				Destination: packet.Target(destination, p.Datagram),
				Options:     mode.options.For(verdict.Source),
			})
			if err != nil {
				t.Fatal(err)
			}
			want := fig7()
			want.ttl, want.options = 63, mode.options.For(verdict.Source)
			want.source = netip.AddrPortFrom(uplink, 50000)
			want.destination = netip.AddrPortFrom(destination.Addr, 5004)
			if got := hex.EncodeToString(copied); got != hex.EncodeToString(compose(want)) {
				t.Errorf("%s, %s:\n%s, want\n%x", mode.options, destination.Name, got, compose(want))
			}
			header := hex.EncodeToString(unhex(mode.header[destination.Addr]))
			if got := hex.EncodeToString(copied); !strings.HasPrefix(got, header) {
				t.Errorf("%s, %s: header\n%s, want\n%s", mode.options, destination.Name, got, header)
			}
			if id, err := packet.StreamID(copied[20 : int(copied[0]&15)*4]); err != nil || id.IsValid() {
				t.Errorf("%s, %s: another gateway would copy it again: %s, %v", mode.options, destination.Name, id, err)
			}
		}
	}
}
