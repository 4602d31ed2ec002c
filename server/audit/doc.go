// Package audit keeps the log of who did what, so that nobody can change it unnoticed.
//
// [Record] writes a row in the transaction of what it tells about: both are committed or neither. A [Sealer] on each replica then chains the
// committed rows, each hash covering the row and the hash before it, in batches and at least once a second. So nobody who writes
// waits for the end of the chain. [Verify] finds the first row that was changed, removed or put in later.
//
// The chain proves that sealed rows are as they were sealed. It can't prove that nobody with write access to the database changed a row in the second
// before, or cut off the end and forged a new one: against that, note the head that Verify gives somewhere else and give it to the next
// Verify.
//
// The types of [Entry] let no secret, token, code or destination address into a row.
package audit
