"""Triton kernels of the sparse convolution: an implicit matrix product over gathered rows.

Row i of the left matrix [n, k * k * C_in] is the neighbourhood of output i; it is never stored:
each step of the product loads one tap's rows of a tile of outputs through the neighbour table.
Prologue, bias, residual and the indexed write happen in registers.

Few outputs and many channels give too few tiles for a large card (384 rows and 1280 channels are
60 tiles of 64 x 128, for 132 multiprocessors). Then the product's long axis is split: each part
stores float32 sums, and `finish_kernel` adds them in a fixed order, so that results repeat.
"""

import triton
import triton.language as tl

from sgm.sparse.backends.triton_rows import through_prologue, write_rows


@triton.jit
def finish(
    sums: tl.tensor,
    row: tl.tensor,
    batch: tl.tensor,
    channel: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    index: tl.tensor,
    n: tl.tensor,
    channels: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
) -> None:
    """Bias, residual and write of a tile of sums, float32 [M, K].

    Args:
        index: int32 [n], the pixel each output is written to (negative: nowhere) if INDEXED;
            otherwise output i is row i.
    """
    if BIAS:
        term = tl.load(bias + channel, mask=channel < channels, other=0.0)
        sums += term.to(tl.float32)[None, :]
    if INDEXED:
        pixel = tl.load(index + row, mask=row < n, other=-1).to(tl.int64)
    else:
        pixel = tl.where(row < n, row, -1).to(tl.int64)
    writes = (pixel >= 0)[:, None] & (channel < channels)[None, :]
    write_rows(
        sums,
        pixel,
        writes,
        channel,
        residual + batch * residual_batch,
        residual_row,
        out + batch * out_batch,
        channels,
        RESIDUAL,
    )


@triton.jit
def conv_kernel(
    x: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    n: tl.tensor,
    size_class: tl.tensor,
    split: tl.tensor,
    in_channels: tl.tensor,
    out_channels: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    TAPS: tl.constexpr,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """A tile of BM outputs of one sample by BN channels; grid (B * tiles, tiles, split).

    Neighbouring programs share a tile of weights, which then comes from the second-level cache.

    Args:
        x: [B, P, C_in] with strides x_batch, x_row and 1.
        table: int32 [TAPS, n], the row of x that each tap reads; negative reads zero.
        weight: [C_out, TAPS, C_in], contiguous, dtype of x.
        scale, shift: float32 [B, C_in], read if AFFINE.
        bias, residual, index, out: see `finish`.
        partial: float32 [split, B, n, C_out], written instead of `out` if PARTIAL.
        size_class: n rounded up, which the choice of a tile shape goes by; not used here.
        PRECISION: of float32 products, "ieee" or "tf32"; sums are float32 always.
        WIDEN: multiply in float32 whatever the dtype, for Triton's interpreter.
    """
    tiles = tl.cdiv(n, BM)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    chunks = tl.cdiv(in_channels, BK)
    per_part = tl.cdiv(TAPS * chunks, split)
    x += batch * x_batch
    scale += batch * in_channels
    shift += batch * in_channels
    weight_row = channel.to(tl.int64)[None, :] * (TAPS * in_channels)
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(part * per_part, tl.minimum((part + 1) * per_part, TAPS * chunks)):
        tap = step // chunks
        inner = (step - tap * chunks) * BK + tl.arange(0, BK)
        within = inner < in_channels
        pixel = tl.load(table + tap * n + row, mask=row < n, other=-1).to(tl.int64)
        reads = (pixel >= 0)[:, None] & within[None, :]
        left = tl.load(x + pixel[:, None] * x_row + inner[None, :], mask=reads, other=0.0)
        right = tl.load(
            weight + weight_row + tap * in_channels + inner[:, None],
            mask=within[:, None] & (channel < out_channels)[None, :],
            other=0.0,
        )
        if AFFINE or SILU:
            # A padded convolution pads with zeros *after* norm and activation.
            value = through_prologue(left, scale, shift, inner, in_channels, AFFINE, SILU)
            left = tl.where(reads, value, 0.0).to(right.dtype)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    if not PARTIAL:
        finish(
            sums,
            row,
            batch,
            channel,
            bias,
            residual,
            out,
            index,
            n,
            out_channels,
            residual_batch,
            residual_row,
            out_batch,
            BIAS,
            RESIDUAL,
            INDEXED,
        )
    else:
        samples = tl.num_programs(0) // tiles
        first = (part * samples + batch) * n
        target = partial + (first + row[:, None]) * out_channels + channel[None, :]
        tl.store(target, sums, mask=(row < n)[:, None] & (channel < out_channels)[None, :])


@triton.jit
def finish_kernel(
    partial: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    channels: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """The parts of a split product added up, then `finish`; grid (tiles, tiles, B)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    inside = (row < n)[:, None] & (channel < channels)[None, :]
    sums = tl.zeros((BM, BC), dtype=tl.float32)
    for part in tl.static_range(SPLIT):
        first = (part * tl.num_programs(2) + batch) * n
        source = partial + (first + row[:, None]) * channels + channel[None, :]
        sums += tl.load(source, mask=inside, other=0.0)
    finish(
        sums,
        row,
        batch,
        channel,
        bias,
        residual,
        out,
        index,
        n,
        channels,
        residual_batch,
        residual_row,
        out_batch,
        BIAS,
        RESIDUAL,
        INDEXED,
    )
