# Everything that CI does is a target here, and nothing else. `make help` lists them.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

MODULES  := relaycore relay-nats relay-kafka relay-redis relay-sqs relay-rabbitmq relay-webhook relay-stdout relay-pginbox relay-all demo e2e e2e/peers tools
BINARIES := $(filter relay-%,$(MODULES))
# relay-all is the whole daemon and bears the project's name.
binary    = $(if $(filter relay-all,$1),pgtrickle-relay,$1)
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/grove/pgtrickle-relay/relaycore/relaycmd.version=$(VERSION)

# Tests run against real servers in containers, see e2e/cmd/with-brokers, and
# some start servers of their own, see scripts/setup.sh.
OWN      := RELAY_TEST_NATS_SERVER=$(CURDIR)/.cache/bin/nats-server RELAY_TEST_KAFKA_HOME=$(CURDIR)/.cache/kafka
BROKERS  := cd e2e && $(OWN) go run ./cmd/with-brokers all --
# The packages that talk to PostgreSQL are tested on old ones too: 15 and 13.
POSTGRESQL := $(addprefix ../relaycore/,inbox relaycmd $(addprefix internal/,capture catalog exttest lease migrate outbox outbox/scan pipeline retention store))
GO_TEST  ?= go test
LINT     := $(CURDIR)/.cache/bin/golangci-lint
LINT_VERSION := v2.12.2
ACTIONLINT := $(CURDIR)/.cache/bin/actionlint
ACTIONLINT_VERSION := v1.7.12
VULNCHECK := $(CURDIR)/.cache/bin/govulncheck
VULNCHECK_VERSION := v1.9.0
LICENSES := $(CURDIR)/.cache/bin/go-licenses
LICENSES_VERSION := v1.6.0
BENCHSTAT := $(CURDIR)/.cache/bin/benchstat
BENCHSTAT_VERSION := v0.0.0-20260908200009-22c9c6c9d4da
GITLEAKS := $(CURDIR)/.cache/bin/gitleaks
GITLEAKS_VERSION := v8.30.1

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: bin/pgtrickle-relay ## the main job, visible: PostgreSQL -> NATS -> PostgreSQL, with a kill -9 in between
	cd demo && go run .

.PHONY: build
build: $(foreach b,$(BINARIES),bin/$(call binary,$b)) ## every binary, static, into bin/

bin/pgtrickle-relay: FORCE
	cd relay-all && GOWORK=off CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o ../$@ .
bin/%: FORCE
	cd $* && GOWORK=off CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o ../$@ .
FORCE:

.PHONY: check
check: fmt-check ## format, vet, lint and the tests that need no server: under two minutes once the caches are warm
	go vet work
	$(MAKE) lint
	go test work 2>&1 | grep -v 'no test files'
	cd e2e/peers && GOWORK=off go test .

.PHONY: fmt fmt-check
fmt: $(LINT) ## format all Go files
	for m in $(MODULES); do (cd $$m && $(LINT) fmt ./...); done
fmt-check: $(LINT)
	@for m in $(MODULES); do (cd $$m && $(LINT) fmt --diff ./...) || { echo "run make fmt"; exit 1; }; done

.PHONY: test
test: servers build ## all tests, against real servers, end to end ones too (about 15 minutes on 2 cores)
	go vet work
	$(BROKERS) sh -c '$(GO_TEST) -count=1 -timeout=30m work && \
		for url in $$RELAY_TEST_DATABASE_URL_15 $$RELAY_TEST_DATABASE_URL_OLD; do \
			RELAY_TEST_DATABASE_URL=$$url $(GO_TEST) -count=1 -timeout=30m $(POSTGRESQL) || exit 1; \
		done'
	$(MAKE) e2e

# One PostgreSQL release: CI's matrix. The default of RELAY_TEST_DATABASE_URL is 18.
POSTGRESQL_VERSION ?= 18
.PHONY: test-on
test-on: servers build ## all tests but the end to end ones, on PostgreSQL POSTGRESQL_VERSION=18, 15 or 13
	$(BROKERS) sh -c 'case $(POSTGRESQL_VERSION) in \
			18) exec $(GO_TEST) -count=1 -timeout=30m work ;; \
			15) url=$$RELAY_TEST_DATABASE_URL_15 ;; \
			13) url=$$RELAY_TEST_DATABASE_URL_OLD ;; \
			*) echo "POSTGRESQL_VERSION is 18, 15 or 13"; exit 2 ;; \
		esac; RELAY_TEST_DATABASE_URL=$$url $(GO_TEST) -count=1 -timeout=30m $(POSTGRESQL)'

