// Package migrations holds the schema's history for both databases, one file per step and dialect. server/store applies it.
package migrations

import "embed"

// SQLite holds sqlite/*.sql.
//
//go:embed sqlite/*.sql
var SQLite embed.FS

// Postgres holds postgres/*.sql.
//
//go:embed postgres/*.sql
var Postgres embed.FS
