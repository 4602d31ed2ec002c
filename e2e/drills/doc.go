// Package drills kills what events depend on, one process after the other, while things happen: groupcastd in three replicas, a NATS
// cluster of three servers, and Postgres, all of them processes of their own. Afterwards the books have to balance.
package drills
