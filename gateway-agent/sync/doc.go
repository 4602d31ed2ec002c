// Package sync is the agent's conversation with the registration service: it declares the gateway, then long-polls its group
// information and hands every answer on (SPEC §6). It owns when to ask again, how long to wait for an answer, and what an answer
// has to look like.
//
// It never decides what is forwarded, and it never acknowledges on its own: the cursor it sends is the one that whoever applies
// the answers gave back, so an address of a group that ended can't be reused while this gateway still forwards for it.
package sync
