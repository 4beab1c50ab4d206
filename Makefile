# Short names for what cargo and scripts/ do; CONTRIBUTING.md says more.
export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: build setup setup-cuda demo test lint fuzz bench clean

# The optimised program.
build: setup
	cargo build --release -p circuitlab-cli

# Finds or fetches libtorch; keeps the one that this tree uses already.
setup:
	scripts/setup

setup-cuda:
	scripts/setup cuda

# The whole pipeline on the bundled model and text.
demo: build
	"$(CARGO_TARGET_DIR)/release/circuitlab" demo

# Everything that CI checks.
test: setup
	scripts/test

lint: setup
	scripts/test lint

# Each fuzz target for a minute, or FUZZ_SECONDS.
fuzz: setup
	scripts/fuzz

# The training step against dense PyTorch; BENCH takes flags, such as BENCH='--quick --threads 2'.
bench: build
	scripts/bench-step $(BENCH)

clean:
	cargo clean
