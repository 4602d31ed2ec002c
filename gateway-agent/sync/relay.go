package sync

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"

	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// relayDecoder reads the group information of a relay, which has thousands of homes and mostly the same as the time before. What was said about a group or a
// premises in the same bytes it doesn't read again, and of a group without destinations it only keeps that there is nothing to do: neither is it in what decode
// gives, nor in what is kept of it. It is for one goroutine at a time.
type relayDecoder struct {
	relay    models.ID
	seed     maphash.Seed
	groups   map[uint64]*models.GatewayGroup // by what was said; nil for one without destinations
	premises map[uint64]api.RelayPremises
}

func newRelayDecoder(relay models.ID) *relayDecoder {
	return &relayDecoder{relay: relay, seed: maphash.MakeSeed()}
}

// DecodeRelay is Decode for a relay. Groups without destinations are left out.
func DecodeRelay(raw []byte, relay models.ID) (*Information, error) {
	return newRelayDecoder(relay).decode(raw)
}

func (d *relayDecoder) decode(raw []byte) (*Information, error) {
	said, groups, premises, err := open(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it can't be read: %w", scrub(err))
	case !isList(premises):
		return nil, errors.New("it has no list of premises")
	}
	head := api.GroupInformation{GatewayID: said.RelayID, Epoch: said.Epoch, Revision: said.Revision, MaxStaleSeconds: said.MaxStaleSeconds}
	if isList(groups) {
		head.Groups = []api.GatewayGroup{}
	}
	info, err := parse(head, nil)
	if err != nil {
		return nil, err
	}
	next := &relayDecoder{d.relay, d.seed, make(map[uint64]*models.GatewayGroup, len(d.groups)), make(map[uint64]api.RelayPremises, len(d.premises))}
	var keptGroups, keptPremises []json.RawMessage
	busy := map[models.PremisesID]bool{}
	for i, element := range elements(groups) {
		hash := maphash.Bytes(d.seed, element)
		g, known := d.groups[hash]
		if !known {
			if g, err = readGroup(element, i); err != nil {
				return nil, err
			}
		}
		next.groups[hash] = g
		if g != nil {
			info.Groups = append(info.Groups, *g)
			busy[g.PremisesID] = true
			keptGroups = append(keptGroups, element)
		}
	}
	for i, element := range elements(premises) {
		hash := maphash.Bytes(d.seed, element)
		p, known := d.premises[hash]
		if !known {
			if err := json.Unmarshal(element, &p); err != nil {
				return nil, fmt.Errorf("premises[%d] can't be read: %w", i, scrub(err))
			}
		}
		next.premises[hash] = p
		info.Premises = append(info.Premises, models.RelayPremises{
			PremisesID: p.PremisesID, GatewayID: p.GatewayID, TunnelKey: p.TunnelKey, TunnelAddress: p.TunnelAddress,
		})
		if busy[p.PremisesID] {
			keptPremises = append(keptPremises, element)
		}
	}
	if err := table.CheckRelay(info.GroupInformation, d.relay, info.Premises); err != nil {
		return nil, err
	}
	if info.Raw, err = json.Marshal(reduced{said, list(keptGroups), list(keptPremises)}); err != nil {
		return nil, err
	}
	*d = *next
	return info, nil
}

// reduced is the document as it is kept, with what counts for copying only.
type reduced struct {
	api.RelayInformation
	Groups   []json.RawMessage `json:"groups"`
	Premises []json.RawMessage `json:"premises"`
}

func list(elements []json.RawMessage) []json.RawMessage {
	if elements == nil {
		return []json.RawMessage{}
	}
	return elements
}

// readGroup gives nil for one without destinations.
func readGroup(element []byte, i int) (*models.GatewayGroup, error) {
	var said api.GatewayGroup
	if err := json.Unmarshal(element, &said); err != nil {
		return nil, fmt.Errorf("groups[%d] can't be read: %w", i, scrub(err))
	}
	g, err := parseGroup(said, i)
	if err != nil || len(g.Destinations) == 0 {
		return nil, err
	}
	return &g, nil
}

// open reads everything but the two lists, which it gives as they are; nil: there is none.
func open(raw []byte) (said api.RelayInformation, groups, premises []byte, err error) {
	if !json.Valid(raw) {
		return said, nil, nil, json.Unmarshal(raw, &said)
	}
	raw = bytes.TrimSpace(raw)
	if raw[0] != '{' {
		return said, nil, nil, json.Unmarshal(raw, &said)
	}
	rest := []byte{'{'}
	for _, member := range elements(raw) {
		name, value := cutMember(member)
		switch string(name) {
		case `"groups"`:
			groups = value
		case `"premises"`:
			premises = value
		default:
			if len(rest) > 1 {
				rest = append(rest, ',')
			}
			rest = append(rest, member...)
		}
	}
	return said, groups, premises, json.Unmarshal(append(rest, '}'), &said)
}

// cutMember gives the name of an object's member, in its quotes, and the value.
func cutMember(member []byte) (name, value []byte) {
	n := stringLength(member)
	value = bytes.TrimLeft(member[n:], space)
	return member[:n], bytes.TrimLeft(value[1:], space) // behind the colon
}

func isList(value []byte) bool { return len(value) > 0 && value[0] == '[' }

// elements are those of a list, or the members of an object, which has to be valid JSON; none of anything else.
func elements(list []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		if len(list) < 2 {
			return
		}
		for i, rest := 0, bytes.TrimLeft(list[1:], space); rest[0] != ']' && rest[0] != '}'; i++ {
			n := elementLength(rest)
			if !yield(i, bytes.TrimRight(rest[:n], space)) {
				return
			}
			if rest = rest[n:]; rest[0] == ',' {
				rest = bytes.TrimLeft(rest[1:], space)
			}
		}
	}
}

const space = " \t\r\n"

// elementLength gives where the comma or bracket is that ends an element of valid JSON.
func elementLength(b []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch b[i] {
		case '"':
			i += stringLength(b[i:]) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
}

// stringLength is that of the string that b begins with, with both quotes.
func stringLength(b []byte) int {
	for i := 1; ; i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}
