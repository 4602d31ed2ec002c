# Thin on purpose: whatever takes more than a line is a script in .ci/.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
# The agent speaks HTTP/1.1 only (gateway-agent/sync): without HTTP/2 it is 0.6 MB smaller.
AGENT_TAGS := nethttpomithttp2
# A clone that belongs to somebody else would make the go command's own stamping fail; the version comes from above.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

TOOL := go tool -modfile=.ci/tools/go.mod
PKG ?= ./... ./.ci/testsummary
RUN ?= .
DURATION ?=
FUZZTIME ?= 10s
CHECKS ?= 5000
ROUNDS ?= 1000
# ROUNDS of the drills of events, unless somebody says how many.
DRILL_ROUNDS = $(if $(filter file,$(origin ROUNDS)),20,$(ROUNDS))
SOAK_DATAGRAMS ?= 100000000
SOAK_SWAPS ?= 100000
SOAK_JOINS ?= 10000
SOAK_STEPS ?= 5000
# Two packages at once keep two cores busy; in each, up to four parallel tests, because many of them wait.
# Without symbols and without vet, which has run: linking a hundred test programs is a good part of the time.
GOTEST = go run ./.ci/testsummary $(AGAIN:%=-again %) -p 2 -parallel 4 -count=1 -timeout 9m -vet=off -ldflags='-s -w' -run '$(RUN)'
# How many failed tests are run once more, alone, and called flaky if they pass (docs/adr/0083); make test AGAIN=0 doesn't.
test test-race: AGAIN = 2

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Build and run

.PHONY: build
build: ## Build the programs into bin/
	@mkdir -p bin
	@$(MAKE) -j2 build-server build-agent

# SQLite is C, and compiling it keeps one core busy for a minute the first time: the other builds the rest.
.PHONY: build-server build-agent
build-server:
	CGO_ENABLED=1 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/groupcastd
build-agent:
	CGO_ENABLED=0 go build -tags '$(AGENT_TAGS)' -ldflags '$(LDFLAGS)' -o bin/ ./cmd/gateway-agent
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/groupcastctl

.PHONY: packages
packages: ## gateway-agent for amd64, arm64, armv7 and mipsle, and Debian packages of it, into bin/packages
	@AGENT_TAGS='$(AGENT_TAGS)' .ci/packages '$(VERSION)'

.PHONY: demo
demo: ## A real camera, one stream, three receivers, on loopback (DURATION=10s ends it by itself)
	@.ci/install demo
	@$(MAKE) build >&2
	@CGO_ENABLED=0 go build -o bin/ ./e2e/demo
	@bin/demo $(if $(DURATION),-duration $(DURATION))

## Test

.PHONY: test
test: ## All tests; as root also those on the wire (PKG=./server/... RUN=TestX select)
	@.ci/install test
	@echo 'vet, then tests (the first time everything is compiled, which takes minutes)'
	@go vet $(PKG)
	@programs=$$(mktemp -d) && trap 'rm -rf "$$programs"' EXIT && export TEST_PROGRAMS="$$programs" && $(GOTEST) -- $(PKG)

.PHONY: test-race
test-race: ## The tests of what runs at the same time as something else (.ci/raced) under the race detector
	@.ci/install test
	@GORACE=atexit_sleep_ms=100 $(GOTEST) -race -- $$(.ci/raced $(PKG))

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZTIME (10s)
	@.ci/fuzz $(FUZZTIME)

.PHONY: cover
cover: ## Coverage by the tests of all packages, into coverage.out and coverage.html
	@.ci/install test
	@$(GOTEST) -coverpkg=./... -coverprofile=coverage.out -- $(PKG)
	@grep -v '\.gen\.go:' coverage.out > coverage.own && mv coverage.own coverage.out
	@go tool cover -html=coverage.out -o coverage.html
	@go tool cover -func=coverage.out | tail -n 1

## Contract and code

.PHONY: generate
generate: ## Write the generated code again
	go generate ./...

.PHONY: drift
drift: ## Fail if generated code doesn't belong to its source
	@.ci/drift

.PHONY: lint
lint: ## Linters, formatting, and who may depend on whom
	@.ci/imports
	$(TOOL) golangci-lint run ./... ./.ci/testsummary

.PHONY: format
format: ## Format the code as lint wants it
	$(TOOL) golangci-lint fmt ./...

.PHONY: contract-lint
contract-lint: ## The rules for the contract, as a Go test
	@$(GOTEST) -- ./openapi/...

.PHONY: contract-lint-node
contract-lint-node: ## Two more linters for the contract, and the parser of AsyncAPI; needs node 20 and a registry
	@.ci/npm contract-lint-node .ci/asyncapi
	node .ci/asyncapi/check.mjs openapi/asyncapi.yaml
	REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true npx --yes @redocly/cli@2.77.0 lint \
		--config openapi/redocly.yaml openapi/openapi.yaml openapi/admin.yaml
	npx --yes @stoplight/spectral-cli@6.16.3 lint --fail-severity hint --ruleset openapi/spectral.yaml \
		openapi/openapi.yaml openapi/admin.yaml

.PHONY: contract-fuzz
contract-fuzz: ## Drawn requests against a running service, CHECKS (5000) per operation and database
	go test -count=1 -timeout 0 -run '^TestContractFuzz$$' ./e2e -rapid.checks=$(CHECKS)

.PHONY: bench-identity
bench-identity: ## What it costs to tell who calls (docs/benchmarks.md)
	@BENCH_FIGURES=1 go test -run '^$$' -bench '^BenchmarkIdentityFigures$$' -benchtime 1x ./server/httpapi | grep -E '^(figure|beside|ed25519|FAIL|---)'

