package consent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

var (
	camera = Sender{"g1", "camera"}
	phone  = Key{camera, "phone"}
	secret = consentcheck.Credential{Ufrag: "Yw5Fh2kPq0Za", Password: "8mNbVcXzLkJhGfDsAqWeRt"}
	home   = netip.MustParseAddrPort("71.230.36.162:61022")
	away   = netip.MustParseAddrPort("96.114.14.140:5004")
)

// world is a machine and a clock that goes when it is told to.
type world struct {
	*testing.T
	*Machine
	now  time.Time
	sent map[netip.AddrPort]int // bytes
	n    map[netip.AddrPort]int // datagrams
}

func newWorld(t *testing.T, wanted ...Wanted) *world {
	w := &world{T: t, Machine: New(models.PublicHost), now: time.Unix(1e9, 0), sent: map[netip.AddrPort]int{}, n: map[netip.AddrPort]int{}}
	w.Want(w.now, wanted)
	return w
}

func learned() Wanted {
	return Wanted{Key: phone, Credential: secret, Addr: home.Addr()}
}

func strict() Wanted {
	return Wanted{Key: phone, Credential: secret, Addr: away.Addr(), Port: away.Port(), Strict: true}
}

func (w *world) count(packets []Packet) []Packet {
	for _, p := range packets {
		w.sent[p.To] += len(p.Data)
		w.n[p.To]++
	}
	return packets
}

func (w *world) receive(from netip.AddrPort, datagram []byte) []Packet {
	return w.count(w.Receive(w.now, camera, from, datagram))
}

// pass lets time go by, and each gets what is due and may answer.
func (w *world) pass(d time.Duration, answer func(Packet)) {
	for end := w.now.Add(d); ; {
		packets, next := w.Tick(w.now)
		require.True(w, next.After(w.now), "a tick that is due again at once never ends")
		for _, p := range w.count(packets) {
			if answer != nil {
				answer(p)
			}
		}
		if next.After(end) {
			w.now = end
			return
		}
		w.now = next
	}
}

func request(c consentcheck.Credential) []byte {
	b, _ := consentcheck.NewRequest(c, consentcheck.ToAgent)
	return b
}

// reply is what a receiver with that secret answers.
func reply(t testing.TB, c consentcheck.Credential, p Packet) []byte {
	m, ok := consentcheck.Parse(p.Data)
	require.True(t, ok)
	require.Equal(t, consentcheck.Request, m.Kind)
	return consentcheck.NewAnswer(c, m.ID, p.To, len(p.Data))
}

// consents has a receiver at an address go through the whole exchange.
func (w *world) consents(at netip.AddrPort) {
	w.Helper()
	asked := w.receive(at, request(secret))
	require.Len(w, asked, 1)
	require.Equal(w, at, asked[0].To)
	answered := w.receive(at, reply(w, secret, asked[0]))
	require.Len(w, answered, 1, "its own request is answered when it has proved itself")
	m, ok := consentcheck.Parse(answered[0].Data)
	require.True(w, ok && m.Kind == consentcheck.Answer && m.Authentic(secret.Password))
	assert.Equal(w, at, m.Mapped)
	w.lives(at)
}

func (w *world) lives(at netip.AddrPort) {
	w.Helper()
	assert.Equal(w, at, w.Leases(w.now)[phone].At)
	assert.Equal(w, models.ConsentLive, w.States(w.now)[phone])
}

func (w *world) nobody() {
	w.Helper()
	assert.Empty(w, w.Leases(w.now), "nobody may get media")
}

