#!/usr/bin/env bash
# Every check and timing that wants a GPU, in one call: benchmarks/gpu.sh [--dry]
# Results go to $OUT (default: benchmarks/results). --dry runs all of it on the CPU with tiny shapes.
# A part that fails is named at the end, and does not stop the others. The published package is built
# into $SIGE (default: outputs/sige); pip reads PIP_NO_INDEX and PIP_FIND_LINKS, for a machine without
# network. DATA is the folder of the published pictures, if it is there.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
OUT="${OUT:-benchmarks/results}"
SIGE="${SIGE:-outputs/sige}"
data=()
[ -z "${DATA:-}" ] || data=(--data "$DATA")
mkdir -p "$OUT"
export PYTHONPATH="$SIGE${PYTHONPATH:+:$PYTHONPATH}"
failed=()

part() { # name, command...
  local name="$1"
  shift
  echo "== $name: $*"
  "$@" >"$OUT/$name.log" 2>&1 || failed+=("$name")
  tail -n 40 "$OUT/$name.log"
}

if [ "${1:-}" = "--dry" ]; then
  part dry_tables "$PYTHON" -m benchmarks.tables --quick --device cpu --networks unet \
    --tasks inpainting --models base --output "$OUT/dry_tables.json"
  part dry_edit "$PYTHON" -m benchmarks.edit --random_weights --steps 2 --edits 2 --refresh 1 \
    --H 64 --W 128 --device cpu --output "$OUT/dry_edit.json"
  part dry_rivals "$PYTHON" -m benchmarks.rivals --quick --device cpu --examples mask \
    --output "$OUT/dry_rivals.json"
  if "$PYTHON" -c "import torch, sige.cpu" 2>/dev/null; then
    part dry_published_sige "$PYTHON" -m benchmarks.published_sige --quick --device cpu \
      --output "$OUT/dry_published_sige.json"
  else
    echo "== dry_published_sige: left out, the package sige is not installed"
  fi
else
  nvidia-smi || exit 2
  part gpu_tests "$PYTHON" -m pytest -q tests/sparse tests/modules/test_fast_networks.py
  part gpu_kernels "$PYTHON" -m benchmarks.kernels --output "$OUT/gpu_kernels.json"
  part gpu_install_sige "$PYTHON" -m tools.install_sige --target "$SIGE"
  part gpu_published_sige "$PYTHON" -m benchmarks.published_sige --device cuda \
    --output "$OUT/gpu_published_sige.json"
  for precision in fp32 tf32 bf16; do
    part "gpu_tables_$precision" "$PYTHON" -m benchmarks.tables --device cuda \
      "${data[@]}" --precision "$precision" --output "$OUT/gpu_tables_$precision.json"
    part "gpu_rivals_$precision" "$PYTHON" -m benchmarks.rivals --device cuda \
      "${data[@]}" --precision "$precision" --output "$OUT/gpu_rivals_$precision.json"
    part "gpu_rivals_decoder_$precision" "$PYTHON" -m benchmarks.rivals --device cuda \
      "${data[@]}" --network decoder --precision "$precision" \
      --output "$OUT/gpu_rivals_decoder_$precision.json"
  done
  part gpu_tables_graphs "$PYTHON" -m benchmarks.tables --device cuda --precision bf16 --graphs \
    --networks unet --models base "${data[@]}" --output "$OUT/gpu_tables_graphs.json"
  part gpu_edit_tiny "$PYTHON" -m benchmarks.edit --device cuda --output "$OUT/gpu_edit_tiny.json"
  part gpu_edit_sdxl "$PYTHON" -m benchmarks.edit --device cuda --model sdxl --random_weights \
    --precision bf16 --steps 20 --output "$OUT/gpu_edit_sdxl.json"
fi

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
