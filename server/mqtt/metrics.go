package mqtt

import "github.com/prometheus/client_golang/prometheus"

// Reason says why a client was refused or a connection ended; it is a label of the metrics.
type Reason string

// The reasons.
const (
	Malformed        Reason = "malformed" // not what MQTT 3.1.1 allows
	WrongVersion     Reason = "version"
	WrongClientID    Reason = "client_id"
	NotAllowed       Reason = "not_allowed" // a will, or a packet that is not for subscribing
	NotAuthenticated Reason = "unauthenticated"
	RateLimited      Reason = "rate_limited"
	TooMany          Reason = "too_many"
	TooManyOfSource  Reason = "too_many_of_source"
	TooManyOfAccount Reason = "too_many_of_account"
	Topic            Reason = "topic" // a topic that there isn't, or that the device may not hear; the connection stays
	Unavailable      Reason = "unavailable"
	Draining         Reason = "drain"

	Gone      Reason = "client_gone"
	Silent    Reason = "silent" // nothing came for 1.5 times the keep alive
	TakenOver Reason = "taken_over"
	Expired   Reason = "expired"
	Revoked   Reason = "revoked"
	Slow      Reason = "slow" // didn't read, didn't acknowledge, or fell behind
)

type metrics struct {
	connections   prometheus.Gauge
	subscriptions prometheus.Gauge
	refused       *prometheus.CounterVec
	ended         *prometheus.CounterVec
	deliveries    *prometheus.CounterVec
	conflated     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		connections:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_mqtt_connections", Help: "Devices connected to this process."}),
		subscriptions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupcast_mqtt_subscriptions", Help: "Their subscriptions."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_mqtt_refused_total", Help: "Connections and subscriptions that were refused, by why.",
		}, []string{"reason"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_mqtt_ended_total", Help: "Connections that ended, by why.",
		}, []string{"reason"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_mqtt_deliveries_total", Help: "Messages delivered, by kind of topic.",
		}, []string{"topic"}),
		conflated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupcast_mqtt_conflated_total", Help: "States delivered that took the place of others before them.",
		}),
	}
	for _, why := range []Reason{
		Malformed, WrongVersion, WrongClientID, NotAllowed, NotAuthenticated, RateLimited, TooMany, TooManyOfSource, TooManyOfAccount, Topic, Unavailable, Draining, Gone,
	} {
		m.refused.WithLabelValues(string(why))
	}
	for _, why := range []Reason{Gone, Silent, Malformed, NotAllowed, RateLimited, TakenOver, Expired, Revoked, Slow, Unavailable, Draining} {
		m.ended.WithLabelValues(string(why))
	}
	for _, topic := range []string{stateLabel, eventsLabel} {
		m.deliveries.WithLabelValues(topic)
	}
	if r != nil {
		r.MustRegister(m.connections, m.subscriptions, m.refused, m.ended, m.deliveries, m.conflated)
	}
	return m
}

// The kinds of topics in the metrics.
const (
	stateLabel  = "state"
	eventsLabel = "events"
)
