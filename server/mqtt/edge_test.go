package mqtt_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestStateFirstThenEveryChange: what a broker would have retained is the truth at that moment, and each message is the event itself.
func TestStateFirstThenEveryChange(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		for _, qos := range []byte{0, 1} {
			l := newLab(t, db)
			d := l.door()
			phone := d.Device(t, models.DevicePhone, "phone")
			d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
			c := l.connect(d.camera.Device.ID, "camera")
			require.Equal(t, qos, c.subscribe(d.topic(), qos))
			m := c.next()
			require.True(t, m.retained)
			require.Equal(t, 1, m.state)
			for i := range 5 {
				d.Join(t, phone, servertest.Destination(phone, fmt.Sprint("198.51.99.", 20+i), "door"))
				m = c.next()
				require.False(t, m.retained)
				require.Equal(t, d.topic(), m.topic)
				require.Equal(t, "member.moved", m.kind)
				require.EqualValues(t, 3+i, m.rev)
				state, found, err := events.New(db.Store).State(ctx, models.EventStream{AccountID: d.Account.ID, GroupID: d.group})
				require.NoError(t, err)
				require.True(t, found)
				want, err := events.JSON(state.Event, events.Listener{})
				require.NoError(t, err)
				require.Equal(t, string(want), m.payload)
			}
			// A group whose events were swept long ago still has a state.
			db.Exec(t, "DELETE FROM events")
			again := l.connect(phone.Device.ID, "phone")
			again.subscribe(d.topic(), qos)
			m = again.next()
			require.True(t, m.retained)
			require.EqualValues(t, 7, m.rev)
			require.Equal(t, 1, m.state)
		}
	})
}

// TestNobodyHearsAnotherTenant: neither by the id of its group nor by its client id.
func TestNobodyHearsAnotherTenant(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		mine, theirs := l.door(), l.door()
		a, b := l.connect(mine.camera.Device.ID, "camera-1"), l.connect(theirs.camera.Device.ID, "camera-1")
		outsider := mine.Device(t, models.DevicePhone, "a phone that isn't in the group")
		nosy := l.open(mine.camera.Device.ID, "nosy", 0) // a paho client would match later messages against what was refused
		gateway := l.open(mine.Gateway.Device.ID, "", 0)
		for _, topic := range []string{
			theirs.topic(), "gc/v1/groups/+/state", "gc/v1/groups/#", "#", "gc/#", "+/v1/events", "gc/v1/events/", "/gc/v1/events", "$SYS/#", "gc/v1/groups//state",
			"gc/v1/groups/g_none/state", "gc/v1/groups/" + strings.Repeat("g", 500) + "/state", mine.topic() + "/x", strings.ToUpper(mine.topic()), "gc/v1/groups/g'--/state",
		} {
			nosy.send(subscribePacket(1, topic))
			require.Equal(t, []byte{0x80}, nosy.receive().(*packets.SubackPacket).ReturnCodes, topic)
		}
		require.EqualValues(t, 0x80, l.connect(outsider.Device.ID, "phone").subscribe(mine.topic(), 0), "only members hear of a group")
		gateway.send(subscribePacket(0, mqtt.EventsTopic, mine.topic()))
		require.Equal(t, []byte{0x80, 0x80}, gateway.receive().(*packets.SubackPacket).ReturnCodes)

		require.EqualValues(t, 1, a.subscribe(mine.topic(), 1))
		require.EqualValues(t, 1, b.subscribe(theirs.topic(), 1))
		require.EqualValues(t, 1, a.subscribe(mqtt.EventsTopic, 2), "2 is granted as 1")
		require.Contains(t, a.next().payload, mine.group)
		require.Contains(t, b.next().payload, theirs.group)
		phone := theirs.Device(t, models.DevicePhone, "phone")
		a.silent(l, b, func() { theirs.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door")) }, 2)
		require.True(t, a.IsConnected(), "the same client id of another account is another")
	})
}