func TestConsentReceiverSpeaksFirst(t *testing.T) {
	w := newWorld(t, learned())
	w.pass(9*time.Second, nil)
	assert.Empty(t, w.sent, "nothing is sent unasked")
	assert.Equal(t, models.ConsentPending, w.States(w.now)[phone])
	w.pass(time.Second, nil)
	assert.Equal(t, models.ConsentUnreachable, w.States(w.now)[phone])
	w.consents(home)

	asked := 0
	w.pass(5*time.Minute, func(p Packet) {
		asked++
		w.receive(home, reply(t, secret, p))
	})
	w.lives(home)
	assert.InDelta(t, 60, asked, 15, "every 5 s, a fifth more or less")

	w.pass(Life-time.Millisecond, nil)
	w.pass(2*time.Millisecond, nil)
	w.nobody()
	assert.Equal(t, models.ConsentLost, w.States(w.now)[phone])
	before := w.n[home]
	w.pass(time.Hour, nil)
	assert.Equal(t, before, w.n[home], "who is silent hears nothing more")
	w.consents(home)
}

func TestConsentTheLeaseEndsAtItsTime(t *testing.T) {
	w := newWorld(t, learned())
	w.consents(home)
	assert.Equal(t, w.now.Add(30*time.Second), w.Leases(w.now)[phone].Until)
	w.now = w.now.Add(30 * time.Second) // without a tick
	w.nobody()
	assert.Equal(t, models.ConsentLost, w.States(w.now)[phone])
	assert.NotEmpty(t, w.receive(home, request(secret)))
	w.nobody()
}

// The service may ask more often, and give less time, but not more.
func TestConsentAsOftenAndAsLongAsTheServiceSays(t *testing.T) {
	wanted := learned()
	wanted.Every, wanted.Expires = time.Second, 4*time.Second
	w := newWorld(t, wanted)
	w.consents(home)
	asked := 0
	w.pass(time.Minute, func(p Packet) {
		asked++
		w.receive(home, reply(t, secret, p))
	})
	assert.InDelta(t, 60, asked, 13, "every second, a fifth more or less")
	assert.False(t, w.Leases(w.now)[phone].Until.After(w.now.Add(4*time.Second)))
	w.pass(4*time.Second, nil)
	w.nobody()
	assert.Equal(t, models.ConsentLost, w.States(w.now)[phone])

	wanted.Every, wanted.Expires = time.Hour, 24*time.Hour
	w = newWorld(t, wanted)
	w.consents(home)
	assert.Equal(t, w.now.Add(Life), w.Leases(w.now)[phone].Until, "never longer than 30 s")

	// Less from now on counts at once.
	wanted.Every, wanted.Expires = time.Second, 2*time.Second
	w.Want(w.now, []Wanted{wanted})
	assert.Equal(t, w.now.Add(2*time.Second), w.Leases(w.now)[phone].Until)
	asked = 0
	w.pass(10*time.Second, func(p Packet) {
		asked++
		w.receive(home, reply(t, secret, p))
	})
	assert.GreaterOrEqual(t, asked, 8)
	w.lives(home)
}

// The service's own places get nothing, whoever proves what there.
func TestConsentNothingForTheServiceItself(t *testing.T) {
	wanted := strict()
	wanted.Probes = 5
	w := newWorld(t, wanted)
	w.Avoid([]netip.AddrPort{away})
	w.pass(time.Hour, nil)
	assert.Empty(t, w.sent)
	assert.Empty(t, w.receive(away, request(secret)))
	assert.Empty(t, w.receive(netip.AddrPortFrom(away.Addr(), 9), request(secret)), "from beside it")

	w = newWorld(t, strict())
	w.consents(away)
	w.Avoid([]netip.AddrPort{netip.AddrPortFrom(away.Addr(), 443)})
	w.lives(away) // on the same host may be a receiver
	w.Avoid([]netip.AddrPort{away})
	w.nobody()
	assert.EqualValues(t, 1, w.Counters().Expired, "so that it gets into force at once")
}

