package packet_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

func drawAddr(t *rapid.T, label string) netip.Addr {
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
}

// drawOptions gives a valid options area: options of any kind, at most one of them 0x88, padded to whole words.
func drawOptions(t *rapid.T) []byte {
	var b []byte
	stream := false
	for range rapid.IntRange(0, 6).Draw(t, "options") {
		kind := rapid.OneOf(rapid.Byte(), rapid.Just(byte(0x88)), rapid.Just(byte(1))).Draw(t, "kind")
		data := rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "data")
		switch {
		case kind == 0 || kind == 0x88 && stream:
			continue
		case kind == 1:
			b = append(b, kind)
			continue
		case kind == 0x88:
			stream = true
			data = rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "stream")
		}
		if len(b)+2+len(data) > 40 {
			break
		}
		b = append(append(b, kind, byte(2+len(data))), data...)
	}
	if len(b) > 0 && len(b)%4 != 0 {
		b = append(b, make([]byte, 4-len(b)%4)...)
	}
	return b[:min(len(b), 40)]
}

func drawWire(t *rapid.T) wire {
	return wire{
		tos:           rapid.Byte().Draw(t, "tos"),
		id:            rapid.Uint16().Draw(t, "id"),
		fragment:      rapid.SampledFrom([]uint16{0, 0x4000}).Draw(t, "DF"),
		ttl:           rapid.ByteRange(2, 255).Draw(t, "ttl"),
		source:        netip.AddrPortFrom(drawAddr(t, "source"), rapid.Uint16().Draw(t, "source port")),
		destination:   netip.AddrPortFrom(drawAddr(t, "group"), rapid.Uint16().Draw(t, "port")),
		options:       drawOptions(t),
		payload:       rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "payload"),
		noUDPChecksum: rapid.Bool().Draw(t, "no UDP checksum"),
	}
}

func drawRewrite(t *rapid.T) packet.Rewrite {
	return packet.Rewrite{
		Source:      netip.AddrPortFrom(drawAddr(t, "uplink"), rapid.Uint16().Draw(t, "new source port")),
		Destination: netip.AddrPortFrom(drawAddr(t, "receiver"), rapid.Uint16().Draw(t, "new port")),
		Options: rapid.SampledFrom([]packet.CopyOptions{packet.Strip, packet.NOP}).Draw(t, "mode").
			For(table.Source{Trigger: table.TriggerOption}),
	}
}

// changed is the same datagram as compose should write it after the rewrite.
func changed(w wire, r packet.Rewrite) wire {
	port := func(now, then uint16) uint16 {
		if now != 0 {
			return now
		}
		return then
	}
	w.source = netip.AddrPortFrom(r.Source.Addr(), port(r.Source.Port(), w.source.Port()))
	w.destination = netip.AddrPortFrom(r.Destination.Addr(), port(r.Destination.Port(), w.destination.Port()))
	w.options = r.Options
	w.ttl--
	return w
}

// A copy is byte for byte what a full recomputation of all checksums gives.
func TestACopyEqualsAFullRecomputation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := drawWire(t), drawRewrite(t)
		p, err := packet.Parse(compose(w))
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.AppendCopy([]byte("before"), r)
		if err != nil {
			t.Fatal(err)
		}
		if want := append([]byte("before"), compose(changed(w, r))...); !bytes.Equal(got, want) {
			t.Fatalf("copy\n%x, want\n%x", got, want)
		}
	})
}

// Rewriting the fragments of a datagram and putting them together gives the rewritten datagram.
func TestFragmentsOfACopyMakeTheCopy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := drawWire(t), drawRewrite(t)
		w.fragment = 0
		udp := composeUDP(w)
		size := 8 * rapid.IntRange(1, 10).Draw(t, "fragment size in words")

		var got []byte
		for offset := 0; offset < len(udp); offset += size {
			end := min(offset+size, len(udp))
			part := w
			part.fragment = uint16(offset / 8)
			if end < len(udp) {
				part.fragment |= 0x2000
			}
			p, err := packet.Parse(composeIP(part, udp[offset:end]))
			if err != nil {
				t.Fatal(err)
			}
			copied, err := p.AppendCopy(nil, r)
			if err != nil {
				t.Fatal(err)
			}
			header := int(copied[0]&15) * 4
			want := changed(part, r)
			if !bytes.Equal(copied[:header], composeIP(want, udp[offset:end])[:header]) {
				t.Fatalf("fragment at %d: header %x", offset, copied[:header])
			}
			got = append(got, copied[header:]...)
		}
		if want := composeUDP(changed(w, r)); !bytes.Equal(got, want) {
			t.Fatalf("together\n%x, want\n%x", got, want)
		}
	})
}

