// Package models holds the nouns of groupcast (SPEC §2): typed identifiers, the values that move between the services
// and the store, and the codes of everything that can be refused. It knows nothing of HTTP and nothing of SQL beyond the
// scanning of its identifiers.
package models
