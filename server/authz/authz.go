// Package authz decides who may call which operation: a pure table that is read from x-gc-authz and security in the contract.
// Whatever the contract doesn't allow is denied, and a contract that leaves an operation open by mistake can't be loaded.
//
// It never looks at objects: whose group or registration something is, the domain services decide with the tenant in the WHERE
// clause.
package authz

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/models"
)

// Extension is the member of an operation that declares its rule.
const Extension = "x-gc-authz"

// anyone stands in the contract for an operation without authentication.
const anyone = "anyone"

var kinds = []models.Kind{models.KindDevice, models.KindGateway, models.KindRelay, models.KindService, models.KindUser, models.KindOperator}

// Rule says who may call one operation.
type Rule struct {
	// Public operations need no caller; Kinds and Scope are empty then.
	Public bool
	Kinds  []models.Kind
	// Scope is what the token must have been granted; empty for operators, who have no token.
	Scope string
	// Fresh lets a user in only who typed the password within the last minutes.
	Fresh bool
}

// Table holds the rule of every operation, by operationId.
type Table map[string]Rule

// declaration is x-gc-authz as it is written.
type declaration struct {
	Kinds []string `json:"kinds"`
	Scope string   `json:"scope"`
	Fresh bool     `json:"fresh"`
	// Rule says in words what is decided beyond this table; it is for readers.
	Rule string `json:"rule"`
}

// Load reads the rules of all operations. It names every operation whose rule is missing, unknown, or at odds with its
// security.
func Load(doc *openapi3.T) (Table, error) {
	table := Table{}
	var faults []error
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			rule, err := load(doc, op)
			if err == nil && op.OperationID == "" {
				err = errors.New("operationId is missing")
			}
			if _, twice := table[op.OperationID]; err == nil && twice {
				err = fmt.Errorf("operationId %s stands twice", op.OperationID)
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s %s: %w", method, path, err))
				continue
			}
			table[op.OperationID] = rule
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return table, errors.Join(faults...)
}

func load(doc *openapi3.T, op *openapi3.Operation) (Rule, error) {
	value, ok := op.Extensions[Extension]
	if !ok {
		return Rule{}, errors.New(Extension + " is missing: nobody would be allowed to call this")
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return Rule{}, fmt.Errorf("%s: %w", Extension, err)
	}
	var d declaration
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Rule{}, fmt.Errorf("%s: %w", Extension, err)
	}
	if d.Rule == "" {
		return Rule{}, errors.New(Extension + ": rule is missing: say what is decided beyond kinds and scope")
	}
	security := doc.Security
	if op.Security != nil {
		security = *op.Security
	}
	if slices.Equal(d.Kinds, []string{anyone}) {
		if len(security) > 0 || d.Scope != "" || d.Fresh {
			return Rule{}, errors.New(Extension + ": an operation for anyone has security [] and no scope")
		}
		return Rule{Public: true}, nil
	}
	rule := Rule{Scope: d.Scope, Fresh: d.Fresh}
	for _, k := range d.Kinds {
		kind := models.Kind(k)
		if !slices.Contains(kinds, kind) || slices.Contains(rule.Kinds, kind) {
			return Rule{}, fmt.Errorf("%s: %q is no kind of caller, or stands twice", Extension, k)
		}
		rule.Kinds = append(rule.Kinds, kind)
	}
	if len(rule.Kinds) == 0 {
		return Rule{}, errors.New(Extension + ": kinds is empty")
	}
	if rule.Fresh && !slices.Contains(rule.Kinds, models.KindUser) {
		return Rule{}, errors.New(Extension + ": fresh is for users, and none may call this")
	}
	return rule, checkSecurity(doc, security, rule)
}

// checkSecurity holds the rule against what clients are told about it.
func checkSecurity(doc *openapi3.T, security openapi3.SecurityRequirements, rule Rule) error {
	if len(security) == 0 {
		return errors.New("security is missing, but " + Extension + " wants a caller")
	}
	declared := rule.Scope == ""
	for _, requirement := range security {
		if len(requirement) == 0 {
			return errors.New("security lets callers without credentials in, but " + Extension + " wants a caller")
		}
		for name, scopes := range requirement {
			var scheme *openapi3.SecurityScheme
			if doc.Components != nil && doc.Components.SecuritySchemes[name] != nil {
				scheme = doc.Components.SecuritySchemes[name].Value
			}
			if scheme == nil {
				return fmt.Errorf("security scheme %s is not declared", name)
			}
			if scheme.Type != "oauth2" {
				continue
			}
			if rule.Scope == "" || !slices.Equal(scopes, []string{rule.Scope}) {
				return fmt.Errorf("security asks for the scopes %v, %s for %q", scopes, Extension, rule.Scope)
			}
			if !knowsScope(scheme, rule.Scope) {
				return fmt.Errorf("scope %s is not declared in security scheme %s", rule.Scope, name)
			}
			declared = true
		}
	}
	if !declared {
		return fmt.Errorf("no security scheme of the operation knows the scope %s", rule.Scope)
	}
	return nil
}

func knowsScope(scheme *openapi3.SecurityScheme, scope string) bool {
	if scheme.Flows == nil {
		return false
	}
	for _, flow := range []*openapi3.OAuthFlow{scheme.Flows.ClientCredentials, scheme.Flows.AuthorizationCode, scheme.Flows.Implicit, scheme.Flows.Password} {
		if flow == nil {
			continue
		}
		if _, ok := flow.Scopes[scope]; ok {
			return true
		}
	}
	return false
}

// Decide tells whether the caller may call the operation: nil if so, else the reason. A nil principal is a caller who has
// not been authenticated.
func (t Table) Decide(operation string, p *models.Principal) error {
	rule, ok := t[operation]
	switch {
	case !ok:
		return models.Errorf(models.CodeForbidden, "Nobody may do this.")
	case rule.Public:
		return nil
	case p == nil:
		return models.Errorf(models.CodeUnauthenticated, "This needs an access token: send it as \"Authorization: Bearer TOKEN\".")
	case !slices.Contains(rule.Kinds, p.Kind):
		return models.Errorf(models.CodeForbidden, "A %s may not do this; it is for: %s.", p.Kind, list(rule.Kinds))
	case rule.Scope != "" && !p.HasScope(rule.Scope):
		return models.Errorf(models.CodeForbidden, "The token lacks the scope %s; get one that was granted it.", rule.Scope).With("scope", rule.Scope)
	case rule.Fresh && p.Kind == models.KindUser && !p.Fresh:
		return models.Errorf(models.CodeConfirmFirst, "Type the password again before this, at /v1/account/confirm.")
	}
	return nil
}

func list(kinds []models.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}
