#!/usr/bin/env bash
# The demo, from a clean clone to a sample: builds mlc, writes the text, compiles a small Llama into one binary, trains it, measures it on
# held-out text beside xz, and generates. usage: run.sh, from anywhere; everything it makes lies in demo/ at the top of the checkout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
say() { printf '\n== %s\n' "$*"; }

say "building mlc (minutes the first time, seconds afterwards)"
cargo build --release --locked -p mlc
mlc=${CARGO_TARGET_DIR:-target}/release/mlc

say "collecting the text: doc comments of the libraries mlc is built from"
"$here/text.sh" demo
wc -c demo/train.txt demo/val.txt | head -2

say "mlc build examples/demo/demo.spec -o demo/llama"
time "$mlc" build examples/demo/demo.spec -o demo/llama
ls -l demo/llama | awk '{ printf "demo/llama: %.1f MB, ", $5 / 1e6 }'
file_kind=$(readelf -l demo/llama 2>/dev/null | grep -c INTERP || true)
[ "$file_kind" -eq 0 ] && echo "static: needs nothing where it runs" || echo "dynamic"

say "demo/llama train"
rm -rf demo/run
started=$(date +%s)
demo/llama train --data demo/train.txt --eval-data demo/val.txt --out demo/run
echo "trained in $(($(date +%s) - started)) s"

say "bits per byte on held-out text"
demo/llama eval --data demo/val.txt --out demo/run | tee demo/eval.txt
"$here/yardstick.sh" demo/train.txt demo/val.txt demo/eval.txt

say "demo/llama generate"
demo/llama generate --prompt "Returns the " --tokens 400 --out demo/run