// TestWhoLeftHearsNothing: neither the leave itself nor anything after it.
func TestWhoLeftHearsNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		d := l.door()
		upload := d.Service(t, "svc-upload", 0)
		d.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "door", d.Information(t).Groups[0].IP))
		phone, tablet := d.Device(t, models.DevicePhone, "phone"), d.Device(t, models.DeviceTablet, "tablet")
		left := d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door")).RegistrationID
		d.Join(t, tablet, servertest.Destination(tablet, "198.51.99.10", "door"))
		witness, leaver, other := l.connect(d.camera.Device.ID, "c"), l.connect(phone.Device.ID, "c"), l.connect(tablet.Device.ID, "c")
		for _, c := range []*client{witness, leaver, other} {
			require.EqualValues(t, 1, c.subscribe(d.topic(), 1))
			require.Equal(t, 3, c.next().state)
		}
		leaver.silent(l, witness, func() { d.Leave(t, phone, left) }, 5)
		require.Equal(t, 2, other.until(5).state)
		leaver.silent(l, witness, func() { require.NoError(t, d.Accounts.DeleteLink(ctx, "svc-upload", d.Account.ID)) }, 6)
		m := other.until(6)
		require.Equal(t, "member.left", m.kind)
		require.Equal(t, 1, m.state, "an unlinked service is in no state any more")
		require.EqualValues(t, 0x80, leaver.subscribe(d.topic(), 1))

		// The end of a group is the last that its members hear, and nobody else hears it.
		leaver.silent(l, other, func() { d.Leave(t, d.camera, d.source) }, 7)
		require.Equal(t, "group.ended", witness.until(7).kind)
		require.EqualValues(t, 0x80, other.subscribe(d.topic(), 1))
		require.True(t, leaver.IsConnected())
	})
}

// TestAConnectionEndsWithWhatItStandsFor: one look after the token expired or was withdrawn, or the device was removed. There is one every two
// seconds.
func TestAConnectionEndsWithWhatItStandsFor(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		for name, c := range map[string]func(l *lab, d door, phone models.Principal){
			"expired": func(l *lab, _ door, _ models.Principal) { l.ahead.Store(int64(tokenLife)) },
			"removed": func(_ *lab, d door, p models.Principal) {
				require.NoError(t, d.Accounts.DeleteDevice(ctx, "", p.Device.ID))
			},
			"withdrawn": func(*lab, door, models.Principal) {
				db.Exec(t, "UPDATE devices SET not_before = 99999999999999 WHERE name = 'phone'")
			},
		} {
			l := newLab(t, db)
			d := l.door()
			phone := d.Device(t, models.DevicePhone, "phone")
			d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
			ends := l.connect(phone.Device.ID, "")
			ends.subscribe(d.topic(), 1)
			ends.next()
			require.NoError(t, l.edge.Look(ctx))
			require.True(t, ends.IsConnected())
			c(l, d, phone)
			require.NoError(t, l.edge.Look(ctx), name)
			ends.ended()
		}
	})
}

// TestExpiredAtDelivery: between two looks an expired token hears nothing either.
func TestExpiredAtDelivery(t *testing.T) {
	l := newLab(t, storetest.SQLite(t))
	d := l.door()
	c := l.connect(d.camera.Device.ID, "")
	c.subscribe(d.topic(), 0)
	c.next()
	l.ahead.Store(int64(tokenLife))
	phone := d.Device(t, models.DevicePhone, "phone")
	d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
	c.ended()
	require.Empty(t, c.heard)
}

// TestLostHints: whoever wasn't woken is found by the look.
func TestLostHints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		d := l.door()
		c := l.connect(d.camera.Device.ID, "")
		c.subscribe(d.topic(), 1)
		c.subscribe(mqtt.EventsTopic, 1)
		require.Equal(t, "group.created", c.next().kind)
		phone := d.Device(t, models.DevicePhone, "phone")
		require.Equal(t, "device.added", c.next().kind)
		l.deaf.Store(true)
		d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
		require.NoError(t, l.edge.Look(ctx))
		require.Equal(t, "member.joined", c.next().kind)
		d.Join(t, d.camera, servertest.Source(d.camera, "172.168.0.5", "garden"))
		require.NoError(t, l.edge.Look(ctx))
		require.Equal(t, "group.created", c.next().kind)
	})
}

