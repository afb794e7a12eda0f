#!/usr/bin/env bash
# Fuzzes one target: run.sh TARGET CORPUS [options of libFuzzer].
#   load      any bytes compile or give an error, and what compiles runs; from the golden models on
#   rest, grpc, picture
#             what passes is what was judged; from seeds.py, which needs Pillow ($PYTHON, default python3)
# What it finds new goes to the folder CORPUS, what crashes to tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${1:?load, rest, grpc or picture}
corpus=${2:?a folder for the corpus}
mkdir -p "$corpus"
case $target in
  load) seeds=$(printf '%s,' crates/doorward-engine/tests/golden/*.onnx) length=65536 ;;
  *)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "${PYTHON:-python3}" tests/fuzz/seeds.py "$folder"
    seeds=$(printf '%s,' "$folder/$target"/*) length=4096
    ;;
esac
toolchain=$(rustup toolchain list | grep -m 1 -o '^nightly[^ ]*')

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-/tmp/fuzz-target} \
  nice -n 19 rustup run "$toolchain" cargo fuzz run --fuzz-dir tests/fuzz "$target" "$corpus" -- \
  "-max_len=$length" -timeout=10 -rss_limit_mb=2048 "-seed_inputs=${seeds%,}" "${@:3}"