# Where goroutines meet. The rest of relaycore is SQL, or has one goroutine.
RACE := $(addprefix ../relaycore/internal/,capture catalog codec daemon engine lease observe outbox/pace outbox/progress pipeline store supervisor) $(addprefix ../relaycore/,backoff inbox relay relaynet relaytest)

.PHONY: race
race: servers ## the concurrent packages once more, under the race detector
	$(BROKERS) go test -race -count=1 -timeout=30m $(RACE)

.PHONY: servers
servers: ## installs Docker, the servers' images and programs that tests start; NO_INSTALL=1 lists what is missing instead
	scripts/setup.sh
	e2e/scripts/docker.sh
	e2e/images/build.sh

.PHONY: e2e
e2e: servers build images ## the real binaries and images against every broker; prints the matrix
	cd e2e && RELAY_E2E=1 RELAY_E2E_BUILT=1 $(GO_TEST) -count=1 -timeout=40m -p 1 -parallel 4 -v . ./internal/brokers
	$(MAKE) docs-run

.PHONY: docs docs-run
docs: servers build docs-run ## the blocks of README and docs, run against real servers, their output compared
docs-run:
	cd e2e && go run ./cmd/with-brokers pg18 nats kafka redis rabbitmq sqs -- env RELAY_DOCS=1 $(GO_TEST) -count=1 -timeout=10m -v ./docs

.PHONY: chaos
chaos: servers build images ## kills, restarts and cuts at random while writers write; CHAOS_MINUTES=1 a backend
	cd e2e && RELAY_CHAOS=1 $(GO_TEST) -count=1 -timeout=6h -parallel 5 -v ./chaos/...

# A fixed seed, so that a failure is one of the change and can be repeated; other
# seeds are for long runs.
.PHONY: chaos-short
chaos-short: ## chaos for CI: a fixed seed, half a minute a backend
	CHAOS_SEED=143632076 CHAOS_MINUTES=0.5 CHAOS_KILLS=8 CHAOS_BACKLOG=200000 $(MAKE) chaos

.PHONY: memory
memory: servers bin/pgtrickle-relay ## peak memory of a relay in 256 MiB: row size, pipelines, backend; MEMORY_BACKENDS (20 minutes)
	RELAY_IMAGES=bin VERSION=memory deploy/images.sh pgtrickle-relay
	cd e2e && RELAY_MEMORY=1 $(GO_TEST) -count=1 -timeout=1h -v ./memory

.PHONY: takeover
takeover: servers build ## how evenly processes share pipelines, and how fast they take over after kill -9; TAKEOVER_KILLS, TAKEOVER_PIPELINES
	cd e2e && RELAY_TAKEOVER=1 go run ./cmd/with-brokers pg18 -- $(GO_TEST) -count=1 -timeout=1h -v ./takeover

# The last commit whose events have no identity.
UPGRADE_FROM ?= 7a0d755
.PHONY: upgrade
upgrade: servers bin/pgtrickle-relay ## an older fleet is replaced under load with kill -9, there and back (a minute)
	rm -rf .cache/upgrade-from && mkdir -p .cache/upgrade-from
	git archive $(UPGRADE_FROM) | tar -x -C .cache/upgrade-from || { echo "fetch the history: git fetch --unshallow"; exit 1; }
	cd .cache/upgrade-from/relay-all && GOWORK=off CGO_ENABLED=0 go build -trimpath -o relay .
	cd e2e && RELAY_UPGRADE_FROM=$(CURDIR)/.cache/upgrade-from/relay-all/relay $(GO_TEST) -count=1 -timeout=10m -v ./upgrade

.PHONY: snapshot snapshot-short
snapshot: servers bin/pgtrickle-relay ## the rows of a captured table before its changes, with kill -9; SNAPSHOT_ROWS
	cd e2e && RELAY_SNAPSHOT=1 go run ./cmd/with-brokers pg18 -- $(GO_TEST) -count=1 -timeout=1h -v ./snapshot
snapshot-short: ## the same for CI, with a tenth of the rows (40 s)
	SNAPSHOT_ROWS=100000 SNAPSHOT_STALL=10s $(MAKE) snapshot

.PHONY: hostile hostile-short
hostile: servers bin/pgtrickle-relay ## every client at servers of other kinds and at hostile ones, in bounded memory (5 minutes)
	cd e2e && RELAY_HOSTILE=$(or $(HOSTILE),all) go run ./cmd/with-brokers pg18 -- $(GO_TEST) -count=1 -timeout=20m -parallel 3 -v ./hostile
