package mqtt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// lab is an edge on a real database and a real socket. A token is just the device's id here; those of the issuer are tested in
// server/daemon.
type lab struct {
	*servertest.Services
	t     testing.TB
	edge  *mqtt.Edge
	addr  string
	ahead atomic.Int64 // of the edge's clock
	deaf  atomic.Bool  // no hint reaches the edge
}

const tokenLife = time.Hour

func newLab(t testing.TB, db *storetest.DB, change ...func(*mqtt.Options)) *lab {
	t.Helper()
	l := &lab{Services: servertest.On(db, db.Store), t: t}
	read := events.New(db.Store)
	now := func() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }
	o := mqtt.Options{
		Authenticate: func(ctx context.Context, token, _ string) (mqtt.Client, error) {
			id, _ := strconv.ParseInt(token, 10, 64)
			d, found, err := db.Device(ctx, models.ID(id))
			if err == nil && !found {
				err = models.Errorf(models.CodeUnauthenticated, "No such device.")
			}
			return mqtt.Client{
				Device: d.ID, Account: d.AccountID, Premises: d.PremisesID, Bound: true, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(tokenLife),
			}, err
		},
		Devices: db.DevicesAmong, State: read.State, After: read.After, Revs: db.RevsOf, News: db.NewsOf,
		AllowSource: func(netip.Addr) bool { return true }, AllowDevice: func(models.ID) bool { return true },
		MaxConnections: 1000, MaxPerAccount: 1000, MaxPerSource: 1000, Now: now, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	l.edge = mqtt.New(o)
	db.OnCommit(func(c store.Changed) {
		for _, p := range c.Events {
			if l.deaf.Load() {
				return
			}
			l.edge.Wake(p)
		}
	})
	l.serve()
	return l
}

func (l *lab) serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(l.t, err)
	l.addr = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- l.edge.Serve(listener) }()
	l.t.Cleanup(func() {
		l.edge.Drain(ctx, 0)
		require.NoError(l.t, <-served)
	})
}

// message is what a client heard.
type message struct {
	topic    string
	retained bool
	rev      int64
	kind     string
	state    int
	payload  string
}

func read(t testing.TB, topic string, retained bool, payload []byte) message {
	t.Helper()
	var e struct {
		Type string
		Data struct {
			Rev        int64
			AccountRev int64
			State      int
		}
	}
	require.NoError(t, json.Unmarshal(payload, &e), "%s", payload)
	return message{
		topic: topic, retained: retained, rev: e.Data.Rev, kind: strings.TrimPrefix(e.Type, "groupcast."), state: e.Data.State, payload: string(payload),
	}
}

// client is a paho client that subscribed.
type client struct {
	paho.Client
	t     testing.TB
	heard chan message
	lost  chan error
}

func (l *lab) options(device models.ID, clientID string) *paho.ClientOptions {
	return paho.NewClientOptions().AddBroker("tcp://" + l.addr).SetClientID(clientID).SetUsername("device").SetPassword(device.String()).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(time.Minute).SetOrderMatters(true)
}

func (l *lab) connect(device models.ID, clientID string) *client {
	l.t.Helper()
	c := &client{t: l.t, heard: make(chan message, 5000), lost: make(chan error, 1)}
	c.Client = paho.NewClient(l.options(device, clientID).SetConnectionLostHandler(func(_ paho.Client, err error) { c.lost <- err }))
	token := c.Connect()
	token.Wait()
	require.NoError(l.t, token.Error())
	l.t.Cleanup(func() { c.Disconnect(0) })
	return c
}

// subscribe gives what SUBACK says.
func (c *client) subscribe(topic string, qos byte) byte {
	c.t.Helper()
	token := c.Subscribe(topic, qos, func(_ paho.Client, m paho.Message) { c.heard <- read(c.t, m.Topic(), m.Retained(), m.Payload()) })
	token.Wait()
	require.NoError(c.t, token.Error())
	return token.(*paho.SubscribeToken).Result()[topic]
}

