#!/usr/bin/env bash
# What xz makes of the held-out text, in bits per byte, beside what the model made of it.
# usage: yardstick.sh TRAIN VAL EVAL_OUTPUT
set -euo pipefail
train=$1 val=$2 eval_output=$3
size() { xz -9 --stdout --threads=1 | wc -c; }
alone=$(size <"$val")
together=$(($(cat "$train" "$val" | size) - $(size <"$train")))
model=$(grep -oE '[0-9.]+ bits/byte' "$eval_output" | tail -1 | cut -d' ' -f1)
awk -v model="$model" -v bytes="$(wc -c <"$val")" -v alone="$alone" -v together="$together" 'BEGIN {
    alone = 8 * alone / bytes; together = 8 * together / bytes
    printf "model                                     %.3f bits per byte\n", model
    printf "xz -9 of the held-out text                %.3f bits per byte   model %s\n", alone, verdict(model, alone)
    printf "xz -9 that has read the training text     %.3f bits per byte   model %s\n", together, verdict(model, together)
}
function verdict(ours, theirs) {
    return sprintf(ours < theirs ? "better by %.1f %%" : "worse by %.1f %%", 100 * (ours < theirs ? 1 - ours / theirs : ours / theirs - 1))
}'
