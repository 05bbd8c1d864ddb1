"""The Triton backend: fused kernels on CUDA, the same kernels in Triton's interpreter on the CPU.

The interpreter (`TRITON_INTERPRET=1` before the first import of triton) is for tests: it runs one
program after the other in numpy.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends import triton_norm, triton_rows
from sgm.sparse.backends.torch_ref import PLAIN, Prologue, TorchOps
from sgm.sparse.backends.triton_compile import call, compile_step
from sgm.sparse.backends.triton_launch import grid, launch_conv, launch_group_norm, on, rows_of
from sgm.sparse.backends.triton_tiles import (
    BLOCK_CHANNELS,
    BLOCK_ROWS,
    INTERPRETED,
    attends,
    attention_for,
    cdiv,
    gated_for,
    next_power_of_2,
    precision,
)
from sgm.sparse.norm import RecordedRows


class TritonOps(TorchOps):
    """See `TorchOps` for the contract of each operator.

    Args:
        split: parts of a convolution's long axis; None works it out from the card.
    """

    name = "triton"
    memory_format = torch.channels_last

    def __init__(self, split: int | None = None) -> None:
        self.split = split

    def prepare(self, step: Callable[[], object]) -> None:
        if not INTERPRETED:
            compile_step(step)

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        return self._gather(x, active.outputs32, prologue)

    def _gather(self, x: Tensor, index: Tensor, prologue: Prologue) -> Tensor:
        """Rows [B, n, C] at `index`, int32 [n]; zeros where it is negative."""
        x = rows_of(x)
        batch, _, channels = x.shape
        out = x.new_empty(batch, len(index), channels)
        scale, shift = _affine_of(prologue, x)
        if out.numel():
            with on(x.device):
                call(triton_rows.gather_kernel, grid(len(index), channels, batch))(
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
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue = PLAIN,
        *,
        embedding: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if weight[0, 0].numel() == 1:
            terms = {"embedding": embedding, "residual": residual}
            return super().conv(x, active, weight, bias, prologue, **terms)
        out = x.new_empty(len(x), active.count, len(weight))
        self._conv(x, active, weight, bias, prologue, out, embedding, residual, None)
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
        rows = rows_of(rows)
        out = _target(base, in_place)
        batch, n, channels = rows.shape
        added = rows if residual is None else rows_of(residual)
        if rows.numel():
            with on(rows.device):
                call(triton_rows.scatter_kernel, grid(n, channels, batch))(
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
        if weight[0, 0].numel() == 1:
            arguments = (x, active, weight, bias, prologue, base, residual)
            return super().conv_scatter(*arguments, in_place=in_place)
        out = _target(base, in_place)
        self._conv(x, active, weight, bias, prologue, out, None, residual, active.outputs32)
        return out

    def _conv(
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue,
        out: Tensor,
        embedding: Tensor | None,
        residual: Tensor | None,
        index: Tensor | None,
    ) -> None:
        """The convolution into `out`: at rows `index`, or row by row without one.

        A prologue is stored beforehand: every tap and tile would evaluate it anew, and a card
        multiplies thousands of pairs in the time of one exponential.
        """
        table = active.inputs32
        if prologue.affine is not None or prologue.silu:
            if active.support is None:
                support = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
            else:
                support, table = active.compact32
            x = self._gather(x, support, prologue)
        if out.numel() and table.numel():
            with on(x.device):
                launch_conv(
                    rows_of(x), table, weight, bias, out, embedding, residual, index, self.split
                )

    def group_norm(
        self,
        rows: Tensor,
        active: ActiveSet,
        recorded: RecordedRows,
        norm: nn.GroupNorm,
        *,
        silu: bool = False,
    ) -> Tensor:
        around = 0 if recorded.around is None else recorded.around.shape[0 if recorded.whole else 1]
        out = rows.new_empty(len(rows), rows.shape[1] + around, rows.shape[2])
        if out.numel():
            with on(rows.device):
                launch_group_norm(rows_of(rows), active, recorded, norm, silu, out)
        return out

    def layer_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        x, added = rows_of(x).contiguous(), added.contiguous()
        total, out = torch.empty_like(x), torch.empty_like(x)
        rows, channels = x.shape[:-1].numel(), x.shape[-1]
        if out.numel():
            wide = next_power_of_2(channels)
            with on(x.device):
                call(triton_norm.layer_norm_kernel, (rows,))(
                    *(x, added, norm.weight, norm.bias, total, out, channels, norm.eps),
                    BC=wide,
                    num_warps=min(8, max(1, wide // 256)),
                )
        return total, out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        (batch, n, channels), keys = q.shape, k.shape[1]
        width = channels // heads
        if not (keys and attends(q.device, batch * heads, n, width)):
            return super().attention(q, k, v, heads)
        q, k, v = rows_of(q), rows_of(k), rows_of(v)
        out = q.new_empty(q.shape)
        kernel, fixed = attention_for(q.dtype)

        def tiles(meta: dict[str, int]) -> tuple[int, int, int]:
            return cdiv(n, meta["BM"]), heads, batch

        if out.numel():
            with on(q.device):
                call(kernel, tiles)(
                    *(q, k, v, out, n, keys, heads, next_power_of_2(n), next_power_of_2(keys)),
                    *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
                    math.log2(math.e) / width**0.5,
                    WIDTH=width,
                    PRECISION=precision(),
                    WIDEN=INTERPRETED,
                    **fixed,
                )
        return out

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        channels, wide = x.shape[-1], len(weight) // 2
        flat = rows_of(x).reshape(-1, channels)
        out = x.new_empty(*x.shape[:-1], wide)
        kernel, fixed = gated_for(x.dtype, channels, wide)

        def tiles(meta: dict[str, int]) -> tuple[int, int]:
            return cdiv(len(flat), meta["BM"]), cdiv(wide, meta["BN"])

        if out.numel():
            with on(x.device):
                call(kernel, tiles)(
                    *(flat, weight, bias, out, len(flat), next_power_of_2(len(flat))),
                    flat.stride(0),
                    C_IN=channels,
                    C_OUT=wide,
                    PRECISION=precision(),
                    WIDEN=INTERPRETED,
                    **fixed,
                )
        return out


def _affine_of(prologue: Prologue, x: Tensor) -> tuple[Tensor, Tensor]:
    """scale and shift, contiguous float32 [B, C]; x stands in where there are none."""
    if prologue.affine is None:
        return x, x
    return prologue.affine.scale.contiguous(), prologue.affine.shift.contiguous()


def _target(base: Tensor, in_place: bool) -> Tensor:
    """Where a scatter writes: `base` if it may be and lies right, or a copy; contiguous."""
    if in_place and base.is_contiguous():
        return base
    return base.clone(memory_format=torch.contiguous_format)
