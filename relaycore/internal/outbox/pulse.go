package outbox

import "time"

// Numbering returns the sequence that numbers the outbox's rows, and the id up to
// which everything is settled. While the two are equal there is nothing to read
// and nothing on its way, so that somebody who looks at many sequences at once
// can spare their sources the polling. They become equal a few reads after the last
// transaction that took an id has ended, rolled back or not. ok is false where a
// sequence does not tell: there is none, it may not be read, or sessions take ids
// from it in bulk.
func (s *Source) Numbering() (sequence uint32, settled int64, ok bool) {
	q := &s.shape.Load().idOwner
	if !q.tells() || q.increment != 1 {
		return 0, 0, false
	}
	return q.oid, s.settler.Load().settledUpTo(), true
}

// SetPollInterval bounds how long an idle source waits between polls. It must
// not be called after the first Receive.
func (s *Source) SetPollInterval(d time.Duration) { s.cfg.PollInterval = d }
