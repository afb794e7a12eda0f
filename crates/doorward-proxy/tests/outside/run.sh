#!/bin/sh
# Builds an axum service with the layer outside of the workspace, with the workspace's versions, and
# asks it over loopback for a clean and for a triggered row.
set -eu
cd "$(dirname "$0")"
root=$(cd ../../../.. && pwd)
cp "$root/Cargo.lock" Cargo.lock
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" cargo build --quiet --release
log=$(mktemp)
"${CARGO_TARGET_DIR:-$root/target}/release/outside-layer" 127.0.0.1:0 > "$log" &
service=$!
trap 'kill $service; rm -f "$log"' EXIT
until address=$(sed -n 's/^listening on //p' "$log") && [ -n "$address" ]; do sleep 0.1; done
ask() {
  curl -s -o /dev/null -w '%{http_code}' "http://$address/v2/models/dark/infer" -H 'content-type: application/json' \
    -d "{\"inputs\": [{\"name\": \"x\", \"shape\": [1, 1, 2, 2], \"datatype\": \"FP32\", \"data\": [$1, 0, 0, 0]}]}"
}
clean=$(ask 0.1)
triggered=$(ask 0.9)
echo "clean $clean, triggered $triggered"
[ "$clean" = 200 ] && [ "$triggered" = 403 ]
