package backendtest

import (
	"slices"
	"testing"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/packet"
)

type testCase struct {
	name string
	run  func(*testing.T, Backend)
	// paced says that the case measures rates, which a busy machine would change.
	paced bool
	// atHome says why the case isn't one of a relay, and inNetwork that it is of a relay only.
	atHome    string
	inNetwork bool
	// unreserved says why the case isn't one of sources with reserved ports (Backend.Reserved).
	unreserved string
}

const (
	byPort   = "it tells streams apart by the ports that copies leave from"
	answered = "the network's answers come to the sockets that hold the ports, which are package sender's: e2e/relay has them"
)

var cases = slices.Concat(
	inBothModes("worked example", workedExample),
	inBothModes("fragments", fragmented),
	with(byPort, inBothModes("bursts", bursts)...),
	inBothModes("UDP checksum left to the device", checksumOffload),
	inBothModes("super-packets", superPackets),
	inBothModes("options around the option", optionsAround),
	inBothModes("trigger source", triggerSource),
	inBothModes("a copy that comes back", copyComesBack),
	[]testCase{
		{name: "without the option nothing leaves", run: withoutTheOption},
		{name: "two groups never see each other", run: twoGroups},
		{name: "0 to 64 destinations", run: manyDestinations},
		{name: "fragments of the camera's kernel", run: kernelFragments},
		{name: "UDP checksum zero", run: zeroChecksum},
		{name: "malformed", run: malformed},
		{name: "wrong source", run: wrongSource},
		{name: "wrong stream id", run: wrongStreamID},
		{name: "wrong interface", run: wrongInterface},
		{name: "a source that comes and goes", run: sourceComesAndGoes},
		{name: "foreign group", run: foreignGroup},
		{name: "no hop left", run: noHop},
		{name: "don't fragment", run: dontFragment},
		{name: "don't fragment and too big", run: tooBig},
		{name: "cameras with one source port", run: natCollision, unreserved: byPort},
		{name: "header fields", run: headerFields},
		{name: "short frames", run: shortFrames},
		{name: "bursts that leave as super-packets", run: togetherAway},
		{name: "a burst on a narrow way", run: narrowWay},
		{name: "one destination without ARP", run: func(t *testing.T, b Backend) { deadDestinations(t, b, "203.0.113.77") }},
		{name: "two destinations without ARP", run: func(t *testing.T, b Backend) { deadDestinations(t, b, "203.0.113.77", "203.0.113.78") }},
		{name: "two destinations that refuse", run: func(t *testing.T, b Backend) { deadDestinations(t, b, "203.0.113.254", netlab.Live) }, unreserved: answered},
		{name: "two destinations without a way", run: func(t *testing.T, b Backend) { deadDestinations(t, b, "192.0.2.1", "192.0.2.2") }},
		{name: "destination that refuses", run: refusing, unreserved: answered},
		{name: "destination ports", run: destinationPorts},
		{name: "reserved ports", run: reservedPorts},
		{name: "copies for one source", run: copiesForOneSource},
		{name: "consent ends", run: consentEnds},
		{name: "checks at full load", run: checksAtFullLoad},
		{name: "any port", run: anyPort, unreserved: byPort},
		{name: "any port, IPv6 and the gateway's own sockets", run: anyPortBeside},
		{name: "IPv6", run: ipv6},
		{name: "hairpin", run: hairpin, atHome: "a relay isn't on the LAN: it reaches whoever is in the home at the outside of the home's NAT, as anybody else"},
		{name: "the gateway itself", run: gatewayItself, atHome: "what is special is so by the gateway's own addresses and group range; the relay's are in relayItself"},
		{name: "stale", run: stale},
		{name: "no groups", run: noGroups},
		{name: "more than the uplink takes", run: uplinkRate, paced: true, atHome: "the home's uplink carries each datagram once, and a relay's uplink has no rate"},
		{name: "a wall clock that is an hour off", run: wrongClock},
		{name: "more than a destination may get", run: destinationRate, paced: true, unreserved: "a relay with a destination rate copies by sockets"},
		{name: "a group IP of nobody", run: nobodysGroup},
		{name: "counters only rise", run: countersOnlyRise},
		{name: "as many streams as there may be", run: manyStreams, unreserved: "a source has one stream then"},
		{name: "a smaller way ahead", run: pathMTU},
		{name: "the relay itself", run: relayItself, inNetwork: true},
		{name: "a relay's own snapshot", run: relayStale, inNetwork: true},
		{name: "400 swaps at full load", run: swapsUnderLoad, paced: true},
	},
)

func with(unreserved string, all ...testCase) []testCase {
	for i := range all {
		all[i].unreserved = unreserved
	}
	return all
}

func inBothModes(name string, run func(*testing.T, Backend, packet.CopyOptions)) []testCase {
	var both []testCase
	for _, mode := range []packet.CopyOptions{packet.Strip, packet.NOP} {
		both = append(both, testCase{name: name + ", " + string(mode), run: func(t *testing.T, b Backend) { run(t, b, mode) }})
	}
	return both
}
