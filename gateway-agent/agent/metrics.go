package agent

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/VictoriaMetrics/metrics"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
)

// serveMetrics writes Prometheus' text format. The labels are ids and addresses of groups, which need no escaping. Names of
// destinations stay out of it; the status tells whose an id is.
func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(a.exposition())
	metrics.WriteProcessMetrics(w)
}

func (a *Agent) exposition() []byte {
	s, counters := a.status(), a.place.counts()
	var b bytes.Buffer
	family := func(name, kind, help string) func(labels string, value any) {
		name = "groupcast_agent_" + name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		return func(labels string, value any) { fmt.Fprintf(&b, "%s%s %v\n", name, labels, value) }
	}

	forwarding := 0
	if s.Forwarding {
		forwarding = 1
	}
	family("forwarding", "gauge", "1 while there is a group information to copy by, else 0.")("", forwarding)
	family("last_success_age_seconds", "gauge", "Since the server was last heard from; -1 for never.")("", s.LastSuccessSeconds)
	family("valid_for_seconds", "gauge", "Until copying stops if the server stays silent.")("", s.ValidForSeconds)
	family("refused_destinations", "gauge", "Destinations that get nothing because their address may not be sent to.")("", s.RefusedCount)
	family("unknown_group_total", "counter", "Datagrams to a group IP of nobody; only the ebpf backend sees those.")("", s.UnknownGroup)
	if s.Uplink != nil {
		family("uplink_rate_bits", "gauge", "Bits per second that copies may take of the uplink.")("", s.Uplink.Rate)
		family("uplink_wanted_bits", "gauge", "Bits per second that copies for every destination would take.")("", s.Uplink.Wanted)
		family("left_out_destinations", "gauge", "Destinations that get nothing for now because the uplink has no room.")("", s.Uplink.LeftOut)
	}
	if _, revision, ok := strings.Cut(s.Cursor, "."); ok {
		family("revision", "gauge", "Revision of the group information in force.")("", revision)
	}
	poll := family("polls_total", "counter", "Polls by result; failed counts whatever led to a back-off.")
	poll(`{result="changed"}`, s.Polls.Changed)
	poll(`{result="unchanged"}`, s.Polls.Unchanged)
	poll(`{result="refused"}`, s.Polls.Refused)
	poll(`{result="failed"}`, s.Polls.Failed)

	group := family("group_info", "gauge", "The groups in force; always 1.")
	for _, g := range s.Groups {
		group(fmt.Sprintf(`{%s,group="%s",generation="%d"}`, counters.label(g.IP, g.ID), g.Name, g.Generation), 1)
	}
	labels := counters.byLabel()
	received := family("group_received_total", "counter", "Datagrams that arrived at the group IP.")
	for label, c := range ordered(labels) {
		received("{"+label+"}", c.Received)
	}
	dropped := family("group_drops_total", "counter", "Datagrams at the group IP that were not copied.")
	for label, c := range ordered(labels) {
		for reason, n := range ordered(c.Drops) {
			dropped(fmt.Sprintf(`{%s,reason="%s"}`, label, reason), n)
		}
	}
	if t := s.Tunnel; t != nil {
		family("tunnel_peers", "gauge", "Other ends of the tunnel.")("", t.Peers)
		family("tunnel_connected", "gauge", "Other ends with a session.")("", t.Connected)
		family("tunnel_strangers_total", "counter", "Datagrams that came to a relay and were for no group of their premises.")("", t.Strangers)
		family("tunnel_malformed_total", "counter", "Packets that came to a relay and were no datagrams.")("", t.Malformed)
		family("tunnel_lost_total", "counter", "Packets that came to a relay and found no room.")("", t.Lost)
		if t.Forwarded != nil {
			family("forwarded_packets_total", "counter", "Packets that this gateway sent to its relay.")("", t.Forwarded.Packets)
			family("forwarded_bytes_total", "counter", "IPv4 bytes that this gateway sent to its relay.")("", t.Forwarded.Bytes)
			lost := family("forward_drops_total", "counter", "Packets that were not sent to the relay.")
			for reason, n := range ordered(t.Forwarded.Drops) {
				lost(fmt.Sprintf(`{reason="%s"}`, reason), n)
			}
		}
	}

	check := family("consent_checks_total", "counter", "What came of the checks that destinations and this agent send each other.")
	for _, c := range []struct {
		result string
		n      uint64
	}{
		{"answered", s.Checks.Answered},
		{"asked", s.Checks.Asked},
		{"capped_address", s.Checks.Capped.Address},
		{"capped_destination", s.Checks.Capped.Destination},
		{"capped_gateway", s.Checks.Capped.Gateway},
		{"capped_group", s.Checks.Capped.Group},
		{"capped_target", s.Checks.Capped.Target},
		{"expired", s.Checks.Expired},
		{"forged", s.Checks.Forged},
		{"malformed", s.Checks.Malformed},
		{"probed", s.Checks.Probed},
		{"refused", s.Checks.Refused},
		{"renewed", s.Checks.Renewed},
		{"unasked", s.Checks.Unasked},
		{"unknown", s.Checks.Unknown},
		{"validated", s.Checks.Validated},
	} {
		check(fmt.Sprintf(`{result="%s"}`, c.result), c.n)
	}
	consenting := family("destination_consent", "gauge", "How the destination's consent stands; always 1.")
	for _, g := range s.Groups {
		for _, d := range g.Destinations {
			consenting(fmt.Sprintf(`{destination="%s",consent="%s"}`, d.ID, d.Consent), 1)
		}
	}
	destination := family("destination_info", "gauge", "The destinations in force; always 1.")
	for _, g := range s.Groups {
		for _, d := range g.Destinations {
			destination(fmt.Sprintf(`{destination="%s",%s}`, d.ID, counters.label(g.IP, g.ID)), 1)
		}
	}
	ids := slices.Sorted(maps.Keys(counters.Destinations))
	packets := family("destination_packets_total", "counter", "Copies sent to the destination.")
	for _, id := range ids {
		packets(fmt.Sprintf(`{destination="%s"}`, id), counters.Destinations[id].Packets)
	}
	octets := family("destination_bytes_total", "counter", "UDP payload of the copies sent to the destination.")
	for _, id := range ids {
		octets(fmt.Sprintf(`{destination="%s"}`, id), counters.Destinations[id].Bytes)
	}
	lost := family("destination_drops_total", "counter", "Copies for the destination that were not sent.")
	for _, id := range ids {
		for reason, n := range ordered(counters.Destinations[id].Drops) {
			lost(fmt.Sprintf(`{destination="%s",reason="%s"}`, id, reason), n)
		}
	}
	return b.Bytes()
}

// label names a group: by its IP, or at a relay, where many have the same, by its id.
func (c counts) label(ip netip.Addr, id string) string {
	if c.relay != nil {
		return fmt.Sprintf(`group_id="%s"`, id)
	}
	return fmt.Sprintf(`group_ip="%s"`, ip)
}

func (c counts) byLabel() map[string]duplicator.GroupCounters {
	all := map[string]duplicator.GroupCounters{}
	for ip, g := range c.Groups {
		all[c.label(ip, "")] = g
	}
	for id, g := range c.relay {
		all[c.label(netip.Addr{}, id)] = g
	}
	return all
}

func ordered[V any](m map[string]V) func(yield func(string, V) bool) {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
