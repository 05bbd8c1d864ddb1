"""The sparse operators against torch, checked and timed: `python -m benchmarks.kernels`.

Sizes are those of SDXL at 512x1024 with guidance, the mask is the published inpainting rectangle.
Every operator of the triton backend is compared with a float64 result, and timed beside the dense
operator that it replaces. The floor of a row is the larger of its bytes over the memory bandwidth
and its operations over the matrix rate, both measured on the spot by a copy and a matrix product.
Times are medians over several sets of weights in turn, so that no set lies in the cache.

Needs a GPU and triton. With `--quick` everything is small, and runs on a CPU in Triton's
interpreter: a test of this program, whose times say nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import RESULTS, commit, machine, write_figures
from benchmarks.timing import LIMITS, Bench, relative_error
from sgm import runtime
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.inference.presets import FAST
from sgm.sparse.active import CONV3X3, ActiveSet, block_active_set
from sgm.sparse.backends.torch_ref import Prologue, TorchOps
from sgm.sparse.masks import Resolution, inpainting_pyramid
from sgm.sparse.norm import Affine, Moments, RecordedRows
from sgm.sparse.ops import select_ops
from sgm.sparse.pixels import PIXELS, PixelGeometry

BATCH = 2
RECTANGLE = (280, 470, 590, 910)  # rows, columns of 512x1024
# Latent map, channels in and out: the convolutions with most of the work.
SHAPES = [
    ((64, 128), 320, 320),
    ((32, 64), 640, 640),
    ((16, 32), 1280, 1280),
    ((16, 32), 2560, 1280),
]
QUICK_SHAPES = [((8, 16), 20, 24)]
HEAD = 64  # width of an attention head
TEXT = 77  # tokens


def triton_variants(quick: bool) -> dict[str, TorchOps]:
    """The backend as it chooses, and each number of parts forced."""
    from sgm.sparse.backends.triton_ops import TritonOps

    splits = () if quick else (1, 2, 4, 8)
    return {"auto": TritonOps()} | {f"split {split}": TritonOps(split) for split in splits}


def bench_conv(bench: Bench, active: ActiveSet, size: Resolution, channels: int, wide: int) -> None:
    """A 3x3 `conv` of a short map with bias, time embedding and residual, against torch and
    dense."""
    x = bench.draw(BATCH, active.in_size[0], channels)
    residual, embedding = bench.draw(BATCH, active.count, wide), bench.draw(BATCH, wide)
    weights = [
        (bench.draw(wide, channels, 3, 3) / (9 * channels) ** 0.5).to(
            memory_format=torch.channels_last
        )
        for _ in range(bench.copies)
    ]
    bias = bench.draw(wide)

    def conv(ops: TorchOps, copy: int) -> Tensor:
        terms = {"embedding": embedding, "residual": residual}
        return ops.conv(x, active, weights[copy], bias, **terms)

    terms = {"embedding": embedding.double(), "residual": residual.double()}
    exact = TorchOps().conv(x.double(), active, weights[0].double(), bias.double(), **terms)
    backends = triton_variants(bench.quick) | {"torch": TorchOps()}
    backends["auto"].prepare(lambda: [conv(ops, 0) for ops in backends.values()])
    errors = [relative_error(conv(ops, 0), exact) for ops in backends.values()]
    times = {name: bench.time(lambda c, o=ops: conv(o, c)) for name, ops in backends.items()}
    whole = bench.draw(BATCH, channels, *size).to(memory_format=torch.channels_last)
    times["dense conv alone"] = bench.time(lambda c: F.conv2d(whole, weights[c], bias, padding=1))
    elements = x.numel() + 2 * residual.numel() + weights[0].numel()
    operations = 2 * BATCH * active.count * weights[0].numel()
    name = f"conv 3x3 {channels}->{wide} {active.count} of {size[0] * size[1]}"
    bench.add(name, times, elements, operations, max(errors, key=lambda e: (e != e, e)))


def bench_blocks(bench: Bench, active: ActiveSet, channels: int) -> None:
    """A 3x3 `conv_scatter` of preset `published` with norm, activation, bias and residual."""
    pixels = active.in_size[0] * active.in_size[1]
    x, base, residual = (bench.draw(BATCH, pixels, channels) for _ in range(3))
    weights = [
        (bench.draw(channels, channels, 3, 3) / (9 * channels) ** 0.5).to(
            memory_format=torch.channels_last
        )
        for _ in range(bench.copies)
    ]
    bias, affine = bench.draw(channels), Affine(*torch.randn(2, BATCH, channels).to(bench.device))

    def put(ops: TorchOps, copy: int, dtype: torch.dtype, in_place: bool) -> Tensor:
        tensors = (t.to(dtype) for t in (x, weights[copy], bias, base, residual))
        x_, weight, bias_, base_, residual_ = tensors
        terms = (Prologue(affine, silu=True), base_, residual_)
        return ops.conv_scatter(x_, active, weight, bias_, *terms, in_place=in_place)

    backends = {"triton": select_ops("triton", bench.device), "torch": TorchOps()}
    exact = put(TorchOps(), 0, torch.float64, False)
    error = relative_error(put(backends["triton"], 0, bench.dtype, False), exact)
    times = {
        name: bench.time(lambda c, o=ops: put(o, c, bench.dtype, True))
        for name, ops in backends.items()
    }
    elements = BATCH * channels * (len(active.support) + 2 * active.count) + weights[0].numel()
    operations = 2 * BATCH * active.count * weights[0].numel()
    name = f"conv_scatter 3x3 {channels} {active.count} of {pixels}"
    bench.add(name, times, elements, operations, error)


def bench_norms(bench: Bench, active: ActiveSet, around: int, pixels: int, channels: int) -> None:
    """Group norm with SiLU into a short map, and layer norm of a sum."""
    rows, others = bench.draw(BATCH, active.count, channels), bench.draw(BATCH, around, channels)
    moments = Moments(*torch.rand(2, BATCH, channels).to(bench.device))
    recorded = RecordedRows(moments, pixels, bench.draw(*rows.shape), others)
    wide = RecordedRows(moments, pixels, recorded.rows.double(), others.double())
    norm = nn.GroupNorm(4 if bench.quick else 32, channels).to(bench.device, bench.dtype)
    layer = nn.LayerNorm(channels).to(bench.device, bench.dtype)
    backends = {"triton": select_ops("triton", bench.device), "torch": TorchOps()}
    exact = TorchOps().group_norm(rows.double(), active, wide, norm, silu=True)
    out = backends["triton"].group_norm(rows, active, recorded, norm, silu=True)
    times = {
        name: bench.time(lambda c, o=ops: o.group_norm(rows, active, recorded, norm, silu=True))
        for name, ops in backends.items()
    }
    moved = 3 * rows.numel() + 2 * others.numel()
    where = f"{channels} {active.count} of {pixels}"
    bench.add(f"group_norm {where}", times, moved, 0.0, relative_error(out, exact))
    added = recorded.rows
    total, out = backends["triton"].layer_norm(rows, added, layer)
    exact = F.layer_norm(total.double(), (channels,), eps=layer.eps)
    times = {
        name: bench.time(lambda c, o=ops: o.layer_norm(rows, added, layer))
        for name, ops in backends.items()
    }
    bench.add(f"layer_norm {where}", times, 4 * rows.numel(), 0.0, relative_error(out, exact))


def bench_gated(bench: Bench, rows: int, channels: int) -> None:
    """The gated layer of a transformer block, fused and as two operators."""
    wide = 4 * channels
    weights = [bench.draw(2 * wide, channels) / channels**0.5 for _ in range(bench.copies)]
    x, bias = bench.draw(BATCH, rows, channels), bench.draw(2 * wide)
    backends = {"triton": select_ops("triton", bench.device), "torch": TorchOps()}
    exact = TorchOps().gated(x.double(), weights[0].double(), bias.double())
    out = backends["triton"].gated(x, weights[0], bias)
    times = {
        name: bench.time(lambda c, o=ops: o.gated(x, weights[c], bias))
        for name, ops in backends.items()
    }
    elements = x.numel() + weights[0].numel() + BATCH * rows * wide
    operations = 2 * BATCH * rows * weights[0].numel()
    bench.add(f"gated {channels} {rows}", times, elements, operations, relative_error(out, exact))


def bench_rows(bench: Bench, active: ActiveSet, channels: int) -> None:
    """Gather with prologue, and scatter with residual, of the transformer's rows."""
    pixels = active.in_size[0] * active.in_size[1]
    maps = [bench.draw(BATCH, pixels, channels) for _ in range(bench.copies)]
    residual, rows = bench.draw(*maps[0].shape), bench.draw(BATCH, active.count, channels)
    affine = Affine(*torch.randn(2, BATCH, channels, device=bench.device))
    exact = Prologue(Affine(affine.scale.double(), affine.shift.double()))
    backends = {"triton": select_ops("triton", bench.device), "torch": TorchOps()}
    moved = BATCH * active.count * channels
    right = TorchOps().gather(maps[0].double(), active, exact)
    out = backends["triton"].gather(maps[0], active, Prologue(affine))
    times = {
        name: bench.time(lambda c, ops=ops: ops.gather(maps[c], active, Prologue(affine)))
        for name, ops in backends.items()
    }
    where = f"{channels} {active.count} of {pixels}"
    bench.add(f"gather {where}", times, 2 * moved, 3 * moved, relative_error(out, right))
    right = TorchOps().scatter(maps[0].double(), active, rows.double(), residual.double())
    out = backends["triton"].scatter(maps[0], active, rows, residual)
    error = relative_error(out, right)
    times = {
        name: bench.time(
            lambda c, ops=ops: ops.scatter(maps[c], active, rows, residual, in_place=True)
        )
        for name, ops in backends.items()
    }
    bench.add(f"scatter {where}", times, 3 * moved, moved, error)