// TestHintsInAnyOrder: hints that come twice, late, too early, out of order or never only ever take a listener forward, and it ends with the newest.
func TestHintsInAnyOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		d := l.door()
		phone := d.Device(t, models.DevicePhone, "phone")
		clients := []*client{l.connect(d.camera.Device.ID, "a"), l.connect(d.camera.Device.ID, "b")}
		rev := int64(1)
		for qos, c := range clients {
			require.EqualValues(t, qos, c.subscribe(d.topic(), byte(qos)))
			require.Equal(t, rev, c.next().rev)
		}
		l.deaf.Store(true)
		port := 0
		harness.Check(t, 25, func(rt *rapid.T) {
			for range rapid.IntRange(1, 4).Draw(rt, "changes") {
				port++
				rev++
				moved := servertest.Destination(phone, "198.51.99.9", "door")
				moved.Port = uint16(5000 + port)
				d.Join(t, phone, moved)
				for _, hint := range rapid.SliceOfN(rapid.Int64Range(0, rev+3), 0, 5).Draw(rt, "hints") {
					l.edge.Wake(models.EventPlace{EventStream: models.EventStream{AccountID: d.Account.ID, GroupID: d.group}, Rev: hint})
				}
			}
			require.NoError(rt, l.edge.Look(ctx))
			for _, c := range clients {
				for last := int64(0); last < rev; {
					m := c.next()
					require.Greater(rt, m.rev, last, "never back, and nothing twice")
					last = m.rev
				}
			}
		})
	})
}

// TestWhatIsAnnounced: new devices to the others, new groups with their group IP and the account's policy, and nothing else.
func TestWhatIsAnnounced(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		d := l.door()
		_, err := l.Accounts.ChangeAccount(ctx, d.Account.ID, accounts.Change{JoinPolicy: &models.JoinPolicy{Devices: []models.DeviceRule{{Type: models.DevicePhone}}}})
		require.NoError(t, err)
		phone := d.Device(t, models.DevicePhone, "phone")
		c := l.connect(phone.Device.ID, "")
		require.EqualValues(t, 1, c.subscribe(mqtt.EventsTopic, 1))
		var want []string
		for i := range 3 {
			d.Service(t, models.ServiceID(fmt.Sprint("svc-", i)), 0)
			want = append(want, "device.added", "group.created")
			camera := d.Device(t, models.DeviceCamera, "another")
			r := d.Join(t, camera, servertest.Source(camera, fmt.Sprint("172.168.0.", 10+i), fmt.Sprint("g", i)))
			tablet := d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", fmt.Sprint("g", i)))
			d.Leave(t, phone, tablet.RegistrationID)
			for _, kind := range want[2*i:] {
				m := c.next()
				require.Equal(t, kind, m.kind)
				require.Equal(t, mqtt.EventsTopic, m.topic)
				require.False(t, m.retained)
				if kind == "group.created" {
					require.Contains(t, m.payload, r.GroupIP.String())
					require.Contains(t, m.payload, `"joinPolicy":{"devices":[{"deviceType":"phone"}]`)
				}
			}
		}
		require.Empty(t, c.heard)
	})
}

