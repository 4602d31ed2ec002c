// Package config reads the gateway agent's configuration. One list of keys (keys.go) is the only definition: a YAML file,
// GATEWAY_AGENT_* variables and flags all give a key its text, and one function per key reads that text, so the three can't
// come to mean different things. It opens no file but the configuration itself and starts nothing.
//
// It stands on a plain YAML parser and the standard flag package, because the agent has to stay small: a configuration
// framework would cost a third of a megabyte and would still leave the strictness to us.
package config