def bench_attention(bench: Bench, pixels: int, queries: int, channels: int) -> None:
    """Attention from the active pixels to all pixels, whose keys and values lie side by side, and
    to a text; and to all pixels from all."""
    heads = max(1, channels // HEAD)
    backends = {"triton": select_ops("triton", bench.device), "torch": TorchOps()}
    q, whole = bench.draw(BATCH, queries, channels), bench.draw(BATCH, pixels, channels)
    for kind, keys in (("self", pixels), ("cross", TEXT)):
        pairs = [
            bench.draw(BATCH, keys, 2 * channels).chunk(2, dim=-1) for _ in range(bench.copies)
        ]
        exact = TorchOps().attention(q.double(), *(t.double() for t in pairs[0]), heads)
        backends["triton"].prepare(lambda p=pairs: backends["triton"].attention(q, *p[0], heads))
        out = backends["triton"].attention(q, *pairs[0], heads)
        times = {
            name: bench.time(lambda c, o=ops, p=pairs: o.attention(q, *p[c], heads))
            for name, ops in backends.items()
        }
        if kind == "self":
            all_pairs = [(whole, *pair) for pair in pairs]
            times["all queries"] = bench.time(
                lambda c, p=all_pairs: TorchOps().attention(*p[c], heads)
            )
        elements = 2 * BATCH * channels * (keys + queries)
        operations = 4 * BATCH * channels * keys * queries
        name = f"attention {kind} {channels} {queries} to {keys}"
        bench.add(name, times, elements, operations, relative_error(out, exact))


def bench_all(bench: Bench, sizes: Iterable[tuple[Resolution, int, int]]) -> None:
    """Every operator at every size; the mask is the published rectangle."""
    top, bottom, left, right = RECTANGLE
    mask = torch.zeros(512, 1024, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    mask = mask[::8, ::8] if bench.quick else mask
    masks, published = FAST.inpainting(mask), inpainting_pyramid(mask)
    for size, channels, wide in sizes:
        pixels = size[0] * size[1]
        active = PIXELS.active_set(masks, size).resolve().to(bench.device)
        conv = PixelGeometry(3, padding=1, padding_end=1).active_set(masks, size)
        around = conv.in_size[0] - active.count
        bench_conv(bench, conv.resolve().to(bench.device), size, channels, wide)
        bench_norms(bench, active, around, pixels, channels)
        if channels == wide or bench.quick:
            blocks = block_active_set(published[size], CONV3X3).resolve()
            bench_blocks(bench, blocks.to(bench.device), channels)
            bench_gated(bench, active.count, channels)
            bench_rows(bench, active, wide)
            bench_attention(bench, pixels, active.count, wide)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.kernels", description="Check and time the sparse operators on a GPU."
    )
    parser.add_argument("--quick", action="store_true", help="tiny, in Triton's interpreter")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels.json", help="figures")
    return parser


def main() -> int:
    """Run all checks; 1 if an operator is wrong."""
    options = build_parser().parse_args()
    if options.quick and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        select_ops("triton", device)
    except ValueError as error:
        raise UserError(f"{error} Run this on a machine with a GPU, or with --quick.") from error
    rows: list[dict[str, object]] = []
    ceilings = {}
    for dtype in (torch.float32,) if options.quick else LIMITS:
        torch.manual_seed(0)
        with torch.inference_mode():
            bench = Bench(device, dtype, options.quick)
            bench_all(bench, QUICK_SHAPES if options.quick else SHAPES)
        rows += bench.rows
        ceilings[str(dtype)] = vars(bench.ceilings)
    figures = {
        "device": runtime.describe_device(device),
        "machine": machine(),
        "versions": runtime.versions(),
        "commit": commit(),
        "quick": options.quick,
        "ceilings": ceilings,
        "rows": rows,
    }
    write_figures(options.output, figures)
    wrong = [str(row["operator"]) for row in rows if row["right"] is False]
    print(f"{len(rows)} rows, wrong: {', '.join(wrong) or 'none'}; {options.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    start("benchmarks.kernels", main)
