"""Triton kernels of the sparse convolution: an implicit matrix product over gathered rows.

Row i of the left matrix [B * n, k * k * C_in] is the neighbourhood of output i; it is never stored:
each step of the product loads one tap's rows of a tile of outputs through the neighbour table. The
rows of all samples lie on one axis, so that few outputs still fill a tile. A step's pixels are
loaded a step ahead, so that its rows can be loaded as far ahead as there is memory for. Bias, time
embedding, residual and the indexed write happen in registers.

Few outputs and many channels give too few tiles for a large card (300 rows and 1280 channels are
30 tiles of 128 x 128, for 132 multiprocessors). Then the product's long axis is split: each part
stores float32 sums, and `finish_kernel` adds them in a fixed order, so that results repeat.
"""

import triton
import triton.language as tl


@triton.jit
def finish(
    sums: tl.tensor,
    sample: tl.tensor,
    position: tl.tensor,
    valid: tl.tensor,
    channel: tl.tensor,
    bias: tl.tensor,
    embedding: tl.tensor,
    residual: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    embedding_batch: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    BIAS: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
) -> None:
    """Bias, time embedding, residual and write of a tile of sums, float32 [M, K].

    Args:
        sample, position, valid: [M], the sample of each row, its place in the list of outputs, and
            whether there is such a row.
        channel: [K]; those from `channels` on are not there.
        bias: [channels]. embedding: [B, channels], a sample every `embedding_batch` elements.
        residual: [B, P, channels] with strides residual_batch, residual_row and 1.
        index: int32 [n], the row of `residual` and `out` each output belongs to (negative:
            nowhere) if INDEXED; otherwise output i is row i.
        out: [B, P, channels], contiguous, of out_batch elements a sample.
    """
    inside = channel < channels
    if BIAS:
        term = tl.load(bias + channel, mask=inside, other=0.0)
        sums += term.to(tl.float32)[None, :]
    if INDEXED:
        pixel = tl.load(index + position, mask=valid, other=-1)
    else:
        pixel = tl.where(valid, position, -1)
    writes = (pixel >= 0)[:, None] & inside[None, :]
    pixel, sample = pixel.to(tl.int64)[:, None], sample.to(tl.int64)[:, None]
    if EMBEDDING:
        source = embedding + sample * embedding_batch + channel[None, :]
        sums += tl.load(source, mask=writes, other=0.0).to(tl.float32)
    if RESIDUAL:
        source = residual + sample * residual_batch + pixel * residual_row + channel[None, :]
        sums += tl.load(source, mask=writes, other=0.0).to(tl.float32)
    target = out + sample * out_batch + pixel * channels + channel[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=writes)


@triton.jit(do_not_specialize=("n", "samples", "size_class"))
def conv_kernel(
    x: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    embedding: tl.tensor,
    residual: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    n: tl.tensor,
    samples: tl.tensor,
    size_class: tl.tensor,
    split: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    embedding_batch: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    TAPS: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BIAS: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """A tile of BM outputs by BN channels; grid (tiles, tiles, split).

    Neighbouring programs share a tile of weights, which then comes from the second-level cache.

    Args:
        x: [B, P, C_IN] with strides x_batch, x_row and 1.
        table: int32 [TAPS, n], the row of x that each tap reads; negative reads zero.
        weight: [C_OUT, TAPS, C_IN], contiguous, dtype of x.
        bias, embedding, residual, index, out: see `finish`.
        partial: float32 [split, B * n, C_OUT], written instead of `out` if PARTIAL.
        size_class: B * n rounded up, which the choice of a tile goes by; not used here.
        PRECISION: of float32 products, "ieee" or "tf32"; sums are float32 always.
        WIDEN: multiply in float32 whatever the dtype, for Triton's interpreter.
    """
    chunks: tl.constexpr = (C_IN + BK - 1) // BK
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = row < samples * n
    sample = row // n
    position = row - sample * n
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    per_part = tl.cdiv(TAPS * chunks, split)
    first = part * per_part
    start = x + sample.to(tl.int64) * x_batch
    lane = tl.arange(0, BK)
    matrix = weight + channel[None, :] * (TAPS * C_IN) + lane[:, None]
    has_channel = (channel < C_OUT)[None, :]
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    tap = tl.minimum(first // chunks, TAPS - 1)
    pixel = tl.load(table + tap * n + position, mask=valid, other=-1)
    for step in range(first, tl.minimum(first + per_part, TAPS * chunks)):
        tap = step // chunks
        done = (step - tap * chunks) * BK
        reads = (pixel >= 0)[:, None]
        within = has_channel
        if C_IN % BK != 0:
            reads = reads & (done + lane < C_IN)[None, :]
            within = within & (done + lane < C_IN)[:, None]
        rows = (start + pixel.to(tl.int64) * x_row)[:, None] + (done + lane)[None, :]
        left = tl.load(rows, mask=reads, other=0.0)
        if C_IN % BK == 0 and C_OUT % BN == 0:
            right = tl.load(matrix + step * BK)
        else:
            right = tl.load(matrix + tap * C_IN + done, mask=within, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
        following = tl.minimum((step + 1) // chunks, TAPS - 1)
        pixel = tl.load(table + following * n + position, mask=valid, other=-1)
    if PARTIAL:
        target = partial + (part * samples * n + row).to(tl.int64)[:, None] * C_OUT
        tl.store(target + channel[None, :], sums, mask=valid[:, None] & has_channel)
    else:
        finish(
            sums,
            sample,
            position,
            valid,
            channel,
            bias,
            embedding,
            residual,
            index,
            out,
            C_OUT,
            embedding_batch,
            residual_batch,
            residual_row,
            out_batch,
            BIAS,
            EMBEDDING,
            RESIDUAL,
            INDEXED,
        )


@triton.jit(do_not_specialize=("n", "samples"))
def finish_kernel(
    partial: tl.tensor,
    bias: tl.tensor,
    embedding: tl.tensor,
    residual: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    samples: tl.tensor,
    embedding_batch: tl.tensor,
    residual_batch: tl.tensor,
    residual_row: tl.tensor,
    out_batch: tl.tensor,
    C_OUT: tl.constexpr,
    BIAS: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    INDEXED: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """The parts of a split product added up, then `finish`; grid (tiles, tiles)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    valid = row < samples * n
    sample = row // n
    inside = valid[:, None] & (channel < C_OUT)[None, :]
    sums = tl.zeros((BM, BC), dtype=tl.float32)
    for part in tl.static_range(SPLIT):
        source = partial + (part * samples * n + row).to(tl.int64)[:, None] * C_OUT
        sums += tl.load(source + channel[None, :], mask=inside, other=0.0)
    finish(
        sums,
        sample,
        row - sample * n,
        valid,
        channel,
        bias,
        embedding,
        residual,
        index,
        out,
        C_OUT,
        embedding_batch,
        residual_batch,
        residual_row,
        out_batch,
        BIAS,
        EMBEDDING,
        RESIDUAL,
        INDEXED,
    )
