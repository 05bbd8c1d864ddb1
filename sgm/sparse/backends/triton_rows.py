"""Triton kernels that read and write rows: gather with prologue, scatter with residual.

Both move each byte once and compute next to nothing: their floor is bytes over bandwidth.
Lists of pixels are int32, -1 where a pixel is outside. Offsets are int64, since a map of a large
picture has more elements than int32 counts.
"""

import triton
import triton.language as tl


@triton.jit
def through_prologue(
    values: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    channel: tl.tensor,
    channels: tl.tensor,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
) -> tl.tensor:
    """values [M, K] * scale + shift, then SiLU, in float32.

    Args:
        scale, shift: pointers to float32 of the sample's first channel; read if AFFINE.
        channel: [K], the channels of the values; those from `channels` on give 0.
    """
    out = values.to(tl.float32)
    if AFFINE:
        inside = channel < channels
        factor = tl.load(scale + channel, mask=inside, other=0.0)
        term = tl.load(shift + channel, mask=inside, other=0.0)
        out = out * factor[None, :] + term[None, :]
    if SILU:
        out = out * tl.sigmoid(out)
    return out


@triton.jit(do_not_specialize=("n",))
def gather_kernel(
    x: tl.tensor,
    index: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    channels: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """out[b, i] = prologue(x[b, index[i]]), 0 where the index is negative.

    Args:
        x: [B, P, C] with strides x_batch, x_row and 1.
        index: int32 [n].
        scale, shift: float32 [B, C].
        out: [B, n, C], contiguous.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    pixel = tl.load(index + row, mask=row < n, other=-1).to(tl.int64)
    inside = (channel < channels)[None, :]
    reads = (pixel >= 0)[:, None] & inside
    values = tl.load(
        x + batch * x_batch + pixel[:, None] * x_row + channel[None, :], mask=reads, other=0.0
    )
    first = batch * channels
    values = through_prologue(values, scale + first, shift + first, channel, channels, AFFINE, SILU)
    values = tl.where(reads, values, 0.0).to(out.dtype.element_ty)
    target = out + (batch * n + row[:, None]) * channels + channel[None, :]
    tl.store(target, values, mask=(row < n)[:, None] & inside)


@triton.jit(do_not_specialize=("n",))
def scatter_kernel(
    rows: tl.tensor,
    index: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    channels: tl.tensor,
    rows_batch: tl.tensor,
    rows_row: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """out[b, index[i]] = rows[b, i] (+ residual[b, index[i]]) where the index is not negative.

    Args:
        rows: [B, n, C] with strides rows_batch, rows_row and 1.
        index: int32 [n].
        residual: [B, P, C] with strides residual_batch, residual_row and 1.
        out: [B, P, C], contiguous, of out_batch = P * C elements a sample.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    pixel = tl.load(index + row, mask=row < n, other=-1).to(tl.int64)
    writes = (pixel >= 0)[:, None] & (channel < channels)[None, :]
    source = rows + batch * rows_batch + row.to(tl.int64)[:, None] * rows_row + channel[None, :]
    values = tl.load(source, mask=writes, other=0.0).to(tl.float32)
    place = pixel[:, None]
    if RESIDUAL:
        source = residual + batch * residual_batch + place * residual_row + channel[None, :]
        values += tl.load(source, mask=writes, other=0.0).to(tl.float32)
    target = out + batch * out_batch + place * channels + channel[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=writes)
