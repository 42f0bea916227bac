# make, make help: what there is

PODPATH = target/release/podpath
DIFFERENTIAL_PACKETS = 1000000
DIFFERENTIAL_SEED = 1

.PHONY: help setup build demo test differential lint

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the build and the tests need and this machine lacks
	@scripts/setup.sh

build: setup ## Build everything, optimized, into target/release
	cargo build --release

demo: build ## Build, then show the main job on an example cluster
	$(PODPATH) demo

test: setup ## Run every test; as root also those in the kernel and on real namespaces
	@scripts/test.sh

differential: setup ## Run a million random packets through both engines, as root
	PODPATH_DIFFERENTIAL_PACKETS=$(DIFFERENTIAL_PACKETS) PODPATH_DIFFERENTIAL_SEED=$(DIFFERENTIAL_SEED) \
		cargo test -p podpath-testbed --test differential random -- --ignored --nocapture

lint: ## Check formatting and lints
	@scripts/lint.sh