// TestConflation: 3000 changes are two messages to a client that acknowledges late, and the second is the newest.
func TestConflation(t *testing.T) {
	registry := prometheus.NewRegistry()
	var rev atomic.Int64
	db := storetest.SQLite(t)
	var d door
	l := newLab(t, db, func(o *mqtt.Options) {
		o.Metrics = registry
		truth := o.State
		o.State = func(ctx context.Context, of models.EventStream) (events.State, bool, error) {
			s, found, err := truth(ctx, of)
			s.Rev += rev.Load()
			return s, found, err
		}
	})
	d = l.door()
	late := l.open(d.camera.Device.ID, "late", 1, d.topic())
	prompt := l.connect(d.camera.Device.ID, "prompt")
	prompt.subscribe(d.topic(), 0)
	first, id := late.message()
	require.True(t, first.retained)
	for i := range int64(3000) {
		rev.Store(i + 1)
		l.edge.Wake(models.EventPlace{EventStream: models.EventStream{AccountID: d.Account.ID, GroupID: d.group}})
	}
	require.Equal(t, first.rev+3000, prompt.until(first.rev+3000).rev)
	late.acknowledge(id)
	newest, _ := late.message()
	require.False(t, newest.retained)
	require.Equal(t, first.rev+3000, newest.rev)
	require.Positive(t, counter(t, registry, "groupcast_mqtt_conflated_total"))
	require.EqualValues(t, 2, counter(t, registry, "groupcast_mqtt_connections"))
}

// TestAStalledReaderDelaysNobody: one that doesn't read fills its socket, and then holds up only itself.
func TestAStalledReaderDelaysNobody(t *testing.T) {
	db := storetest.SQLite(t)
	var rev atomic.Int64
	l := newLab(t, db, func(o *mqtt.Options) {
		o.WriteTimeout = time.Hour // it isn't cut off meanwhile, which would take ten seconds
		truth := o.State
		o.State = func(ctx context.Context, of models.EventStream) (events.State, bool, error) {
			s, found, err := truth(ctx, of)
			s.Rev += rev.Load()
			g := *s.Group
			g.Name = strings.Repeat("x", 1<<20) // large enough to fill what the kernel takes
			s.Group = &g
			return s, found, err
		}
	})
	d := l.door()
	stalled := l.open(d.camera.Device.ID, "stalled", 0, d.topic())
	require.NoError(t, stalled.Conn.(*net.TCPConn).SetReadBuffer(256<<10))
	prompt := l.connect(d.camera.Device.ID, "prompt")
	prompt.subscribe(d.topic(), 0)
	place := prompt.next().rev
	// 15 MB.
	for i := range int64(15) {
		rev.Store(i + 1)
		l.edge.Wake(models.EventPlace{EventStream: models.EventStream{AccountID: d.Account.ID, GroupID: d.group}})
		require.Equal(t, place+i+1, prompt.until(place+i+1).rev)
	}
	// It reads again: fewer messages than there were, and the newest.
	n := 0
	for m := (message{}); m.rev < place+15; n++ {
		m, _ = stalled.message()
	}
	require.Less(t, n, 15)
}

// TestBehind: events that count one by one are kept for a while; whoever doesn't take them has to come back and read.
func TestBehind(t *testing.T) {
	l := newLab(t, storetest.SQLite(t))
	d := l.door()
	late, prompt := l.open(d.camera.Device.ID, "late", 1, mqtt.EventsTopic), l.connect(d.camera.Device.ID, "prompt")
	prompt.subscribe(mqtt.EventsTopic, 0)
	d.Device(t, models.DevicePhone, "first")
	_, id := late.message()
	prompt.next()
	for range 65 {
		d.Device(t, models.DevicePhone, "phone")
		prompt.next()
	}
	late.acknowledge(id)
	require.Empty(t, late.closed())
}

// TestRestartStorm: all come back at once, and each gets its state.
func TestRestartStorm(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLab(t, db)
		d := l.door()
		var phones []models.Principal
		for i := range 50 {
			p := d.Device(t, models.DevicePhone, "phone")
			d.Join(t, p, servertest.Destination(p, fmt.Sprint("198.51.99.", 10+i), "door"))
			phones = append(phones, p)
		}
		var wg sync.WaitGroup
		for _, p := range phones {
			wg.Go(func() {
				c := paho.NewClient(l.options(p.Device.ID, "phone"))
				token := c.Connect()
				token.Wait()
				if token.Error() != nil {
					t.Error(token.Error())
					return
				}
				defer c.Disconnect(0)
				heard := make(chan message, 1)
				c.Subscribe(d.topic(), 1, func(_ paho.Client, m paho.Message) { heard <- read(t, m.Topic(), m.Retained(), m.Payload()) })
				select {
				case m := <-heard:
					if !m.retained || m.state != 50 {
						t.Errorf("%+v", m)
					}
				case <-time.After(patience):
					t.Error("no state came")
				}
			})
		}
		wg.Wait()
	})
}

