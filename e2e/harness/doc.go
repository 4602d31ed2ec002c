// Package harness runs the real programs for tests: it builds them once, starts groupcastd on a database of its own, and
// speaks to it through the generated clients. It knows no shortcut into the server: what it does, a user can do.
package harness
