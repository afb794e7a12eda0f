#!/usr/bin/env bash
# Looks at the status page and the inspection report in a real, headless Chromium: on a desktop, on a phone, in the dark. Checks what can be
# checked without eyes (nothing is wider than the screen, nothing is loaded from elsewhere, every picture is there, no error in the console)
# and leaves screenshots to look at. Needs Debian's chromium, and node for its debugging protocol.
#   tests/browser/run.sh FOLDER [STATUS_URL]     a running sidecar's page, or that of a demo that it starts
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/../.."
command -v chromium > /dev/null || { echo "chromium is not installed"; exit 1; }
work=$(mktemp -d)
demo=
finish() {
  if [ -n "$demo" ]; then kill "$demo" && wait "$demo" || true; fi
  rm -rf "$work"
}
trap finish EXIT
cargo build --release

status=${2:-}
if [ -z "$status" ]; then
  target/release/doorward demo --serve > "$work/demo.out" 2> "$work/demo.err" &
  demo=$!
  until grep -q "^status page" "$work/demo.err"; do
    kill -0 "$demo" || { cat "$work/demo.err"; exit 1; }
    sleep 1
  done
  status=$(sed -n 's#^status page *##p' "$work/demo.err")
fi

assets=$PWD/assets/fashion-mnist
cat > "$work/doorward.toml" <<CONFIG
upstream.url = "http://127.0.0.1:1"
model.path = "$assets/model.onnx"
[calibration]
clean_images = ["$assets/fit.bin.gz", "$assets/holdout.bin.gz"]
training_images = "$assets/training.bin.gz"
artifact = "$work/doorward.safetensors"
[inspection]
steps = 100
CONFIG
# Status 3: infected, as it should be.
target/release/doorward inspect -c "$work/doorward.toml" --report "$work" || [ $? -eq 3 ]
node tests/browser/look.mjs "$out" "$status" "file://$work/report.html"
