#!/usr/bin/env bash
# Times t2 in mlc and in PyTorch, interleaved in one run, and writes docs/benchmarks/cpu.md.
# PyTorch goes into .venv at the top of the checkout (some gigabytes, once); BENCH_PYTHON names another Python that has it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${BENCH_PYTHON:-.venv/bin/python}
if ! "$python" -c 'import torch, numpy, safetensors' 2>/dev/null; then
    if [ -n "${BENCH_PYTHON:-}" ]; then
        echo "bench: $python has no torch, numpy and safetensors" >&2
        exit 1
    fi
    if ! python3 -m venv .venv; then
        echo "bench: needs python3 with venv: apt-get install python3-venv" >&2
        exit 1
    fi
    .venv/bin/pip install --quiet torch numpy safetensors
fi
cargo build --release --locked -p mlc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
threads=${BENCH_THREADS:-$(nproc)}
"$python" tests/parity/inputs.py "$work" t2
"${CARGO_TARGET_DIR:-target}/release/mlc" build tests/models/t2/t2.spec -o "$work/t2"
mkdir -p docs/benchmarks
"$python" tests/bench/drive.py "$work/bench.json" docs/benchmarks/cpu.md \
    "mlc=$work/t2 bench --threads $threads --init $work/t2.safetensors --data records:$work/t2.bin" \
    "PyTorch eager=$python tests/bench/torch_worker.py eager $threads" \
    "PyTorch compiled=$python tests/bench/torch_worker.py compile $threads"
