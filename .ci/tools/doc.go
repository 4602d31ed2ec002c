// Package tools pins the development tools in a module of their own, so that none of their
// dependencies reaches the product. Run one with
//
//	go tool -modfile=.ci/tools/go.mod NAME
package tools
