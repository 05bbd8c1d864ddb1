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
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import RESULTS, commit, machine, write_figures
from sgm import runtime
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.checkpoint import build_model
from sgm.sparse.active import CONV1X1, CONV3X3, ActiveSet, Geometry, block_active_set
from sgm.sparse.backends.torch_ref import TorchOps
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.norm import Affine
from sgm.sparse.ops import Prologue, SparseOps, select_ops
from sgm.sparse.sparsify import sparsify

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
# Relative error ||out - exact|| / ||exact|| that an operator may have.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
COPIES = 4


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best: bytes and operations a second."""

    bandwidth: float
    rate: float

    def floor_ms(self, moved: float, operations: float) -> float:
        return 1e3 * max(moved / self.bandwidth, operations / self.rate)


def milliseconds(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a step; on CUDA as a graph, so that launching it costs nothing."""
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    import triton.testing

    step()  # compiles and tunes outside of the capture
    return float(triton.testing.do_bench_cudagraph(step, rep=20 * repeats, return_mode="median"))


def measure_ceilings(device: torch.device, dtype: torch.dtype, quick: bool) -> Ceilings:
    """A copy of 1 GB and a product of two 8192 x 8192 matrices; tiny ones when quick."""
    length, side, repeats = (2**20, 64, 1) if quick else (2**30, 8192, 5)
    source = torch.randint(0, 255, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device, repeats)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = milliseconds(lambda: a @ b, device, repeats)
    return Ceilings(2e3 * length / copy, 2e3 * side**3 / product)


class Bench:
    """Checks and times on one device in one dtype; every row goes to `rows` and to stdout."""

    def __init__(self, device: torch.device, dtype: torch.dtype, quick: bool) -> None:
        self.device, self.dtype, self.quick = device, dtype, quick
        self.repeats, self.copies = (1, 1) if quick else (5, COPIES)
        self.ceilings = measure_ceilings(device, dtype, quick)
        self.rows: list[dict[str, object]] = []

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def time(self, step: Callable[[int], object]) -> float:
        """Time of `step(copy)`, run for each copy in turn."""
        whole = milliseconds(
            lambda: [step(copy) for copy in range(self.copies)], self.device, self.repeats
        )
        return whole / self.copies

    def add(
        self,
        name: str,
        times: dict[str, float],
        elements: float,
        operations: float,
        error: float | None,
    ) -> None:
        """A row: times by variant, elements moved at least, multiply-adds twice."""
        moved = elements * torch.finfo(self.dtype).bits / 8
        floor, best = self.ceilings.floor_ms(moved, operations), min(times, key=times.__getitem__)
        limit = LIMITS[self.dtype]
        row = {
            "operator": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": moved,
            "operations": operations,
            "floor_ms": floor,
            "ms": times,
            "best": best,
            "achieved": floor / times[best],
            "error": error,
            "right": None if error is None else error <= limit,  # NaN is not
        }
        self.rows.append(row)
        listed = "  ".join(f"{variant} {ms:.4f}" for variant, ms in times.items())
        told = "" if error is None else f"  error {error:.1e}"
        print(f"{name:44} {row['dtype']:8} floor {floor:.4f}  {listed}{told}")


def relative_error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


def triton_variants() -> dict[str, SparseOps]:
    """The backend as it chooses, and each choice forced."""
    from sgm.sparse.backends.triton_ops import TritonOps

    variants: dict[str, SparseOps] = {"auto": TritonOps()}
    for split in (1, 2, 4, 8):
        variants[f"fused/{split}"] = TritonOps(fuse_up_to=10**6, split=split)
        variants[f"staged/{split}"] = TritonOps(fuse_up_to=0, split=split)
    return variants


def bench_conv(
    bench: Bench, active: ActiveSet, geometry: Geometry, channels: int, wide: int
) -> None:
    """`conv_scatter` with norm, activation, bias and residual against torch and dense."""
    pixels, kernel = active.in_size[0] * active.in_size[1], geometry.kernel
    x, base, residual = (bench.draw(BATCH, pixels, c) for c in (channels, wide, wide))
    size = (channels * kernel**2) ** 0.5
    weights = [
        (bench.draw(wide, channels, kernel, kernel) / size).to(memory_format=torch.channels_last)
        for _ in range(bench.copies)
    ]
    bias, affine = bench.draw(wide), Affine(*torch.randn(2, BATCH, channels, device=bench.device))
    prologue = Prologue(affine, silu=kernel > 1)
    exact_affine = Affine(affine.scale.double(), affine.shift.double())
    exact = TorchOps().conv_scatter(
        *(x.double(), active, weights[0].double(), bias.double()),
        *(Prologue(exact_affine, prologue.silu), base.double(), residual.double()),
    )
    times, errors = {}, []
    variants = triton_variants()
    for name, ops in ({"auto": variants["auto"]} if bench.quick else variants).items():
        out = ops.conv_scatter(x, active, weights[0], bias, prologue, base, residual)
        errors.append(relative_error(out, exact))
        target = base.clone()

        def step(copy: int, ops: SparseOps = ops, target: Tensor = target) -> Tensor:
            arguments = (x, active, weights[copy], bias, prologue, target, residual)
            return ops.conv_scatter(*arguments, in_place=True)

        times[name] = bench.time(step)
    whole = x.view(BATCH, *active.in_size, channels).permute(0, 3, 1, 2)
    rows = TorchOps()
    times["torch"] = bench.time(
        lambda c: rows.conv_scatter(x, active, weights[c], bias, prologue, base, residual)
    )
    times["dense conv alone"] = bench.time(
        lambda c: F.conv2d(whole, weights[c], bias, geometry.stride, geometry.padding)
    )
    read = len(active.support) if kernel > 1 else active.count
    elements = BATCH * (read * channels + 2 * active.count * wide) + weights[0].numel()
    operations = 2 * BATCH * active.count * weights[0].numel()
    name = f"conv {kernel}x{kernel} {channels}->{wide} {active.count} of {pixels}"
    bench.add(name, times, elements, operations, max(errors, key=lambda e: (e != e, e)))


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


