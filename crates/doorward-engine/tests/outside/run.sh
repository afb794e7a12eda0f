#!/bin/sh
# Builds and runs the program outside of the workspace on a golden model, with the workspace's versions.
set -eu
cd "$(dirname "$0")"
root=$(cd ../../../.. && pwd)
cp "$root/Cargo.lock" Cargo.lock
model=../golden/net-cnn6.onnx
output=$(CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" cargo run --quiet --release -- "$model")
echo "$output"
echo "$output" | grep -Eq '^label [0-9]+ of [0-9]+, logit -?[0-9.]+$'
echo "$output" | grep -Eq '^[1-9][0-9]* slopes, the steepest [0-9.e-]+$'
