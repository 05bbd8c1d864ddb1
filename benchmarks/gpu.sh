#!/usr/bin/env bash
# Every timing that wants a GPU, for one that is at hand for minutes: bash benchmarks/gpu.sh
#   --pack  put wheels of all that is needed beside torch and triton into $PACKAGES; needs a network.
#           $FOR is the GPU machine's version of Python (3.12).
#   --dry   run the same programs, tiny, on the CPU
# Other words go to benchmarks.gpu (--parts, --output). Needs a Python with torch and triton; of the
# packed wheels those are used that it lacks, and nothing is downloaded. PYTHON names the interpreter.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
PACKAGES="${PACKAGES:-outputs/gpu_packages}"

if [ "${1:-}" = "--pack" ]; then
  rm -rf "$PACKAGES"
  mkdir -p "$PACKAGES"
  grep -v "^torch" requirements.txt > "$PACKAGES/requirements.txt"
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --dest "$PACKAGES" \
    --only-binary=:all: --implementation cp --python-version "${FOR:-3.12}" \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
    --requirement "$PACKAGES/requirements.txt"
  du -h "$PACKAGES"/*.whl
  exit
fi
# pip may be missing too, and a wheel of Python files or of libraries is an archive of them.
for wheel in "$PACKAGES"/*.whl; do
  name="${wheel##*/}"
  if [ -e "$wheel" ] && ! "$PYTHON" -c \
    "import importlib.metadata as m; m.version('${name%%-*}')" 2> /dev/null; then
    "$PYTHON" -m zipfile -e "$wheel" "$PACKAGES/unpacked"
  fi
done
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD:$PACKAGES/unpacked"
if [ "${1:-}" = "--dry" ]; then
  export TRITON_INTERPRET=1
else
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
