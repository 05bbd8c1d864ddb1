"""The Triton backend: fused kernels on CUDA, the same kernels in Triton's interpreter on the CPU.

The interpreter (`TRITON_INTERPRET=1` before the first import of triton) is for tests: it runs one
program after the other in numpy.
"""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends import triton_conv, triton_rows
from sgm.sparse.backends.base import Prologue
from sgm.sparse.backends.triton_rows import BLOCK_CHANNELS, BLOCK_ROWS

INTERPRETED = triton.knobs.runtime.interpret
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Tiles of the convolution: outputs, channels, depth of a step, warps, steps loaded ahead. The
# loads of a step wait for its list of pixels, so fewer steps are ahead than named here.
HALF_TILES = (
    (64, 64, 64, 4, 6),
    (64, 128, 64, 4, 5),
    (128, 128, 64, 8, 5),
    (128, 256, 64, 8, 4),
)
FLOAT_TILES = ((64, 64, 32, 4, 4), (64, 128, 32, 4, 3), (128, 64, 16, 8, 4))
# The tile that the number of parts is worked out for, and the steps that make a part worth it.
SPLIT_TILE, MIN_STEPS, MAX_SPLIT = (64, 128, 64), 8, 8
# How often an activation may be evaluated anew before it is cheaper to store it once. An H200
# multiplies 4096 pairs in the time of 16 exponentials, and every tap and tile of 128 output
# channels would evaluate SiLU (one exponential, one reciprocal) again.
FUSE_UP_TO = 8


