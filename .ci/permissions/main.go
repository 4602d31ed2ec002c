// Command permissions writes docs/permissions.md: who may call which operation, read from x-gc-authz of both contracts.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/authz"
)

const introduction = `<!-- Generated from x-gc-authz in openapi/openapi.yaml and openapi/admin.yaml by ` + "`make generate`" + `. Don't edit. -->
# Who may do what

For operators and partners who want to know what a token is good for. The service decides by this table and denies what isn't in it; an
operation without a rule stops it from starting.

A call is decided in this order: the token is verified (and the proof of possession, if the token is bound to a key), the caller's row is
read, so that what was removed or withdrawn is refused at once (401), the kind of caller and the scope are held against this table (403), and
then the object is looked up among what belongs to the caller. What doesn't exist and what belongs to somebody else get the same 404.

| kind | who it is |
|---|---|
| anyone | no token is needed; what proves something else, the rule says |
| device | a camera, receiver, phone, tablet… with its own token |
| gateway | the device at a home that makes the copies |
| service | a partner's service with its SAT; it acts for accounts that gave it their consent |
| user | an account holder |
| operator | whoever may open the service's unix socket; never a token |

A kind that isn't marked may not call the operation, whatever its scopes are. *fresh* lets a user in who typed the password within the last
five minutes. A scope counts for access tokens; a session has all scopes of a user.

The pages for account holders (` + "`/login`, `/device`, `/account`" + `) do these operations by these rules. What has no operation here is approving a
device that shows a code: a user with a fresh session may, for premises of the own account, and types the password for that very
approval if the device is in another network.
`

func main() {
	if len(os.Args) != 2 {
		fail(errors.New("usage: permissions FILE"))
	}
	var out bytes.Buffer
	out.WriteString(introduction)
	public := []models.Kind{models.KindDevice, models.KindGateway, models.KindRelay, models.KindService, models.KindUser}
	if err := section(&out, "The public contract", openapi.Public, public); err != nil {
		fail(err)
	}
	if err := section(&out, "The operator's contract (unix socket)", openapi.Admin, []models.Kind{models.KindOperator}); err != nil {
		fail(err)
	}
	if err := os.WriteFile(os.Args[1], out.Bytes(), 0o644); err != nil { //nolint:gosec // documentation, for everybody to read
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "permissions:", err)
	os.Exit(1)
}

func section(out *bytes.Buffer, title string, contract []byte, kinds []models.Kind) error {
	doc, err := openapi3.NewLoader().LoadFromData(contract)
	if err != nil {
		return fmt.Errorf("read the contract: %w", err)
	}
	table, err := authz.Load(doc)
	if err != nil {
		return fmt.Errorf("read who may do what: %w", err)
	}
	fmt.Fprintf(out, "\n## %s\n", title)
	for _, tag := range doc.Tags {
		var rows []string
		for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
			item := doc.Paths.Value(path)
			for _, method := range slices.Sorted(maps.Keys(item.Operations())) {
				if op := item.GetOperation(method); slices.Contains(op.Tags, tag.Name) {
					rows = append(rows, row(op, method+" "+path, table[op.OperationID], kinds))
				}
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n### %s\n| operation | anyone |", tag.Name)
		for _, kind := range kinds {
			fmt.Fprintf(out, " %s |", kind)
		}
		fmt.Fprintf(out, " scope | rule |\n|---|%s---|---|\n%s", strings.Repeat(":-:|", len(kinds)+1), strings.Join(rows, ""))
	}
	return nil
}

func row(op *openapi3.Operation, call string, rule authz.Rule, kinds []models.Kind) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s<br>`%s` |%s", op.Summary, call, mark(rule.Public))
	for _, kind := range kinds {
		allowed := rule.Public || slices.Contains(rule.Kinds, kind)
		if allowed && rule.Fresh && kind == models.KindUser {
			b.WriteString(" fresh |")
			continue
		}
		b.WriteString(mark(allowed))
	}
	scope := "–"
	if rule.Scope != "" {
		scope = "`" + rule.Scope + "`"
	}
	words, _ := op.Extensions[authz.Extension].(map[string]any)["rule"].(string)
	fmt.Fprintf(&b, " %s | %s |\n", scope, strings.ReplaceAll(strings.Join(strings.Fields(words), " "), "|", "\\|"))
	return b.String()
}

func mark(allowed bool) string {
	if allowed {
		return " ✓ |"
	}
	return " |"
}