// TestTakeover: a client that comes back while its old connection still seems to be there ends that, and no other.
func TestTakeover(t *testing.T) {
	l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.MaxPerAccount = 2 })
	d := l.door()
	old, other := l.open(d.camera.Device.ID, "a", 0), l.open(d.camera.Device.ID, "b", 0)
	l.open(d.camera.Device.ID, "a", 0)
	require.Empty(t, old.closed())
	other.send(packets.NewControlPacket(packets.Pingreq))
	require.IsType(t, &packets.PingrespPacket{}, other.receive())
}

// TestCaps: the process, an account and a network each have their most.
func TestCaps(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*mqtt.Options)
		said []byte
	}{
		"too_many":            {func(o *mqtt.Options) { o.MaxConnections = 2 }, nil},
		"too_many_of_source":  {func(o *mqtt.Options) { o.MaxPerSource = 2 }, nil},
		"too_many_of_account": {func(o *mqtt.Options) { o.MaxPerAccount = 2 }, []byte{0x20, 2, 0, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.Metrics = registry; c.set(o) })
			d := l.door()
			l.open(d.camera.Device.ID, "", 0)
			goes := l.open(d.camera.Device.ID, "", 0)
			refused := l.dial()
			_ = connectPacket(d.camera.Device.ID.String(), "").Write(refused)
			require.Equal(t, string(c.said), string(refused.closed()))
			require.EqualValues(t, 1, counter(t, registry, "groupcast_mqtt_refused_total", name))
			goes.send(packets.NewControlPacket(packets.Disconnect))
			require.Empty(t, goes.closed())
			require.Eventually(t, func() bool { return counter(t, registry, "groupcast_mqtt_connections") == 1 }, patience, time.Millisecond)
			require.Eventually(t, func() bool { // its place is free again
				r := l.dial()
				_ = connectPacket(d.camera.Device.ID.String(), "").Write(r)
				p, err := packets.ReadPacket(r)
				return err == nil && p.(*packets.ConnackPacket).ReturnCode == 0
			}, patience, 10*time.Millisecond)
		})
	}
}

