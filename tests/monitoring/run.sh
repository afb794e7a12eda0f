#!/usr/bin/env bash
# Checks the metrics, the rules and the dashboard, and has a real Prometheus scrape a real run: every expression of the dashboard returns
# data, and the rejection alert stays quiet under clean traffic and fires under triggered traffic. Needs Debian's prometheus package.
#   tests/monitoring/run.sh [PORT]     PORT is Prometheus's, 21490 unless given
set -euo pipefail
cd "$(dirname "$0")/../.."
port=${1:-21490}
work=$(mktemp -d)
children=()
finish() {
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap finish EXIT

promtool check rules config/prometheus/rules.yaml
promtool test rules tests/monitoring/*_test.yaml
python3 tests/monitoring/dashboard.py rules config/grafana/doorward.json > "$work/dashboard.yaml"
promtool check rules "$work/dashboard.yaml"

cargo build --release
target/release/doorward demo --serve > "$work/demo.out" 2> "$work/demo.err" &
children+=($!)
demo=$!
until grep -q "^status page" "$work/demo.err"; do
  kill -0 "$demo" || { cat "$work/demo.err"; exit 1; }
  sleep 1
done
admin=$(sed -n 's#^status page *http://\(.*\)/status#\1#p' "$work/demo.err")
infer=$(grep -o 'http://[^ ]*/infer' "$work/demo.err" | head -1)
python3 tests/monitoring/dashboard.py get "http://$admin/metrics" | promtool check metrics
echo "metrics: clean"

cat > "$work/prometheus.yml" <<CONFIG
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: ["$PWD/config/prometheus/rules.yaml"]
scrape_configs:
  - job_name: doorward
    static_configs: [{targets: ["$admin"]}]
CONFIG
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$port" \
  > "$work/prometheus.log" 2>&1 &
children+=($!)

# The demo has sent its own traffic by now; what counts here is what comes after the first scrape.
echo "clean traffic:     $(python3 tests/monitoring/traffic.py "$infer" assets/fashion-mnist/clean.bin.gz 100)"
python3 tests/monitoring/dashboard.py quiet "http://127.0.0.1:$port" DoorwardRejectionSpike DoorwardDown DoorwardUnverifiedPassed
echo "triggered traffic: $(python3 tests/monitoring/traffic.py "$infer" assets/fashion-mnist/triggered.bin.gz 100)"
python3 tests/monitoring/dashboard.py fires "http://127.0.0.1:$port" DoorwardRejectionSpike
python3 tests/monitoring/dashboard.py data "http://127.0.0.1:$port" config/grafana/doorward.json
