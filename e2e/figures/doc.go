// Package figures measures what docs/benchmarks.md promises of registrations and long polls: the real groupcastd in a process of its
// own, on a real Postgres that writes to the disk, beside a bare server of the same shape in the same run.
//
// Its tests only show that the measurements run; whether a figure holds is for `make bench-registrations` to say.
package figures