// A payload that was damaged on the way to the gateway is as damaged after it: the checksum doesn't get right by itself.
func TestADamagedPayloadStaysDamaged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := drawWire(t), drawRewrite(t)
		w.noUDPChecksum = false
		w.payload = append(w.payload, 0)
		b := compose(w)
		b[len(b)-1] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		p, err := packet.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.AppendCopy(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		w.payload = p.Payload()
		if bytes.Equal(got, compose(changed(w, r))) {
			t.Fatal("the copy has a right checksum over a wrong payload")
		}
	})
}

// A UDP checksum that comes out as zero is sent as 0xffff; a zero would say that there is none.
func TestAComputedZeroIsSentAsOnes(t *testing.T) {
	w := fig7()
	w.payload = []byte{0, 0}
	r := packet.Rewrite{Source: netip.AddrPortFrom(uplink, 50000), Destination: netip.AddrPortFrom(upload, 5004)}
	binary.BigEndian.PutUint16(w.payload, binary.BigEndian.Uint16(composeUDP(changed(w, r))[6:]))

	p, err := packet.Parse(compose(w))
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.AppendCopy(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	if sum := binary.BigEndian.Uint16(got[26:]); sum != 0xffff {
		t.Errorf("UDP checksum %#04x, want 0xffff", sum)
	}
}

func TestAppendCopyRefuses(t *testing.T) {
	good := packet.Rewrite{Source: netip.AddrPortFrom(uplink, 1), Destination: netip.AddrPortFrom(upload, 1)}
	spent := fig7()
	spent.ttl = 1
	for name, test := range map[string]struct {
		wire   wire
		change func(*packet.Rewrite)
	}{
		"no source":           {fig7(), func(r *packet.Rewrite) { r.Source = netip.AddrPort{} }},
		"IPv6 destination":    {fig7(), func(r *packet.Rewrite) { r.Destination = netip.MustParseAddrPort("[2001:db8::1]:1") }},
		"half a word":         {fig7(), func(r *packet.Rewrite) { r.Options = []byte{1, 1} }},
		"44 bytes of options": {fig7(), func(r *packet.Rewrite) { r.Options = make([]byte, 44) }},
		"TTL 1":               {spent, func(*packet.Rewrite) {}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := packet.Parse(compose(test.wire))
			if err != nil {
				t.Fatal(err)
			}
			r := good
			test.change(&r)
			if got, err := p.AppendCopy([]byte("kept"), r); err == nil || string(got) != "kept" {
				t.Errorf("AppendCopy = %x, %v", got, err)
			}
		})
	}
}

func TestCopiesOfASourceWithoutOptionStayAsSmall(t *testing.T) {
	if got := packet.NOP.For(table.Source{Trigger: table.TriggerSource}); len(got) != 0 {
		t.Errorf("options %x", got)
	}
}

func FuzzStreamID(f *testing.F) {
	for _, s := range []string{"", "8806aca800050000", "01000000", "0806aca800050000", "880400018806aca80005", "8806"} {
		f.Add(unhex(s))
	}
	f.Fuzz(func(t *testing.T, options []byte) {
		id, err := packet.StreamID(options)
		if err != nil && id.IsValid() {
			t.Fatalf("%s together with %v", id, err)
		}
		if !id.IsValid() {
			return
		}
		data := id.As4()
		if !bytes.Contains(options, append([]byte{0x88, 6}, data[:]...)) {
			t.Fatalf("%s is not in %x", id, options)
		}
		if again, err := packet.StreamID(append([]byte{1, 1, 1, 1}, options...)); err != nil || again != id {
			t.Fatalf("after no-operations %s, %v", again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(compose(fig7()))
	first, later := fig7(), fig7()
	first.fragment, first.payload = 0x2000, make([]byte, 16)
	later.fragment = 3
	f.Add(compose(first))
	f.Add(composeIP(later, []byte("the rest")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 20 {
			resum(b) // so that the fuzzer gets past the checksum
		}
		original := bytes.Clone(b)
		p, err := packet.Parse(b)
		if err != nil || p.TTL <= 1 {
			return
		}
		copied, err := p.AppendCopy(nil, packet.Rewrite{
			Source: netip.AddrPortFrom(uplink, 50000), Destination: netip.AddrPortFrom(upload, 6000),
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := packet.Parse(copied)
		if err != nil {
			t.Fatalf("the copy can't be read: %v\n%x", err, copied)
		}
		if again.TTL != p.TTL-1 || again.StreamID.IsValid() || again.Destination.Addr() != upload ||
			!bytes.Equal(again.Payload(), p.Payload()) || !bytes.Equal(b, original) {
			t.Fatalf("copy %x of %x", copied, original)
		}
	})
}
