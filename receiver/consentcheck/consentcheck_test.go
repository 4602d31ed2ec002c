package consentcheck

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The test vectors of RFC 5769 §2.1 to §2.3: their padding isn't zero, and the request has attributes that a check knows nothing of.
const (
	vectorPassword = "VOkJxbRl1RmTxUk/WvJxBt"
	vectorRequest  = `000100582112a442b7e7a701bc34d686fa87dfae80220010 5354554e207465737420636c69656e74002400046e0001ff
		80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf`
	vectorV4 = `0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643
		000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96`
	vectorV6 = `010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9
		00080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c`
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	require.NoError(t, err)
	return b
}

func TestConsentVectorsOfRFC5769(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want Message
	}{
		"request":     {vectorRequest, Message{Kind: Request, Username: "evtj:h6vY"}},
		"IPv4 answer": {vectorV4, Message{Kind: Answer, Mapped: netip.MustParseAddrPort("192.0.2.1:32853")}},
		"IPv6 answer": {vectorV6, Message{Kind: Answer, Mapped: netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")}},
	} {
		t.Run(name, func(t *testing.T) {
			raw := unhex(t, test.text)
			m, ok := Parse(raw)
			require.True(t, ok)
			assert.Equal(t, "b7e7a701bc34d686fa87dfae", hex.EncodeToString(m.ID[:]))
			assert.True(t, m.Authentic(vectorPassword))
			assert.False(t, m.Authentic(vectorPassword+"x"))
			kind, username, mapped := m.Kind, m.Username, m.Mapped
			assert.Equal(t, test.want, Message{Kind: kind, Username: username, Mapped: mapped})
			for i := range raw { // every byte is covered, or makes it something else
				raw[i] ^= 0x10
				m, ok := Parse(raw)
				assert.False(t, ok && m.Authentic(vectorPassword), "byte %d", i)
				raw[i] ^= 0x10
			}
		})
	}
}

var credential = Credential{Ufrag: "k7Qx2mPd", Password: "AAAAAAAAAAAAAAAAAAAAAA"}

func TestConsentNothingFollowsTheIntegrity(t *testing.T) {
	raw, _ := NewRequest(credential, ToAgent)
	m, ok := Parse(raw)
	require.True(t, ok)
	require.True(t, m.Authentic(credential.Password))
	for n := range raw {
		m, ok := Parse(raw[:n])
		assert.False(t, ok && m.Authentic(credential.Password), "%d bytes", n)
	}
	// An attribute after the integrity, or no fingerprint, is not what a check looks like.
	longer := append(append([]byte{}, raw[:len(raw)-8]...), 0x00, 0x06, 0, 4, 'e', 'v', 'i', 'l')
	m, ok = Parse(longer)
	assert.True(t, ok)
	assert.False(t, m.Authentic(credential.Password))
	shorter := append([]byte{}, raw[:len(raw)-8]...)
	shorter[3] -= 8
	m, ok = Parse(shorter)
	assert.True(t, ok)
	assert.False(t, m.Authentic(credential.Password))
}

func TestConsentRequestsHaveADirection(t *testing.T) {
	for _, d := range []Direction{ToAgent, ToReceiver} {
		raw, _ := NewRequest(credential, d)
		m, ok := Parse(raw)
		require.True(t, ok)
		ufrag, ok := d.Ufrag(m.Username)
		assert.True(t, ok)
		assert.Equal(t, credential.Ufrag, ufrag)
		_, ok = (ToAgent + ToReceiver - d).Ufrag(m.Username)
		assert.False(t, ok, "what is sent back is not a request of the other side")
	}
	for _, name := range []string{"", "gw", "gw:", ":gw", ":"} {
		_, toAgent := ToAgent.Ufrag(name)
		_, toReceiver := ToReceiver.Ufrag(name)
		assert.False(t, toAgent || toReceiver, name)
	}
}

func TestConsentAnswersAreNoLongerThanRequests(t *testing.T) {
	for _, ufrag := range []string{"a", "abcd", "k7Qx2mPd", "0123456789abcdef"} {
		for _, from := range []string{"192.0.2.1:5004", "[2001:db8::1]:5004"} {
			c := Credential{Ufrag: ufrag, Password: "p"}
			request, id := NewRequest(c, ToAgent)
			answer := NewAnswer(c, id, netip.MustParseAddrPort(from), len(request))
			assert.LessOrEqual(t, len(answer), len(request), "%s %s", ufrag, from)
			m, ok := Parse(answer)
			require.True(t, ok)
			assert.True(t, m.Authentic("p"))
			if m.Mapped.IsValid() {
				assert.Equal(t, from, m.Mapped.String())
			}
		}
	}
}

func TestConsentAndMediaShareAPort(t *testing.T) {
	stun, _ := NewRequest(credential, ToReceiver)
	assert.True(t, IsSTUN(stun))
	for first := range 256 { // RFC 7983: only 0 to 3 is STUN, and only with the cookie
		b := append([]byte{}, stun...)
		b[0] = byte(first)
		assert.Equal(t, first < 4, IsSTUN(b), first)
		b[5] ^= 1
		assert.False(t, IsSTUN(b))
	}
}

func FuzzParse(f *testing.F) {
	request, id := NewRequest(credential, ToAgent)
	f.Add(request)
	f.Add(NewAnswer(credential, id, netip.MustParseAddrPort("192.0.2.1:5004"), 100))
	f.Add(unhex(f, vectorRequest))
	f.Add(unhex(f, vectorV6))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := Parse(b)
		if ok && !IsSTUN(b) {
			t.Error("a message that isn't STUN")
		}
		if m.Authentic("a password that no seed has") {
			t.Error("authentic without the secret")
		}
	})
}
