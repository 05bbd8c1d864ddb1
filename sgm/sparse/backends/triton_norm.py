"""Triton kernels of the norms: group norm of a map changed in some pixels, layer norm of a sum.

Group norm takes two. `changes_kernel` adds up, channel by channel, what the active pixels changed
in the recorded moments, in a few parts so that a large card is busy. `group_norm_kernel` adds the
parts in a fixed order, makes scale and shift of them, and puts active rows and recorded rows
around them, normed, into one short map. Each of its programs works the statistics of its few
groups out anew: that reads a few kilobytes, and a launch of its own would take longer.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("n",))
def changes_kernel(
    new: tl.tensor,
    old: tl.tensor,
    index: tl.tensor,
    sums: tl.tensor,
    n: tl.tensor,
    channels: tl.tensor,
    new_batch: tl.tensor,
    new_row: tl.tensor,
    old_batch: tl.tensor,
    old_row: tl.tensor,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """Sums of new - old and of new^2 - old^2 over a part of the active pixels; grid (parts, tiles,
    B).

    Args:
        new: [B, n, C], active rows with strides new_batch, new_row and 1.
        old: the rows before: [B, n, C], or [B, P, C] if WHOLE, with strides old_batch, old_row, 1.
        index: int32 [n], the pixel of each row; a row of a negative one does not count.
        sums: float32 [parts, 2, B, C].
    """
    part, parts = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    per_part = tl.cdiv(tl.cdiv(n, BM), parts)
    change = tl.zeros((BM, BC), dtype=tl.float32)
    squares = tl.zeros((BM, BC), dtype=tl.float32)
    for step in range(part * per_part, (part + 1) * per_part):
        row = step * BM + tl.arange(0, BM)
        # No load but that of whole maps waits for the pixels; these are asked for first.
        pixel = tl.load(index + row, mask=row < n, other=-1)
        inside = (row < n)[:, None] & (channel < channels)[None, :]
        counts = (pixel >= 0)[:, None] & inside
        source = new + batch * new_batch + row.to(tl.int64)[:, None] * new_row + channel[None, :]
        now = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        place = (tl.maximum(pixel, 0) if WHOLE else row).to(tl.int64)[:, None]
        source = old + batch * old_batch + place * old_row + channel[None, :]
        before = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        change += tl.where(counts, now - before, 0.0)
        squares += tl.where(counts, (now - before) * (now + before), 0.0)
    samples = tl.num_programs(2)
    target = sums + (part * 2 * samples + batch) * channels + channel
    tl.store(target, tl.sum(change, axis=0), mask=channel < channels)
    tl.store(target + samples * channels, tl.sum(squares, axis=0), mask=channel < channels)


@triton.jit
def _per_group(values: tl.tensor, valid: tl.tensor, GROUPS: tl.constexpr) -> tl.tensor:
    """The sum over each group's lanes, handed back to every lane; values and valid [K]."""
    lanes: tl.constexpr = values.shape[0] // GROUPS
    by_group = tl.reshape(tl.where(valid, values, 0.0), (GROUPS, lanes))
    totals = tl.sum(by_group, axis=1)[:, None]
    return tl.reshape(tl.broadcast_to(totals, (GROUPS, lanes)), (GROUPS * lanes,))


