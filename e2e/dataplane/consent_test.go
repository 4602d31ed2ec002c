package dataplane

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

const (
	senderPort   = 40512
	receiverPort = 5004
	// checksPerSecond is ten times what eight destinations and the agent send each other.
	checksPerSecond = 32
)

func credential(i int) consentcheck.Credential {
	return consentcheck.Credential{Ufrag: fmt.Sprintf("receiver%04d", i), Password: "8mNbVcXzLkJhGfDsAqWeRt"}
}

// checks are frames with a check of each destination, as the generator takes them.
func (l *lab) checks(n int) (frames []string) {
	for i := range n {
		check, _ := consentcheck.NewRequest(credential(i), consentcheck.ToAgent)
		f := slices.Concat(l.lan, l.cam, []byte{8, 0}, make([]byte, 28), check)
		ip := f[14:]
		ip[0], ip[8], ip[9] = 0x45, 60, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], netip.MustParseAddr(receiver(i)).AsSlice())
		copy(ip[16:], netip.MustParseAddr(uplink).AsSlice())
		sum := uint32(0)
		for at := 0; at < 20; at += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[at:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
		binary.BigEndian.PutUint16(ip[20:], receiverPort)
		binary.BigEndian.PutUint16(ip[22:], senderPort)
		binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20)) // no checksum
		frames = append(frames, hex.EncodeToString(f))
	}
	return frames
}

// keeper is what the agent does beside the copies: it has the camera's port, judges and answers checks, asks those that are live and prolongs their
// consent every second.
type keeper struct {
	job      job
	machine  *consent.Machine
	ports    *sender.Ports
	checks   chan heard
	answered atomic.Uint64
	quit     chan struct{}
	done     sync.WaitGroup
}

type heard struct {
	from     netip.AddrPort
	datagram []byte
}

var camera1 = consent.Sender{Group: "g", Source: "camera"}

func newKeeper(j job) (*keeper, error) {
	k := &keeper{job: j, machine: consent.New(func(netip.Addr) bool { return true }), checks: make(chan heard, 256), quit: make(chan struct{})}
	dir, err := os.MkdirTemp("", "gcb-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "ports.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"g/camera":%d}`, senderPort), 0o600); err != nil {
		return nil, err
	}
	k.ports = sender.Open(netip.MustParseAddr(uplink), file, k.hear, slog.New(slog.DiscardHandler))
	if err := k.ports.Keep([]consent.Sender{camera1}); err != nil {
		return nil, err
	}
	var wanted []consent.Wanted
	for i := range j.Receivers {
		wanted = append(wanted, consent.Wanted{
			Key: consent.Key{Sender: camera1, Destination: fmt.Sprint(i)}, Credential: credential(i), Addr: netip.MustParseAddr(receiver(i)), Port: receiverPort, Strict: true,
		})
	}
	now := time.Now()
	k.machine.Want(now, wanted)
	for i, w := range wanted { // all consent
		from := netip.AddrPortFrom(w.Addr, w.Port)
		request, _ := consentcheck.NewRequest(credential(i), consentcheck.ToAgent)
		for _, p := range k.machine.Receive(now, camera1, from, request) {
			m, _ := consentcheck.Parse(p.Data)
			k.machine.Receive(now, camera1, from, consentcheck.NewAnswer(credential(i), m.ID, from, len(p.Data)))
		}
	}
	if n := len(k.machine.Leases(now)); n != j.Receivers {
		return nil, fmt.Errorf("%d of %d consent", n, j.Receivers)
	}
	return k, nil
}

func (k *keeper) hear(_ uint16, from netip.AddrPort, datagram []byte) {
	select {
	case k.checks <- heard{from, slices.Clone(datagram)}:
	default:
	}
}

func (k *keeper) run(d duplicator.Duplicator) {
	before := k.machine.Counters().Answered
	k.done.Go(func() {
		settle := time.NewTicker(time.Second)
		defer settle.Stop()
		due := time.NewTimer(0)
		defer due.Stop()
		for {
			var packets []consent.Packet
			select {
			case <-k.quit:
				return
			case c := <-k.checks:
				packets = k.machine.Receive(time.Now(), camera1, c.from, c.datagram)
				k.answered.Store(k.machine.Counters().Answered - before)
			case now := <-due.C:
				var next time.Time
				packets, next = k.machine.Tick(now)
				due.Reset(time.Until(next))
			case <-settle.C:
				_ = d.Apply(k.job.snapshot())
			}
			for _, p := range packets {
				k.ports.Send(p)
			}
		}
	})
}

// end says if no check was answered, those that are still to be judged among them.
func (k *keeper) end() error {
	for end := time.Now().Add(time.Minute); k.answered.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	close(k.quit)
	k.done.Wait()
	if k.answered.Load() == 0 {
		return errors.New("no check was answered: the measurement shows nothing")
	}
	return k.ports.Close()
}
