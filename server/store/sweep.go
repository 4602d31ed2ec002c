package store

import "context"

// Sweep removes tickets, invitations, sessions, device grants, refresh tokens, slots for probes, counts of wrong
// codes and kept answers that ended by themselves, and tells how many rows.
func (s *Store) Sweep(ctx context.Context) (removed int64, err error) {
	for _, text := range []string{
		"DELETE FROM enrolment_tickets WHERE expires_at <= {now}",
		// A client that asks late hears that its code has expired.
		"DELETE FROM device_grants WHERE expires_at <= {now} - 600000",
		"DELETE FROM refresh_tokens WHERE expires_at <= {now}",
		"DELETE FROM invitations WHERE expires_at <= {now}",
		"DELETE FROM sessions WHERE created_at <= {now} - 604800000", // 7 d
		"DELETE FROM probe_slots WHERE until <= {now}",
		"DELETE FROM user_code_tries WHERE since <= {now} - 86400000",
	} {
		err := s.writing(ctx, func(tx *Tx) error {
			n, err := tx.exec(text)
			removed += n
			return err
		})
		if err != nil {
			return removed, err
		}
	}
	answers, err := s.sweepAnswers(ctx)
	return removed + answers, err
}
