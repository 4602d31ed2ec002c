// Command permissions writes docs/permissions.md from the contract's x-gc-authz.
package main

import (
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/authz"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

var kinds = []models.Kind{models.KindDevice, models.KindGateway, models.KindUser, models.KindService}

func run(file string) error {
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Public)
	if err != nil {
		return fmt.Errorf("read the contract: %w", err)
	}
	table, err := authz.Load(doc)
	if err != nil {
		return fmt.Errorf("read the rules: %w", err)
	}
	var b strings.Builder
	b.WriteString(`# Who may do what

Generated from ` + "`x-gc-authz`" + ` in openapi/openapi.yaml by ` + "`make generate`" + `; the service decides by the same table and denies what it doesn't name. Which
object is whose, it decides with the tenant in every query: what is missing and what is another's are the same 404. A scope counts for
access tokens; a session has all scopes of a user. *fresh* means that a user has typed the password within the last five minutes.

| Operation | | anyone | device | gateway | user | service | Scope | Rule beyond |
|---|---|---|---|---|---|---|---|---|
`)
	var lines []string
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			lines = append(lines, line(method, path, op, table[op.OperationID]))
		}
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	b.WriteString("\nThe operator's interface (openapi/admin.yaml) is served on a unix socket only: whoever may open it may do everything there.\n")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the permissions: %w", err)
	}
	return nil
}

func line(method, path string, op *openapi3.Operation, rule authz.Rule) string {
	cells := []string{method + " " + path, op.OperationID, mark(rule.Public)}
	for _, k := range kinds {
		cell := mark(slices.Contains(rule.Kinds, k) || rule.Public)
		if k == models.KindUser && rule.Fresh {
			cell += " fresh"
		}
		cells = append(cells, cell)
	}
	declared, _ := op.Extensions[authz.Extension].(map[string]any)
	words, _ := declared["rule"].(string)
	cells = append(cells, rule.Scope, strings.Join(strings.Fields(words), " "))
	// The path leads, so that the methods of one path stand together.
	cells[0] = path + " " + method
	return "| " + strings.Join(cells, " | ") + " |\n"
}

func mark(yes bool) string {
	if yes {
		return "✓"
	}
	return "–"
}