hostile-short: ## those for CI: the peers that ran away, and one that names itself (2 minutes)
	$(MAKE) hostile HOSTILE=short

# Ratios of two programs on a shared machine: a low one is looked at twice.
.PHONY: bench-short
bench-short: ## the benchmark for CI: a few minutes, fails when a ratio falls twice
	$(MAKE) bench BENCH=short || $(MAKE) bench BENCH=short

.PHONY: bench
bench: servers build ## the relay beside each broker's own client, in one run; BENCH=short for a few minutes
	$(BROKERS) go run ./cmd/bench $(if $(filter short,$(BENCH)),-short -check,-json ../docs/benchmarks.json -page ../docs/benchmarks.md)

# Its dependencies are other relays; they stay out of the workspace.
lint-e2e/peers: export GOWORK := off
.PHONY: bench-peers
bench-peers: servers bin/pgtrickle-relay ## the relay beside other programs, into Kafka; PEERS_ROWS, PEERS_LONG, PEERS_PAIRS, PEERS_SPAN, PEERS_LIMIT (an hour and a half)
	e2e/peers/build.sh .cache/peers
	cd e2e && go run ./cmd/with-brokers pg18 kafka -- ../.cache/peers/peers -bin $(CURDIR)/.cache/peers \
		-relay $(CURDIR)/bin/pgtrickle-relay -page ../docs/benchmarks-peers.md \
		-rows $(or $(PEERS_ROWS),300000) -long $(or $(PEERS_LONG),1200000) -pairs $(or $(PEERS_PAIRS),3) \
		-span $(or $(PEERS_SPAN),20s) -limit $(or $(PEERS_LIMIT),2m)

.PHONY: bench-compare
bench-compare: $(BENCHSTAT) ## the pure parts beside where this branch left main, in turn; fails on a loss over 10%; BASE=commit
	scripts/bench-compare.sh $(BENCHSTAT)
$(BENCHSTAT):
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT_VERSION)

.PHONY: standalone
standalone: $(MODULES:%=standalone-%) ## each module alone, as it is shipped: tidy, vet, build
$(MODULES:%=standalone-%): standalone-%:
	cd $* && GOWORK=off go mod tidy -diff && GOWORK=off go vet ./... && GOWORK=off go build ./...

.PHONY: deps
deps: build ## a binary links its own client and no other's (relay-*/deps.txt)
	for m in $(BINARIES); do \
		b=bin/$$m; [ $$m != relay-all ] || b=bin/pgtrickle-relay; \
		go version -m $$b | awk '$$1=="dep"{print $$2}' | grep -v ^github.com/grove/ | diff -u $$m/deps.txt - || { echo "$$m: deps.txt is not what $$b links; run make deps-update and look at the difference"; exit 1; }; \
	done
.PHONY: deps-update
deps-update: build
	for m in $(BINARIES); do \
		b=bin/$$m; [ $$m != relay-all ] || b=bin/pgtrickle-relay; \
		go version -m $$b | awk '$$1=="dep"{print $$2}' | grep -v ^github.com/grove/ > $$m/deps.txt; \
	done

.PHONY: go-lines
go-lines: ## the same go line in every module
	@test $$(cat go.work $(MODULES:%=%/go.mod) | grep -E '^go ' | sort -u | wc -l) = 1 || { grep -H '^go ' go.work */go.mod; exit 1; }

.PHONY: lint
lint: code-lines words commits workflows bases picture-check $(MODULES:%=lint-%) ## golangci-lint and the checkers of tools/
$(MODULES:%=lint-%): lint-%: $(LINT)
	cd $* && GOLANGCI_LINT_CACHE=$(CURDIR)/.cache/lint $(LINT) run --allow-serial-runners ./...
$(LINT):
	@echo "building golangci-lint $(LINT_VERSION) (a few minutes, once)"
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

.PHONY: code-lines
code-lines: ## code lines per backend and package of relaycore; fails above tools/codelines/ceilings.txt
	@cd tools && go run ./codelines ..

.PHONY: words words-lower
words: ## the language of docs, comments, errors and logs; fails above tools/words/ceilings.txt
	@cd tools && go run ./words ..
words-lower:
	@cd tools && go run ./words -lower ..

