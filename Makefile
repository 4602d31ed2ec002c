# Thin on purpose: whatever takes more than a line is a script in .ci/.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
# A clone that belongs to somebody else would make the go command's own stamping fail; the version comes from above.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

TOOL := go tool -modfile=.ci/tools/go.mod
PKG ?= ./... ./.ci/testsummary
RUN ?= .
DURATION ?=
FUZZTIME ?= 10s
CHECKS ?= 5000
ROUNDS ?= 1000
# On two cores more than two packages at once only wait for each other.
GOTEST = go test -json -p 2 -count=1 -timeout 9m -run '$(RUN)'
SUMMARY = go run ./.ci/testsummary

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
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/gateway-agent ./cmd/groupcastctl

.PHONY: packages
packages: ## gateway-agent for amd64, arm64, armv7 and mipsle, and Debian packages of it, into bin/packages
	@.ci/packages '$(VERSION)'

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
	@$(GOTEST) $(PKG) | $(SUMMARY)

.PHONY: test-race
test-race: ## All tests but the end-to-end ones (which run built programs) under the race detector
	@.ci/install test
	@$(GOTEST) -race $$(go list $(PKG) | grep -vE '/e2e(/demo)?$$') | $(SUMMARY)

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZTIME (10s)
	@.ci/fuzz $(FUZZTIME)

.PHONY: cover
cover: ## Coverage by the tests of all packages, into coverage.out and coverage.html
	@.ci/install test
	@$(GOTEST) -coverpkg=./... -coverprofile=coverage.out $(PKG) | $(SUMMARY)
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
	@$(GOTEST) ./openapi/... | $(SUMMARY)

.PHONY: contract-lint-node
contract-lint-node: ## Two more linters for the contract; needs node 20 and a network
	REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true npx --yes @redocly/cli@2.77.0 lint \
		--config openapi/redocly.yaml openapi/openapi.yaml openapi/admin.yaml
	npx --yes @stoplight/spectral-cli@6.16.3 lint --fail-severity hint --ruleset openapi/spectral.yaml \
		openapi/openapi.yaml openapi/admin.yaml

.PHONY: contract-fuzz
contract-fuzz: ## Drawn requests against a running service, CHECKS (5000) per operation and database
	go test -count=1 -timeout 0 -run '^TestContractFuzz$$' ./e2e -rapid.checks=$(CHECKS)

.PHONY: bench-identity
bench-identity: ## What it costs to tell who calls (docs/benchmarks.md)
	@BENCH_FIGURES=1 go test -run '^$$' -bench '^BenchmarkIdentityFigures$$' -benchtime 1x ./server/httpapi | grep -E '^(figure|ed25519|FAIL|---)'

.PHONY: bench-dataplane
bench-dataplane: ## What a copy costs, beside other ways of copying; as root, with gcc, and nft if it's there (docs/benchmarks.md)
	@BENCH_FIGURES=1 go test -timeout 30m -run '^$$' -bench '^BenchmarkDataPlaneFigures$$' -benchtime 1x ./e2e/dataplane | grep -E '^(figure|dataplane|FAIL|---|    )'

.PHONY: history
history: ## Longer histories of concurrent clients for the checker, and programs with bugs that it has to find
	go test -count=1 -timeout 0 -v -run '^TestHistory' ./e2e -history.steps=80 -history.homes=4 -history.mutants

.PHONY: rounds
rounds: ## 64 clients on 25 addresses for ROUNDS (1000), and CHECKS (5000) interleavings of groups, restores and polls
	go test -count=1 -timeout 0 -run '^TestRoundsOf64Clients$$' ./server/registrations -registrations.rounds=$(ROUNDS)
	go test -count=1 -timeout 0 -run '^TestNeverTwoGroupsInTheDatabase$$' ./server/backup -rapid.checks=$(CHECKS)

.PHONY: interop
interop: ## Clients generated from the contract, in Go and TypeScript, against a running service; needs node 20
	@.ci/interop

.PHONY: api-breaking
api-breaking: ## Fail if the contract breaks clients of the last release
	@.ci/breaking

.PHONY: ci
ci: ## All that a change has to pass
	@.ci/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin coverage.out coverage.html