// TestWhatIsNoSubscriberOfMQTT311 sends what may not be sent.
func TestWhatIsNoSubscriberOfMQTT311(t *testing.T) {
	l := newLab(t, storetest.SQLite(t))
	d := l.door()
	id := d.camera.Device.ID.String()
	with := func(change func(*packets.ConnectPacket)) []byte {
		p := connectPacket(id, "c")
		change(p)
		var b bytes.Buffer
		_ = p.Write(&b)
		return b.Bytes()
	}
	good := with(func(*packets.ConnectPacket) {})
	accepted, connack := []byte{0x20, 2, 0, 0}, func(code byte) []byte { return []byte{0x20, 2, 0, code} }
	after := func(p ...byte) []byte { return append(bytes.Clone(good), p...) }
	for name, c := range map[string]struct{ send, want []byte }{
		"MQTT 5":               {with(func(p *packets.ConnectPacket) { p.ProtocolVersion = 5 }), connack(1)},
		"MQTT 3.1":             {with(func(p *packets.ConnectPacket) { p.ProtocolName, p.ProtocolVersion = "MQIsdp", 3 }), connack(1)},
		"another protocol":     {with(func(p *packets.ConnectPacket) { p.ProtocolName = "HTTP" }), nil},
		"HTTP":                 {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), nil},
		"a will":               {with(func(p *packets.ConnectPacket) { p.WillFlag, p.WillTopic = true, "t" }), connack(5)},
		"no such device":       {with(func(p *packets.ConnectPacket) { p.Password = []byte("1") }), connack(5)},
		"no password":          {with(func(p *packets.ConnectPacket) { p.PasswordFlag, p.UsernameFlag = false, false }), connack(5)},
		"no user name":         {with(func(p *packets.ConnectPacket) { p.UsernameFlag = false }), nil},
		"a session without id": {with(func(p *packets.ConnectPacket) { p.ClientIdentifier, p.CleanSession = "", false }), connack(2)},
		"a long client id":     {with(func(p *packets.ConnectPacket) { p.ClientIdentifier = strings.Repeat("c", 257) }), connack(2)},
		"a NUL":                {with(func(p *packets.ConnectPacket) { p.ClientIdentifier = "a\x00" }), nil},
		"no UTF-8":             {with(func(p *packets.ConnectPacket) { p.ClientIdentifier = "\xff" }), nil},
		"a reserved flag":      {bytes.Replace(good, []byte("\x04\xc2"), []byte("\x04\xc3"), 1), nil},
		"too long":             {with(func(p *packets.ConnectPacket) { p.Password = make([]byte, 60000) }), nil},
		"256 MB announced":     {[]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, nil},
		"a length of 5 bytes":  {[]byte{0x10, 0x80, 0x80, 0x80, 0x80, 1}, nil},
		"left over":            {append([]byte{good[0], good[1] + 1}, append(bytes.Clone(good[2:]), 0)...), nil},
		"no CONNECT":           {[]byte{0xc0, 0}, nil},
		"two CONNECTs":         {append(bytes.Clone(good), good...), accepted},
		"PUBLISH":              {after(0x30, 4, 0, 1, 'a', 'b'), accepted},
		"SUBSCRIBE QoS 3":      {after(0x82, 6, 0, 1, 0, 1, 'a', 3), accepted},
		"SUBSCRIBE of nothing": {after(0x82, 2, 0, 1), accepted},
		"SUBSCRIBE without id": {after(0x82, 6, 0, 0, 0, 1, 'a', 0), accepted},
		"SUBSCRIBE that lies":  {after(0x82, 6, 0, 1, 0xff, 0xff, 'a', 0), accepted},
		"SUBSCRIBE's flags":    {after(0x80, 6, 0, 1, 0, 1, 'a', 0), accepted},
		"UNSUBSCRIBE nothing":  {after(0xa2, 2, 0, 1), accepted},
		"PINGREQ with a body":  {after(0xc0, 1, 0), accepted},
		"PUBREC":               {after(0x50, 2, 0, 1), accepted},
		"a long packet":        {after(0x82, 0x81, 0x20), accepted},
		"reserved type":        {after(0xf0, 0), accepted},
	} {
		r := l.dial()
		_, err := r.Write(c.send)
		require.NoError(t, err, name)
		got := r.closed()
		if got == nil {
			got = []byte{}
		}
		require.Equal(t, append([]byte{}, c.want...), got, name)
	}
	// A session that should be kept is taken, and isn't kept.
	r := l.dial()
	_, err := r.Write(with(func(p *packets.ConnectPacket) { p.CleanSession = false }))
	require.NoError(t, err)
	require.False(t, r.receive().(*packets.ConnackPacket).SessionPresent)
}

// TestKeepAlive: who is silent for one and a half times as long as it promised is gone.
func TestKeepAlive(t *testing.T) {
	registry := prometheus.NewRegistry()
	l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.Metrics = registry })
	d := l.door()
	r := l.dial()
	p := connectPacket(d.camera.Device.ID.String(), "c")
	p.Keepalive = 1
	r.send(p)
	require.Zero(t, r.receive().(*packets.ConnackPacket).ReturnCode)
	require.Empty(t, r.closed())
	require.Eventually(t, func() bool { return counter(t, registry, "groupcast_mqtt_ended_total", "silent") == 1 }, patience, time.Millisecond)
}