func TestConsentSilentVictim(t *testing.T) {
	wanted := strict()
	wanted.Probes = 100 // whatever the server says
	w := newWorld(t, wanted)
	var at []time.Duration
	start := w.now
	w.pass(24*time.Hour, func(Packet) { at = append(at, w.now.Sub(start)) })
	assert.Equal(t, []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3500 * time.Millisecond, 7500 * time.Millisecond}, at)
	assert.Less(t, w.sent[away], 5*128)
	w.nobody()
	assert.Equal(t, models.ConsentUnreachable, w.States(w.now)[phone])

	// The same wish again has no more; neither has a second camera.
	w.Want(w.now, []Wanted{wanted})
	other := wanted
	other.Source = "camera2"
	w.Want(w.now, []Wanted{wanted, other})
	w.pass(time.Hour, nil)
	assert.Equal(t, 5, w.n[away])
}

func TestConsentManyWhoNameOneVictim(t *testing.T) {
	var all []Wanted
	for i := range 100 {
		w := strict()
		w.Probes, w.Port = 5, uint16(5000+i)
		w.Group, w.Destination = string(rune('A'+i%26)), string(rune('A'+i))
		all = append(all, w)
	}
	w := newWorld(t, all...)
	n := func() (n int) {
		for to, k := range w.n {
			require.Equal(t, away.Addr(), to.Addr())
			n += k
		}
		return n
	}
	w.pass(59*time.Second, nil)
	assert.LessOrEqual(t, n(), 4*5)
	w.pass(2*time.Second, nil)
	assert.LessOrEqual(t, n(), 8*5)
	w.pass(24*time.Hour, nil)
	assert.Equal(t, 100*5, n(), "each has its five in the end, and no more")
	w.nobody()
}

func TestConsentEchoReflector(t *testing.T) {
	wanted := strict()
	wanted.Probes = 5
	w := newWorld(t, wanted)
	w.pass(time.Hour, func(p Packet) {
		for _, more := range w.receive(p.To, p.Data) {
			t.Errorf("an echo is answered with %d bytes", len(more.Data))
		}
	})
	assert.Equal(t, 5, w.n[away])
	w.nobody()
}

func TestConsentSpoofedSource(t *testing.T) {
	w := newWorld(t, learned())
	victim := netip.MustParseAddrPort("68.87.41.40:53")
	sent := 0
	for range 1000 {
		r := request(secret)
		sent += len(r)
		packets := w.receive(victim, r)
		require.LessOrEqual(t, len(packets), 1)
		for _, p := range packets {
			require.LessOrEqual(t, len(p.Data), len(r))
		}
		w.pass(10*time.Millisecond, nil)
	}
	assert.LessOrEqual(t, w.n[victim], maxRequests)
	assert.Less(t, w.sent[victim], sent)
	w.nobody()

	for i := range 1000 { // all ports of one host
		w.receive(netip.AddrPortFrom(victim.Addr(), uint16(1000+i)), request(secret))
	}
	total := 0
	for to, n := range w.n {
		if to.Addr() == victim.Addr() {
			total += n
		}
	}
	assert.LessOrEqual(t, total, maxPerTarget*maxRequests)
}

