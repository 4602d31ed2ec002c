package mqtt_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/store"
)

// one is a listener that gives one connection.
type one struct {
	conn  chan net.Conn
	close chan struct{}
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.close:
		return nil, net.ErrClosed
	}
}
func (l *one) Close() error   { close(l.close); return nil }
func (l *one) Addr() net.Addr { return &net.UnixAddr{} }

// FuzzSession: whatever bytes a client sends, in one piece and then while it is told something, it gets packets of MQTT 3.1.1 in order, and when it
// has gone nothing of it is left.
func FuzzSession(f *testing.F) {
	of := models.EventStream{AccountID: "a_1", GroupID: "g_1"}
	device := models.Device{ID: 1, AccountID: of.AccountID, PremisesID: "p_1", Type: models.DeviceCamera, PoP: true}
	event := models.Event{EventPlace: models.EventPlace{EventStream: of, Rev: 1}, Type: models.EventMemberJoined, Group: &models.GroupState{
		Group:   models.Group{ID: of.GroupID, Rev: 1, IP: netip.MustParseAddr("192.168.1.230")},
		Members: []models.Member{{Type: models.MemberDevice, ID: 1, Role: models.RoleSource}},
	}}
	good := func(p ...packets.ControlPacket) []byte {
		var b bytes.Buffer
		for _, each := range append([]packets.ControlPacket{connectPacket("1", "c")}, p...) {
			_ = each.Write(&b)
		}
		return b.Bytes()
	}
	unsubscribe := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	unsubscribe.MessageID, unsubscribe.Topics = 9, []string{mqtt.StateTopic(of.GroupID)}
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = 1
	subscribe := subscribePacket(1, mqtt.StateTopic(of.GroupID), "#", mqtt.EventsTopic)
	f.Add(good())
	f.Add(good(subscribe, ack, packets.NewControlPacket(packets.Pingreq), subscribe, unsubscribe, packets.NewControlPacket(packets.Disconnect)))
	f.Add(good(subscribe, unsubscribe, subscribe, ack, ack))
	f.Add(good(connectPacket("1", "c")))
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0x7f})
	f.Add(append(good(), 0x82, 6, 0, 1, 0xff, 0xff, 'a', 0))
	f.Fuzz(func(t *testing.T, sent []byte) {
		e := mqtt.New(mqtt.Options{
			Authenticate: func(context.Context, string, string) (mqtt.Client, error) {
				return mqtt.Client{Device: 1, Account: of.AccountID, Premises: "p_1", Bound: true, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}, nil
			},
			Devices: func(context.Context, []models.ID) ([]models.Device, error) { return []models.Device{device}, nil },
			State: func(_ context.Context, s models.EventStream) (events.State, bool, error) {
				return events.NewState(event, event.Group.Members), s == of, nil
			},
			After: func(context.Context, models.EventStream, int64) (events.Batch, error) { return events.Batch{}, nil },
			Revs:  func(context.Context, []models.GroupID) (map[models.GroupID]int64, error) { return nil, nil },
			News: func(context.Context, []models.AccountID) (map[models.AccountID]store.AccountNews, error) {
				return nil, nil
			},
			AllowSource: func(netip.Addr) bool { return true }, AllowDevice: func(models.ID) bool { return true },
			MaxConnections: 1, MaxPerAccount: 1, MaxPerSource: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		})
		l := &one{conn: make(chan net.Conn), close: make(chan struct{})}
		served := make(chan struct{})
		go func() { _ = e.Serve(l); close(served) }()
		server, client := net.Pipe()
		l.conn <- server
		heard := make(chan error, 1)
		go func() {
			for {
				p, err := packets.ReadPacket(client)
				if err != nil {
					heard <- nil
					return
				}
				switch p.(type) {
				case *packets.ConnackPacket, *packets.SubackPacket, *packets.UnsubackPacket, *packets.PingrespPacket, *packets.PublishPacket:
				default:
					t.Errorf("the server sent %T", p)
				}
			}
		}()
		_, _ = client.Write(sent) // the server may end it before all is said
		e.Wake(models.EventPlace{EventStream: of, Rev: 2})
		client.Close()
		<-heard
		e.Drain(context.Background(), 0)
		<-served
	})
}