// TestWhoNeverAcknowledges: a client that takes a message and doesn't acknowledge it in time is cut off by the next look, and nobody else is. Until then it
// stays, and hears the next once it has acknowledged.
func TestWhoNeverAcknowledges(t *testing.T) {
	for name, limit := range map[string]time.Duration{"in time": 0, "too late": time.Nanosecond} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.Metrics, o.AckTimeout = registry, limit })
			d := l.door()
			witness := l.connect(d.camera.Device.ID, "witness")
			require.Zero(t, witness.subscribe(d.topic(), 0))
			require.EqualValues(t, 1, witness.next().rev)
			c := l.connect(d.camera.Device.ID, "silent", func(o *paho.ClientOptions) { o.SetAutoAckDisabled(true) })
			taken := make(chan paho.Message, 10)
			token := c.Subscribe(d.topic(), 1, func(_ paho.Client, m paho.Message) { taken <- m })
			token.Wait()
			require.NoError(t, token.Error())
			first := <-taken
			require.NoError(t, l.edge.Look(ctx))
			if limit != 0 {
				c.ended()
				require.Eventually(t, func() bool { return counter(t, registry, "groupcast_mqtt_ended_total", "slow") == 1 }, patience, time.Millisecond)
			}
			phone := d.Device(t, models.DevicePhone, "phone")
			d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
			require.EqualValues(t, 2, witness.next().rev)
			if limit == 0 {
				require.NoError(t, l.edge.Look(ctx))
				first.Ack()
				second := <-taken
				require.EqualValues(t, 2, read(t, second.Topic(), second.Retained(), second.Payload()).rev)
			}
			require.EqualValues(t, 1, witness.subscribe(mqtt.EventsTopic, 1), "it is still connected")
		})
	}
}

// TestUnsubscribe: nothing comes any more, and another subscription to the same topic begins with the state.
func TestUnsubscribe(t *testing.T) {
	registry := prometheus.NewRegistry()
	l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.Metrics = registry })
	d := l.door()
	c, witness := l.connect(d.camera.Device.ID, "a"), l.connect(d.camera.Device.ID, "b")
	witness.subscribe(d.topic(), 0)
	witness.next()
	for range 3 {
		c.subscribe(d.topic(), 1)
		require.True(t, c.next().retained)
	}
	require.EqualValues(t, 2, counter(t, registry, "groupcast_mqtt_subscriptions"))
	c.Unsubscribe(d.topic()).Wait()
	require.EqualValues(t, 1, counter(t, registry, "groupcast_mqtt_subscriptions"))
	phone := d.Device(t, models.DevicePhone, "phone")
	c.silent(l, witness, func() { d.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door")) }, 2)
	many := make([]string, 70)
	for i := range many {
		many[i] = d.topic()
	}
	r := l.open(d.camera.Device.ID, "c", 0)
	r.send(subscribePacket(0, many...))
	require.Len(t, r.receive().(*packets.SubackPacket).ReturnCodes, 70)
	require.EqualValues(t, 2, counter(t, registry, "groupcast_mqtt_subscriptions"), "one topic is one subscription")
}

// TestDrain: connections end one after the other over the time that is given, nobody is taken any more, and nothing is left.
func TestDrain(t *testing.T) {
	registry := prometheus.NewRegistry()
	l := newLab(t, storetest.SQLite(t), func(o *mqtt.Options) { o.Metrics = registry })
	d := l.door()
	var all []raw
	for range 20 {
		all = append(all, l.open(d.camera.Device.ID, "", 0, d.topic()))
	}
	wait, cancel := context.WithCancel(ctx)
	drained := make(chan struct{})
	go func() { l.edge.Drain(wait, 1000*time.Hour); close(drained) }()
	require.Eventually(t, func() bool {
		r, err := net.Dial("tcp", l.addr)
		if err == nil {
			r.Close()
		}
		return err != nil
	}, patience, time.Millisecond, "nobody is taken any more")
	require.EqualValues(t, 20, counter(t, registry, "groupcast_mqtt_connections"), "not all at once")
	cancel()
	<-drained
	for _, r := range all {
		r.closed()
	}
	require.Zero(t, counter(t, registry, "groupcast_mqtt_connections"))
	require.Zero(t, counter(t, registry, "groupcast_mqtt_subscriptions"))
	require.EqualValues(t, 20, counter(t, registry, "groupcast_mqtt_ended_total", "drain"))
}