@triton.jit
def scale_and_shift(
    sums: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    parts: tl.tensor,
    samples: tl.tensor,
    batch: tl.tensor,
    channels: tl.tensor,
    share: tl.tensor,
    eps: tl.tensor,
    channel: tl.tensor,
    valid: tl.tensor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Scale and shift, float32 [K], of the norm of a map whose moments have changed.

    Args:
        channel, valid: [K], the lanes of GROUPS groups of SIZE channels each.
        PARTS: `parts` rounded up to a power of two.
    """
    place = batch * channels + channel
    scale = tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32)
    term = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    average = tl.load(mean + place, mask=valid, other=0.0)
    power = tl.load(square + place, mask=valid, other=0.0)
    part = tl.arange(0, PARTS)[:, None]
    source = sums + part * 2 * samples * channels + place[None, :]
    there = (part < parts) & valid[None, :]
    change = tl.load(source, mask=there, other=0.0)
    squares = tl.load(source + samples * channels, mask=there, other=0.0)
    average += tl.sum(change, axis=0) * share
    power += tl.sum(squares, axis=0) * share
    # Within and between channels apart: less cancellation than one difference of large sums.
    centre = _per_group(average, valid, GROUPS) / SIZE
    apart = average - centre
    between = _per_group(apart * apart, valid, GROUPS) / SIZE
    within = _per_group(power - average * average, valid, GROUPS) / SIZE
    inverse = tl.rsqrt(tl.maximum(within + between, 0.0) + eps)
    scale *= inverse
    return scale, term - centre * scale


@triton.jit(do_not_specialize=("n", "rows", "parts"))
def group_norm_kernel(
    new: tl.tensor,
    old: tl.tensor,
    around: tl.tensor,
    sums: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    parts: tl.tensor,
    share: tl.tensor,
    eps: tl.tensor,
    new_batch: tl.tensor,
    new_row: tl.tensor,
    old_batch: tl.tensor,
    old_row: tl.tensor,
    WHOLE: tl.constexpr,
    AROUND: tl.constexpr,
    SILU: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
) -> None:
    """Rows of a short map through the norm as it is now, and SiLU; grid (tiles, tiles, B).

    Args:
        new: the first n rows, [B, n, C] with strides new_batch, new_row and 1.
        around: int64 [rows - n], pixels of the other rows in `old`, if WHOLE; else not read.
        old: [B, P, C] if WHOLE, else [B, rows - n, C], with strides old_batch, old_row and 1; read
            if AROUND.
        sums: of `changes_kernel`, with `parts` parts. mean, square: recorded, float32 [B, C].
        weight, bias: [C]. share: of one pixel in the whole map. eps: of the norm.
        out: [B, rows, C], contiguous.
        GROUPS: of one program. SIZE: channels of a group, which LANES rounds up.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    lane = tl.arange(0, GROUPS * LANES)
    channel = (tl.program_id(1) * GROUPS + lane // LANES) * SIZE + lane % LANES
    valid = (lane % LANES < SIZE) & (channel < channels)
    batch = tl.program_id(2).to(tl.int64)
    # Loaded before the statistics are worked out, so that nothing waits for them after.
    source = new + batch * new_batch + row.to(tl.int64)[:, None] * new_row + channel[None, :]
    values = tl.load(source, mask=(row < n)[:, None] & valid[None, :], other=0.0).to(tl.float32)
    if AROUND:
        others = (row >= n) & (row < rows)
        place = (row - n).to(tl.int64)
        if WHOLE:
            place = tl.load(around + place, mask=others, other=0)
        source = old + batch * old_batch + place[:, None] * old_row + channel[None, :]
        more = tl.load(source, mask=others[:, None] & valid[None, :], other=0.0)
        values += more.to(tl.float32)  # where the active rows have left zeros
    scale, shift = scale_and_shift(
        sums,
        mean,
        square,
        weight,
        bias,
        parts,
        tl.num_programs(2),
        batch,
        channels,
        share,
        eps,
        channel,
        valid,
        GROUPS,
        SIZE,
        PARTS,
    )
    values = values * scale[None, :] + shift[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    target = out + (batch * rows + row[:, None]) * channels + channel[None, :]
    inside = (row < rows)[:, None] & valid[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_kernel(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    eps: tl.tensor,
    BC: tl.constexpr,
) -> None:
    """total = x + added, rounded to its dtype, and out = its layer norm; a row a program.

    Args:
        x, added, total, out: [rows, C], contiguous. weight, bias: [C].
        BC: C rounded up to a power of two.
    """
    channel = tl.arange(0, BC)
    valid = channel < channels
    first = tl.program_id(0).to(tl.int64) * channels
    factor = tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32)
    term = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    value = tl.load(x + first + channel, mask=valid, other=0.0).to(tl.float32)
    value += tl.load(added + first + channel, mask=valid, other=0.0).to(tl.float32)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + first + channel, rounded, mask=valid)
    value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=0) / channels
    apart = tl.where(valid, value - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(apart * apart, axis=0) / channels + eps)
    normed = apart * inverse * factor + term
    tl.store(out + first + channel, normed.to(out.dtype.element_ty), mask=valid)
