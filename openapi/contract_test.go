package openapi_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/groupcast/groupcast/docs/problems"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/problem"
)

// TestContractRules is `make contract-lint`: what the two documents have to keep to so that generated clients work and
// nothing is undeclared.
func TestContractRules(t *testing.T) {
	for name, document := range map[string][]byte{"openapi.yaml": openapi.Public, "admin.yaml": openapi.Admin} {
		t.Run(name, func(t *testing.T) {
			for _, violation := range violations(t, string(document)) {
				t.Error(violation)
			}
		})
	}
}

// TestContractRulesFind proves each rule on a document that breaks it.
func TestContractRulesFind(t *testing.T) {
	public := string(openapi.Public)
	for _, c := range []struct{ name, old, new, want string }{
		{"an operation without an id", "      operationId: leave\n", "", "DELETE /v1/registrations/{registrationId}: operationId"},
		{"an id used twice", "operationId: leave\n", "operationId: register\n", `operationId "register"`},
		{"an operation without a summary", "      summary: Leave the group\n", "", "summary"},
		{"an unknown tag", "tags: [groups]", "tags: [crowds]", `tag "crowds"`},
		{"no declared error", "        \"4XX\":\n          $ref: \"#/components/responses/Problem\"\n", "", "4XX"},
		{"no permission", "      x-gc-authz:\n        kinds: [device, service]\n        scope: gc:register\n        rule: Only the caller's own registrations.\n", "", "x-gc-authz"},
		{"a permission for nobody", "kinds: [device, service]", "kinds: []", "kinds"},
		{"an unknown kind of caller", "kinds: [device, service]", "kinds: [device, wizard]", `"wizard"`},
		{"fresh where no user is", "kinds: [device, service]\n", "kinds: [device, service]\n        fresh: true\n", "fresh"},
		{"fresh that says nothing", "        fresh: true\n", "        fresh: false\n", "fresh"},
		{"fresh without the problem that follows", "confirm-first, ", "", "needs confirm-first"},
		{"a scope that differs", "scope: gc:register", "scope: gc:notify", "scope"},
		{"an undeclared scope", "gc:register: Register", "gc:other: Register", "gc:register"},
		{"no caller needed, yet not for anyone", "kinds: [anyone]", "kinds: [device]", "anyone"},
		{"an open request object", "    RegistrationRequest:\n      type: object\n      additionalProperties: false\n", "    RegistrationRequest:\n      type: object\n", "additionalProperties"},
		{"an unbounded string in a request", "        model:\n          type: string\n          maxLength: 64\n", "        model:\n          type: string\n", "maxLength"},
		{"an unbounded number in a request", "          maximum: 2147483647\n", "", "maximum"},
		{"a default in a request", "          maximum: 2147483647\n", "          maximum: 2147483647\n          default: 3600\n", "default"},
		{"a number beyond 2^53", "type: integer\n          format: int32\n          minimum: 0\n          description: The number of live destinations of", "type: integer\n          format: int64\n          minimum: 0\n          description: The number of live destinations of", "int32"},
		{"an object without a name", "        destinationName:\n          type: string\n", "        destinationName:\n          type: object\n", "name"},
		{"a part that nothing uses", "  schemas:\n    DecimalId:", "  schemas:\n    Orphan:\n      type: string\n    DecimalId:", "Orphan"},
		{"a Go type in the published document", "      x-gc-accept: integer\n", "      x-gc-accept: integer\n      x-go-type: int64\n", "x-go"},
		{"another version", "openapi: 3.0.3", "openapi: 3.0.1", "3.0.3"},
		{"an example with an address that is none", "destination: false\n                  privateIPv4: 172.168.0.5", "destination: false\n                  privateIPv4: 172.168.0.500", "document"},
		{"an example with an id beyond int64", "                  id: \"664123086043511412\"\n                  destination: false", "                  id: \"9964123086043511412\"\n                  destination: false", "document"},
		{"a POST that doesn't say what a repetition does", "      x-gc-idempotent: natural\n", "", "x-gc-idempotent"},
		{"a repetition of an unknown kind", "x-gc-idempotent: natural", "x-gc-idempotent: maybe", `"maybe"`},
		{"a key that isn't declared", "x-gc-idempotent: natural", "x-gc-idempotent: key", "Idempotency-Key"},
		{"a POST that isn't done once", "      x-gc-idempotent: natural\n", "      x-gc-idempotent: repeats\n", "x-gc-no-key"},
		{"a reason without need", "      x-gc-idempotent: natural\n", "      x-gc-idempotent: natural\n      x-gc-no-key: just so\n", "no key is expected"},
		{"a key whose reuse isn't listed", "idempotency-key-reused, rate-limited", "rate-limited", `"idempotency-key-reused"`},
		{"no list of problems", "      x-gc-problems: [bad-request, unavailable, internal]\n", "", "GET /readyz: x-gc-problems"},
		{"a problem that doesn't exist", "x-gc-problems: [bad-request, unavailable, internal]", "x-gc-problems: [bad-request, unavailable, internal, bad-luck]", `"bad-luck"`},
		{"a problem listed twice", "x-gc-problems: [bad-request, unavailable, internal]", "x-gc-problems: [bad-request, unavailable, internal, internal]", "twice"},
		{"a problem whose status isn't declared", "        \"4XX\":\n          $ref: \"#/components/responses/Problem\"\n", "", `lists "bad-request", but`},
		{"a problem that every caller with a token can meet, not listed", "[bad-request, unauthenticated, forbidden, not-found, overloaded,", "[bad-request, forbidden, not-found, overloaded,", `"unauthenticated"`},
		{"a problem that every body can meet, not listed", "not-found, too-large, unsupported-media,", "not-found, too-large,", `"unsupported-media"`},
		{"a body without an example", "            examples:\n              worked:\n                summary: The gateway", "            x-examples:\n              worked:\n                summary: The gateway", "PUT /v1/gateways/{gatewayId}: the application/json body"},
		{"an answer without an example", "              examples:\n                left:", "              x-examples:\n                left:", "DELETE /v1/registrations/{registrationId}: 200"},
		{"a list without pages", "        - $ref: \"#/components/parameters/PageToken\"\n", "", "pageToken"},
		{"a page too large", "        maximum: 500\n", "        maximum: 501\n", "from 1 to 500"},
		{"a page without a next", "        nextPageToken:\n", "        followingPageToken:\n", "has nextPageToken"},
		{"a reason for a whole list where none is", "      operationId: leave\n", "      operationId: leave\n      x-gc-whole: It is short.\n", "no list is"},
		{"a whole list without a reason", "      operationId: listLinks\n", "      operationId: listLinks\n      x-gc-whole: \"\"\n", "wants the reason"},
		{"a deprecation without its dates", "      operationId: leave\n", "      operationId: leave\n      deprecated: true\n", "x-sunset"},
		{"a deprecation that callers don't hear of", "      operationId: leave\n", "      operationId: leave\n      deprecated: true\n", "header Deprecation"},
		{"an example that is no value of its schema", "destination: false\n                  privateIPv4", "destination: 7\n                  privateIPv4", "document"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(public, c.old) {
				t.Fatalf("openapi.yaml no longer has the text that this test changes: %q", c.old)
			}
			found := violations(t, strings.Replace(public, c.old, c.new, 1))
			if !slices.ContainsFunc(found, func(v string) bool { return strings.Contains(v, c.want) }) {
				t.Errorf("no violation names %q; found: %q", c.want, found)
			}
		})
	}
}