@functools.cache
def _tuned_conv(tiles: tuple[tuple[int, ...], ...]) -> object:
    """The convolution kernel with a choice of tiles; timed once per shape, dtype and prologue."""
    configs = [
        triton.Config({"BM": m, "BN": n, "BK": k}, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in tiles
    ]
    key = ["size_class", "in_channels", "out_channels", "TAPS", "split", "PRECISION"]
    timer = functools.partial(triton.testing.do_bench, warmup=5, rep=20)
    tune = triton.autotune(configs, key=[*key, "AFFINE", "SILU"], do_bench=timer)
    return tune(triton_conv.conv_kernel)


def _interpreted_tile(channels: int, out_channels: int) -> dict[str, int]:
    """Large tiles: the interpreter's time goes by the number of its steps."""

    def side(length: int) -> int:
        return min(128, max(16, triton.next_power_of_2(length)))

    return {"BM": 32, "BN": side(out_channels), "BK": side(channels)}


def _kernel_for(
    dtype: torch.dtype, channels: int, out_channels: int
) -> tuple[object, dict[str, int]]:
    """The convolution kernel, and what of its tile is not left to tuning."""
    if INTERPRETED:
        return triton_conv.conv_kernel, _interpreted_tile(channels, out_channels)
    return _tuned_conv(FLOAT_TILES if dtype == torch.float32 else HALF_TILES), {}


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _rows_of(x: Tensor) -> Tensor:
    """x [B, P, C] with its channels side by side, as the kernels read it."""
    if x.dtype not in DTYPES:
        raise TypeError(f"The triton backend computes in {DTYPES}, not in {x.dtype}.")
    return x if x.stride(2) == 1 else x.contiguous()


def _grid(n: int, channels: int, batch: int) -> tuple[int, int, int]:
    return triton.cdiv(n, BLOCK_ROWS), triton.cdiv(channels, BLOCK_CHANNELS), batch


class TritonOps:
    """See `SparseOps` for the contract of each operator.

    Args:
        fuse_up_to: a convolution evaluates its prologue as it loads if that makes at most so many
            evaluations an element; above, the activated rows are stored once and read back.
        split: parts of a convolution's long axis; None works it out from the card.
    """

    name = "triton"
    memory_format = torch.channels_last

    def __init__(self, fuse_up_to: int = FUSE_UP_TO, split: int | None = None) -> None:
        self.fuse_up_to = fuse_up_to
        self.split = split

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        return self._gather(x, active.outputs32, prologue)

    def _gather(self, x: Tensor, index: Tensor, prologue: Prologue) -> Tensor:
        """Rows [B, n, C] at `index`, int32 [n]; zeros where it is negative."""
        x = _rows_of(x)
        batch, _, channels = x.shape
        out = x.new_empty(batch, len(index), channels)
        scale, shift = _affine_of(prologue, x)
        if out.numel():
            with _on(x.device):
                triton_rows.gather_kernel[_grid(len(index), channels, batch)](
                    x,
                    index,
                    scale,
                    shift,
                    out,
                    len(index),
                    channels,
                    x.stride(0),
                    x.stride(1),
                    AFFINE=prologue.affine is not None,
                    SILU=prologue.silu,
                    BM=BLOCK_ROWS,
                    BC=BLOCK_CHANNELS,
                )
        return out

    def conv(
        self, x: Tensor, active: ActiveSet, weight: Tensor, bias: Tensor | None, prologue: Prologue
    ) -> Tensor:
        out = x.new_empty(len(x), active.count, len(weight))
        self._conv(x, active, weight, bias, prologue, out, None, None)
        return out

    def scatter(
        self,
        base: Tensor,
        active: ActiveSet,
        rows: Tensor,
        residual: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        rows = _rows_of(rows)
        out = _target(base, in_place)
        batch, n, channels = rows.shape
        added = rows if residual is None else _rows_of(residual)
        if rows.numel():
            with _on(rows.device):
                triton_rows.scatter_kernel[_grid(n, channels, batch)](
                    rows,
                    active.outputs32,
                    added,
                    out,
                    n,
                    channels,
                    rows.stride(0),
                    rows.stride(1),
                    added.stride(0),
                    added.stride(1),
                    out.stride(0),
                    RESIDUAL=residual is not None,
                    BM=BLOCK_ROWS,
                    BC=BLOCK_CHANNELS,
                )
        return out

    def conv_scatter(
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue,
        base: Tensor,
        residual: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        out = _target(base, in_place)
        self._conv(x, active, weight, bias, prologue, out, residual, active.outputs32)
        return out

    def _conv(
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue,
        out: Tensor,
        residual: Tensor | None,
        index: Tensor | None,
    ) -> None:
        """The convolution into `out`: at rows `index`, or row by row without one."""
        taps = weight[0, 0].numel()
        table = active.inputs32
        evaluations = taps * triton.cdiv(len(weight), SPLIT_TILE[1])
        activates = prologue.affine is not None or prologue.silu
        staged = activates and taps > 1 and evaluations > self.fuse_up_to
        if staged and active.support is not None:
            support, table = active.compact32
            x, prologue = self._gather(x, support, prologue), Prologue()
        if out.numel() and table.numel():
            with _on(x.device):
                self._launch(_rows_of(x), table, weight, bias, prologue, out, residual, index)

    def _launch(
        self,
        x: Tensor,
        table: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue,
        out: Tensor,
        residual: Tensor | None,
        index: Tensor | None,
    ) -> None:
        """One kernel, or two for a split product; `table` is int32 [taps, n]."""
        (batch, _, channels), (taps, n), wide = x.shape, table.shape, len(weight)
        scale, shift = _affine_of(prologue, x)
        split = self.split or _parts(x.device, batch, n, channels, wide, taps)
        partial = out
        if split > 1:
            partial = out.new_empty(split, batch, n, wide, dtype=torch.float32)
        added = out if residual is None else _rows_of(residual)
        ending = {
            "BIAS": bias is not None,
            "RESIDUAL": residual is not None,
            "INDEXED": index is not None,
        }
        # What a kernel does not read is never a null pointer: any tensor stands in.
        bias, index = out if bias is None else bias, table if index is None else index
        strides = (added.stride(0), added.stride(1), out.stride(0))
        kernel, fixed = _kernel_for(x.dtype, channels, wide)

        def grid(meta: dict[str, int]) -> tuple[int, int, int]:
            return batch * triton.cdiv(n, meta["BM"]), triton.cdiv(wide, meta["BN"]), split

        pointers = (x, table, _matrix(weight), scale, shift, bias, added, index, out, partial)
        sizes = (n, triton.next_power_of_2(n), split, channels, wide, x.stride(0), x.stride(1))
        kernel[grid](
            *pointers,
            *sizes,
            *strides,
            TAPS=taps,
            AFFINE=prologue.affine is not None,
            SILU=prologue.silu,
            **ending,
            PARTIAL=split > 1,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            WIDEN=INTERPRETED,
            **fixed,
        )
        if split > 1:
            tile = {"SPLIT": split, "BM": BLOCK_ROWS, "BC": BLOCK_CHANNELS}
            triton_conv.finish_kernel[_grid(n, wide, batch)](
                partial, bias, added, index, out, n, wide, *strides, **ending, **tile
            )


def _affine_of(prologue: Prologue, x: Tensor) -> tuple[Tensor, Tensor]:
    """scale and shift, contiguous float32 [B, C]; x stands in where there are none."""
    if prologue.affine is None:
        return x, x
    return prologue.affine.scale.contiguous(), prologue.affine.shift.contiguous()


def _matrix(weight: Tensor) -> Tensor:
    """weight [C_out, C_in, k, k] as [C_out, k * k, C_in]; no copy in channels-last memory."""
    return weight.permute(0, 2, 3, 1).contiguous()


def _target(base: Tensor, in_place: bool) -> Tensor:
    """Where a scatter writes: `base` if it may be and lies right, or a copy; contiguous."""
    if in_place and base.is_contiguous():
        return base
    return base.clone(memory_format=torch.contiguous_format)


def _parts(
    device: torch.device, batch: int, n: int, channels: int, out_channels: int, taps: int
) -> int:
    """Parts of the product's long axis, a power of two that fills the card about once."""
    rows, columns, depth = SPLIT_TILE
    tiles = batch * triton.cdiv(n, rows) * triton.cdiv(out_channels, columns)
    steps = taps * triton.cdiv(channels, depth)
    wanted = min(MAX_SPLIT, _multiprocessors(device) // tiles, steps // MIN_STEPS)
    return 1 << max(0, wanted.bit_length() - 1)
