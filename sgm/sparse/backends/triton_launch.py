"""How the larger Triton kernels are called: their grids, memory between them, and arguments."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends.triton_compile import call
from sgm.sparse.backends.triton_conv import finish_kernel
from sgm.sparse.backends.triton_norm import changes_kernel, group_norm_kernel
from sgm.sparse.backends.triton_tiles import (
    BLOCK_CHANNELS,
    BLOCK_ROWS,
    INTERPRETED,
    MAX_PARTS,
    NORM_CHANNELS,
    NORM_ROWS,
    PART_ROWS,
    cdiv,
    conv_for,
    next_power_of_2,
    precision,
    product_parts,
)
from sgm.sparse.norm import RecordedRows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def rows_of(x: Tensor) -> Tensor:
    """x [B, P, C] with its channels side by side, as the kernels read it."""
    if x.dtype not in DTYPES:
        raise TypeError(f"The triton backend computes in {DTYPES}, not in {x.dtype}.")
    return x if x.stride(-1) == 1 else x.contiguous()


def grid(n: int, channels: int, batch: int) -> tuple[int, int, int]:
    return cdiv(n, BLOCK_ROWS), cdiv(channels, BLOCK_CHANNELS), batch


def launch_conv(
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    embedding: Tensor | None,
    residual: Tensor | None,
    index: Tensor | None,
    split: int | None,
) -> None:
    """One kernel, or two for a split product; `table` is int32 [taps, n]."""
    (batch, _, channels), (taps, n), wide = x.shape, table.shape, len(weight)
    split = split or product_parts(x.device, batch * n, channels, wide, taps)
    partial = out
    if split > 1:
        partial = out.new_empty(split, batch * n, wide, dtype=torch.float32)
    ending = {
        "BIAS": bias is not None,
        "EMBEDDING": embedding is not None,
        "RESIDUAL": residual is not None,
        "INDEXED": index is not None,
    }
    # What a kernel does not read is never a null pointer: any tensor stands in.
    bias, index = out if bias is None else bias, table if index is None else index
    embedding = out if embedding is None else rows_of(embedding)
    added = out if residual is None else rows_of(residual)
    terms = (bias, embedding, added, index, out)
    strides = (embedding.stride(0), added.stride(0), added.stride(1), out.stride(0))
    kernel, fixed = conv_for(x.dtype, channels, wide)

    def tiles(meta: dict[str, int]) -> tuple[int, int, int]:
        return cdiv(batch * n, meta["BM"]), cdiv(wide, meta["BN"]), split

    sizes = (n, batch, next_power_of_2(batch * n), split, x.stride(0), x.stride(1))
    call(kernel, tiles)(
        *(x, table, _matrix(weight), *terms, partial, *sizes, *strides),
        TAPS=taps,
        C_IN=channels,
        C_OUT=wide,
        **ending,
        PARTIAL=split > 1,
        PRECISION=precision(),
        WIDEN=INTERPRETED,
        **fixed,
    )
    if split > 1:
        tile = {"SPLIT": split, "BM": BLOCK_ROWS, "BC": BLOCK_CHANNELS}
        rows, columns, _ = grid(batch * n, wide, 1)
        call(finish_kernel, (rows, columns))(
            *(partial, *terms, n, batch, *strides), C_OUT=wide, **ending, **tile
        )


def launch_group_norm(
    rows: Tensor,
    active: ActiveSet,
    recorded: RecordedRows,
    norm: nn.GroupNorm,
    silu: bool,
    out: Tensor,
) -> None:
    """The two kernels of `TorchOps.group_norm` into `out` [B, n + m, C]."""
    old = rows_of(recorded.rows)
    batch, n, channels = rows.shape
    total, around = out.shape[1], old if recorded.around is None else recorded.around
    # Of whole maps the rows around come from the map; else they are the tensor `around`.
    places, others = (around, old) if recorded.whole else (rows, rows_of(around))
    parts = max(1, min(MAX_PARTS, cdiv(n, PART_ROWS)))
    sums = rows.new_empty(parts, 2, batch, channels, dtype=torch.float32)
    size = channels // norm.num_groups
    lanes = next_power_of_2(size)
    groups = max(1, NORM_CHANNELS // lanes)
    strides = rows.stride()[:2]
    call(changes_kernel, (parts, cdiv(channels, BLOCK_CHANNELS), batch))(
        *(rows, old, active.outputs32, sums, n, channels),
        *(*strides, *old.stride()[:2]),
        WHOLE=recorded.whole,
        BM=PART_ROWS,
        BC=BLOCK_CHANNELS,
    )
    tiles = (cdiv(total, NORM_ROWS), cdiv(norm.num_groups, groups), batch)
    call(group_norm_kernel, tiles)(
        *(rows, others, places, sums, recorded.moments.mean, recorded.moments.square),
        *(norm.weight, norm.bias, out, n, total, channels, parts),
        *(1 / recorded.pixels, norm.eps),
        *(*strides, *others.stride()[:2]),
        WHOLE=recorded.whole,
        AROUND=recorded.around is not None,
        SILU=silu,
        GROUPS=groups,
        SIZE=size,
        LANES=lanes,
        PARTS=next_power_of_2(parts),
        BM=NORM_ROWS,
    )


def _matrix(weight: Tensor) -> Tensor:
    """weight [C_out, C_in, k, k] as [C_out, k * k, C_in]; no copy in channels-last memory."""
    return weight.permute(0, 2, 3, 1).contiguous()