// Kinds of callers, see models.Kind; "anyone" needs no token, "operator" opens the unix socket.
var kinds = []string{"anyone", "device", "gateway", "operator", "relay", "service", "user"}

type linter struct {
	doc   *openapi3.T
	found []string
}

func (l *linter) add(format string, args ...any) {
	l.found = append(l.found, fmt.Sprintf(format, args...))
}

// violations lists every breach of a rule in a document, in a stable order.
func violations(t *testing.T, document string) []string {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData([]byte(document))
	if err != nil {
		return []string{fmt.Sprintf("document: %v", err)}
	}
	// By itself the library checks neither; the service does.
	openapi3.DefineIPv4Format()
	openapi3.DefineIPv6Format()
	openapi3.DefineStringFormatValidator("decimal-id", openapi3.NewCallbackValidator(func(v string) error {
		_, err := models.ParseID(v)
		return err
	}))
	l := &linter{doc: doc}
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		l.add("document: %v", err)
	}
	if doc.OpenAPI != "3.0.3" {
		l.add("document: version %s, want 3.0.3 (ADR 1)", doc.OpenAPI)
	}
	if strings.Contains(document, "x-go-") {
		l.add("document: x-go-… belongs in overlay.yaml, the published document knows nothing of Go")
	}
	l.operations()
	for _, name := range slices.Sorted(maps.Keys(doc.Components.Schemas)) {
		l.schema("schema "+name, doc.Components.Schemas[name], false)
	}
	l.orphans(document)
	return l.found
}

