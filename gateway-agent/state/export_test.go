package state

import "time"

// SetClock replaces both clocks and the name of the boot.
func (s *Store) SetClock(wall func() time.Time, boot string, up func() time.Duration) {
	s.clock = clock{wall, boot, up}
}
