package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// request and answer are one operation of a history. Status 0 is no answer: it may have been done or not.
type request struct {
	Home                        int
	Kind, Member, Group, Cursor string
	Source                      bool
	Tick                        time.Duration
}

type answer struct {
	Status         int    `json:"-"`
	Cursor         string `json:"-"`
	GroupIP        string `json:"groupIP"`
	Generation     int    `json:"generation"`
	State          int    `json:"state"`
	RegistrationID string `json:"registrationId"`
	Groups         []struct {
		GroupName  string `json:"groupName"`
		GroupIP    string `json:"groupIP"`
		Generation int    `json:"generation"`
	} `json:"groups"`
}

// homeState is one home as a service that does one thing at a time has it.
type homeState struct {
	Clock     time.Duration
	Seq       int // rises with every change
	Acked     int
	Polled    time.Duration
	Cursors   map[string]int // what the gateway was told: cursor → Seq
	Groups    map[string]place
	Addresses map[string]released
}

type place struct {
	IP         string
	Generation int
	Members    map[string]bool // → is a source
}

type released struct {
	By         string
	At         time.Duration
	Seq        int
	Generation int
}

// encode writes maps in order, so that equal states are equal strings.
func (w homeState) encode() any {
	b, err := json.Marshal(w)
	if err != nil {
		panic(err) // a map of strings and numbers
	}
	return string(b)
}

func (p place) count(source bool) (n int) {
	for _, s := range p.Members {
		if s == source {
			n++
		}
	}
	return n
}

// historyModel says what such a service may answer. Histories are cut by home, because homes share nothing but the clock.
func historyModel() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any {
			return []any{homeState{Cursors: map[string]int{}, Groups: map[string]place{}, Addresses: map[string]released{}}.encode()}
		},
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			homes := map[int][]porcupine.Operation{}
			for _, o := range all {
				homes[o.Input.(request).Home] = append(homes[o.Input.(request).Home], o)
			}
			for _, o := range all {
				for home := range homes {
					if in := o.Input.(request); in.Tick > 0 && in.Home != home {
						homes[home] = append(homes[home], o) // they share the clock
					}
				}
			}
			return slices.Collect(maps.Values(homes))
		},
		Step: func(state, input, output any) (next []any) {
			in, out := input.(request), output.(answer)
			for _, w := range historyStep(decode(state), in, out) {
				next = append(next, w.encode())
			}
			if out.Status == 0 {
				next = append(next, state)
			}
			return next
		},
	}
	return model.ToModel()
}

func decode(state any) (w homeState) {
	if err := json.Unmarshal([]byte(state.(string)), &w); err != nil {
		panic(err)
	}
	return w
}

// historyStep gives the worlds that the request may lead to with this answer.
func historyStep(w homeState, in request, out answer) []homeState {
	unknown := out.Status == 0
	g, exists := w.Groups[in.Group]
	_, member := g.Members[in.Member]
	switch in.Kind {
	case "join":
		switch {
		case !exists && !in.Source:
			return when(unknown || out.Status == http.StatusNotFound, w)
		case !exists:
			return w.create(in, out)
		case !member:
			g.Members[in.Member] = in.Source
			w.Seq++
		}
		return when(unknown || out.Status == http.StatusOK && out.GroupIP == g.IP && out.Generation == g.Generation && out.State == g.count(false), w)
	case "leave":
		if !member {
			return when(unknown || out.Status == http.StatusNotFound, w)
		}
		w.leave(in.Group, in.Member)
		return when(unknown || out.Status == http.StatusOK && out.State == w.Groups[in.Group].count(false), w)
	case "expire":
		w.Clock += in.Tick
		for _, name := range slices.Sorted(maps.Keys(w.Groups)) {
			if _, is := w.Groups[name].Members[in.Member]; is {
				w.leave(name, in.Member)
			}
		}
		return []homeState{w}
	default: // poll
		if unknown {
			return nil // the same homeState is added for every request without an answer
		}
		if seq, known := w.Cursors[in.Cursor]; known {
			w.Acked = max(w.Acked, seq)
		}
		if seq, known := w.Cursors[out.Cursor]; known && seq != w.Seq {
			return nil // the same cursor for another state
		}
		w.Cursors[out.Cursor] = w.Seq
		w.Polled = w.Clock
		if out.Status == http.StatusNotModified {
			return when(in.Cursor == out.Cursor, w)
		}
		same := len(out.Groups) == len(w.Groups)
		for _, told := range out.Groups {
			is := w.Groups[told.GroupName]
			same = same && is.IP == told.GroupIP && is.Generation == told.Generation
		}
		return when(same, w)
	}
}

func when(ok bool, w homeState) []homeState {
	if !ok {
		return nil
	}
	return []homeState{w}
}

// leave takes a member out, and with the last source the group.
func (w *homeState) leave(name, member string) {
	g := w.Groups[name]
	delete(g.Members, member)
	w.Seq++
	if g.count(true) == 0 {
		delete(w.Groups, name)
		w.Addresses[g.IP] = released{By: name, At: w.Clock, Seq: w.Seq, Generation: g.Generation}
	}
}

// create gives a new group an address, any that it may have, or none if there may be none.
func (w homeState) create(in request, out answer) (all []homeState) {
	taken := map[string]bool{}
	for _, g := range w.Groups {
		taken[g.IP] = true
	}
	certain := false // there is one that it must get
	for _, ip := range []string{"10.0.0.230", "10.0.0.231", "10.0.0.232"} {
		a, used := w.Addresses[ip]
		over := w.Acked >= a.Seq || w.Clock-w.Polled > historySilent
		may := !used || a.By == in.Group || over && w.Clock-a.At > historyCooldown-historySlack
		if taken[ip] || !may {
			continue
		}
		certain = certain || !used || a.By == in.Group
		if out.Status == 0 || out.Status == http.StatusOK && out.GroupIP == ip && out.Generation == a.Generation+1 && out.State == 0 {
			next := decode(w.encode())
			next.Groups[in.Group] = place{IP: ip, Generation: a.Generation + 1, Members: map[string]bool{in.Member: true}}
			next.Seq++
			all = append(all, next)
		}
	}
	if out.Status == http.StatusConflict && !certain {
		all = append(all, w)
	}
	return all
}