func (l *linter) operations() {
	seen := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(l.doc.Paths.Map())) {
		item := l.doc.Paths.Value(path)
		for _, method := range slices.Sorted(maps.Keys(item.Operations())) {
			op := item.GetOperation(method)
			at := method + " " + path
			if op.OperationID == "" || seen[op.OperationID] {
				l.add("%s: operationId %q is missing or used twice", at, op.OperationID)
			}
			seen[op.OperationID] = true
			if op.Summary == "" || op.Description == "" {
				l.add("%s: summary and description are for the reader of the documentation; write both", at)
			}
			if len(op.Tags) != 1 || l.doc.Tags.Get(op.Tags[0]) == nil {
				l.add("%s: wants one tag of the document's list; has tag %q", at, strings.Join(op.Tags, ", "))
			}
			scopes, open := l.security(at, op)
			l.permission(at, op, scopes, open)
			l.responses(at, op)
			l.problems(at, item, op, open)
			l.deprecation(at, op)
			l.pages(at, op)
			if method == "POST" {
				l.idempotency(at, op)
			}
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				if p.Value.Description == "" {
					l.add("%s: parameter %s has no description", at, p.Value.Name)
				}
				l.schema(at+" parameter "+p.Value.Name, p.Value.Schema, true)
			}
			if op.RequestBody != nil {
				for media, content := range op.RequestBody.Value.Content {
					l.example(fmt.Sprintf("%s: the %s body", at, media), content)
					if content.Schema.Ref == "" {
						l.add("%s: the %s body's schema needs a name under components", at, media)
					}
					l.schema(at+" body", content.Schema, true)
				}
			}
		}
	}
}

// security checks the ways to authenticate and returns the scopes they ask for; open means that none is needed.
func (l *linter) security(at string, op *openapi3.Operation) (scopes []string, open bool) {
	ways := l.ways(op)
	for _, way := range ways {
		for name, asked := range way {
			scheme := l.doc.Components.SecuritySchemes[name]
			if scheme == nil {
				l.add("%s: security scheme %q is not declared", at, name)
				continue
			}
			if len(asked) > 0 && (scheme.Value.Flows == nil || scheme.Value.Flows.ClientCredentials == nil) {
				l.add("%s: scopes are for oauth2 schemes only", at)
				continue
			}
			for _, scope := range asked {
				if _, ok := scheme.Value.Flows.ClientCredentials.Scopes[scope]; !ok {
					l.add("%s: scope %q is not declared", at, scope)
				}
			}
			scopes = append(scopes, asked...)
		}
	}
	return scopes, len(ways) == 0
}

