// Package dataplane measures what a copy costs: both backends of the duplicator beside the ways of copying that they have to beat, in network
// namespaces, in one run (docs/benchmarks.md). It holds tests only.
package dataplane