.PHONY: workflows
workflows: $(ACTIONLINT) ## actionlint on .github/workflows; each runs make targets and nothing else
	@$(ACTIONLINT) -shellcheck= -pyflakes=
	@! grep -nE '^ *(- )?run: ' .github/workflows/*.yml | grep -vE 'run: make [^;&|]*$$'

# A tag can be moved to another image.
.PHONY: bases
bases: ## the image is FROM scratch, and what compiles it is given by digest
	@! grep -n '^FROM ' Dockerfile | grep -vE '^[0-9]+:FROM (scratch$$|[^ ]+ [^ ]+@sha256:[0-9a-f]{64} AS )'
	@test "$$(grep '^FROM ' Dockerfile | tail -n 1)" = 'FROM scratch'
$(ACTIONLINT):
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)

.PHONY: vulnerabilities
vulnerabilities: $(VULNCHECK) ## go mod verify and govulncheck in every module, where their data can be reached
	for m in $(MODULES); do (cd $$m && GOWORK=off go mod verify >/dev/null) || exit 1; done
	scripts/vulnerabilities.sh $(VULNCHECK) $(MODULES)
$(VULNCHECK):
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install golang.org/x/vuln/cmd/govulncheck@$(VULNCHECK_VERSION)

.PHONY: licenses
licenses: $(LICENSES) ## the licences of all dependencies are permissive, and docs/licenses.md lists them
	cd relay-all && GOWORK=off $(LICENSES) check ./... --ignore github.com/grove/pgtrickle-relay \
		--allowed_licenses=Apache-2.0,MIT,BSD-2-Clause,BSD-3-Clause,ISC 2>/dev/null
	cd relay-all && GOWORK=off $(LICENSES) report ./... --template ../tools/licenses.tpl 2>/dev/null >../docs/licenses.md
	git diff --exit-code docs/licenses.md
$(LICENSES):
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/google/go-licenses@$(LICENSES_VERSION)

.PHONY: secrets
secrets: $(GITLEAKS) ## gitleaks on the history
	$(GITLEAKS) git --no-banner --redact .
$(GITLEAKS):
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/zricethezav/gitleaks/v8@$(GITLEAKS_VERSION)

.PHONY: reproducible
reproducible: ## two builds in different folders, without a shared cache, are the same
	scripts/reproducible.sh relay-nats

.PHONY: commits
commits: ## the messages of new commits: subject, length, body
	@scripts/commits.sh

.PHONY: images
images: build ## one FROM scratch image a binary
	deploy/images.sh
	deploy/sizes.sh

.PHONY: tidy
tidy: ## go mod tidy in every module
	for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy); done

.PHONY: generate
generate: ## what SQL and docs know of the backends, from their Go structs
	scripts/generate.sh

GORELEASER := $(CURDIR)/.cache/bin/goreleaser
GORELEASER_VERSION := v2.16.0
SYFT := $(CURDIR)/.cache/bin/syft
SYFT_VERSION := v1.57.1
$(GORELEASER):
	@echo "building goreleaser $(GORELEASER_VERSION) (a few minutes, once)"
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/goreleaser/goreleaser/v2@$(GORELEASER_VERSION)
$(SYFT):
	@echo "building syft $(SYFT_VERSION) (a few minutes, once)"
	GOFLAGS= GOWORK=off GOBIN=$(dir $@) go install github.com/anchore/syft/cmd/syft@$(SYFT_VERSION)

.PHONY: release-dry
release-dry: ## release into a bare repository, and go install from an empty directory
	scripts/release-dry.sh

# A heavy build: the release workflow runs it, .ci/run does not.
.PHONY: artifacts artifacts-dry
artifacts: $(GORELEASER) $(SYFT) ## archives, checksums and SBOMs of the tag at HEAD, published; then images for two platforms
	PATH=$(dir $(SYFT)):$$PATH $(GORELEASER) release --clean
	PUSH=1 VERSION=$$(git describe --tags --exact-match --match 'v*') deploy/images.sh
artifacts-dry: $(GORELEASER) $(SYFT) ## the same, nothing published
	PATH=$(dir $(SYFT)):$$PATH $(GORELEASER) release --snapshot --clean

.PHONY: release
release: ## tags for vX.Y.Z: make release V=v1.2.3
	scripts/release.sh $(V)

.PHONY: picture picture-check figures
picture: ## draw the packages into docs/architecture.md
	@cd tools && go run ./picture ..
picture-check:
	@cd tools && go run ./picture -check ..
figures: ## sizes per package and backend as a table; BEFORE=../old compares
	@cd tools && go run ./figures $(if $(BEFORE),$(abspath $(BEFORE))) ..