// Somebody with one registration of a group forges as many addresses as he likes: few of them are asked, the others of the group still are, and of all
// groups of the premises together no more than the uplink can bear. What isn't asked is counted by why.
func TestConsentCaps(t *testing.T) {
	const groups, members = 20, 20
	credential := func(g, m int) consentcheck.Credential {
		return consentcheck.Credential{Ufrag: fmt.Sprintf("u%d+%d", g, m), Password: secret.Password}
	}
	sender := func(g int) Sender { return Sender{fmt.Sprintf("g%d", g), fmt.Sprintf("camera%d", g)} }
	var all []Wanted
	for g := range groups {
		for m := range members {
			all = append(all, Wanted{Key: Key{sender(g), fmt.Sprintf("d%d+%d", g, m)}, Credential: credential(g, m), Addr: away.Addr()})
		}
	}
	w := newWorld(t, all...)
	forged := 0
	ask := func(g, m, times int) (asked int) {
		for range times {
			forged++
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, byte(forged >> 16), byte(forged >> 8), byte(forged)}), 9)
			asked += len(w.Receive(w.now, sender(g), from, request(credential(g, m))))
		}
		return asked
	}
	assert.Equal(t, maxPerDestination, ask(0, 0, 100), "one destination")
	assert.Equal(t, Capped{Destination: 100 - maxPerDestination}, w.Counters().Capped)
	assert.Equal(t, 1, ask(0, 1, 1), "another of the group")
	group := maxPerDestination + 1
	for m := 1; m < members; m++ {
		group += ask(0, m, maxPerDestination)
	}
	assert.Equal(t, maxPerGroup, group)
	assert.Positive(t, w.Counters().Capped.Group)
	for g := 1; g < groups; g++ {
		for m := range members {
			group += ask(g, m, maxPerDestination)
		}
	}
	assert.Equal(t, maxPerGateway, group, "all groups together")
	assert.Positive(t, w.Counters().Capped.Gateway)
	assert.Zero(t, w.Counters().Capped.Target)
	w.now = w.now.Add(slotLife)
	assert.Equal(t, 1, ask(0, 0, 1), "a minute later")
	for port := range uint16(maxPerTarget + 1) {
		w.Receive(w.now, sender(1), netip.AddrPortFrom(home.Addr(), port+1), request(credential(1, 1)))
	}
	assert.EqualValues(t, 1, w.Counters().Capped.Target, "one host")
	for range maxRequests {
		w.Receive(w.now, sender(1), netip.AddrPortFrom(home.Addr(), 1), request(credential(1, 1)))
	}
	assert.EqualValues(t, 1, w.Counters().Capped.Address, "one address and port")
	// Networks of IPv6 are hosts.
	for i := range byte(maxPerTarget + 1) {
		b := netip.MustParseAddr("2a00:1450::").As16()
		b[15] = i
		w.Receive(w.now, sender(2), netip.AddrPortFrom(netip.AddrFrom16(b), 1), request(credential(2, 2)))
	}
	assert.EqualValues(t, 2, w.Counters().Capped.Target)
	w.nobody()
}

func TestConsentReplayedAndForeignSecrets(t *testing.T) {
	w := newWorld(t, learned())
	recorded := request(secret)
	asked := w.receive(home, recorded)
	answer := reply(t, secret, asked[0])
	w.receive(home, answer)
	w.lives(home)

	thief := netip.MustParseAddrPort("8.8.4.4:9")
	// The request again from elsewhere leads to a question that only the secret answers; the answer again to nothing.
	asked = w.receive(thief, recorded)
	require.Len(t, asked, 1)
	assert.Empty(t, w.receive(thief, answer))
	assert.Empty(t, w.receive(thief, asked[0].Data))
	other := consentcheck.Credential{Ufrag: secret.Ufrag, Password: "another"}
	assert.Empty(t, w.receive(thief, reply(t, other, asked[0])))
	assert.Empty(t, w.receive(thief, request(other)))
	assert.Empty(t, w.receive(thief, request(consentcheck.Credential{Ufrag: "nobody", Password: secret.Password})))
	// The right answer from another address than was asked proves nothing about either.
	assert.Empty(t, w.receive(netip.AddrPortFrom(thief.Addr(), 10), reply(t, secret, asked[0])))
	// At another sender the secret is nobody's, and so is the answer.
	assert.Empty(t, w.Receive(w.now, Sender{"g2", "camera"}, home, request(secret)))
	assert.Empty(t, w.Receive(w.now, Sender{"g2", "camera"}, thief, reply(t, secret, asked[0])))
	w.lives(home)
	// Too late.
	w.now = w.now.Add(Life)
	w.receive(thief, reply(t, secret, asked[0]))
	w.nobody()
}

// Whoever recorded an answer can't make the consent last longer than its giver did.
func TestConsentAnAnswerCountsOnce(t *testing.T) {
	w := newWorld(t, learned())
	w.consents(home)
	var recorded []byte
	var at time.Time
	w.pass(10*time.Second, func(p Packet) {
		recorded, at = reply(t, secret, p), w.now
		w.receive(home, recorded)
	})
	w.pass(at.Add(Life-time.Second).Sub(w.now), nil)
	w.receive(home, recorded)
	w.pass(2*time.Second, nil)
	w.nobody()
}