// next waits for a message.
func (c *client) next() message {
	c.t.Helper()
	select {
	case m := <-c.heard:
		return m
	case err := <-c.lost:
		require.Fail(c.t, "the connection ended", "%v", err)
	case <-time.After(time.Minute):
		require.Fail(c.t, "nothing came")
	}
	return message{}
}

// until waits for a state of the group that is as new as rev.
func (c *client) until(rev int64) message {
	c.t.Helper()
	for {
		if m := c.next(); m.rev >= rev {
			return m
		}
	}
}

// ended waits for the server to end the connection.
func (c *client) ended() {
	c.t.Helper()
	select {
	case <-c.lost:
	case <-time.After(time.Minute):
		require.Fail(c.t, "the connection goes on")
	}
}

// silent is right if nothing was heard by the time that a ping was answered.
func (c *client) silent(l *lab, witness *client, cause func(), rev int64) {
	c.t.Helper()
	cause()
	witness.until(rev)
	// What is delivered is written by a goroutine of its own, for each: a few more rounds give it the time.
	for range 20 {
		require.NoError(c.t, l.edge.Look(ctx))
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case m := <-c.heard:
		require.Fail(c.t, "heard", "%+v", m)
	default:
	}
}

// raw is a client that says exactly what it is told to.
type raw struct {
	net.Conn
	t testing.TB
}

func (l *lab) dial() raw {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.addr)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { conn.Close() })
	require.NoError(l.t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	return raw{conn, l.t}
}

func (r raw) send(p packets.ControlPacket) {
	r.t.Helper()
	require.NoError(r.t, p.Write(r))
}

func (r raw) receive() packets.ControlPacket {
	r.t.Helper()
	p, err := packets.ReadPacket(r)
	require.NoError(r.t, err)
	return p
}

// closed waits for the end of the connection, and gives what came before.
func (r raw) closed() []byte {
	r.t.Helper()
	all, err := io.ReadAll(r)
	if err != nil {
		require.ErrorContains(r.t, err, "reset")
	}
	return all
}

func connectPacket(password, clientID string) *packets.ConnectPacket {
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.CleanSession, p.ClientIdentifier = "MQTT", 4, true, clientID
	p.UsernameFlag, p.Username, p.PasswordFlag, p.Password = true, "device", true, []byte(password)
	return p
}

func subscribePacket(qos byte, topics ...string) *packets.SubscribePacket {
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics, p.Qoss = 7, topics, bytes.Repeat([]byte{qos}, len(topics))
	return p
}

// open connects, and subscribes to topics.
func (l *lab) open(device models.ID, clientID string, qos byte, topics ...string) raw {
	l.t.Helper()
	r := l.dial()
	r.send(connectPacket(device.String(), clientID))
	require.Zero(l.t, r.receive().(*packets.ConnackPacket).ReturnCode)
	if len(topics) > 0 {
		r.send(subscribePacket(qos, topics...))
		require.Equal(l.t, bytes.Repeat([]byte{qos}, len(topics)), r.receive().(*packets.SubackPacket).ReturnCodes)
	}
	return r
}

func (r raw) message() (message, uint16) {
	r.t.Helper()
	p := r.receive().(*packets.PublishPacket)
	return read(r.t, p.TopicName, p.Retain, p.Payload), p.MessageID
}

func (r raw) acknowledge(id uint16) {
	p := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	p.MessageID = id
	r.send(p)
}

// door is a home with one camera that is the source of one group.
type door struct {
	*servertest.Home
	camera models.Principal
	group  models.GroupID
	source models.RegistrationID
}

func (l *lab) door() door {
	l.t.Helper()
	d := door{Home: l.NewHome(l.t)}
	d.camera = d.Device(l.t, models.DeviceCamera, "camera")
	d.source = d.Join(l.t, d.camera, servertest.Source(d.camera, "172.168.0.5", "door")).RegistrationID
	d.group = d.Information(l.t).Groups[0].ID
	return d
}

func (d door) topic() string { return mqtt.StateTopic(d.group) }

func counter(t testing.TB, r *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			all := ""
			for _, p := range m.GetLabel() {
				all += p.GetValue()
			}
			if all == strings.Join(labels, "") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	require.Fail(t, "no such metric", "%s %v", name, labels)
	return 0
}