func (l *linter) permission(at string, op *openapi3.Operation, scopes []string, open bool) {
	authz, ok := op.Extensions["x-gc-authz"].(map[string]any)
	if !ok {
		l.add("%s: x-gc-authz is missing; without it the server does not start", at)
		return
	}
	allowed, _ := authz["kinds"].([]any)
	if len(allowed) == 0 {
		l.add("%s: x-gc-authz names no kinds of callers", at)
	}
	for _, kind := range allowed {
		if name, _ := kind.(string); !slices.Contains(kinds, name) {
			l.add("%s: x-gc-authz names the unknown kind %q", at, kind)
		}
	}
	if rule, _ := authz["rule"].(string); rule == "" {
		l.add("%s: x-gc-authz has no rule in words", at)
	}
	if anyone := len(allowed) == 1 && allowed[0] == "anyone"; open != anyone {
		l.add("%s: `security: []` and `kinds: [anyone]` belong together", at)
	}
	if fresh, declared := authz["fresh"]; declared {
		if fresh != true || !slices.Contains(allowed, any("user")) {
			l.add("%s: x-gc-authz has fresh, which is true or absent, and for operations of a user only", at)
		}
		if listed, _ := op.Extensions["x-gc-problems"].([]any); !slices.Contains(listed, any("confirm-first")) {
			l.add("%s: x-gc-authz has fresh, so that x-gc-problems needs confirm-first", at)
		}
	}
	scope, _ := authz["scope"].(string)
	if len(scopes) == 0 && scope == "" {
		return
	}
	if !slices.Equal(scopes, []string{scope}) {
		l.add("%s: x-gc-authz has scope %q, security asks for %q", at, scope, scopes)
	}
}

func (l *linter) responses(at string, op *openapi3.Operation) {
	want := []string{"4XX", "5XX"}
	for _, status := range want {
		response := op.Responses.Value(status)
		if response == nil || response.Value.Content.Get("application/problem+json") == nil && !l.oauthProblem(op, response) {
			l.add("%s: declares no %s with application/problem+json", at, status)
		}
	}
	if op.Responses.Len() <= len(want) {
		l.add("%s: declares no success", at)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses.Map())) {
		response := op.Responses.Value(status)
		for media, content := range response.Value.Content {
			if media != "text/event-stream" && media != "text/html" {
				l.example(fmt.Sprintf("%s: %s %s", at, status, media), content)
			}
			if content.Schema.Ref == "" && media != "text/event-stream" && media != "text/html" {
				l.add("%s: the schema of %s needs a name under components", at, status)
			}
		}
	}
}

// oauthProblem tells whether an OAuth endpoint refuses as RFC 6749 §5.2 wants it, with the problem's members beside (ADR 10).
func (l *linter) oauthProblem(op *openapi3.Operation, response *openapi3.ResponseRef) bool {
	content := response.Value.Content.Get("application/json")
	return slices.Equal(op.Tags, []string{"oauth"}) && content != nil && content.Schema.Ref == "#/components/schemas/OAuthProblem"
}

// example wants at least one; that it fits its schema is checked with the document.
func (l *linter) example(at string, content *openapi3.MediaType) {
	if content.Example == nil && len(content.Examples) == 0 {
		l.add("%s has no example", at)
	}
}