func TestConsentMovedPort(t *testing.T) {
	w := newWorld(t, learned())
	w.consents(home)
	moved := netip.AddrPortFrom(home.Addr(), 40000)
	asked := w.receive(moved, request(secret))
	require.Len(t, asked, 1)
	w.lives(home) // until the new port has proved itself
	w.receive(moved, reply(t, secret, asked[0]))
	w.lives(moved)

	// What the old place answers late doesn't bring it back.
	var late []byte
	w.pass(6*time.Second, func(p Packet) { late = reply(t, secret, p) })
	require.NotNil(t, late)
	w.consents(home)
	until := w.Leases(w.now)[phone].Until
	w.now = w.now.Add(time.Second)
	w.receive(moved, late)
	w.lives(home)
	assert.Equal(t, until, w.Leases(w.now)[phone].Until, "nor does it keep the new one")
}

func TestConsentWhere(t *testing.T) {
	for name, test := range map[string]struct {
		wanted Wanted
		from   string
		to     string // "": silence
	}{
		"learned, from its address":   {learned(), "71.230.36.162:1", "71.230.36.162:1"},
		"learned, from elsewhere":     {learned(), "8.8.8.8:1", "8.8.8.8:1"},
		"learned, mapped form":        {learned(), "[::ffff:8.8.8.8]:1", "8.8.8.8:1"},
		"learned, from IPv6":          {learned(), "[2a00:1450::1]:1", "[2a00:1450::1]:1"},
		"learned, private":            {learned(), "192.168.1.9:1", ""},
		"learned, mapped private":     {learned(), "[::ffff:10.0.0.1]:1", ""},
		"learned, carrier's private":  {learned(), "100.64.0.1:1", ""},
		"learned, embedded":           {learned(), "[64:ff9b::7f00:1]:1", ""},
		"learned, 6to4":               {learned(), "[2002:7f00:1::1]:1", ""},
		"learned, loopback":           {learned(), "127.0.0.1:1", ""},
		"learned, Teredo":             {learned(), "[2001:0:4136:e378::1]:1", ""},
		"learned, IPv4-compatible":    {learned(), "[::8.8.8.8]:1", ""},
		"learned, ISATAP":             {learned(), "[2600::5efe:10.1.2.3]:1", ""},
		"learned, NAT64 of somebody":  {learned(), "[64:ff9b:1::a01:203]:1", ""},
		"learned, multicast":          {learned(), "224.0.0.1:1", ""},
		"learned, broadcast":          {learned(), "255.255.255.255:1", ""},
		"strict, as registered":       {strict(), "96.114.14.140:5004", "96.114.14.140:5004"},
		"strict, from another port":   {strict(), "96.114.14.140:9999", "96.114.14.140:5004"},
		"strict, from elsewhere":      {strict(), "96.114.14.141:5004", ""},
		"learned with a port":         {Wanted{Key: phone, Credential: secret, Addr: home.Addr(), Port: 7000}, "8.8.8.8:9", "8.8.8.8:7000"},
		"strict, at a private's name": {Wanted{Key: phone, Credential: secret, Addr: netip.MustParseAddr("10.0.0.1"), Strict: true}, "10.0.0.1:1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.wanted)
			packets := w.receive(netip.MustParseAddrPort(test.from), request(secret))
			if test.to == "" {
				assert.Empty(t, packets)
				assert.Equal(t, Counters{Refused: 1}, w.Counters())
				return
			}
			require.Len(t, packets, 1)
			to := netip.MustParseAddrPort(test.to)
			assert.Equal(t, to, packets[0].To)
			w.receive(to, reply(t, secret, packets[0]))
			w.lives(to)
		})
	}
}

