# The whole project in a few words. `make demo` and `make test` do all set-up themselves on a Debian or Ubuntu machine with Rust.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench overlap fuzz mutate dist

help:
	@echo "make setup   install what building needs: LLVM 22 and friends from the distribution (done by the others too)"
	@echo "make demo    compile a small Llama into one binary, train it on real text, generate from it"
	@echo "make test    formatting, lints and every test: what CI runs"
	@echo "make bench   time a training step beside PyTorch"
	@echo "make overlap measure how much of communication is hidden, over a limited link (as root)"
	@echo "make fuzz    random texts and graphs through everything, for MLC_FUZZ_MINUTES (10)"
	@echo "make mutate  change the rule tables in a thousand small ways; each must make a test fail"
	@echo "make dist    one tarball that builds specs on a machine without Rust or LLVM"

setup:
	@.ci/setup

demo: setup
	@examples/demo/run.sh

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@.ci/test

bench: setup
	@tests/bench/run.sh

overlap: setup
	cargo run --quiet -p mlc -- build tests/overlap/overlap.spec --target tests/overlap/limited.json -o target/overlap
	tests/overlap/measure.py target/overlap

fuzz: setup
	@tests/fuzz/run.sh

mutate: setup
	cargo run --quiet -p mlc-tests --no-default-features --bin mutate

dist: setup
	@.ci/dist
