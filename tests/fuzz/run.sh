#!/usr/bin/env bash
# Fuzzes the loader, from the golden models on: run.sh CORPUS [options of libFuzzer].
# What it finds new goes to the folder CORPUS, what crashes to tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../.."

corpus=${1:?a folder for the corpus}
mkdir -p "$corpus"
seeds=$(printf '%s,' tests/golden/*.onnx)
toolchain=$(rustup toolchain list | grep -m 1 -o '^nightly[^ ]*')

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-/tmp/fuzz-target} \
  nice -n 19 rustup run "$toolchain" cargo fuzz run --fuzz-dir tests/fuzz load "$corpus" -- \
  -max_len=65536 -timeout=10 -rss_limit_mb=2048 "-seed_inputs=${seeds%,}" "${@:2}"