func TestConsentFollowsWhatIsWanted(t *testing.T) {
	w := newWorld(t, learned())
	w.consents(home)
	w.Want(w.now, []Wanted{learned()})
	w.lives(home)
	fixed := learned()
	fixed.Strict, fixed.Addr = true, away.Addr()
	w.Want(w.now, []Wanted{fixed})
	w.nobody()
	w.Want(w.now, []Wanted{learned()})
	w.consents(home)
	changed := learned()
	changed.Credential.Password = "new"
	w.Want(w.now, []Wanted{changed})
	w.nobody()
	assert.Equal(t, models.ConsentPending, w.States(w.now)[phone])
	w.Want(w.now, nil)
	assert.Empty(t, w.States(w.now))
	assert.Empty(t, w.receive(home, request(secret)))
}

func TestConsentProbesAreAnswered(t *testing.T) {
	wanted := strict()
	wanted.Probes = 5
	w := newWorld(t, wanted)
	answering := true
	answer := func(p Packet) {
		if answering {
			w.receive(away, reply(t, secret, p))
		}
	}
	w.pass(time.Minute, answer)
	w.lives(away)
	answering = false
	w.pass(time.Hour, answer)
	w.nobody()
	before := w.n[away]
	w.Want(w.now, nil)
	w.Want(w.now, []Wanted{wanted}) // a new registration in all but name
	w.pass(time.Minute, answer)
	assert.Equal(t, before+5, w.n[away])
}

// An agent that starts again takes over what the last one left: nobody gets more time by that, and nobody whom it wouldn't let in.
func TestConsentOfTheLastAgent(t *testing.T) {
	last := newWorld(t, strict())
	last.consents(away)
	leases := last.Leases(last.now)

	w := newWorld(t, strict())
	w.now = last.now.Add(10 * time.Second)
	w.Resume(w.now, leases)
	w.lives(away)
	asked := 0
	w.pass(0, func(Packet) { asked++ })
	assert.Equal(t, 1, asked, "who was taken over is asked at once")
	w.pass(19*time.Second, nil)
	w.lives(away)
	w.pass(time.Second, nil)
	w.nobody()
	assert.Equal(t, models.ConsentLost, w.States(w.now)[phone])

	for name, test := range map[string]struct {
		wanted []Wanted
		later  time.Duration
	}{
		"gone":           {nil, 0},
		"moved":          {[]Wanted{{Key: phone, Credential: secret, Addr: home.Addr(), Port: away.Port(), Strict: true}}, 0},
		"another port":   {[]Wanted{{Key: phone, Credential: secret, Addr: away.Addr(), Port: 6000}}, 0},
		"over meanwhile": {[]Wanted{strict()}, Life},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.wanted...)
			w.now = last.now.Add(test.later)
			w.Resume(w.now, leases)
			w.nobody()
		})
	}
	w = newWorld(t, strict())
	w.Avoid([]netip.AddrPort{away})
	w.Resume(w.now, leases)
	w.nobody()
}

func FuzzMachine(f *testing.F) {
	f.Add(request(secret), uint16(61022))
	b, id := consentcheck.NewRequest(secret, consentcheck.ToReceiver)
	f.Add(b, uint16(1))
	f.Add(consentcheck.NewAnswer(secret, id, home, 100), uint16(61022))
	f.Add([]byte{0x80, 96, 0, 1}, uint16(1))
	f.Fuzz(func(t *testing.T, datagram []byte, port uint16) {
		m := New(models.PublicHost)
		now := time.Unix(1e9, 0)
		m.Want(now, []Wanted{learned()})
		from := netip.AddrPortFrom(home.Addr(), port)
		for range 3 {
			packets := m.Receive(now, camera, from, datagram)
			size := 0
			for _, p := range packets {
				size += len(p.Data)
				if p.To != from {
					t.Errorf("a packet to %s for one from %s", p.To, from)
				}
			}
			if size > len(datagram) {
				t.Errorf("%d bytes for %d", size, len(datagram))
			}
		}
		if len(m.Leases(now)) > 0 {
			t.Error("one datagram is no proof")
		}
	})
}
