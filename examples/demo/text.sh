#!/usr/bin/env bash
# Writes the demo's text: what the authors of our dependencies wrote in their doc comments. Every machine that has just built mlc
# holds it, and Cargo.lock fixes it to the byte.
# usage: text.sh DIR       writes DIR/train.txt and DIR/val.txt
#
# 1. Take each dependency once (its highest version), its .rs files in byte order of their paths.
# 2. Every 14th file is held out.
# 3. Keep doc comments without their markers, paragraph by paragraph, each where it first occurs, training text first: no paragraph of
#    the held-out text occurs in the training text.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu 2>"$work/errors" >"$work/metadata" ||
    { cat "$work/errors" >&2; exit 1; }
root=$PWD
grep -o '"manifest_path":"[^"]*/Cargo.toml"' "$work/metadata" | cut -d'"' -f4 | grep -vF "$root/" | sed 's|/Cargo.toml$||' |
    while read -r folder; do
        package=$(basename "$folder")
        # Interfaces of Linux and LLVM, and the tables of code generators: generated, or one example repeated for every method, hardly prose.
        case $package in linux-raw-sys-* | llvm-sys-* | mlir-sys-* | inkwell* | cranelift* | regalloc2-* | target-lexicon-* | wasmtime-* | gimli-* | object-* | bindgen* | clang-sys-* | windows*) continue ;; esac
        printf '%s %s %s\n' "$(sed 's/-[0-9][0-9.]*[0-9].*$//' <<<"$package")" "$package" "$folder"
    done | sort -k1,1 -k2,2Vr | sort -u -s -k1,1 >"$work/packages"

while read -r _ package folder; do
    (cd "$folder" && find . -name '*.rs' -type f) | sort | sed "s|^\./|$package/|; s|^|$(dirname "$folder")/|"
done <"$work/packages" >"$work/files"
awk 'NR % 14 != 7' "$work/files" >"$work/train"
awk 'NR % 14 == 7' "$work/files" >"$work/val"

# Prints the prose of the files named on standard input.
prose() {
    awk '{
            path = $0
            while ((getline line < path) > 0)
                if (sub(/^[ \t]*\/\/[\/!] ?/, "", line) && line != "") paragraph = paragraph line "\n"
                else finish()
            close(path)
            finish()
        }
        function finish() { if (paragraph != "" && !seen[paragraph]++) print paragraph; paragraph = "" }'
}
prose <"$work/train" >"$out/train.txt"
cat "$work/train" "$work/val" | prose | tail -c +"$(($(wc -c <"$out/train.txt") + 1))" >"$out/val.txt"
