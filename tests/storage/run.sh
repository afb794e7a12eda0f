#!/usr/bin/env bash
# Two sidecars share one artifact over a server that speaks S3 and checks signatures, and refuse one that somebody has put in its place.
# Needs Python with moto[server], which brings the server; $PYTHON is that Python, python3 unless set.
#   tests/storage/run.sh [PORT]     PORT is the storage's, 21500 unless given
set -euo pipefail
cd "$(dirname "$0")/../.."
port=${1:-21500}
python=${PYTHON:-python3}
work=$(mktemp -d)
children=()
finish() {
  for child in "${children[@]}"; do kill "$child" 2> /dev/null || true; done
  wait
  rm -rf "$work"
}
trap finish EXIT
cargo build --release

export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ALLOW_HTTP=true AWS_REGION=eu-central-1
# So many requests without a check: those that account.py sets up with. After them signatures and rights count.
INITIAL_NO_AUTH_ACTION_COUNT=7 "$python" -m moto.server -H 127.0.0.1 -p "$port" > "$work/moto.log" 2>&1 &
children+=($!)
until curl -s -o /dev/null "$AWS_ENDPOINT_URL/moto-api/"; do
  kill -0 "${children[0]}" || { cat "$work/moto.log"; exit 1; }
  sleep 0.2
done
"$python" tests/storage/account.py > "$work/account"
set -a
. "$work/account"
set +a

assets=$PWD/assets/fashion-mnist
settings() { # file, admin port, more
  cat > "$work/$1.toml" <<CONFIG
upstream.url = "http://127.0.0.1:1"
listen.http = "127.0.0.1:0"
admin.listen = "127.0.0.1:$2"
model.path = "$assets/model.onnx"
[calibration]
clean_images = ["$assets/fit.bin.gz", "$assets/holdout.bin.gz"]
artifact = "s3://models/fashion/doorward.safetensors"
fit_images = 60
$3
[perturbation]
steps = 10
CONFIG
}
doorward() { target/release/doorward "$@" 2> "$work/err" || { code=$?; cat "$work/err" >&2; return $code; }; }
digest() { python3 -c 'import json, sys; print(json.load(sys.stdin)["artifact_sha256"])'; }

settings calibrate 0 ""
first=$(doorward calibrate -c "$work/calibrate.toml" --json | digest)
echo "calibrated:       $first"
pin="artifact_sha256 = \"$first\""

serve() { # number, more; starts a sidecar
  settings "sidecar$1" $((port + $1)) "$2"
  target/release/doorward serve -c "$work/sidecar$1.toml" 2> "$work/sidecar$1.log" &
  children+=($!)
}
ready() { # number
  for _ in $(seq 300); do
    if curl -sf -o /dev/null "http://127.0.0.1:$((port + $1))/readyz"; then echo "sidecar $1:        ready"; return; fi
    kill -0 "${children[-1]}" || break
    sleep 0.1
  done
  cat "$work/sidecar$1.log"
  exit 1
}
refuses() { # number, words
  set +e
  timeout 60 target/release/doorward serve -c "$work/sidecar$1.toml" 2> "$work/sidecar$1.log"
  local code=$?
  set -e
  if [ $code -ne 1 ] || ! grep -qF "$2" "$work/sidecar$1.log"; then cat "$work/sidecar$1.log"; exit 1; fi
  echo "sidecar $1:        refuses: $(tail -1 "$work/sidecar$1.log")"
}
stop() { kill "${children[-1]}" "${children[-2]}"; wait "${children[-1]}" "${children[-2]}" || true; unset 'children[-1]' 'children[-1]'; }

serve 1 "$pin"; ready 1
serve 2 "$pin"; ready 2
stop

# Valid in itself, for the model and for the settings, but made by somebody who knows its perturbations.
"$python" tests/storage/account.py remove
second=$(doorward calibrate -c "$work/calibrate.toml" --json | digest)
echo "put in its place: $second"
refuses 1 "$second, expected calibration.artifact_sha256 $first"
refuses 2 "$second, expected calibration.artifact_sha256 $first"

"$python" tests/storage/account.py damage
for number in 1 2; do
  settings "sidecar$number" 0 ""
  refuses "$number" "is corrupted"
done

# A reader's credentials: it reads, and cannot write.
settings calibrate 0 ""
export AWS_ACCESS_KEY_ID=$READER_ID AWS_SECRET_ACCESS_KEY=$READER_SECRET
if target/release/doorward calibrate -c "$work/calibrate.toml" 2> "$work/err"; then echo "a reader has written"; exit 1; fi
grep -q "cannot write artifact s3://.*<Code>AccessDenied" <(tr -d '\n' < "$work/err") || { cat "$work/err"; exit 1; }
echo "reader:           cannot write"
export AWS_SECRET_ACCESS_KEY=wrong
refuses 1 "<Code>SignatureDoesNotMatch</Code>"
