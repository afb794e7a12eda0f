#!/usr/bin/env bash
# Check doorward in front of real model servers:  tests/peers/run.sh [SERVER...] [-- OPTIONS OF matrix.py]
#   tests/peers/run.sh                          mlserver, kserve and triton
#   tests/peers/run.sh triton -- --rows 500 --forms grpc,stream
# Servers come from $DOORWARD_DATA/peers/run.sh (default ../shared), which makes their virtual
# environments on first use; doorward from target/release. All of it listens on loopback only.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
peers=${DOORWARD_DATA:-$root/../shared}/peers/run.sh
home=${PEERS_HOME:-$HOME/.cache/peers}

servers=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do servers+=("$1"); shift; done
if [ $# -gt 0 ]; then shift; fi
if [ ${#servers[@]} -eq 0 ]; then servers=(mlserver kserve triton); fi

running=
finish() { if [ -n "$running" ]; then "$peers" stop "$running" || true; running=; fi; }
kept=$(mktemp -d)  # calibrated once for all servers
trap 'finish; rm -rf "$kept"' EXIT

failed=()
for server in "${servers[@]}"; do
  case $server in
    mlserver) upstream=127.0.0.1:18080 grpc=127.0.0.1:18081 ;;
    kserve) upstream=127.0.0.1:18180 grpc=127.0.0.1:18181 ;;
    triton) upstream=127.0.0.1:18280 grpc=127.0.0.1:18281 ;;
    *) echo "unknown server $server: mlserver, kserve or triton" >&2; exit 2 ;;
  esac
  if curl -m 1 -s -o /dev/null "$upstream"; then echo "something listens on $upstream already" >&2; exit 2; fi
  running=$server
  "$peers" start "$server" "$root/assets/fashion-mnist/model.onnx"
  "$home/$server/bin/python" "$root/tests/peers/matrix.py" --server "$server" --upstream "$upstream" \
    --grpc-upstream "$grpc" --artifact "$kept/doorward.safetensors" "$@" || failed+=("$server")
  finish
done
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}" >&2; exit 1; fi
