package longpoll

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	waiters     prometheus.Gauge
	answers     *prometheus.CounterVec
	emptyWakes  prometheus.Counter
	missedHints prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		waiters: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupcast_longpoll_waiters", Help: "Long polls that wait in this process.",
		}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupcast_longpoll_answers_total", Help: "Polls for group information, by why they were answered.",
		}, []string{"reason"}),
		emptyWakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupcast_longpoll_empty_wakes_total", Help: "Hints after which nothing had changed.",
		}),
		missedHints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupcast_longpoll_missed_hints_total", Help: "Changes that only the look every two seconds found.",
		}),
	}
	for _, why := range []Reason{Immediate, Plain, Changed, TimedOut, Superseded, Draining, Resync, Gone, Refused, Failed} {
		m.answers.WithLabelValues(string(why))
	}
	if r != nil {
		r.MustRegister(m.waiters, m.answers, m.emptyWakes, m.missedHints)
	}
	return m
}
