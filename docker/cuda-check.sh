#!/usr/bin/env bash
# Checks that `--features cuda` compiles, with neither a toolkit nor a device on the machine: nvcc and the libraries come as
# Python wheels, 1.1 GB in a cache folder. The kernels of candle take some ten minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.2.2
cache=${DOORWARD_CUDA_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/doorward/cuda-$version}
toolkit=$cache/nvidia/cu13

if [ ! -x "$toolkit/bin/nvcc" ]; then
  python3 -m pip install --quiet --target "$cache" \
    "cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,crt,nvvm]==$version"
fi

# Build scripts and linkers look for names that the wheels leave away.
for name in cudart cublas cublasLt curand nvrtc; do
  libraries=("$toolkit/lib/lib$name.so."[0-9]*)
  ln -sf "$(basename "${libraries[0]}")" "$toolkit/lib/lib$name.so"
done
ln -sfn lib "$toolkit/lib64"

export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit
export PATH=$toolkit/bin:$PATH LIBRARY_PATH=$toolkit/lib LD_LIBRARY_PATH=$toolkit/lib
# What candle's kernels need at least; nvcc cannot ask a device.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

cargo check --release --features cuda --all-targets "$@"
