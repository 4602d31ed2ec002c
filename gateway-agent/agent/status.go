package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/models"
)

// socketFile is the unix socket in the state directory that answers "gateway-agent status".
const socketFile = "status.sock"

// portsFile has the ports that copies leave from.
const portsFile = "ports.json"

// maxSocketPath is what the kernel takes as the path of a unix socket.
const maxSocketPath = 107

// Status is what an agent says about itself. It has no address of a destination.
type Status struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Mode      string    `json:"mode"`      // gateway or relay
	GatewayID string    `json:"gatewayId"` // of a relay: the relay's id
	Server    string    `json:"server"`
	Started   time.Time `json:"started"`
	// Forwarding is false as long as the server was never heard from, or not for too long.
	Forwarding bool   `json:"forwarding"`
	Cursor     string `json:"cursor"`
	// KeptCursor is what an agent that started now would begin with: that of Cursor, or empty if the state directory can't be written.
	KeptCursor string `json:"keptCursor"`
	// LastSuccessSeconds is how long ago the server was heard from, -1 for never.
	LastSuccessSeconds float64          `json:"lastSuccessSeconds"`
	ValidForSeconds    float64          `json:"validForSeconds"`
	Polls              sync.Counts      `json:"polls"`
	Fault              string           `json:"fault,omitempty"`
	RefusedCount       int              `json:"refusedDestinations"`
	UnknownGroup       uint64           `json:"unknownGroup"`     // datagrams to a group IP of nobody; only the ebpf backend sees those
	Uplink             *UplinkStatus    `json:"uplink,omitempty"` // only with uplink-rate
	Tunnel             *TunnelStatus    `json:"tunnel,omitempty"` // only while there is one
	Checks             consent.Counters `json:"consentChecks"`
	Groups             []GroupStatus    `json:"groups"`
}

// UplinkStatus is how the uplink's rate is shared, in bits per second.
type UplinkStatus struct {
	Rate    uint64 `json:"rate"`    // that copies may take
	Wanted  uint64 `json:"wanted"`  // that copies for everybody would take now
	LeftOut int    `json:"leftOut"` // destinations that get nothing for now
}

// GroupStatus is one group in force.
type GroupStatus struct {
	ID         string            `json:"groupId"`
	Name       string            `json:"groupName"`
	IP         netip.Addr        `json:"groupIP"`
	Generation int64             `json:"generation"`
	Sources    []string          `json:"sources"`
	Ports      map[string]uint16 `json:"ports"` // that copies leave from, by the source's registration id
	// Mapped is what a NAT in front of the gateway makes of the uplink's address and those ports, as far as the service's STUN port told.
	Mapped       map[string]netip.AddrPort `json:"mapped,omitempty"`
	Received     uint64                    `json:"received"`
	Drops        map[string]uint64         `json:"drops"`
	Destinations []DestinationStatus       `json:"destinations"`
}

// DestinationStatus is one destination of the group information; it gets copies if its consent is live or exempt.
type DestinationStatus struct {
	ID      string              `json:"registrationId"`
	Name    string              `json:"destinationName"`
	Consent models.ConsentState `json:"consent"` // of several senders the worst
	Packets uint64              `json:"packets"`
	Bytes   uint64              `json:"bytes"`
	LeftOut bool                `json:"leftOut,omitempty"` // for now, because the uplink has no room
	Drops   map[string]uint64   `json:"drops"`
}

func (a *Agent) status() Status {
	v, counters, now := a.forwarder.view.Load(), a.place.counts(), time.Now()
	s := Status{
		Version: a.version, PID: os.Getpid(), Mode: a.config.Mode, GatewayID: a.config.NodeID().String(), Server: a.config.Server.Redacted(), Started: a.started,
		Forwarding: v.forwarding, LastSuccessSeconds: -1, Polls: a.poller.Counts(), Fault: v.fault, RefusedCount: counters.Refused, UnknownGroup: counters.UnknownGroup,
		Groups: []GroupStatus{},
	}
	var leftOut map[string]bool
	if a.gate != nil {
		load := a.gate.Load()
		leftOut = load.Shed
		s.Uplink = &UplinkStatus{Rate: load.Rate, Wanted: load.Wanted, LeftOut: len(load.Shed)}
	}
	if !v.heard.at.IsZero() {
		s.LastSuccessSeconds = now.Sub(v.heard.at).Seconds()
	}
	s.Tunnel = a.place.status()
	if v.tables == nil {
		return s
	}
	s.Checks = v.checks
	s.Cursor, s.KeptCursor = v.cursor, v.kept
	s.ValidForSeconds = max(v.heard.until().Sub(now).Seconds(), 0)
	for _, g := range v.tables.groups() {
		ip, count := g.IP, counters.of(g)
		group := GroupStatus{
			ID: g.ID, Name: g.Name, IP: ip, Generation: g.Generation, Sources: []string{}, Ports: map[string]uint16{}, Mapped: map[string]netip.AddrPort{},
			Received: count.Received, Drops: orEmpty(count.Drops), Destinations: []DestinationStatus{},
		}
		for _, source := range g.Sources {
			group.Sources = append(group.Sources, source.Name)
			group.Ports[source.ID] = source.Port
			if at, ok := v.mapped[source.ID]; ok {
				group.Mapped[source.ID] = at
			}
		}
		for _, d := range v.members[g.ID] {
			count := counters.Destinations[d.id]
			group.Destinations = append(group.Destinations, DestinationStatus{
				ID: d.id, Name: d.name, Consent: d.consent, Packets: count.Packets, Bytes: count.Bytes, Drops: orEmpty(count.Drops), LeftOut: leftOut[d.id],
			})
		}
		s.Groups = append(s.Groups, group)
	}
	return s
}

func orEmpty(m map[string]uint64) map[string]uint64 {
	if m == nil {
		return map[string]uint64{}
	}
	return m
}

func (a *Agent) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(a.status()); err != nil {
		a.log.Debug("a status was not read to its end", "err", err)
	}
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	// What a killed agent left. The lock on the directory says that no other one serves it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	return l, nil
}

// Ask asks the agent that runs in the state directory.
func Ask(ctx context.Context, stateDir string) (Status, error) {
	path := filepath.Join(stateDir, socketFile)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway-agent/status", nil)
	if err != nil {
		return Status{}, err
	}
	answer, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(r)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return Status{}, fmt.Errorf("you may not ask the agent in %s: run this as the agent's own user", stateDir)
		}
		return Status{}, fmt.Errorf("no gateway-agent answers in %s: is it running, and is this its state-dir?", stateDir)
	}
	defer answer.Body.Close()
	var s Status
	if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("what answers in %s is not a gateway-agent of this version: %w", stateDir, err)
	}
	return s, nil
}