def bench_attention(bench: Bench, active: ActiveSet, channels: int) -> None:
    """Scaled dot-product attention with queries at the active pixels and at all of them."""
    pixels, heads = active.in_size[0] * active.in_size[1], max(1, channels // HEAD)
    width = channels // heads
    k, v, q = (bench.draw(BATCH, heads, pixels, width) for _ in range(3))
    few = q[:, :, : active.count]
    times = {
        "active queries": bench.time(lambda c: F.scaled_dot_product_attention(few, k, v)),
        "all queries": bench.time(lambda c: F.scaled_dot_product_attention(q, k, v)),
    }
    elements = 2 * BATCH * channels * (pixels + active.count)
    operations = 4 * BATCH * channels * pixels * active.count
    name = f"attention {channels} {active.count} of {pixels}"
    bench.add(name, times, elements, operations, None)


def bench_step(bench: Bench, masks: MaskPyramid, latents: tuple[int, int]) -> None:
    """A UNet pass of preset `fast` on random weights: dense, sparse, and sparse as a graph."""
    name = "tiny-original.yaml" if bench.quick else "original.yaml"
    unet = build_model(Path(__file__).parents[1] / "configs" / name).model.diffusion_model
    unet = unet.to_empty(device=bench.device).to(bench.dtype)
    unet = unet.to(memory_format=torch.channels_last).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    state = sparsify(unet)
    x, text = bench.draw(BATCH, 4, *latents), bench.draw(BATCH, 77, unet.context_dim)
    x = x.to(memory_format=torch.channels_last)
    y = bench.draw(BATCH, unet.label_emb[0][0].in_features)
    when = torch.full((BATCH,), 500, device=bench.device)

    def step() -> Tensor:
        return unet(x, timesteps=when, context=text, y=y)

    def timed(repeats: int) -> float:
        """Median with launching, which is what a graph saves; `.cpu()` waits for the device."""
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            step().cpu()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    repeats = 1 if bench.quick else 20
    times, results = {}, []
    for variant in ("sparse", "sparse graph"):
        state.clear()
        state.ops = select_ops("auto", bench.device)
        if variant == "sparse graph":
            state.use_graphs()
        else:
            step()
            times["dense"] = timed(repeats)
        state.set_text(text)
        with state.recording(masks):
            step()
        with state.sparse(masks):
            results.append([step() for _ in range(3)][-1].double())
            times[variant] = timed(repeats)
    weights = sum(p.numel() for p in unet.parameters())
    bench.add("UNet step, preset fast", times, weights, 0.0, relative_error(*results))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.kernels", description="Check and time the sparse operators on a GPU."
    )
    parser.add_argument("--quick", action="store_true", help="tiny, in Triton's interpreter")
    parser.add_argument("--json", type=Path, default=RESULTS / "kernels.json", help="figures")
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
    top, bottom, left, right = RECTANGLE
    mask = torch.zeros(512, 1024, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    mask = mask[::8, ::8] if options.quick else mask
    masks = {size: m.to(device) for size, m in inpainting_pyramid(mask).items()}
    rows: list[dict[str, object]] = []
    ceilings = {}
    for dtype in (torch.float32,) if options.quick else LIMITS:
        torch.manual_seed(0)
        with torch.inference_mode():
            bench = Bench(device, dtype, options.quick)
            for size, channels, wide in QUICK_SHAPES if options.quick else SHAPES:
                for geometry in (CONV3X3, CONV1X1):
                    active = block_active_set(masks[size], geometry).resolve()
                    bench_conv(bench, active, geometry, channels, wide)
                bench_rows(bench, active, wide)
                bench_attention(bench, active, wide)
            if dtype == torch.bfloat16 or options.quick:
                bench_step(bench, masks, (16, 32) if options.quick else (64, 128))
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
    write_figures(options.json, figures)
    wrong = [str(row["operator"]) for row in rows if row["right"] is False]
    print(f"{len(rows)} rows, wrong: {', '.join(wrong) or 'none'}; {options.json}")
    return 1 if wrong else 0


if __name__ == "__main__":
    start("benchmarks.kernels", main)
