#!/usr/bin/env bash
# Random texts and graphs through everything, for a given time or until one fails.
#   MLC_FUZZ_MINUTES   how long in all; default 10
#   MLC_FUZZ_MESHES    how many specs run on random meshes, besides; default 10000
#   MLC_FUZZ_SEED      the first seed; default the time, so that every run is new
# A failing text or graph is made small, lies in tests/fuzz/failures/, and is printed with the command that runs it again. Texts with new
# outcomes join tests/fuzz/corpus/, from which the next run starts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
minutes=${MLC_FUZZ_MINUTES:-10}
seed=${MLC_FUZZ_SEED:-$(($(date +%s) * 1000))}
end=$(($(date +%s) + minutes * 60))
echo "fuzz: $minutes minutes from seed $seed"

echo "fuzz: nearly right texts through the front end"
MLC_FUZZ_SECONDS=$((minutes * 30)) MLC_FUZZ_SEED=$seed cargo test --quiet -p mlc-tests --test fuzz_front_end -- --nocapture

echo "fuzz: every pair of shardings of small tensors on small meshes"
MLC_FUZZ_RESHARDS=1 cargo test --quiet -p mlc --lib --no-default-features reshard_closes

echo "fuzz: ${MLC_FUZZ_MESHES:=10000} specs on random meshes beside one rank"
MLC_FUZZ_SEED=$seed MLC_FUZZ_SPECS=$MLC_FUZZ_MESHES cargo test --quiet -p mlc-tests --test random_specs -- sharded_is_one_rank --nocapture

per_batch=500
for ((first = seed; $(date +%s) < end; first += per_batch)); do
    echo "fuzz: graphs $first to $((first + per_batch - 1)) through every arithmetic and back end"
    MLC_FUZZ_SEED=$first MLC_FUZZ_GRAPHS=$per_batch cargo test --quiet -p mlc-tests --test random_graphs
    MLC_FUZZ_SEED=$first MLC_FUZZ_GRAPHS=$per_batch cargo test --quiet -p mlc-tests --test random_programs
    MLC_FUZZ_SEED=$first MLC_FUZZ_GRAPHS=$per_batch cargo test --quiet -p mlc-tests --test random_shardings
    echo "fuzz: specs $first to $((first + 99)) from text to trained parameters"
    MLC_FUZZ_SEED=$first MLC_FUZZ_SPECS=100 cargo test --quiet -p mlc-tests --test random_specs -- --skip resumed
done
echo "fuzz: no failure"