// problems checks x-gc-problems, the codes that an operation can answer: each exists, its status is declared, and those
// that follow from what the operation is are there.
func (l *linter) problems(at string, item *openapi3.PathItem, op *openapi3.Operation, open bool) {
	values, _ := op.Extensions["x-gc-problems"].([]any)
	if len(values) == 0 {
		l.add("%s: x-gc-problems is missing: list the codes of all problems that it can answer", at)
		return
	}
	listed := map[models.Code]bool{}
	for _, value := range values {
		name, _ := value.(string)
		code := models.Code(name)
		if !slices.Contains(problems.Codes(), name) {
			l.add("%s: x-gc-problems lists %q, which is no code of models", at, name)
			continue
		}
		if listed[code] {
			l.add("%s: x-gc-problems lists %q twice", at, name)
		}
		listed[code] = true
		if class := fmt.Sprintf("%dXX", problem.Status(code)/100); op.Responses.Value(class) == nil {
			l.add("%s: x-gc-problems lists %q, but the operation declares no %s", at, name, class)
		}
	}
	// An undeclared query parameter is enough for bad-request.
	want := []models.Code{models.CodeBadRequest, models.CodeInternal}
	authz, _ := op.Extensions["x-gc-authz"].(map[string]any)
	if allowed, _ := authz["kinds"].([]any); !open && !slices.Contains(allowed, any("operator")) {
		want = append(want, models.CodeUnauthenticated, models.CodeForbidden, models.CodeUnavailable)
	}
	for _, p := range slices.Concat(item.Parameters, op.Parameters) {
		if p.Value.In == "path" {
			want = append(want, models.CodeNotFound)
			break
		}
	}
	if op.RequestBody != nil {
		want = append(want, models.CodeTooLarge, models.CodeUnsupportedMedia)
	}
	for _, code := range want {
		if !listed[code] {
			l.add("%s: x-gc-problems doesn't list %q, which it can answer", at, code)
		}
	}
}

// idempotency wants to know what happens if a POST is sent again because its answer was lost; docs/api-guidelines.md
// explains the words.
func (l *linter) idempotency(at string, op *openapi3.Operation) {
	word, _ := op.Extensions["x-gc-idempotent"].(string)
	if !slices.Contains([]string{"natural", "key", "refused", "repeats"}, word) {
		l.add("%s: x-gc-idempotent is %q; say natural, key, refused or repeats", at, word)
	}
	if declared := op.Parameters.GetByInAndName("header", "Idempotency-Key") != nil; declared != (word == "key") {
		l.add("%s: `x-gc-idempotent: key` and the header Idempotency-Key belong together", at)
	}
	if word == "key" {
		if listed, _ := op.Extensions["x-gc-problems"].([]any); !slices.Contains(listed, any(string(models.CodeIdempotencyKeyReused))) {
			l.add("%s: x-gc-problems doesn't list %q, which it can answer", at, models.CodeIdempotencyKeyReused)
		}
	}
	// A key is the caller's, so there is none where the caller isn't known.
	why, _ := op.Extensions["x-gc-no-key"].(string)
	if len(l.ways(op)) > 0 && word != "natural" && word != "key" && why == "" {
		l.add("%s: sent again, it is not done once: take Idempotency-Key (x-gc-idempotent: key), or say in x-gc-no-key why that isn't needed", at)
	}
	if why != "" && (word == "natural" || word == "key" || len(l.ways(op)) == 0) {
		l.add("%s: x-gc-no-key stands where no key is expected", at)
	}
}

// ways are those to authenticate for an operation; none if it is open to anyone.
func (l *linter) ways(op *openapi3.Operation) openapi3.SecurityRequirements {
	if op.Security != nil {
		return *op.Security
	}
	return l.doc.Security
}

// pages wants that whatever is called a list is read in pages, or says why it never grows.
func (l *linter) pages(at string, op *openapi3.Operation) {
	why, whole := op.Extensions["x-gc-whole"].(string)
	if !strings.HasPrefix(op.OperationID, "list") {
		if whole {
			l.add("%s: x-gc-whole stands where no list is", at)
		}
		return
	}
	if whole {
		if why == "" {
			l.add("%s: x-gc-whole wants the reason why the list stays short", at)
		}
		return
	}
	size, token := op.Parameters.GetByInAndName("query", "pageSize"), op.Parameters.GetByInAndName("query", "pageToken")
	if size == nil || token == nil {
		l.add("%s: a list takes pageSize and pageToken, or says in x-gc-whole why it stays short", at)
		return
	}
	if s := size.Schema.Value; s.Min == nil || *s.Min != 1 || s.Max == nil || *s.Max != 500 {
		l.add("%s: pageSize goes from 1 to 500", at)
	}
	answer := op.Responses.Value("200")
	if answer == nil || answer.Value.Content["application/json"] == nil || answer.Value.Content["application/json"].Schema.Value.Properties["nextPageToken"] == nil {
		l.add("%s: a page has nextPageToken", at)
	}
}