.PHONY: bench-registrations
bench-registrations: ## What registrations, renewals and waiting gateways cost, beside bare servers; takes about ten minutes (docs/benchmarks.md)
	@.ci/install test
	@BENCH_FIGURES=1 go test -run '^$$' -bench 'Figures$$' -benchtime 1x -timeout 0 ./e2e/figures | grep -vE '^(goos|goarch|pkg|cpu|PASS|ok)'

# Each figure in its own package; the ones of MQTT are there with that package.
.PHONY: bench-events
bench-events: ## How long events are on their way, how many there may be, and how soon a new destination gets its first copy; takes minutes (docs/benchmarks.md)
	@.ci/install test
	@BENCH_FIGURES=1 go test -p 1 -run '^$$' -bench '^Benchmark(Events.*|FirstCopy)Figures$$' -benchtime 1x -timeout 0 \
		./server/eventrelay ./e2e $(addprefix ./,$(wildcard server/mqtt)) | grep -E '^(figure|beside|edge|a bare|FAIL|---)'

.PHONY: bench-dataplane
bench-dataplane: ## What a copy costs, beside other ways of copying; as root, with gcc, and nft if it's there (docs/benchmarks.md)
	@BENCH_FIGURES=1 AGENT_TAGS='$(AGENT_TAGS)' go test -timeout 30m -run '^$$' -bench '^BenchmarkDataPlaneFigures$$' -benchtime 1x ./e2e/dataplane | grep -E '^(figure|dataplane|FAIL|---|    )'

.PHONY: bench-relay
bench-relay: ## What PREMISES (10,000) homes cost a relay, idle and busy; as root (docs/benchmarks.md)
	@BENCH_FIGURES=1 PREMISES=$(PREMISES) go test -timeout 60m -run '^$$' -bench '^BenchmarkRelay(Figures|Busy)$$' -benchtime 1x ./e2e/relay | grep -E '^(figure|beside|FAIL|---|    )'
	@go test -timeout 30m -run '^$$' -bench '^BenchmarkRelayApply$$' -benchtime 20x ./e2e/relay | grep -E '^(Benchmark|FAIL|---|    )'

.PHONY: bench
bench: bench-identity bench-registrations bench-events bench-dataplane bench-relay ## All figures

.PHONY: history
history: ## Longer histories of concurrent clients for the checker, and programs with bugs that it has to find (2 minutes)
	go test -count=1 -timeout 0 -v -run '^TestHistory' ./e2e -history.steps=80 -history.homes=4 -history.check=10m -history.mutants

.PHONY: rounds
rounds: ## 64 clients on 25 addresses for ROUNDS (1000; 8 minutes), and CHECKS (200; 5 minutes) interleavings of restores and polls
	go test -count=1 -timeout 0 -run '^TestRoundsOf64Clients$$' ./server/registrations -registrations.rounds=$(ROUNDS)
	go test -count=1 -timeout 0 -run '^TestNeverTwoGroupsInTheDatabase$$' ./server/backup -rapid.checks=$(if $(filter file,$(origin CHECKS)),200,$(CHECKS))

.PHONY: chaos
chaos: ## The drills of events for long: ROUNDS (20) of each, then processes are killed at random for DURATION (10m)
	go test -count=1 -timeout 0 -v -p 1 -run '^TestDrill' ./server/eventrelay ./server/queueaccess -drill.rounds=$(DRILL_ROUNDS)
	go test -count=$(DRILL_ROUNDS) -timeout 0 -v -run '^TestDrill' ./server/daemon
	go test -count=1 -timeout 0 -v -run '^TestDrill' ./e2e/drills -drill.duration=$(or $(DURATION),10m)

.PHONY: soak
soak: ## 10^8 datagrams, 10^5 swaps, 10^4 joins and leaves per backend (SOAK_DATAGRAMS, SOAK_SWAPS, SOAK_JOINS), SOAK_STEPS with the programs; needs root
	SOAK_DATAGRAMS=$(SOAK_DATAGRAMS) SOAK_SWAPS=$(SOAK_SWAPS) SOAK_JOINS=$(SOAK_JOINS) go test -count=1 -timeout 0 -v -p 1 -run '^TestSoak$$' \
		./gateway-agent/duplicator ./gateway-agent/duplicator/ebpf
	go test -count=1 -timeout 0 -v -run '^TestSoakOfThePrograms$$' ./e2e -soak.steps=$(SOAK_STEPS)

.PHONY: random-run
random-run: ## A camera, a stranger, members, restarts and outages for DURATION (1h), judged packet by packet; needs root (SEED=n repeats one)
	go test -count=1 -timeout 0 -v -run '^TestRandomisedRun$$' ./e2e -randomised.duration=$(or $(DURATION),1h) -randomised.seed=$(or $(SEED),0)

.PHONY: relay-run
relay-run: ## PREMISES (200) homes with one group IP, two relays, one killed under load, and every packet judged; needs root, and 6 GB of memory
	go test -count=1 -timeout 30m -v -run '^TestRelayRun$$' ./e2e/relay -relay.premises=$(or $(PREMISES),200) -relay.every=$(or $(EVERY),200ms) $(if $(JUDGED),-relay.judged) | grep -E '^(relay run|---|ok|FAIL|    run_test)'

.PHONY: interop
interop: ## Clients generated from the contract, in Go and TypeScript, against a running service; needs node 20
	@.ci/interop

.PHONY: ui-test
ui-test: ## The pages in a real headless Chromium; needs node 20, installs Chromium with apt-get
	@.ci/ui-test

.PHONY: api-breaking
api-breaking: ## Fail if the contract breaks clients of the last release
	@.ci/breaking

.PHONY: ci
ci: ## All that a change has to pass
	@.ci/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin coverage.out coverage.html
