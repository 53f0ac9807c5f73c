#!/usr/bin/env bash
# Random graphs through every arithmetic and backend, batch after batch, until interrupted or until one fails.
# A failing test names its seed: MLC_FUZZ_SEED=THAT MLC_FUZZ_GRAPHS=1 cargo test -p mlc-tests --test random_graphs runs it alone.
# MLC_FUZZ_SEED sets the first seed (default: the time, so that every run is new), MLC_FUZZ_BATCHES how many batches (default: no end).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seed=${MLC_FUZZ_SEED:-$(($(date +%s) * 1000))}
batches=${MLC_FUZZ_BATCHES:-0}
per_batch=2000
cargo test --quiet -p mlc-tests --test random_graphs --no-run
for ((i = 0; batches == 0 || i < batches; i++)); do
    first=$((seed + i * per_batch))
    echo "fuzz: graphs $first to $((first + per_batch - 1))"
    MLC_FUZZ_SEED=$first MLC_FUZZ_GRAPHS=$per_batch cargo test --quiet -p mlc-tests --test random_graphs
done