// deprecation wants that callers of a deprecated operation hear of it in every answer, and until when it works.
func (l *linter) deprecation(at string, op *openapi3.Operation) {
	if !op.Deprecated {
		return
	}
	if _, ok := op.Extensions["x-sunset"]; !ok {
		l.add("%s: a deprecated operation wants x-sunset, the day after which it may go", at)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses.Map())) {
		response := op.Responses.Value(status)
		if !strings.HasPrefix(status, "2") {
			continue
		}
		for _, name := range []string{"Deprecation", "Sunset"} {
			if header := response.Value.Headers[name]; header == nil || !header.Value.Required {
				l.add("%s: a deprecated operation wants the required header %s in its %s", at, name, status)
			}
		}
	}
}

// schema checks a schema and what is inside it; request says that callers send it.
func (l *linter) schema(at string, ref *openapi3.SchemaRef, request bool) {
	s := ref.Value
	if len(s.OneOf)+len(s.AnyOf) > 0 && s.Discriminator == nil {
		l.add("%s: oneOf and anyOf need a discriminator, or clients cannot be generated", at)
	}
	if request && s.Default != nil {
		l.add("%s: a default makes generated clients require the member; say it in the description", at)
	}
	switch {
	case s.Type.Is("integer"):
		if s.Format != "int32" {
			l.add("%s: an integer wants format int32; what may be larger is a decimal string", at)
		}
		if request && (s.Min == nil || s.Max == nil) {
			l.add("%s: wants minimum and maximum", at)
		}
	case s.Type.Is("string"):
		if request && len(s.Enum) == 0 && s.MaxLength == nil {
			l.add("%s: wants maxLength or enum", at)
		}
	case s.Type.Is("array"):
		if request && s.MaxItems == nil {
			l.add("%s: wants maxItems", at)
		}
		l.part(at+"[]", s.Items, request)
	case s.Type.Is("object"):
		if request && (s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has) {
			l.add("%s: wants additionalProperties: false, or mistakes of callers go unnoticed", at)
		}
		for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
			l.part(at+"."+name, s.Properties[name], request)
		}
	}
}

// part is a property or an array's items. A named schema is checked under its own name, unless callers send it here.
func (l *linter) part(at string, ref *openapi3.SchemaRef, request bool) {
	if ref.Ref == "" && ref.Value.Type.Is("object") {
		l.add("%s: an object needs a name under components, or each generator invents one", at)
	}
	if ref.Ref == "" || request {
		l.schema(at, ref, request)
	}
}

var component = regexp.MustCompile(`#/components/(\w+)/(\w+)`)

// orphans finds components that nothing refers to.
func (l *linter) orphans(document string) {
	used := map[string]bool{}
	for _, match := range component.FindAllStringSubmatch(document+string(openapi.Events), -1) {
		used[match[1]+"/"+match[2]] = true
	}
	c := l.doc.Components
	have := slices.Concat(names("schemas", c.Schemas), names("parameters", c.Parameters), names("responses", c.Responses))
	for _, name := range have {
		if !used[name] {
			l.add("components/%s is used by nothing", name)
		}
	}
}

func names[V any](section string, m map[string]V) []string {
	list := make([]string, 0, len(m))
	for name := range m {
		list = append(list, section+"/"+name)
	}
	slices.Sort(list)
	return list
}
