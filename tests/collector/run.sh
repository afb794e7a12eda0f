#!/usr/bin/env bash
# Spans at a real OpenTelemetry collector: what it got is what the sidecar says it sent, and names what the clients saw. $PYTHON (default
# python3) needs numpy and rotel, a collector from PyPI.
#   tests/collector/run.sh [PORT]      the first of five ports, 21600 unless given
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/collector/check.py "${1:-21600}"
