package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// handover is a file that one process leaves for the next one.
type handover struct {
	Left    moment          `json:"left"`
	Content json.RawMessage `json:"content"`
}

// Leave keeps v, under a name, for the agent that starts here next.
func (s *Store) Leave(name string, v any) error {
	content, err := json.Marshal(v)
	if err == nil {
		var b []byte
		if b, err = json.Marshal(handover{s.clock.now(), content}); err == nil {
			err = replace(s.Path(name), b)
		}
	}
	if err != nil {
		return fmt.Errorf("leave %s for the next agent: %w", name, err)
	}
	return nil
}

// Find reads into v what the last agent left under that name, and says how long ago. It finds it once; what is damaged, was left before the host
// started or at a time that has not come yet is not found (ErrNone).
func (s *Store) Find(name string, v any) (age time.Duration, err error) {
	b, err := os.ReadFile(s.Path(name))
	if err != nil {
		return 0, ErrNone
	}
	if err := os.Remove(s.Path(name)); err != nil {
		return 0, errors.Join(ErrNone, err)
	}
	var h handover
	if json.Unmarshal(b, &h) != nil || h.Left.Boot == "" || h.Left.Boot != s.clock.boot || json.Unmarshal(h.Content, v) != nil {
		return 0, ErrNone
	}
	if age = s.clock.since(h.Left); age == Unknown {
		return 0, ErrNone
	}
	return age, nil
}
