// Package ledger compares what a camera sent with what each receiver got, and gives the verdict of the demo. It believes the
// camera's own send log and the receivers' logs of arrivals, and nothing that groupcast says about itself.
package ledger

import (
	"fmt"
	"sort"
	"time"
)

const (
	// firstWithin is how soon after its registration, or after the camera began, a receiver must get the first datagram.
	firstWithin = time.Second
	// leaveWithin is how long after the answer to its DELETE a receiver may still get what the camera sends.
	leaveWithin = 200 * time.Millisecond
)

// Receiver is what is known of one receiver.
type Receiver struct {
	Name string
	Log  Log
	// Frames is how many video frames were decoded from what arrived.
	Frames int
}

// The results of a demo; all but OK come with reasons.
const (
	OK          = "ok"
	Failed      = "failed"
	Interrupted = "interrupted" // somebody ended it before there was all to see
)

// Verdict is the last line of the demo.
type Verdict struct {
	Result       string        `json:"result"`
	GroupIP      string        `json:"groupIP"`
	Sent         int           `json:"sent"`
	Destinations []Destination `json:"destinations"`
	Left         *Left         `json:"left"` // null if none was taken away
	Why          []string      `json:"why,omitempty"`
}

// Destination is the account of one receiver.
type Destination struct {
	Name string `json:"name"`
	// Expected counts what the camera sent from the receiver's first datagram to the end, or to its DELETE.
	Expected int `json:"expected"`
	// Received counts those of them that arrived, each once.
	Received int `json:"received"`
	// Corrupt counts arrivals that are not byte for byte what the camera sent under that number.
	Corrupt int `json:"corrupt"`
	Frames  int `json:"frames"`
}

// Left is the account of the receiver that was taken away while the stream ran.
type Left struct {
	Name string `json:"name"`
	// AfterLeave counts arrivals that the camera sent more than 200 ms after the answer to the DELETE.
	AfterLeave int `json:"afterLeave"`
}

// Settle makes the verdict, without the group IP. The receiver named left is the one that was taken away; "" is nobody.
func Settle(camera Log, receivers []Receiver, left string) Verdict {
	v := Verdict{Result: OK, Sent: len(camera.Datagrams), Destinations: []Destination{}}
	if v.Sent == 0 {
		v.Fail("The camera sent nothing.")
	}
	sent := index(camera)
	for _, r := range receivers {
		account, afterLeave := sent.settle(r, &v)
		v.Destinations = append(v.Destinations, account)
		if r.Name == left {
			v.Left = &Left{Name: r.Name, AfterLeave: afterLeave}
		}
		if afterLeave > 0 {
			v.Fail("%s still got %d datagrams that were sent more than %v after it had left.", r.Name, afterLeave, leaveWithin)
		}
	}
	return v
}

// Fail records why the verdict isn't "ok".
func (v *Verdict) Fail(format string, args ...any) {
	v.Result = Failed
	v.Why = append(v.Why, fmt.Sprintf(format, args...))
}

// sends finds what the camera sent.
type sends struct {
	all        []Datagram
	bySequence map[uint64]int   // position in all
	byNumber   map[uint16][]int // positions of the sequence numbers as they stand in RTP, before they are extended
}

func index(camera Log) sends {
	s := sends{all: camera.Datagrams, bySequence: make(map[uint64]int, len(camera.Datagrams)), byNumber: map[uint16][]int{}}
	for i, d := range s.all {
		if d.IsRTP {
			s.bySequence[d.Sequence] = i
			s.byNumber[uint16(d.Sequence)] = append(s.byNumber[uint16(d.Sequence)], i)
		}
	}
	return s
}

func (s sends) settle(r Receiver, v *Verdict) (account Destination, afterLeave int) {
	account = Destination{Name: r.Name, Frames: r.Frames}
	joined, ok := r.Log.When("joined")
	if !ok {
		v.Fail("%s has not registered.", r.Name)
		return account, 0
	}
	until, leaves := r.Log.When("leaving")
	left, hasLeft := r.Log.When("left")
	from, shift, ok := s.firstOf(r, joined, v)
	expected := map[int]bool{} // by position; true once it arrived
	for i := from; i < len(s.all); i++ {
		if d := s.all[i]; d.IsRTP && (!leaves || d.At < until) {
			expected[i] = false
		}
	}
	account.Expected = len(expected)
	if !ok {
		return account, 0
	}
	duplicates := 0
	for _, d := range r.Log.Datagrams {
		i, known := s.bySequence[d.Sequence+shift]
		if !known || !d.IsRTP || s.all[i].Hash != d.Hash || s.all[i].Size != d.Size {
			account.Corrupt++
		}
		if !known || !d.IsRTP {
			continue
		}
		if hasLeft && s.all[i].At > left+leaveWithin.Nanoseconds() {
			afterLeave++
		}
		switch arrived, wanted := expected[i]; {
		case wanted && arrived:
			duplicates++
		case wanted:
			expected[i] = true
			account.Received++
		}
	}
	if missing := account.Expected - account.Received; missing > 0 {
		v.Fail("%s misses %d of %d datagrams.", r.Name, missing, account.Expected)
	}
	if account.Corrupt > 0 {
		v.Fail("%s got %d datagrams that are not what the camera sent.", r.Name, account.Corrupt)
	}
	if duplicates > 0 {
		v.Fail("%s got %d datagrams more than once.", r.Name, duplicates)
	}
	if account.Frames == 0 {
		v.Fail("No video frame could be decoded from what %s got.", r.Name)
	}
	return account, afterLeave
}

// firstOf finds the receiver's first datagram among those sent (or, if it got nothing, what was sent first after it registered), and what to add to the receiver's extended sequence numbers to
// get the camera's: each log extends from where it began, so they differ by a multiple of 65536.
func (s sends) firstOf(r Receiver, joined int64, v *Verdict) (position int, shift uint64, ok bool) {
	if len(r.Log.Datagrams) == 0 {
		v.Fail("%s got nothing.", r.Name)
		return s.sentFrom(joined), 0, false
	}
	first := r.Log.Datagrams[0]
	due := joined
	if len(s.all) > 0 {
		due = max(due, s.all[0].At) // the camera waits for its first destinations
	}
	if late := time.Duration(first.At - due); late > firstWithin {
		v.Fail("The first datagram came to %s %.1f s after it had registered and the camera sent; %v is the limit.", r.Name, late.Seconds(), firstWithin)
	}
	// The same number comes again after 65,536 datagrams: the one sent nearest to the arrival is meant.
	nearest := int64(-1)
	for _, i := range s.byNumber[uint16(first.Sequence)] {
		if apart := max(first.At-s.all[i].At, s.all[i].At-first.At); nearest < 0 || apart < nearest {
			nearest, position = apart, i
		}
	}
	if nearest < 0 || !first.IsRTP {
		v.Fail("The first datagram that came to %s is none that the camera sent.", r.Name)
		return s.sentFrom(joined), 0, false
	}
	return position, s.all[position].Sequence - first.Sequence, true
}

func (s sends) sentFrom(at int64) int {
	return sort.Search(len(s.all), func(i int) bool { return s.all[i].At >= at })
}
