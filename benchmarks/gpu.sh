#!/usr/bin/env bash
# Every timing that wants a GPU, for one that is at hand for minutes: benchmarks/gpu.sh
#   --pack  put the pure Python packages that a bare GPU machine lacks into $PACKAGES; needs a network
#   --dry   run the same programs, tiny, on the CPU
# Other words go to benchmarks.gpu (--parts, --output). Needs Python 3.10 or newer with torch and
# triton; nothing is downloaded. PYTHON names the interpreter.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
PACKAGES="${PACKAGES:-outputs/gpu_packages}"

if [ "${1:-}" = "--pack" ]; then
  # --no-deps: what they need besides is compiled, and comes with torch's own machines.
  exec "$PYTHON" -m pip install --no-deps --upgrade --target "$PACKAGES" \
    omegaconf antlr4-python3-runtime ftfy wcwidth einops open_clip_torch
fi
# After what the machine has of its own, which may be compiled for it.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD:$PACKAGES"
if [ "${1:-}" = "--dry" ]; then
  export TRITON_INTERPRET=1
else
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
