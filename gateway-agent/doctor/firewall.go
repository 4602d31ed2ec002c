package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/config"
)

// firewall looks for what keeps cameras from the agent, or gateways from a relay, in the ruleset as nft prints it. It knows plain rules only; whether sets, maps or jumps
// decide otherwise it doesn't follow, so it warns and never fails.
func (e *examination) firewall(ctx context.Context) {
	ports, whose, from := e.config.MediaPorts, "cameras send", e.iface
	if e.config.Mode == config.ModeRelay {
		ports, whose, from = []uint16{e.config.Relay.Endpoint.Port()}, "gateways send", "anywhere"
	} else if e.config.AnyPort {
		e.ok("firewall", "not looked at: media-ports is any, and rules are understood for single ports only")
		return
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		e.ok("firewall", "not looked at: there is no nft on this host")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, nft, "-j", "list", "ruleset").Output()
	if err != nil {
		e.warn("firewall", "run this as root", "nft doesn't list the rules: %v", err)
		return
	}
	found, err := drops(out, ports)
	if err != nil {
		e.warn("firewall", "look at the rules yourself: nft list ruleset", "%v", err)
		return
	}
	for _, what := range found {
		e.warn("firewall", fmt.Sprintf("accept UDP to port %s from %s before it", joined(ports), from), "%s", what)
	}
	if len(found) == 0 {
		e.ok("firewall", "no plain rule of nft drops what %s", whose)
	}
}

func joined(ports []uint16) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
}

// The part of libnftables-json(5) that is looked at.
type nftChain struct {
	Family, Table, Name, Type, Hook, Policy string
}

type nftRule struct {
	Family, Table, Chain string
	Expr                 []map[string]json.RawMessage
}

// drops gives the base chains whose policy drops what comes in and that accept no media port, and the rules that drop one.
func drops(ruleset []byte, ports []uint16) ([]string, error) {
	var listed struct {
		Nftables []struct {
			Chain *nftChain
			Rule  *nftRule
		}
	}
	if err := json.Unmarshal(ruleset, &listed); err != nil {
		return nil, fmt.Errorf("what nft printed can't be read: %w", err)
	}
	var found []string
	accepted := map[string]bool{} // tables with a rule that accepts a media port
	for _, item := range listed.Nftables {
		if item.Rule == nil {
			continue
		}
		r := item.Rule
		if !mentions(r.Expr, ports) {
			continue
		}
		for _, x := range r.Expr {
			if _, ok := x["accept"]; ok {
				accepted[r.Family+" "+r.Table] = true
			}
			_, dropped := x["drop"]
			_, rejected := x["reject"]
			if dropped || rejected {
				found = append(found, fmt.Sprintf("a rule in %s %s %s drops a media port", r.Family, r.Table, r.Chain))
			}
		}
	}
	for _, item := range listed.Nftables {
		c := item.Chain
		if c != nil && c.Policy == "drop" && (c.Hook == "input" || c.Hook == "prerouting") && c.Family != "ip6" && !accepted[c.Family+" "+c.Table] {
			found = append(found, fmt.Sprintf("chain %s %s %s drops whatever no rule accepts, and no rule there names a media port", c.Family, c.Table, c.Name))
		}
	}
	return found, nil
}

// mentions tells whether a rule matches UDP destination ports with one of ours among them.
func mentions(expr []map[string]json.RawMessage, ports []uint16) bool {
	for _, x := range expr {
		var m struct {
			Op   string
			Left struct {
				Payload struct{ Protocol, Field string }
			}
			Right json.RawMessage
		}
		if json.Unmarshal(x["match"], &m) != nil || m.Left.Payload.Field != "dport" || m.Left.Payload.Protocol == "tcp" || m.Op == "!=" {
			continue
		}
		var one uint16
		var set struct {
			Set   []json.RawMessage
			Range [2]uint16
		}
		switch {
		case json.Unmarshal(m.Right, &one) == nil:
			if slices.Contains(ports, one) {
				return true
			}
		case json.Unmarshal(m.Right, &set) == nil:
			for _, p := range ports {
				if inRange(p, set.Range) || slices.ContainsFunc(set.Set, func(item json.RawMessage) bool { return holds(item, p) }) {
					return true
				}
			}
		}
	}
	return false
}

// holds tells whether an element of a set is the port, or a range with it.
func holds(item json.RawMessage, port uint16) bool {
	var one uint16
	if json.Unmarshal(item, &one) == nil {
		return one == port
	}
	var r struct{ Range [2]uint16 }
	return json.Unmarshal(item, &r) == nil && inRange(port, r.Range)
}

func inRange(p uint16, r [2]uint16) bool { return r[0] <= p && p <= r[1] && r[1] > 0 }
